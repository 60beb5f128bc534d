//! Several processes in one group: that stop, that die of a message, that get the same one at once.

use idempotency_test_support::consuming::fleet;

use crate::scene::Scene;

#[tokio::test]
async fn a_process_that_is_terminated_finishes_what_runs_and_leaves_the_rest() -> anyhow::Result<()>
{
    fleet::terminate_under_load::<Scene>().await
}

#[tokio::test]
async fn the_same_message_64_times_in_4_processes_has_one_effect() -> anyhow::Result<()> {
    fleet::deliver_one_message_64_times::<Scene>().await
}

#[tokio::test]
async fn a_message_that_kills_its_process_is_a_dead_letter_in_the_end_and_its_neighbours_are_handled()
-> anyhow::Result<()> {
    fleet::poison::<Scene>().await
}

#[tokio::test]
async fn two_inboxes_of_one_store_each_handle_each_message_once() -> anyhow::Result<()> {
    fleet::two_inboxes::<Scene>().await
}
