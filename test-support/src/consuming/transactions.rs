//! Messages whose record and effect are one transaction: wherever a process, a connection or a
//! commit breaks off, each has one effect.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use idempotent_runtime::inbox::{Consumer, Inbox};
use sqlx::postgres::PgPool;

use super::bookings::{Bookings, RECEIVED, Watched, entering};
use super::broker::has_dead_letters;
use super::kills::kills;
use super::worker::{AT_ONCE, PLACES, POISON};
use super::{Broker, fleet, ids};
use crate::deadline::{eventually, within};
use crate::proxy::{Action, Fault, Moment, Protocol, Proxy, Request};
use crate::worker::{AFTER_EFFECT, BEFORE_EFFECT, KillPoints};

/// Where a consumer dies.
#[derive(Clone, Copy, Debug)]
enum At {
    Point(&'static str),
    /// With its acknowledgement on the way, which the broker never gets.
    Ack,
}

/// Before its transaction, in it before and after the effect, and after the commit.
const POINTS: [At; 4] =
    [At::Point(RECEIVED), At::Point(BEFORE_EFFECT), At::Point(AFTER_EFFECT), At::Ack];

/// Consumes in the test process until `until` is done. It gets the number of messages that have
/// their end.
async fn consume<B: Broker, F: Future<Output = anyhow::Result<()>>>(
    broker: &B,
    orders: &Bookings,
    inbox: &Inbox,
    pool: &PgPool,
    until: impl FnOnce(Arc<AtomicUsize>) -> F,
) -> anyhow::Result<()> {
    let source = Watched::new(broker.source().await?, KillPoints::from_env());
    let mut result = Ok(());
    let until = until(source.ends());
    let stop = async { result = until.await };
    let consumer = Consumer::new(inbox.clone(), source);
    let run = Box::pin(consumer.run_in(pool.clone(), stop, entering::<B>(orders)));
    let drained = within("the consumer to end", run).await??;
    result.context("while consuming")?;
    ensure!(drained.left == 0, "{drained:?}");
    Ok(())
}

/// Consumes what a consumer had in hand when it stopped, until nothing is left.
async fn finish<B: Broker>(
    broker: &B,
    orders: &Bookings,
    inbox: &Inbox,
    pool: &PgPool,
) -> anyhow::Result<()> {
    let finished = within("nothing to be left", async {
        loop {
            let (left, _) = broker.left().await?;
            if left == 0 {
                return anyhow::Ok(());
            }
            let until = async |ends: Arc<AtomicUsize>| {
                if B::IS_IMPATIENT {
                    // It shows what is in hand, and may have just got the last acknowledgement.
                    return broker.is_empty().await;
                }
                eventually("their ends", || ends.load(Ordering::SeqCst) >= left).await
            };
            Box::pin(consume(broker, orders, inbox, pool, until)).await?;
        }
    });
    finished.await?
}

/// Kills a consumer at each point of a message and its transaction: it has one effect.
///
/// # Errors
/// If one has none or two, or is left, with the point.
pub async fn kill_at_each_point<B: Broker>() -> anyhow::Result<()> {
    let cells = POINTS.into_iter().flat_map(|at| (0..kills()).map(move |number| (at, number)));
    let deaths = cells.map(|(at, number)| {
        let death = Box::pin(kill_one::<B>(at, number));
        async move { death.await.with_context(|| format!("killed at {at:?}, {number}")) }
    });
    stream::iter(deaths).buffer_unordered(AT_ONCE).try_collect().await
}

async fn kill_one<B: Broker>(at: At, number: usize) -> anyhow::Result<()> {
    let _place = PLACES.acquire().await?;
    let broker = B::create(number).await?;
    let orders = Bookings::of(&broker).await?;
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
    let (pool, inbox) = orders.open().await?;
    broker.publish("last", "last").await?;
    Box::pin(consume(&broker, &orders, &inbox, &pool, |_| orders.has_entries(&pool, 2))).await?;
    Box::pin(finish(&broker, &orders, &inbox, &pool)).await?;
    orders.assert_once(&pool, ["last", "m-0"].map(str::to_owned)).await?;
    ensure!(broker.left().await? == (0, 0), "something is left, or a dead letter");
    Ok(())
}

/// Lets a message kill each process that handles it, on each kind of queue. Its attempts are rolled
/// back with it: the broker's count decides, or a count in the store where the broker has none.
///
/// # Errors
/// If it is no dead letter after three, and [those](Broker::UNCOUNTED_DEATHS) that are not counted, or
/// costs a neighbour.
pub async fn poison<B: Broker>() -> anyhow::Result<()> {
    for kind in 0..B::KINDS {
        let poisoned = Box::pin(poison_one::<B>(kind)).await;
        poisoned.with_context(|| format!("queue of kind {kind}"))?;
    }
    Ok(())
}

async fn poison_one<B: Broker>(kind: usize) -> anyhow::Result<()> {
    let broker = B::create(kind).await?;
    broker.publish_all(ids("before", 3)).await?;
    broker.publish(POISON, POISON).await?;
    broker.publish_all(ids("after", 10)).await?;
    let orders = Bookings { concurrency: 1, ..Bookings::of(&broker).await? };
    let (mut died, most) = (0, 3 + B::UNCOUNTED_DEATHS);
    let mut worker = orders.spawn(&[])?;
    while broker.dead_letters().await? == 0 {
        let ended = tokio::time::timeout(Duration::from_millis(50), worker.wait()).await;
        if let Ok(status) = ended {
            ensure!(!status?.success(), "the worker has stopped");
            died += 1;
            ensure!(died <= most, "it has killed {died} processes");
            worker = orders.spawn(&[])?;
        }
    }
    let (pool, inbox) = orders.open().await?;
    orders.has_entries(&pool, 13).await?;
    broker.is_empty().await?;
    fleet::terminate(worker).await?;
    ensure!((3..=most).contains(&died), "it has killed {died} processes");
    Box::pin(finish(&broker, &orders, &inbox, &pool)).await?;
    orders.assert_once(&pool, ids("before", 3).chain(ids("after", 10))).await?;
    ensure!(broker.left().await? == (0, 1), "{:?} are left", broker.left().await?);
    let letter = broker.dead_letter().await?;
    ensure!(B::body(&letter) == POISON.as_bytes(), "another message is the dead letter");
    ensure!(B::reason(&letter).as_deref() == Some("attempts"), "{:?}", B::reason(&letter));
    Ok(())
}

/// Delivers one message 64 times, to 4 processes at once.
///
/// # Errors
/// If it has another number of effects than one, or is left.
pub async fn deliver_one_message_64_times<B: Broker>() -> anyhow::Result<()> {
    let broker = B::create(0).await?;
    let orders = Bookings { body: Duration::from_millis(500), ..Bookings::of(&broker).await? };
    let workers = (0..4).map(|_| orders.spawn(&[])).collect::<anyhow::Result<Vec<_>>>()?;
    broker.publish_repeatedly("m-0", 64).await?;
    let (pool, inbox) = orders.open().await?;
    orders.has_entries(&pool, 1).await?;
    broker.is_empty().await?;
    for worker in workers {
        fleet::terminate(worker).await?;
    }
    Box::pin(finish(&broker, &orders, &inbox, &pool)).await?;
    orders.assert_once(&pool, ["m-0".to_owned()]).await?;
    ensure!(broker.left().await? == (0, 0), "something is left");
    Ok(())
}

/// Cuts the broker's connection of a process whose transaction is open after its effect, so that
/// another consumer gets the message: it waits for the row, and has no effect of its own.
///
/// # Errors
/// If there is another number of effects than one, or something is left.
pub async fn cut_off_in_a_transaction<B: Broker>() -> anyhow::Result<()> {
    let _place = PLACES.acquire().await?;
    let broker = B::create(0).await?;
    let orders = Bookings::of(&broker).await?;
    let wire = broker.wire().await?;
    broker.publish("m-0", "m-0").await?;
    let mut cut_off = orders.by(wire.url()).spawn(&[AFTER_EFFECT])?;
    cut_off.wait_for_point(AFTER_EFFECT).await?;
    wire.close();
    let (pool, inbox) = orders.open().await?;
    let until = async {
        orders.waits_for_a_row(&pool).await?;
        ensure!(orders.entries(&pool).await?.is_empty(), "an effect beside the open transaction");
        cut_off.go_past().await?;
        orders.has_entries(&pool, 1).await
    };
    Box::pin(consume(&broker, &orders, &inbox, &pool, |_| until)).await?;
    Box::pin(finish(&broker, &orders, &inbox, &pool)).await?;
    orders.assert_once(&pool, ["m-0".to_owned()]).await?;
    ensure!(broker.left().await? == (0, 0), "something is left, or a dead letter");
    Ok(())
}

/// Stops a process (SIGSTOP) whose transaction is open after its effect, for longer than the broker
/// leaves it the message, and lets it go on: its late commit counts.
///
/// # Errors
/// If there is another number of effects than one, or something is left.
pub async fn stop_in_a_transaction<B: Broker>() -> anyhow::Result<()> {
    let _place = PLACES.acquire().await?;
    let broker = B::create(0).await?;
    let orders = Bookings::of(&broker).await?;
    broker.publish("m-0", "m-0").await?;
    let mut stopped = orders.spawn(&[AFTER_EFFECT])?;
    stopped.wait_for_point(AFTER_EFFECT).await?;
    stopped.stop()?;
    let (pool, inbox) = orders.open().await?;
    let until = async {
        if B::IS_IMPATIENT {
            orders.waits_for_a_row(&pool).await?;
        }
        stopped.cont()?;
        stopped.go_past().await?;
        orders.has_entries(&pool, 1).await
    };
    Box::pin(consume(&broker, &orders, &inbox, &pool, |_| until)).await?;
    fleet::terminate(stopped).await?;
    Box::pin(finish(&broker, &orders, &inbox, &pool)).await?;
    orders.assert_once(&pool, ["m-0".to_owned()]).await?;
    ensure!(broker.left().await? == (0, 0), "something is left, or a dead letter");
    Ok(())
}

/// Cuts the connection to the database when it has committed, before its answer: the message is
/// acknowledged, and has one effect.
///
/// # Errors
/// If it has another number of effects, is left, or is a dead letter.
pub async fn lose_commits<B: Broker>() -> anyhow::Result<()> {
    let broker = B::create(0).await?;
    let orders = Bookings::of(&broker).await?;
    let proxy = Proxy::start_for(Protocol::Postgres, Bookings::database_address().await?).await?;
    let (direct, _) = orders.open().await?;
    let by_proxy = Bookings { database: proxy.url(&orders.database), ..orders.clone() };
    let (pool, inbox) = by_proxy.open().await?;
    let count = 10;
    broker.publish_all(ids("m", count)).await?;
    let commits = |request: &Request| {
        request.command() == "COMMIT"
            || request.bytes().windows(8).any(|words| words == b"; COMMIT")
    };
    // Each of the first ones, some of them of the same message.
    let cuts: Vec<_> = (1..=5)
        .map(|nth| proxy.nth(nth, commits, Fault::new(Moment::AfterRequest, Action::Close)))
        .collect();
    Box::pin(consume(&broker, &orders, &inbox, &pool, |_| orders.has_entries(&direct, count)))
        .await?;
    for cut in cuts {
        cut.happened().await?;
    }
    Box::pin(finish(&broker, &orders, &inbox, &direct)).await?;
    orders.assert_once(&direct, ids("m", count)).await?;
    has_dead_letters(&broker, 0).await?;
    ensure!(broker.left().await? == (0, 0), "something is left");
    Ok(())
}
