//! Repeats a store operation until its answer is known or its time has run out.

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

/// The time that is reserved for the last try.
const LAST_TRY: Duration = Duration::from_millis(100);

/// Repeats `operation` while it fails with transient errors, for at most `budget`.
///
/// A try that takes longer than `claim_timeout` is dropped, and its outcome is unknown: `operation`
/// must be safe to repeat.
pub(crate) async fn until<T, F>(
    engine: &Inner,
    budget: Duration,
    operation: impl FnMut() -> F,
) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    repeated(engine, budget, StoreError::is_transient, operation).await
}

/// Repeats `operation` whatever the error, for at most `budget`: permissions, space and settings
/// can be restored too, once it has been noticed that they are missing.
pub(crate) async fn until_done<T, F>(
    engine: &Inner,
    budget: Duration,
    operation: impl FnMut() -> F,
) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    repeated(engine, budget, |_| true, operation).await
}

async fn repeated<T, F>(
    engine: &Inner,
    budget: Duration,
    can_pass: impl Fn(&StoreError) -> bool,
    mut operation: impl FnMut() -> F,
) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let clock = &engine.clock;
    let start = clock.monotonic();
    let end = start.saturating_add(budget);
    let last_try = LAST_TRY.min(budget / 4);
    let mut pauses = pauses();
    let mut slept = Duration::ZERO;
    let mut said = None;
    loop {
        let left = end.saturating_sub(clock.monotonic());
        // Without any time there is still one try.
        let patience =
            engine.settings.claim_timeout.min(if budget.is_zero() { Duration::MAX } else { left });
        let answer = tokio::select! {
            // An answer that is ready is taken, however late this is polled.
            biased;
            answer = operation() => answer,
            () = clock.sleep(patience) => {
                slept += patience;
                let error = StoreError::new(StoreErrorKind::Unavailable, "wait for the store")
                    .with_detail(format!("no answer within {patience:?}"));
                Err(match said.take() {
                    Some(before) => error.with_source(before),
                    None => error,
                })
            }
        };
        let left = end.saturating_sub(clock.monotonic());
        match answer {
            Err(error) if can_pass(&error) && left > last_try => {
                let pause = pauses.next().unwrap_or(left).min(left.saturating_sub(last_try));
                clock.sleep(pause).await;
                slept += pause;
                said = Some(error);
            }
            answer => {
                return answer.map_err(|error| {
                    explain(error, slept, clock.monotonic().saturating_sub(start))
                });
            }
        }
    }
}
