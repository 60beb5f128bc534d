//! Repeating a store operation until its answer is known or its time is over.

use std::future::Future;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};

use super::Inner;
use crate::paused::explain;
use crate::store::{StoreError, StoreErrorKind};

/// The pauses between tries: 5 ms, doubling up to one second.
pub(crate) fn pauses() -> impl Iterator<Item = Duration> + Send {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(5))
        .with_max_delay(Duration::from_secs(1))
        .with_factor(2.0)
        .without_max_times()
        .build()
}

/// Repeats `operation` while it fails in a way that can pass, for at most `budget`.
///
/// A try that takes longer than `claim_timeout` is dropped, and its outcome is unknown: `operation` must be safe to repeat.
pub(crate) async fn until<T, F>(
    engine: &Inner,
    budget: Duration,
    mut operation: impl FnMut() -> F,
) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let clock = &engine.clock;
    let start = clock.monotonic();
    let end = start.saturating_add(budget);
    let mut pauses = pauses();
    let mut slept = Duration::ZERO;
    loop {
        let patience = engine.settings.claim_timeout.min(end.saturating_sub(clock.monotonic()));
        let answer = tokio::select! {
            // An answer that is there is taken, however late this was polled.
            biased;
            answer = operation() => answer,
            () = clock.sleep(patience) => {
                slept += patience;
                Err(StoreError::new(StoreErrorKind::Unavailable, "wait for the store")
                    .with_detail(format!("no answer within {patience:?}")))
            }
        };
        let left = end.saturating_sub(clock.monotonic());
        match answer {
            Err(error) if error.is_transient() && !left.is_zero() => {
                let pause = pauses.next().unwrap_or(left).min(left);
                clock.sleep(pause).await;
                slept += pause;
            }
            answer => {
                return answer.map_err(|error| explain(error, slept, clock.monotonic().saturating_sub(start)));
            }
        }
    }
}
