//! SIGKILL at each point of a message, under each policy: the failure table, cell by cell.

use anyhow::{Context as _, ensure};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use super::broker::has_dead_letters;
use super::{AT_ONCE, Broker, Orders, PLACES, consume, finish, handler};
use crate::worker::{AFTER_CLAIM, AFTER_COMMIT, AFTER_EFFECT, BEFORE_COMMIT, BEFORE_SEND};

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

/// At least 15 a cell, many more in the long version.
pub(super) fn kills() -> usize {
    if std::env::var_os("IDEMPOTENCY_LONG").is_some() { 200 } else { 15 }
}

/// Kills a consumer at each point of the table, and checks how its message ends.
///
/// # Errors
/// If one ends otherwise, with the point.
pub async fn kill_at_each_point<B: Broker>(retries: bool) -> anyhow::Result<()> {
    let cells = TABLE.into_iter().flat_map(|row| (0..kills()).map(move |number| (row, number)));
    let deaths = cells.map(|((at, hold, retry), number)| {
        let end = if retries { retry } else { hold };
        let death = Box::pin(kill_one::<B>(at, retries, end, number));
        async move {
            let death = death.await;
            death.with_context(|| format!("killed at {at:?}, retries: {retries}, {number}"))
        }
    });
    stream::iter(deaths).buffer_unordered(AT_ONCE).try_collect().await
}

async fn kill_one<B: Broker>(at: At, retries: bool, end: End, number: usize) -> anyhow::Result<()> {
    let _place = PLACES.acquire().await?;
    let broker = B::create(number).await?;
    let orders = Orders { retries, ..Orders::of(&broker).await? };
    broker.publish("m-0", "m-0").await?;
    let (worker, _wire) = match at {
        At::Point(point) => {
            let mut worker = orders.spawn(&[point])?;
            worker.wait_for_point(point).await?;
            (worker, None)
        }
        At::Ack => {
            let wire = broker.wire().await?;
            wire.swallow_acks();
            let worker = orders.by(wire.url()).spawn(&[])?;
            wire.has_swallowed(1).await?;
            (worker, Some(wire))
        }
    };
    broker.are_in_hand(1).await?;
    worker.kill().await?;
    broker.notices_a_death().await?;

    // Behind it in the queue: when this one is handled, the other has begun at least, and a consumer
    // that stops finishes what it has begun.
    broker.publish("last", "last").await?;
    let inbox = orders.inbox(orders.engine().await?);
    let until = async {
        broker.effects().have_happened(["last".to_owned()]).await?;
        broker.is_empty().await
    };
    consume(inbox.clone(), broker.source().await?, handler(&broker), until).await??;
    finish(&broker, &inbox).await?;
    let effects = broker.effects().count("m-0")?;
    let (_, dead) = broker.left().await?;
    let found = if dead == 0 { End::Acked(effects) } else { End::InDoubt(effects) };
    ensure!(found == end, "{found:?}, not {end:?}");
    if let End::InDoubt(_) = end {
        let reason = B::reason(&broker.dead_letter().await?);
        ensure!(reason.as_deref() == Some("in-doubt"), "{reason:?}");
    }
    Ok(())
}

/// Kills consumers whose dead letter is published and whose acknowledgement is lost: the message
/// comes again and is a dead letter again, and moved back it has one effect.
///
/// # Errors
/// If it has none, or another one, or is a dead letter again.
pub async fn kill_after_a_dead_letter<B: Broker>() -> anyhow::Result<()> {
    let deaths = (0..kills()).map(|number| async move {
        let death = Box::pin(kill_one_after_a_dead_letter::<B>()).await;
        death.with_context(|| format!("number {number}"))
    });
    stream::iter(deaths).buffer_unordered(AT_ONCE / 2).try_collect().await
}

async fn kill_one_after_a_dead_letter<B: Broker>() -> anyhow::Result<()> {
    let _place = PLACES.acquire().await?;
    let broker = B::create(0).await?;
    let orders = Orders { fails: true, ..Orders::of(&broker).await? };
    broker.publish("m-0", "m-0").await?;
    let wire = broker.wire().await?;
    wire.swallow_acks();
    let worker = orders.by(wire.url()).spawn(&[])?;
    wire.has_swallowed(1).await?;
    ensure!(broker.dead_letters().await? == 1, "acknowledged before it was confirmed");
    worker.kill().await?;
    // The broker delivers it again, and it fails again.
    let again = orders.spawn(&[])?;
    broker.is_empty().await?;
    has_dead_letters(&broker, B::COPIES).await?;
    again.kill().await?;
    let mut copies = Vec::new();
    for _ in 0..B::COPIES {
        copies.push(broker.dead_letter().await?);
    }
    ensure!(broker.dead_letters().await? == 0, "more copies");
    let id = B::id(&copies[0]);
    ensure!(id.is_some(), "a dead letter without an id");
    for copy in &copies {
        ensure!(B::id(copy) == id, "{:?}, not {id:?}", B::id(copy));
        broker.redrive(copy).await?;
    }
    let inbox = orders.inbox(orders.engine().await?);
    let until = async {
        broker.effects().have_happened(["m-0".to_owned()]).await?;
        broker.is_empty().await
    };
    consume(inbox.clone(), broker.source().await?, handler(&broker), until).await??;
    broker.effects().assert_once(["m-0".to_owned()])?;
    finish(&broker, &inbox).await?;
    broker.effects().assert_once(["m-0".to_owned()])?;
    ensure!(broker.left().await? == (0, 0), "a redrive is left, or a dead letter");
    Ok(())
}
