//! Several processes on one queue: that stop, that die of a message, that get the same one at once.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use idempotency::inbox::{Consumer, Inbox};
use idempotency_rabbitmq::RabbitMq;
use idempotency_rabbitmq::lapin::options::{
    BasicPublishOptions, ExchangeDeclareOptions, QueueBindOptions,
};
use idempotency_rabbitmq::lapin::types::{AMQPValue, FieldTable};
use idempotency_rabbitmq::lapin::{BasicProperties, ExchangeKind};
use idempotency_test_support::deadline::{eventually, within};
use idempotency_test_support::worker::Worker;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

use crate::scene::{DAY, Kind, Scene, append, finish_by, ids};
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
    let scene = Scene::new(Kind::Quorum).await?;
    scene.publish_all(ids("m", 100)).await?;
    let body = Duration::from_secs(2);
    let mut worker = Orders { body, ..Orders::of(&scene).await? }.spawn(&[])?;
    has_begun(&mut worker, 16).await?;
    terminate(&worker)?;
    let terminated = Instant::now();
    scene.is_ready(&scene.queue, 84).await?;
    ensure!(terminated.elapsed() < body, "what waits came back with what runs");
    ensure!(worker.wait().await?.success(), "the worker has failed");
    ensure!(scene.effects.lines()?.len() == 16, "{:?}", scene.effects.lines()?);
    let (ready, dead) = scene.left().await?;
    ensure!(ready >= 84 && dead == 0, "{ready} and {dead} are left");
    // The next one handles the rest, and nothing again.
    let orders = Orders::of(&scene).await?;
    finish_by(&scene, || async { Ok(orders.inbox(orders.engine().await?)) }).await?;
    scene.assert_once(ids("m", 100))?;
    assert_eq!(scene.left().await?, (0, 0));
    Ok(())
}

#[tokio::test]
async fn the_same_message_64_times_in_4_processes_has_one_effect_and_is_acked_each_time()
-> anyhow::Result<()> {
    let scene = Scene::new(Kind::Quorum).await?;
    let orders = Orders { body: Duration::from_millis(500), ..Orders::of(&scene).await? };
    let mut workers = (0..4).map(|_| orders.spawn(&[])).collect::<anyhow::Result<Vec<_>>>()?;
    let same = (0..64).map(|_| "m-0".to_owned());
    scene.publish_all(same).await?;
    scene.have_happened(["m-0".to_owned()]).await?;
    scene.is_ready(&scene.queue, 0).await?;
    for worker in &mut workers {
        terminate(worker)?;
        ensure!(worker.wait().await?.success(), "a worker has failed");
    }
    finish_by(&scene, || async { Ok(orders.inbox(orders.engine().await?)) }).await?;
    scene.assert_once(["m-0".to_owned()])?;
    assert_eq!(scene.left().await?, (0, 0));
    Ok(())
}

#[tokio::test]
async fn a_message_that_kills_its_process_is_a_dead_letter_in_the_end_and_its_neighbours_are_handled()
-> anyhow::Result<()> {
    for (retries, deaths, why) in [(false, 1, "in-doubt"), (true, 3, "attempts")] {
        for kind in [Kind::Quorum, Kind::Classic] {
            let scene = Scene::new(kind).await?;
            scene.publish_all(ids("before", 3)).await?;
            scene.publish(POISON, POISON).await?;
            scene.publish_all(ids("after", 10)).await?;
            let lease = Duration::from_secs(1);
            let orders = Orders { retries, lease, concurrency: 1, ..Orders::of(&scene).await? };
            let mut died = 0;
            let mut worker = orders.spawn(&[])?;
            while scene.ready(&scene.dead).await? == 0 {
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
            terminate(&worker)?;
            ensure!(worker.wait().await?.success(), "the worker has failed");
            assert_eq!(died, deaths, "retries: {retries}");
            finish_by(&scene, || async { Ok(orders.inbox(orders.engine().await?)) }).await?;
            scene.assert_once(neighbours())?;
            assert_eq!(scene.left().await?, (0, 1));
            let letter = scene.dead_letter().await?;
            assert_eq!(letter.data, POISON.as_bytes());
            let headers = letter.properties.headers().as_ref().context("headers")?.inner();
            assert_eq!(headers["idempotency-reason"], AMQPValue::LongString(why.into()));
        }
    }
    Ok(())
}

#[tokio::test]
async fn two_inboxes_of_one_store_each_handle_each_message_once() -> anyhow::Result<()> {
    let scene = Scene::new(Kind::Quorum).await?;
    let engine = Orders::of(&scene).await?.engine().await?;
    let (channel, exchange) = (scene.channel(), format!("{}.events", scene.queue));
    let options = ExchangeDeclareOptions::default();
    let table = FieldTable::default;
    channel.exchange_declare((&*exchange).into(), ExchangeKind::Fanout, options, table()).await?;
    let inboxes = ["billing", "shipping"];
    for inbox in inboxes {
        let queue = format!("{}.{inbox}", scene.queue);
        scene.declare(&queue, Kind::Quorum).await?;
        let options = QueueBindOptions::default();
        channel
            .queue_bind((&*queue).into(), (&*exchange).into(), "".into(), options, table())
            .await?;
    }
    for id in ids("m", 20).chain(ids("m", 20)) {
        let properties = BasicProperties::default().with_message_id((&*id).into());
        let options = BasicPublishOptions::default();
        channel
            .basic_publish((&*exchange).into(), "".into(), options, id.as_bytes(), properties)
            .await?
            .await?;
    }
    for inbox in inboxes {
        let queue = format!("{}.{inbox}", scene.queue);
        let source = RabbitMq::new(&scene.connection().await?, &*queue).connect().await?;
        // The names differ between inboxes alone: the keys are the same.
        let name = format!("{inbox} of {}", scene.queue);
        let consumer = Consumer::new(Inbox::new(engine.clone(), name, DAY), source);
        let effects = scene.effects.clone();
        let before = effects.lines()?.len();
        let handler = move |message: std::sync::Arc<idempotency_rabbitmq::QueueMessage>| {
            append(&effects, &message);
            std::future::ready(Ok::<_, &'static str>(()))
        };
        let stop = async {
            let is_all = || scene.effects.lines().is_ok_and(|lines| lines.len() >= before + 20);
            let _ = eventually("20 effects", is_all).await;
            let _ = scene.is_ready(&queue, 0).await;
        };
        within("the consumer to end", Box::pin(consumer.run(stop, handler))).await??;
    }
    let counts = scene.effects.count_by_key()?;
    ensure!(counts.len() == 20 && counts.values().all(|count| *count == 2), "{counts:?}");
    Ok(())
}
