//! The order of messages, and what one that fails holds back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::ensure;
use futures::future::try_join_all;
use idempotency::inbox::Consumer;
use idempotency_kafka::TopicMessage;
use idempotency_kafka::rdkafka::producer::FutureRecord;
use idempotency_test_support::deadline::{eventually, within};
use tokio::sync::Semaphore;

use crate::scene::{Scene, append, consume, engine, ids, inbox};
use crate::warnings::Warnings;

/// Fails on "bad" until it is told otherwise, and writes the payloads of the others.
fn fails_on_bad(
    scene: &Scene,
    is_well: &Arc<AtomicBool>,
) -> impl Fn(Arc<TopicMessage>) -> std::future::Ready<Result<(), &'static str>> + Send + Sync + use<>
{
    let (effects, is_well) = (scene.effects.clone(), is_well.clone());
    move |message| {
        if message.payload() == Some(b"bad") && !is_well.load(Ordering::SeqCst) {
            return std::future::ready(Err("not now"));
        }
        append(&effects, &message);
        std::future::ready(Ok(()))
    }
}

#[tokio::test]
async fn a_message_that_fails_holds_its_partition_back_and_no_other() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    scene.publish_with(0, "k", &[], "bad").await?;
    for (partition, first) in [(0, "behind"), (1, "other")] {
        // More than are in hand at once.
        for id in ids(first, 300) {
            scene.publish_with(partition, "k", &[], &id).await?;
        }
    }
    let is_well = Arc::new(AtomicBool::new(false));
    let handler = fails_on_bad(&scene, &is_well);
    let until = async {
        scene.have_happened(ids("other", 300)).await?;
        eventually("its commit", || scene.committed().is_ok_and(|all| all.get(&1) == Some(&300)))
            .await?;
        let lines = scene.effects.lines()?;
        ensure!(lines.iter().all(|line| line.starts_with("other")), "{lines:?}");
        ensure!(!scene.committed()?.contains_key(&0), "{:?}", scene.committed()?);
        is_well.store(true, Ordering::SeqCst);
        scene.is_empty().await
    };
    let patient = inbox(&engine()).with_max_attempts(0);
    consume(patient, scene.source().await?, handler, until).await??;
    // In their order.
    let lines = scene.effects.lines()?;
    let of = |first: &str| lines.iter().filter(|line| line.starts_with(first)).cloned().collect();
    let (behind, other): (Vec<_>, Vec<_>) = (of("behind"), of("other"));
    assert!(behind.into_iter().eq(ids("behind", 300)) && other.into_iter().eq(ids("other", 300)));
    assert_eq!((scene.effects.count("bad")?, scene.letters()?), (1, 0));
    Ok(())
}

#[tokio::test]
async fn by_key_a_message_that_fails_holds_its_key_back_and_its_partition_goes_on()
-> anyhow::Result<()> {
    let scene = Scene::by_key(2).await?;
    scene.publish_with(0, "bad", &[], "bad").await?;
    for id in ids("behind", 50) {
        scene.publish_with(0, "bad", &[], &id).await?;
    }
    for id in ids("other", 500) {
        scene.publish_with(0, &format!("key-{}", id.len()), &[], &id).await?;
    }
    let (engine, is_well) = (engine(), Arc::new(AtomicBool::new(false)));
    let patient = inbox(&engine).with_max_attempts(0);
    let handler = fails_on_bad(&scene, &is_well);
    let until = scene.have_happened(ids("other", 500));
    consume(patient.clone(), scene.source().await?, handler, until).await??;
    ensure!(scene.effects.lines()?.len() == 500, "something behind it has run");
    ensure!(scene.committed()?.get(&0).is_none_or(|offset| *offset == 0), "beyond it");
    // All of it again: what is finished is recognised.
    is_well.store(true, Ordering::SeqCst);
    let handler = fails_on_bad(&scene, &is_well);
    consume(patient, scene.source().await?, handler, scene.is_empty()).await??;
    let all = || ids("behind", 50).chain(ids("other", 500));
    scene.assert_once(all().chain(["bad".to_owned()]))?;
    // Each key in its order.
    let lines = scene.effects.lines()?;
    let key = |id: &str| if id.starts_with("behind") { 0 } else { id.len() };
    let mut orders = BTreeMap::<usize, (Vec<_>, Vec<_>)>::new();
    for line in lines.iter().filter(|line| *line != "bad") {
        orders.entry(key(line)).or_default().0.push(line.clone());
    }
    for id in all() {
        orders.entry(key(&id)).or_default().1.push(id);
    }
    assert!(orders.values().all(|(found, published)| found == published), "{orders:?}");
    Ok(())
}

/// More messages of one key than wait for it anywhere.
#[tokio::test]
async fn by_key_a_key_that_fails_for_long_costs_no_other_partition() -> anyhow::Result<()> {
    let scene = Scene::by_key(2).await?;
    scene.publish_with(0, "bad", &[], "bad").await?;
    for id in ids("behind", 600) {
        scene.publish_with(0, "bad", &[], &id).await?;
    }
    let is_well = Arc::new(AtomicBool::new(false));
    let handler = fails_on_bad(&scene, &is_well);
    let until = async {
        eventually("the first look", || scene.committed().is_ok()).await?;
        for id in ids("other", 300) {
            scene.publish_with(1, &id, &[], &id).await?;
        }
        scene.have_happened(ids("other", 300)).await?;
        is_well.store(true, Ordering::SeqCst);
        scene.is_empty().await
    };
    let patient = inbox(&engine()).with_max_attempts(0);
    consume(patient, scene.source().await?, handler, until).await??;
    scene.assert_once(ids("behind", 600).chain(ids("other", 300)).chain(["bad".to_owned()]))?;
    Ok(())
}

#[tokio::test]
async fn messages_without_a_key_wait_for_no_other() -> anyhow::Result<()> {
    let scene = Scene::by_key(1).await?;
    for id in ids("m", 8) {
        let record = FutureRecord::to(&scene.topic);
        scene.send(record.partition(0).payload(&*id)).await?;
    }
    let (running, most) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (effects, counters) = (scene.effects.clone(), (running.clone(), most.clone()));
    let gate = Arc::new(Semaphore::new(0));
    let opened = gate.clone();
    let handler = move |message: Arc<TopicMessage>| {
        let (effects, gate, (running, most)) = (effects.clone(), gate.clone(), counters.clone());
        async move {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let _ = gate.acquire().await;
            append(&effects, &message);
            Ok(())
        }
    };
    let until = async {
        eventually("eight at once", || most.load(Ordering::SeqCst) == 8).await?;
        opened.add_permits(8);
        scene.is_empty().await
    };
    consume(inbox(&engine()), scene.source().await?, handler, until).await??;
    scene.assert_once(ids("m", 8))
}

/// The client gives a member up that does not look for so long.
#[tokio::test]
async fn a_consumer_without_room_stays_in_its_group() -> anyhow::Result<()> {
    let scene = Scene::with("partitions", 1).await?;
    for id in ids("m", 300) {
        scene.publish_with(0, "k", &[], &id).await?;
    }
    let mut settings = crate::scene::settings(scene.cluster.url(), &scene.topic);
    settings.set("max.poll.interval.ms", "6000");
    let source = idempotency_kafka::Kafka::new(settings, [&*scene.topic]).connect().await?;
    let gate = Arc::new(Semaphore::new(0));
    let begun = Arc::new(Mutex::new(None));
    let handler = {
        let (effects, gate, begun) = (scene.effects.clone(), gate.clone(), begun.clone());
        move |message: Arc<TopicMessage>| {
            let (effects, gate) = (effects.clone(), gate.clone());
            begun.lock().unwrap().get_or_insert_with(tokio::time::Instant::now);
            async move {
                let _ = gate.acquire().await;
                append(&effects, &message);
                Ok::<_, &'static str>(())
            }
        }
    };
    let warnings = Warnings::listen();
    let stop = async {
        let _ = eventually("the first handler", || begun.lock().unwrap().is_some()).await;
        // Longer than the client waits: the time is what is tested.
        tokio::time::sleep(Duration::from_secs(9)).await;
        gate.add_permits(1_000);
        let _ = scene.is_empty().await;
    };
    let consumer = Consumer::new(inbox(&engine()), source).with_concurrency(1);
    let drained = within("the end", Box::pin(consumer.run(stop, handler))).await??;
    ensure!(drained.left == 0, "{drained:?}");
    ensure!(!warnings.mention("reports an error"), "it was given up");
    scene.assert_once(ids("m", 300))
}

/// Waits at a gate with "slow" until that is open, fails on "bad", and writes the other payloads.
fn waits_on_slow(
    scene: &Scene,
    gate: &Arc<Semaphore>,
) -> impl Fn(Arc<TopicMessage>) -> futures::future::BoxFuture<'static, Result<(), &'static str>>
+ Send
+ Sync
+ use<> {
    let (effects, gate) = (scene.effects.clone(), gate.clone());
    move |message| {
        let (effects, gate) = (effects.clone(), gate.clone());
        Box::pin(async move {
            match message.payload() {
                Some(b"slow") => drop(gate.acquire().await),
                Some(b"bad") => return Err("not now"),
                _ => append(&effects, &message),
            }
            Ok(())
        })
    }
}

#[tokio::test]
async fn a_handler_that_is_slow_keeps_no_other_partition_waiting() -> anyhow::Result<()> {
    let scene = Scene::with("partitions", 3).await?;
    for partition in 0..2 {
        scene.publish_with(partition, "k", &[], "slow").await?;
        // More than are in hand at once, and received before the others.
        for id in ids(&format!("behind-{partition}"), 1_200) {
            scene.publish_with(partition, "k", &[], &id).await?;
        }
    }
    let gate = Arc::new(Semaphore::new(0));
    let until = async {
        eventually("the first look", || scene.committed().is_ok()).await?;
        for id in ids("other", 300) {
            scene.publish_with(2, "k", &[], &id).await?;
        }
        scene.have_happened(ids("other", 300)).await?;
        ensure!(scene.effects.lines()?.len() == 300, "something behind it has run");
        gate.add_permits(2);
        scene.is_empty().await
    };
    let handler = waits_on_slow(&scene, &gate);
    consume(inbox(&engine()), scene.source().await?, handler, until).await??;
    let behind = (0..2).flat_map(|partition| ids(&format!("behind-{partition}"), 1_200));
    scene.assert_once(behind.chain(ids("other", 300)))
}

#[tokio::test]
async fn many_partitions_that_fail_keep_no_other_waiting() -> anyhow::Result<()> {
    let scene = Scene::with("partitions", 13).await?;
    for partition in 0..12 {
        // At once: the broker returns them together.
        let bad = ["bad".to_owned()].into_iter();
        let sent = bad.chain(ids("behind", 60)).map(|payload| {
            let scene = &scene;
            async move { scene.publish_with(partition, "k", &[], &payload).await }
        });
        try_join_all(sent).await?;
    }
    let have_failed = Arc::new(Mutex::new(BTreeSet::new()));
    let until = async {
        eventually("a failure in each", || have_failed.lock().unwrap().len() == 12).await?;
        for id in ids("other", 300) {
            scene.publish_with(12, "k", &[], &id).await?;
        }
        scene.have_happened(ids("other", 300)).await?;
        eventually("its commit", || scene.committed().is_ok_and(|all| all.get(&12) == Some(&300)))
            .await
    };
    let patient = inbox(&engine()).with_max_attempts(0);
    let (fails, failed) =
        (waits_on_slow(&scene, &Arc::new(Semaphore::new(0))), have_failed.clone());
    let handler = move |message: Arc<TopicMessage>| {
        if message.payload() == Some(b"bad") {
            failed.lock().unwrap().insert(message.partition());
        }
        fails(message)
    };
    consume(patient, scene.source().await?, handler, until).await??;
    scene.assert_once(ids("other", 300))
}

#[tokio::test]
async fn by_key_many_keys_that_fail_keep_no_other_partition_waiting() -> anyhow::Result<()> {
    let scene = Scene::by_key(2).await?;
    for id in ids("bad", 400) {
        scene.publish_with(0, &id, &[], "bad").await?;
    }
    for id in ids("other", 300) {
        scene.publish_with(1, &id, &[], &id).await?;
    }
    let until = async {
        scene.have_happened(ids("other", 300)).await?;
        eventually("its commit", || scene.committed().is_ok_and(|all| all.get(&1) == Some(&300)))
            .await
    };
    let patient = inbox(&engine())
        .with_max_attempts(0)
        .with_backoff(Duration::from_secs(60), Duration::from_secs(60));
    let handler = waits_on_slow(&scene, &Arc::new(Semaphore::new(0)));
    consume(patient, scene.source().await?, handler, until).await??;
    scene.assert_once(ids("other", 300))
}
