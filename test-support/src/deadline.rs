//! Waiting with an end: when the condition holds, or at a deadline with a message.

use std::fmt::Display;
use std::time::{Duration, Instant};

use anyhow::bail;

/// The time that anything in a test may take before the test fails: far longer than it takes on a
/// loaded machine.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// The polling interval for a condition that nothing announces.
const PAUSE: Duration = Duration::from_millis(5);

/// Waits until `condition` holds.
///
/// # Errors
/// After [`DEADLINE`], with `what` was waited for.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// use idempotency_test_support::deadline::eventually;
///
/// let mut looked = 0;
/// eventually("the third look", || {
///     looked += 1;
///     looked == 3
/// })
/// .await
/// # })
/// # ?;
/// # Ok::<(), anyhow::Error>(())
/// ```
pub async fn eventually(
    what: impl Display,
    mut condition: impl FnMut() -> bool,
) -> anyhow::Result<()> {
    eventually_async(what, async || condition()).await
}

/// Waits like [`eventually`], for a condition that has to wait for an answer.
pub async fn eventually_async(
    what: impl Display,
    condition: impl AsyncFnMut() -> bool,
) -> anyhow::Result<()> {
    eventually_within(DEADLINE, what, condition).await
}

/// Waits like [`eventually_async`], with a deadline of its own: for limits that are promised to
/// users.
pub async fn eventually_within(
    deadline: Duration,
    what: impl Display,
    mut condition: impl AsyncFnMut() -> bool,
) -> anyhow::Result<()> {
    let start = Instant::now();
    while !condition().await {
        if start.elapsed() >= deadline {
            bail!("waited {deadline:?} for {what} in vain");
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Returns the output of `future`.
///
/// # Errors
/// After [`DEADLINE`], with `what` was waited for.
pub async fn within<T>(what: impl Display, future: impl Future<Output = T>) -> anyhow::Result<T> {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(output) => Ok(output),
        Err(_) => bail!("waited {DEADLINE:?} for {what} in vain"),
    }
}

#[cfg(test)]
mod tests {
    use super::{DEADLINE, Duration, eventually_within, within};

    #[tokio::test]
    async fn a_condition_that_never_holds_is_named() {
        let error =
            eventually_within(Duration::from_millis(1), "rain", async || false).await.unwrap_err();
        assert_eq!(error.to_string(), "waited 1ms for rain in vain");
    }

    #[tokio::test(start_paused = true)]
    async fn a_future_that_never_ends_is_named() {
        let error = within("the answer", std::future::pending::<()>()).await.unwrap_err();
        assert_eq!(error.to_string(), format!("waited {DEADLINE:?} for the answer in vain"));
    }
}
