//! Partitions move between members that join, leave and are killed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use idempotency::inbox::Consumer;
use idempotency_kafka::rdkafka::ClientContext;
use idempotency_kafka::rdkafka::consumer::{
    BaseConsumer, Consumer as _, ConsumerContext, Rebalance,
};
use idempotency_kafka::{Kafka, TopicMessage};
use idempotency_test_support::consuming::{Broker as _, Orders, finish};
use idempotency_test_support::deadline::{eventually, eventually_async, within};
use idempotency_test_support::worker::Worker;
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::Semaphore;

use crate::scene::{Scene, append, consume, engine, ids, inbox, settings};

fn terminate(worker: &Worker) -> anyhow::Result<()> {
    let pid = i32::try_from(worker.pid()).ok().and_then(Pid::from_raw).context("a process id")?;
    Ok(kill_process(pid, Signal::TERM)?)
}

/// Publishes so many messages by turns, and returns those of each partition in their order.
async fn publish(scene: &Scene, count: usize) -> anyhow::Result<BTreeMap<i32, Vec<String>>> {
    let mut published = BTreeMap::<i32, Vec<String>>::new();
    for (number, id) in ids("m", count).enumerate() {
        let partition = i32::try_from(number)? % 4;
        scene.publish_with(partition, &id, &[], &id).await?;
        published.entry(partition).or_default().push(id);
    }
    Ok(published)
}

/// Checks that each message before a committed offset has had its effect.
fn nothing_unfinished_is_committed(
    scene: &Scene,
    published: &BTreeMap<i32, Vec<String>>,
) -> anyhow::Result<()> {
    // In this order: what is committed by now has its effect before.
    let committed = scene.committed()?;
    let effects: BTreeSet<_> = scene.effects.lines()?.into_iter().collect();
    for (partition, offset) in committed {
        for id in &published[&partition][..usize::try_from(offset)?] {
            ensure!(effects.contains(id), "{id} has no effect, and {offset} is committed");
        }
    }
    Ok(())
}

/// Members join, are killed, stop. Returns how many were killed.
async fn churn(
    scene: &Scene,
    orders: &Orders,
    published: &BTreeMap<i32, Vec<String>>,
) -> anyhow::Result<usize> {
    let count = published.values().map(Vec::len).sum::<usize>();
    let (mut members, mut kills) = (vec![orders.spawn(&[])?], 0);
    for (turn, part) in (1..=6).enumerate() {
        let effects = count * part / 8;
        eventually_async(format!("{effects} effects"), async || {
            tokio::time::sleep(Duration::from_millis(20)).await;
            nothing_unfinished_is_committed(scene, published).expect("none");
            scene.effects.lines().is_ok_and(|lines| lines.len() >= effects)
        })
        .await?;
        match turn {
            0 | 1 | 3 => members.push(orders.spawn(&[])?),
            2 | 5 => {
                members.remove(0).kill().await?;
                kills += 1;
            }
            _ => {
                let mut member = members.remove(0);
                terminate(&member)?;
                ensure!(member.wait().await?.success(), "a member has failed");
            }
        }
    }
    scene.is_empty().await?;
    nothing_unfinished_is_committed(scene, published)?;
    for mut member in members {
        terminate(&member)?;
        ensure!(member.wait().await?.success(), "a member has failed");
    }
    Ok(kills)
}

#[tokio::test]
async fn members_that_join_leave_and_are_killed_lose_nothing_and_commit_nothing_unfinished()
-> anyhow::Result<()> {
    for by_key in [false, true] {
        let scene =
            if by_key { Scene::by_key(4).await? } else { Scene::with("partitions", 4).await? };
        let published = publish(&scene, 1_200).await?;
        let body = Duration::from_millis(30);
        let orders = Orders { retries: true, body, concurrency: 8, ..Orders::of(&scene).await? };
        let kills = churn(&scene, &orders, &published).await?;
        finish(&scene, &orders.inbox(orders.engine().await?)).await?;
        let counts = scene.effects.count_by_key()?;
        ensure!(counts.len() == 1_200, "{} have an effect", counts.len());
        let again: usize = counts.values().map(|count| count - 1).sum();
        ensure!(again <= kills * 8, "{again} have run again after {kills} kills");
        assert_eq!(scene.left().await?, (0, 0));
    }
    Ok(())
}

#[tokio::test]
async fn a_message_whose_partition_moves_while_its_handler_runs_has_one_effect()
-> anyhow::Result<()> {
    let scene = Scene::with("partitions", 2).await?;
    for partition in 0..2 {
        for id in ids(&format!("m-{partition}"), 5) {
            scene.publish_with(partition, "k", &[], &id).await?;
        }
    }
    let engine = engine();
    let gate = Arc::new(Semaphore::new(0));
    let begun = Arc::new(AtomicU32::new(0));
    let handler = |of: &Arc<AtomicU32>| {
        let (effects, gate, begun) = (scene.effects.clone(), gate.clone(), of.clone());
        move |message: Arc<TopicMessage>| {
            let (effects, gate) = (effects.clone(), gate.clone());
            begun.fetch_add(1, Ordering::SeqCst);
            async move {
                let _ = gate.acquire().await;
                append(&effects, &message);
                Ok::<_, &'static str>(())
            }
        }
    };
    let (first_stops, first_stopped) = tokio::sync::oneshot::channel::<()>();
    let first = Consumer::new(inbox(&engine), scene.source().await?);
    let first = first.run(
        async {
            let _ = first_stopped.await;
        },
        handler(&begun),
    );
    let second = async {
        eventually("both handlers", || begun.load(Ordering::SeqCst) == 2).await?;
        // Three more join, and leave: the first gets a partition again whose message it still has.
        for _ in 0..2 {
            let others = Arc::new(AtomicU32::new(0));
            let until = async {
                // Its messages wait for the handlers of the first member: none begins.
                tokio::time::sleep(Duration::from_secs(5)).await;
                ensure!(others.load(Ordering::SeqCst) == 0, "a message runs twice at once");
                ensure!(scene.committed()?.is_empty(), "{:?}", scene.committed()?);
                Ok(())
            };
            consume(inbox(&engine), scene.source().await?, handler(&others), until).await??;
        }
        gate.add_permits(1_000);
        scene.is_empty().await?;
        let _ = first_stops.send(());
        anyhow::Ok(())
    };
    let (first, second) =
        within("the members", Box::pin(async { tokio::join!(first, second) })).await?;
    second?;
    ensure!(first?.left == 0, "something is left");
    let all = (0..2).flat_map(|partition| ids(&format!("m-{partition}"), 5));
    scene.assert_once(all)?;
    assert_eq!(scene.left().await?, (0, 0));
    Ok(())
}

/// A member of the group that notes that it has joined, and got its partitions, or none.
#[derive(Default)]
struct Joining(AtomicBool);

impl ClientContext for Joining {}

impl ConsumerContext for Joining {
    fn post_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        self.0.fetch_or(matches!(rebalance, Rebalance::Assign(_)), Ordering::SeqCst);
    }
}

/// Joins the group of a scene, which loses nothing by that, and leaves it.
async fn joins_and_leaves(scene: &Scene) -> anyhow::Result<()> {
    let mut settings = settings(scene.cluster.url(), &scene.topic);
    settings.set("enable.auto.commit", "false");
    let member: BaseConsumer<Joining> = settings.create_with_context(Joining::default())?;
    member.subscribe(&[&scene.topic])?;
    eventually_async("a member that has joined", async || {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let _ = member.poll(Duration::ZERO);
        member.context().0.load(Ordering::SeqCst)
    })
    .await?;
    Ok(tokio::task::spawn_blocking(move || drop(member)).await?)
}

/// The client keeps the pause of a partition that comes back.
#[tokio::test]
async fn a_partition_that_waited_when_it_went_goes_on_when_it_comes_back() -> anyhow::Result<()> {
    let scene = Scene::with("partitions", 1).await?;
    scene.publish_with(0, "k", &[], "bad").await?;
    for id in ids("m", 100) {
        scene.publish_with(0, "k", &[], &id).await?;
    }
    let engine = engine();
    let is_well = Arc::new(AtomicBool::new(false));
    let tries = Arc::new(AtomicU32::new(0));
    let handler = || {
        let (effects, is_well, tries) = (scene.effects.clone(), is_well.clone(), tries.clone());
        move |message: Arc<TopicMessage>| {
            if message.payload() == Some(b"bad") && !is_well.load(Ordering::SeqCst) {
                tries.fetch_add(1, Ordering::SeqCst);
                return std::future::ready(Err("not now"));
            }
            append(&effects, &message);
            std::future::ready(Ok(()))
        }
    };
    // No place for it: it waits as a dead letter too.
    let plain = || Kafka::new(settings(scene.cluster.url(), &scene.topic), [&*scene.topic]);
    let dying = || inbox(&engine).with_max_attempts(2);
    let until = async {
        eventually("it to be a dead letter", || tries.load(Ordering::SeqCst) >= 3).await?;
        // Another member comes and goes: the only partition comes back, or never went.
        joins_and_leaves(&scene).await?;
        is_well.store(true, Ordering::SeqCst);
        scene.is_empty().await
    };
    consume(dying(), plain().connect().await?, handler(), until).await??;
    scene.assert_once(ids("m", 100).chain(["bad".to_owned()]))
}
