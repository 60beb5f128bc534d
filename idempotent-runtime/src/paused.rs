//! Explains a store that seems silent only because time did not pass: a test has paused Tokio's
//! clock, which then jumps to the next timeout whenever all tasks wait, also for a server.

use std::time::Duration;

use crate::store::StoreError;

/// Returns `error`, with this explanation if the clock that timeouts are counted on is ahead of the
/// real one.
pub(crate) fn explain(error: StoreError, counted: Duration, real: Duration) -> StoreError {
    if !error.is_transient()
        || counted <= real.saturating_add(real / 2).saturating_add(Duration::from_millis(10))
    {
        return error;
    }
    StoreError::new(error.kind(), error.operation())
        .with_detail(format!(
            "Tokio's clock ran ahead: {counted:?} have passed on it, and {real:?} in reality. A \
             test that pauses it (`start_paused`, `tokio::time::pause`) leaves a store no time to \
             answer: let real time pass, or use `MemoryStore`"
        ))
        .with_source(error)
}

/// Awaits `work`, and explains its failure if it failed because Tokio's clock is paused.
#[cfg(feature = "__external")]
#[expect(clippy::disallowed_methods, reason = "compares the machine's clock with Tokio's")]
pub(crate) async fn explained<T>(
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let (real, counted) = (std::time::Instant::now(), tokio::time::Instant::now());
    work.await.map_err(|error| {
        // In this order: if both were the same clock, less would be counted than has really passed.
        let counted = counted.elapsed();
        explain(error, counted, real.elapsed())
    })
}

#[cfg(all(test, feature = "__external"))]
mod tests {
    use std::error::Error as _;
    use std::time::Duration;

    use super::explained;
    use crate::store::{Operation, StoreError, StoreErrorKind};

    #[expect(clippy::disallowed_methods, reason = "it is Tokio's clock that is paused")]
    async fn times_out(after: Duration) -> Result<(), StoreError> {
        tokio::time::sleep(after).await;
        Err(StoreError::new(StoreErrorKind::Unavailable, Operation::Connect)
            .with_detail("no answer"))
    }

    #[tokio::test(start_paused = true)]
    async fn a_paused_clock_is_the_reason() {
        let error = explained(times_out(Duration::from_secs(5))).await.unwrap_err();
        assert!(error.to_string().contains("start_paused"), "{error}");
        assert!(error.source().unwrap().to_string().contains("no answer"));
    }

    #[tokio::test]
    async fn a_clock_that_goes_is_none() {
        let error = explained(times_out(Duration::from_millis(20))).await.unwrap_err();
        assert_eq!(error.to_string(), "connect: the store did not answer: no answer");
    }
}
