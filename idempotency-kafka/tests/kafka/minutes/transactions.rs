//! Messages whose record and effect are one transaction of PostgreSQL.

use anyhow::ensure;
use idempotency_test_support::consuming::transactions;

use crate::scene::Scene;
use crate::transactions::two_behind_one_another;

#[tokio::test]
async fn a_kill_at_each_point_leaves_one_effect() -> anyhow::Result<()> {
    transactions::kill_at_each_point::<Scene>().await
}

#[tokio::test]
async fn a_message_that_kills_its_process_is_a_dead_letter_after_its_attempts() -> anyhow::Result<()>
{
    transactions::poison::<Scene>().await
}

#[tokio::test]
async fn the_same_message_64_times_in_4_processes_has_one_effect() -> anyhow::Result<()> {
    transactions::deliver_one_message_64_times::<Scene>().await
}

#[tokio::test]
async fn a_consumer_waits_for_the_transaction_of_one_that_was_cut_off() -> anyhow::Result<()> {
    transactions::cut_off_in_a_transaction::<Scene>().await
}

#[tokio::test]
async fn a_process_that_stands_still_in_its_transaction_commits_later() -> anyhow::Result<()> {
    transactions::stop_in_a_transaction::<Scene>().await
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_acknowledged_and_has_one_effect() -> anyhow::Result<()> {
    transactions::lose_commits::<Scene>().await
}

/// The process that makes a dead letter of the first dies of the second, before the offset of the
/// first is committed.
#[tokio::test]
async fn two_messages_that_kill_one_behind_the_other_kill_no_more_than_each_alone()
-> anyhow::Result<()> {
    let died = two_behind_one_another().await?;
    // Each its three attempts, and one more that was not counted.
    ensure!((6..=8).contains(&died), "{died} processes have died");
    Ok(())
}
