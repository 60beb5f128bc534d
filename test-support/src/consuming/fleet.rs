//! Several processes on one queue: that stop, that die of a message, that get the same one at once.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use idempotent_runtime::inbox::Inbox;
use rustix::process::{Signal, kill_process};

use super::{BEGUN, Broker, DAY, Orders, POISON, consume, finish, handler, ids};
use crate::deadline::eventually;
use crate::server::pid_of;
use crate::worker::Worker;

/// Requests a worker to stop (SIGTERM), and waits until it has.
///
/// # Errors
/// If it fails.
pub(super) async fn terminate(mut worker: Worker) -> anyhow::Result<()> {
    request_to_stop(&worker)?;
    ensure!(worker.wait().await?.success(), "a worker has failed");
    Ok(())
}

pub(super) fn request_to_stop(worker: &Worker) -> anyhow::Result<()> {
    Ok(kill_process(pid_of(worker.pid())?, Signal::TERM)?)
}

async fn has_begun(worker: &mut Worker, handlers: usize) -> anyhow::Result<()> {
    let mut begun = 0;
    while begun < handlers {
        let line = worker.line().await?.context("the worker has ended")?;
        begun += usize::from(line.contains(BEGUN));
    }
    Ok(())
}

/// Terminates a process under load: it finishes what runs, and what waits comes back at once.
///
/// # Errors
/// If it does not, or a message has no effect or two.
pub async fn terminate_under_load<B: Broker>() -> anyhow::Result<()> {
    let broker = B::patient().await?;
    broker.publish_all(ids("m", 100)).await?;
    let body = Duration::from_secs(2);
    let orders = Orders { body, ..Orders::of(&broker).await? };
    let mut worker = orders.spawn(&[])?;
    has_begun(&mut worker, 16).await?;
    request_to_stop(&worker)?;
    let terminated = Instant::now();
    broker.are_back(84).await?;
    ensure!(terminated.elapsed() < body, "what waits came back with what runs");
    ensure!(worker.wait().await?.success(), "the worker has failed");
    let effects = broker.effects().lines()?;
    ensure!(effects.len() == 16, "{effects:?}");
    let (left, dead) = broker.left().await?;
    ensure!(left >= 84 && dead == 0, "{left} and {dead} are left");
    // The next one handles the rest, and nothing again.
    let inbox = orders.inbox(orders.engine().await?);
    consume(inbox.clone(), broker.source().await?, handler(&broker), broker.is_empty()).await??;
    finish(&broker, &inbox).await?;
    ensure!(terminated.elapsed() < Duration::from_secs(60), "{:?}", terminated.elapsed());
    broker.effects().assert_once(ids("m", 100))?;
    ensure!(broker.left().await? == (0, 0), "something is left");
    Ok(())
}

/// Delivers one message 64 times, to 4 processes at once.
///
/// # Errors
/// If it has another number of effects than one, or is left.
pub async fn deliver_one_message_64_times<B: Broker>() -> anyhow::Result<()> {
    let broker = B::create(0).await?;
    let orders = Orders { body: Duration::from_millis(500), ..Orders::of(&broker).await? };
    let workers = (0..4).map(|_| orders.spawn(&[])).collect::<anyhow::Result<Vec<_>>>()?;
    broker.publish_repeatedly("m-0", 64).await?;
    broker.effects().have_happened(["m-0".to_owned()]).await?;
    broker.is_empty().await?;
    for worker in workers {
        terminate(worker).await?;
    }
    finish(&broker, &orders.inbox(orders.engine().await?)).await?;
    broker.effects().assert_once(["m-0".to_owned()])?;
    ensure!(broker.left().await? == (0, 0), "something is left");
    Ok(())
}

/// Lets a message kill each process that handles it, on each kind of queue and under each policy.
///
/// # Errors
/// If it kills more processes than its attempts, is not a dead letter then, or costs a neighbour.
pub async fn poison<B: Broker>() -> anyhow::Result<()> {
    for (retries, deaths, why) in [(false, 1, "in-doubt"), (true, 3, "attempts")] {
        for kind in 0..B::KINDS {
            let poisoned = Box::pin(poison_one::<B>(kind, retries, deaths, why)).await;
            poisoned.with_context(|| format!("queue of kind {kind}, retries: {retries}"))?;
        }
    }
    Ok(())
}

async fn poison_one<B: Broker>(
    kind: usize,
    retries: bool,
    deaths: usize,
    why: &str,
) -> anyhow::Result<()> {
    let broker = B::create(kind).await?;
    broker.publish_all(ids("before", 3)).await?;
    broker.publish(POISON, POISON).await?;
    broker.publish_all(ids("after", 10)).await?;
    let orders = Orders { retries, concurrency: 1, ..Orders::of(&broker).await? };
    let mut died = 0;
    let mut worker = orders.spawn(&[])?;
    while broker.dead_letters().await? == 0 {
        let ended = tokio::time::timeout(Duration::from_millis(50), worker.wait()).await;
        if let Ok(status) = ended {
            ensure!(!status?.success(), "the worker has stopped");
            died += 1;
            ensure!(died <= deaths, "it has killed {died} processes");
            worker = orders.spawn(&[])?;
        }
    }
    let neighbours = || ids("before", 3).chain(ids("after", 10));
    broker.effects().have_happened(neighbours()).await?;
    broker.is_empty().await?;
    terminate(worker).await?;
    ensure!(died == deaths, "it has killed {died} processes, not {deaths}");
    finish(&broker, &orders.inbox(orders.engine().await?)).await?;
    broker.effects().assert_once(neighbours())?;
    ensure!(broker.left().await? == (0, 1), "{:?} are left", broker.left().await?);
    let letter = broker.dead_letter().await?;
    ensure!(B::body(&letter) == POISON.as_bytes(), "another message is the dead letter");
    ensure!(B::reason(&letter).as_deref() == Some(why), "{:?}", B::reason(&letter));
    Ok(())
}

/// Announces 20 messages twice to two subscribers, whose inboxes have different names in one store.
///
/// # Errors
/// If one of them does not handle each message once.
pub async fn two_inboxes<B: Broker>() -> anyhow::Result<()> {
    let broker = B::create(0).await?;
    let engine = Orders::of(&broker).await?.engine().await?;
    let names = ["mail", "shipping"];
    for name in names {
        broker.subscribe(name).await?;
    }
    for id in ids("m", 20).chain(ids("m", 20)) {
        broker.announce(&id).await?;
    }
    for name in names {
        let source = broker.subscriber(name).await?;
        // The names differ between inboxes alone: the keys are the same.
        let inbox =
            Inbox::new(engine.clone(), format!("{name} of {}", broker.address().messages), DAY);
        let before = broker.effects().lines()?.len();
        let until = async {
            let have_all =
                || broker.effects().lines().is_ok_and(|lines| lines.len() >= before + 20);
            eventually("20 effects", have_all).await?;
            broker.has_read_all(name).await
        };
        consume(inbox, source, handler(&broker), until).await??;
    }
    let counts = broker.effects().count_by_key()?;
    ensure!(counts.len() == 20 && counts.values().all(|count| *count == 2), "{counts:?}");
    Ok(())
}
