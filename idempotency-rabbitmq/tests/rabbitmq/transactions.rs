//! Messages whose record and effect are one transaction of PostgreSQL.

use std::future::ready;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use idempotency::inbox::Consumer;
use idempotency_rabbitmq::QueueMessage;
use idempotency_rabbitmq::lapin::BasicProperties;
use idempotency_rabbitmq::lapin::types::{AMQPValue, FieldTable};
use idempotency_test_support::consuming::{Bookings, transactions};
use idempotency_test_support::deadline::within;

use crate::scene::{Kind, Scene};

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

/// A classic queue repeats it each time: it is not that of this queue.
#[tokio::test]
async fn a_count_that_came_with_the_message_changes_its_attempts_by_none() -> anyhow::Result<()> {
    for came_with in [0, 1, 40] {
        let scene = Scene::new(Kind::Classic).await?;
        let (pool, inbox) = Bookings::of(&scene).await?.open().await?;
        let mut headers = FieldTable::default();
        headers.insert("x-delivery-count".into(), AMQPValue::LongLongInt(came_with));
        let counted = BasicProperties::default().with_headers(headers);
        scene.publish_with(counted.with_message_id("m-0".into()), "m-0").await?;
        let tries = Arc::new(AtomicU32::new(0));
        let handler = {
            let tries = tries.clone();
            move |_, _: Arc<QueueMessage>| {
                tries.fetch_add(1, Ordering::SeqCst);
                ready(Err(io::Error::other("the card is unknown")))
            }
        };
        let consumer = Consumer::new(inbox, scene.source().await?);
        let stop = async {
            let _ = scene.is_ready(&scene.dead, 1).await;
        };
        within("the consumer to end", Box::pin(consumer.run_in(pool, stop, handler))).await??;
        assert_eq!(tries.load(Ordering::SeqCst), 3, "a count of {came_with}");
        assert_eq!(scene.left().await?, (0, 1));
    }
    Ok(())
}
