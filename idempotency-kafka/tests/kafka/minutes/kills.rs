//! SIGKILL at each point of a message, under each policy: the failure table, cell by cell.

use idempotency_test_support::consuming::kills::{kill_after_a_dead_letter, kill_at_each_point};

use crate::scene::Scene;

#[tokio::test]
async fn under_hold_a_kill_leaves_what_the_table_says() -> anyhow::Result<()> {
    kill_at_each_point::<Scene>(false).await
}

#[tokio::test]
async fn under_retry_a_kill_leaves_what_the_table_says() -> anyhow::Result<()> {
    kill_at_each_point::<Scene>(true).await
}

#[tokio::test]
async fn a_kill_between_a_dead_letter_and_its_commit_leaves_two_copies_with_one_effect()
-> anyhow::Result<()> {
    kill_after_a_dead_letter::<Scene>().await
}
