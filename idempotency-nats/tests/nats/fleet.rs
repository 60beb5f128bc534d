//! Several processes on one stream: that stop, that die of a message, that get the same one at once.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use idempotency::inbox::{Consumer, Inbox};
use idempotency_nats::JetStream;
use idempotency_nats::async_nats::jetstream::consumer::pull;
use idempotency_nats::async_nats::jetstream::message::PublishMessage;
use idempotency_test_support::deadline::{eventually_async, within};
use idempotency_test_support::worker::Worker;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

use crate::scene::{DAY, Scene, consume, durable, header, ids};
use crate::worker::{BEGUN, Orders, POISON};

fn terminate(worker: &Worker) -> anyhow::Result<()> {
    let pid = i32::try_from(worker.pid()).ok().and_then(Pid::from_raw).context("a process id")?;
    Ok(kill_process(pid, Signal::TERM)?)
}

async fn has_begun(worker: &mut Worker, handlers: usize) -> anyhow::Result<()> {
    let mut begun = 0;
    while begun < handlers {
        let line = worker.line().await?.context("the worker has ended")?;
        begun += usize::from(line.contains(BEGUN));
    }
    Ok(())
}

#[tokio::test]
async fn a_process_that_is_terminated_finishes_what_runs_and_returns_what_waits_at_once()
-> anyhow::Result<()> {
    // Nothing comes back by itself in the time of this test.
    let ack_wait = Duration::from_secs(300);
    let scene = Scene::with(pull::Config { ack_wait, ..durable() }).await?;
    scene.publish_all(ids("m", 100)).await?;
    let orders = Orders { body: Duration::from_secs(2), ..Orders::of(&scene).await? };
    let mut worker = orders.spawn(&[])?;
    has_begun(&mut worker, 16).await?;
    terminate(&worker)?;
    let terminated = Instant::now();
    ensure!(worker.wait().await?.success(), "the worker has failed");
    ensure!(scene.effects.lines()?.len() == 16, "{:?}", scene.effects.lines()?);
    // The next one handles the rest, and nothing again.
    let inbox = orders.inbox(orders.engine().await?);
    consume(inbox, scene.source().await?, scene.handler(), scene.is_empty()).await??;
    ensure!(terminated.elapsed() < Duration::from_secs(60), "{:?}", terminated.elapsed());
    scene.assert_once(ids("m", 100))?;
    assert_eq!(scene.left().await?, (0, 0));
    Ok(())
}

#[tokio::test]
async fn the_same_message_64_times_in_4_processes_has_one_effect_and_is_acked_each_time()
-> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let orders = Orders { body: Duration::from_millis(500), ..Orders::of(&scene).await? };
    let mut workers = (0..4).map(|_| orders.spawn(&[])).collect::<anyhow::Result<Vec<_>>>()?;
    // By the header, of which the server makes nothing.
    for _ in 0..64 {
        let message = PublishMessage::build().header("idempotency-key", "m-0");
        scene.publish_with(message, "m-0").await?;
    }
    scene.have_happened(["m-0".to_owned()]).await?;
    scene.is_empty().await?;
    for worker in &mut workers {
        terminate(worker)?;
        ensure!(worker.wait().await?.success(), "a worker has failed");
    }
    scene.assert_once(["m-0".to_owned()])?;
    assert_eq!(scene.left().await?, (0, 0));
    Ok(())
}

#[tokio::test]
async fn a_message_that_kills_its_process_is_a_dead_letter_in_the_end_and_its_neighbours_are_handled()
-> anyhow::Result<()> {
    for (retries, deaths, why) in [(false, 1, "in-doubt"), (true, 3, "attempts")] {
        let scene = Scene::new().await?;
        scene.publish_all(ids("before", 3)).await?;
        scene.publish(POISON, POISON).await?;
        scene.publish_all(ids("after", 10)).await?;
        let orders = Orders { retries, concurrency: 1, ..Orders::of(&scene).await? };
        let mut died = 0;
        let mut worker = orders.spawn(&[])?;
        while scene.dead_letters().await? == 0 {
            let ended = tokio::time::timeout(Duration::from_millis(50), worker.wait()).await;
            if let Ok(status) = ended {
                ensure!(!status?.success(), "the worker has stopped");
                died += 1;
                ensure!(died <= deaths, "it has killed {died} processes");
                worker = orders.spawn(&[])?;
            }
        }
        let neighbours = || ids("before", 3).chain(ids("after", 10));
        scene.have_happened(neighbours()).await?;
        scene.is_empty().await?;
        terminate(&worker)?;
        ensure!(worker.wait().await?.success(), "the worker has failed");
        assert_eq!(died, deaths, "retries: {retries}");
        scene.assert_once(neighbours())?;
        assert_eq!(scene.left().await?, (0, 1));
        let letter = scene.dead_letter().await?;
        assert_eq!(&*letter.payload, POISON.as_bytes());
        assert_eq!(header(&letter.headers, "idempotency-reason"), Some(why));
    }
    Ok(())
}

#[tokio::test]
async fn two_inboxes_of_one_store_each_handle_each_message_once() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let engine = Orders::of(&scene).await?.engine().await?;
    for name in ["mail", "shipping"] {
        let config = pull::Config { durable_name: Some(name.to_owned()), ..durable() };
        scene.context().create_consumer_on_stream(config, &*scene.stream).await?;
    }
    for id in ids("m", 20).chain(ids("m", 20)) {
        let message = PublishMessage::build().header("idempotency-key", &*id);
        scene.publish_with(message, &id).await?;
    }
    for name in ["mail", "shipping"] {
        let consumer = scene.consumer_by(scene.context(), name).await?;
        let watched = consumer.clone();
        let source = JetStream::new(consumer).connect().await?;
        // The names differ between inboxes alone: the keys are the same.
        let inbox = Inbox::new(engine.clone(), format!("{name} of {}", scene.stream), DAY);
        let stop = async {
            let is_empty = async || {
                let info = watched.get_info().await;
                info.is_ok_and(|info| (info.num_pending, info.num_ack_pending) == (0, 0))
            };
            let _ = eventually_async("the end", is_empty).await;
        };
        let run = Consumer::new(inbox, source).run(stop, scene.handler());
        within("the consumer to end", Box::pin(run)).await??;
    }
    let counts = scene.effects.count_by_key()?;
    ensure!(counts.len() == 20 && counts.values().all(|count| *count == 2), "{counts:?}");
    Ok(())
}
