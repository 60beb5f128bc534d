//! Repeats a request to the store until its answer is known or its time has run out.

use std::future::Future;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};

use super::store_client::no_answer_within;
use crate::clock::Clock;
use crate::paused::explain;
use crate::store::{Operation, StoreError};

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

/// The time for which a request is repeated, and after which errors.
#[derive(Clone, Copy)]
pub(crate) struct Budget {
    time: Duration,
    /// The time for which a try that has begun may go on when `time` is over, in which none begins.
    overtime: Option<Duration>,
    whatever_fails: bool,
}

impl Budget {
    /// Repeats a request while it fails with transient errors, for at most `time`.
    pub(crate) const fn of(time: Duration) -> Self {
        Self { time, overtime: None, whatever_fails: false }
    }

    /// Repeats a request whatever the error, for at most `time`: permissions, space and settings
    /// can be restored too, once it has been noticed that they are missing.
    pub(crate) const fn until_done(time: Duration) -> Self {
        Self { time, overtime: None, whatever_fails: true }
    }

    /// Lets a try that has begun go on for `overtime` when the time is over.
    pub(crate) const fn with_overtime(self, overtime: Duration) -> Self {
        Self { overtime: Some(overtime), ..self }
    }

    fn allows_another(self, error: &StoreError) -> bool {
        self.whatever_fails || error.is_transient()
    }
}

/// Repeats `request` until its answer is known or `budget` is used up.
///
/// A try that takes longer than `patience` is dropped, and its outcome is unknown: the request must
/// be safe to repeat.
pub(super) async fn repeated<T, F>(
    clock: &dyn Clock,
    operation: Operation,
    patience: Duration,
    budget: Budget,
    mut request: impl FnMut() -> F,
) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let start = clock.monotonic();
    let end = start.saturating_add(budget.time);
    let last_try = LAST_TRY.min(budget.time / 4);
    let mut pauses = pauses();
    let mut slept = Duration::ZERO;
    let mut said = None;
    loop {
        let left = end.saturating_sub(clock.monotonic());
        // Without any time there is still one try.
        let longest = left.saturating_add(budget.overtime.unwrap_or_default());
        let patience = patience.min(if budget.time.is_zero() { Duration::MAX } else { longest });
        let answer = tokio::select! {
            // An answer that is ready is taken, however late this is polled.
            biased;
            answer = request() => answer,
            () = clock.sleep(patience) => {
                slept += patience;
                let error = no_answer_within(operation, patience);
                Err(match said.take() {
                    Some(before) => error.with_source(before),
                    None => error,
                })
            }
        };
        let left = end.saturating_sub(clock.monotonic());
        match answer {
            Err(error) if budget.allows_another(&error) && left > last_try => {
                let pause = pauses.next().unwrap_or(left).min(left.saturating_sub(last_try));
                clock.sleep(pause).await;
                slept += pause;
                let now = clock.monotonic();
                // The pause may have been longer than it was to be.
                if budget.overtime.is_some() && end.saturating_sub(now) <= last_try / 2 {
                    return Err(explain(error, slept, now.saturating_sub(start)));
                }
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
