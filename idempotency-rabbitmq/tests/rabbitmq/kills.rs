//! SIGKILL at each point of a message, under each policy: the failure table, cell by cell.

use anyhow::{Context as _, ensure};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use idempotency::inbox::Consumer;
use idempotency_rabbitmq::lapin::types::AMQPValue;
use idempotency_test_support::deadline::within;
use idempotency_test_support::worker::{
    AFTER_CLAIM, AFTER_COMMIT, AFTER_EFFECT, BEFORE_COMMIT, BEFORE_SEND,
};

use crate::scene::{Kind, Scene, broker, finish_by};
use crate::wire::Wire;
use crate::worker::{AT_ONCE, Orders, PLACES};

/// How a message ends whose consumer was killed, and how many effects it has then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Acked(usize),
    InDoubt(usize),
}

/// Where the consumer dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Point(&'static str),
    /// With its acknowledgement on the way, which the broker never gets.
    Ack,
}

/// The point, and the end under `hold` and under `retry`.
const TABLE: [(At, End, End); 6] = [
    (At::Point(BEFORE_SEND), End::Acked(1), End::Acked(1)),
    (At::Point(AFTER_CLAIM), End::InDoubt(0), End::Acked(1)),
    (At::Point(AFTER_EFFECT), End::InDoubt(1), End::Acked(2)),
    (At::Point(BEFORE_COMMIT), End::InDoubt(1), End::Acked(2)),
    (At::Point(AFTER_COMMIT), End::Acked(1), End::Acked(1)),
    (At::Ack, End::Acked(1), End::Acked(1)),
];

/// At least 15 a cell, ten times as many in the long version.
fn kills() -> usize {
    if std::env::var_os("IDEMPOTENCY_LONG").is_some() { 200 } else { 15 }
}

async fn kill_one(at: At, retries: bool, end: End, number: usize) -> anyhow::Result<()> {
    let _place = PLACES.acquire().await?;
    let kind = if number.is_multiple_of(2) { Kind::Quorum } else { Kind::Classic };
    let scene = Scene::new(kind).await?;
    let orders = Orders { retries, ..Orders::of(&scene).await? };
    scene.publish("m-0", "m-0").await?;
    let (worker, _wire) = match at {
        At::Point(point) => {
            let mut worker = orders.spawn(&[point])?;
            worker.wait_for_point(point).await?;
            (worker, None)
        }
        At::Ack => {
            let wire = Wire::to(broker().await?.address()).await?;
            wire.swallow_acks();
            let worker = Orders { broker: wire.url(), ..orders.clone() }.spawn(&[])?;
            wire.has_swallowed(1).await?;
            (worker, Some(wire))
        }
    };
    ensure!(scene.ready(&scene.queue).await? == 0, "the message is in no hand");
    worker.kill().await?;
    scene.is_ready(&scene.queue, 1).await?;

    // Behind it in the queue: when this one is handled, the other has begun at least, and a consumer
    // that stops finishes what it has begun.
    scene.publish("last", "last").await?;
    let consumer = Consumer::new(orders.inbox(orders.engine().await?), scene.source().await?);
    let mut handled = Ok(());
    let stop = async { handled = scene.have_happened(["last".to_owned()]).await };
    let drained =
        within("the consumer to end", Box::pin(consumer.run(stop, scene.handler()))).await??;
    handled?;
    ensure!(drained.left == 0, "{drained:?}");
    // An acknowledgement that comes just before the end of its channel can be lost in a quorum queue.
    finish_by(&scene, || async { Ok(orders.inbox(orders.engine().await?)) }).await?;
    let effects = scene.effects.count("m-0")?;
    let dead = scene.left().await?.1;
    let found = if dead == 0 { End::Acked(effects) } else { End::InDoubt(effects) };
    ensure!(found == end, "{found:?}, not {end:?}");
    if let End::InDoubt(_) = end {
        let letter = scene.dead_letter().await?;
        let headers = letter.properties.headers().as_ref().context("headers")?.inner();
        let reason = headers.get("idempotency-reason").context("a reason")?;
        ensure!(*reason == AMQPValue::LongString("in-doubt".into()), "{reason:?}");
    }
    Ok(())
}

async fn kill_at_each_point(retries: bool) -> anyhow::Result<()> {
    let cells = TABLE.into_iter().flat_map(|row| (0..kills()).map(move |number| (row, number)));
    let deaths = cells.map(|((at, hold, retry), number)| {
        let end = if retries { retry } else { hold };
        let death = Box::pin(kill_one(at, retries, end, number));
        async move {
            let death = death.await;
            death.with_context(|| format!("killed at {at:?}, retries: {retries}, {number}"))
        }
    });
    stream::iter(deaths).buffer_unordered(AT_ONCE).try_collect().await
}

#[tokio::test]
async fn under_hold_a_kill_leaves_what_the_table_says() -> anyhow::Result<()> {
    kill_at_each_point(false).await
}

#[tokio::test]
async fn under_retry_a_kill_leaves_what_the_table_says() -> anyhow::Result<()> {
    kill_at_each_point(true).await
}

#[tokio::test]
async fn a_kill_between_a_dead_letter_and_its_ack_leaves_two_copies_with_one_effect()
-> anyhow::Result<()> {
    let deaths = (0..kills()).map(|number| async move {
        let death = Box::pin(kill_after_a_dead_letter()).await;
        death.with_context(|| format!("number {number}"))
    });
    stream::iter(deaths).buffer_unordered(AT_ONCE / 2).try_collect().await
}

async fn kill_after_a_dead_letter() -> anyhow::Result<()> {
    let _place = PLACES.acquire().await?;
    let scene = Scene::new(Kind::Quorum).await?;
    let orders = Orders { fails: true, ..Orders::of(&scene).await? };
    scene.publish("m-0", "m-0").await?;
    let wire = Wire::to(broker().await?.address()).await?;
    wire.swallow_acks();
    let worker = Orders { broker: wire.url(), ..orders.clone() }.spawn(&[])?;
    wire.has_swallowed(1).await?;
    ensure!(scene.ready(&scene.dead).await? == 1, "acknowledged before it was confirmed");
    worker.kill().await?;
    // The broker delivers it again, and it fails again.
    let again = orders.spawn(&[])?;
    scene.is_ready(&scene.dead, 2).await?;
    again.kill().await?;
    let (first, second) = (scene.dead_letter().await?, scene.dead_letter().await?);
    let id = first.properties.message_id().as_ref();
    ensure!(id.is_some() && id == second.properties.message_id().as_ref(), "{id:?}");
    for letter in [&first, &second] {
        scene.redrive(letter).await?;
    }
    let consumer = Consumer::new(orders.inbox(orders.engine().await?), scene.source().await?);
    let stop = async {
        let _ = scene.have_happened(["m-0".to_owned()]).await;
        let _ = scene.is_ready(&scene.queue, 0).await;
    };
    within("the consumer to end", Box::pin(consumer.run(stop, scene.handler()))).await??;
    scene.assert_once(["m-0".to_owned()])?;
    finish_by(&scene, || async { Ok(orders.inbox(orders.engine().await?)) }).await?;
    scene.assert_once(["m-0".to_owned()])?;
    ensure!(scene.ready(&scene.dead).await? == 0, "a redrive is a dead letter");
    Ok(())
}
