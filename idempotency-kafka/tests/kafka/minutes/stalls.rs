//! Processes that stand still for longer than their lease, and than their session, and go on.

use idempotency_test_support::consuming::stalls;

use crate::scene::Scene;

#[tokio::test]
async fn under_hold_a_process_that_stood_still_stores_its_late_result() -> anyhow::Result<()> {
    stalls::stand_still::<Scene>(false).await
}

#[tokio::test]
async fn under_retry_the_late_result_of_a_process_that_stood_still_is_refused() -> anyhow::Result<()>
{
    stalls::stand_still::<Scene>(true).await
}
