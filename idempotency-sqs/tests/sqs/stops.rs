//! A consumer that stops.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::ensure;
use idempotency::inbox::Source as _;
use idempotency_sqs::aws_sdk_sqs::types::QueueAttributeName as Attribute;
use idempotency_sqs::{SqsMessage, SqsQueue};
use idempotency_test_support::consuming::stalls;
use idempotency_test_support::deadline::{eventually, eventually_async, within};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::scene::{Kind, Scene, append, consume, engine, ids, inbox};

/// Longer than any test takes.
const LONG: [(Attribute, &str); 1] = [(Attribute::VisibilityTimeout, "300")];

#[tokio::test]
async fn what_waits_goes_back_at_once_and_what_runs_is_finished() -> anyhow::Result<()> {
    let scene = Scene::with(Kind::Standard, &LONG).await?;
    scene.publish_all(ids("m", 100)).await?;
    let (effects, gate) = (scene.effects.clone(), Arc::new(Semaphore::new(0)));
    let running = Arc::new(AtomicU32::new(0));
    let handler = {
        let (gate, running) = (gate.clone(), running.clone());
        move |message: Arc<SqsMessage>| {
            let (effects, gate) = (effects.clone(), gate.clone());
            running.fetch_add(1, Ordering::SeqCst);
            async move {
                let _ = gate.acquire().await;
                append(&effects, &message);
                Ok(())
            }
        }
    };
    let until = eventually_async("16 to run and 16 to wait", async || {
        let in_hand = scene.pending().await.is_ok_and(|(_, in_hand)| in_hand == 32);
        in_hand && running.load(Ordering::SeqCst) == 16
    });
    let stopped = async {
        // A second consumer gets what waited, while the first one finishes what runs.
        eventually("16 handlers", || running.load(Ordering::SeqCst) == 16).await?;
        let others = async {
            eventually("the others", || scene.effects.lines().is_ok_and(|all| all.len() == 84))
                .await?;
            gate.add_permits(16);
            scene.is_empty().await
        };
        let begun = Instant::now();
        consume(inbox(&engine()), scene.source().await?, scene.handler(), others).await??;
        ensure!(begun.elapsed() < Duration::from_secs(60), "what waits came back after its time");
        anyhow::Ok(())
    };
    let first = consume(inbox(&engine()), scene.source().await?, handler, until);
    let (first, second) = tokio::join!(first, stopped);
    first??;
    second?;
    scene.assert_once(ids("m", 100))?;
    assert_eq!(scene.left().await?, (0, 0));
    Ok(())
}

/// Lets the source request messages, and drops that before they come.
async fn with_some_that_wait(scene: &Scene, count: usize) -> anyhow::Result<SqsQueue> {
    let source = scene.source().await?;
    let dropped = tokio::time::timeout(Duration::from_millis(500), source.receive(5)).await;
    ensure!(dropped.is_err(), "there is nothing");
    scene.publish_all(ids("m", count)).await?;
    // The request is still open: its messages are in hand.
    let in_hand = async || scene.pending().await.is_ok_and(|(_, in_hand)| in_hand > 0);
    eventually_async("the request to bring some", in_hand).await?;
    Ok(source)
}

async fn take_all(source: &SqsQueue, count: usize) -> anyhow::Result<BTreeSet<String>> {
    let mut taken = BTreeSet::new();
    let all = within("all messages", async {
        while taken.len() < count {
            for message in source.receive(5).await? {
                taken.insert(String::from_utf8_lossy(message.payload()).into_owned());
            }
        }
        anyhow::Ok(())
    });
    all.await??;
    Ok(taken)
}

#[tokio::test]
async fn what_has_come_without_room_is_kept_until_it_is_taken() -> anyhow::Result<()> {
    let scene = Scene::new(Kind::Standard).await?;
    let source = with_some_that_wait(&scene, 1).await?;
    let other = scene.source().await?;
    // Without room nothing is returned, and longer than the visibility timeout nothing comes back.
    tokio::select! {
        taken = source.receive(0) => anyhow::bail!("it has returned without room: {taken:?}"),
        taken = other.receive(1) => anyhow::bail!("delivered to another consumer: {taken:?}"),
        () = tokio::time::sleep(Duration::from_secs(7)) => {}
    }
    let taken = source.receive(5).await?;
    let counts: Vec<_> = taken.iter().map(|message| message.deliveries()).collect();
    assert_eq!(counts, [Some(1)]);
    Ok(())
}

#[tokio::test]
async fn what_comes_and_is_not_taken_goes_back_when_the_source_stops() -> anyhow::Result<()> {
    let scene = Scene::with(Kind::Standard, &LONG).await?;
    let source = with_some_that_wait(&scene, 3).await?;
    source.stop().await?;
    // It is taken by the request that is still open, if one is, and goes back too.
    scene.publish("m-3", "m-3").await?;
    let taken = take_all(&scene.source().await?, 4).await?;
    ensure!(taken == ids("m", 4).collect(), "{taken:?}");
    Ok(())
}

#[tokio::test]
async fn what_an_open_request_brings_after_the_stop_goes_back_too() -> anyhow::Result<()> {
    // The longer the pause, the surer it is that the request gets the message first.
    for pause in [100, 300, 1_000, 3_000] {
        let scene = Scene::with(Kind::Standard, &LONG).await?;
        let source = scene.source().await?;
        let dropped = tokio::time::timeout(Duration::from_millis(300), source.receive(5)).await;
        ensure!(dropped.is_err(), "there is nothing");
        source.stop().await?;
        scene.publish("m-0", "m-0").await?;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let other = scene.source().await?;
        let taken = within("the message", other.receive(1)).await??;
        if taken[0].deliveries() == Some(2) {
            return Ok(());
        }
    }
    anyhow::bail!("the request has ended with its source")
}

#[tokio::test]
async fn dropping_a_receive_loses_none() -> anyhow::Result<()> {
    let scene = Scene::with(Kind::Standard, &LONG).await?;
    let source = scene.source().await?;
    let publish = scene.publish_all(ids("m", 50));
    let receive = async {
        let mut taken = BTreeSet::new();
        let mut spins = 0_u64;
        while taken.len() < 50 {
            spins += 1;
            let patience = Duration::from_micros(spins * 37 % 3_000);
            if let Ok(messages) = tokio::time::timeout(patience, source.receive(3)).await {
                let messages = messages?;
                ensure!((1..=3).contains(&messages.len()), "{messages:?}");
                for message in messages {
                    assert_eq!(message.deliveries(), Some(1));
                    ensure!(taken.insert(message.id().to_owned()), "twice");
                }
            }
        }
        Ok(())
    };
    let all = within("all messages", async { tokio::try_join!(publish, receive) });
    all.await??;
    Ok(())
}

#[tokio::test]
async fn under_hold_a_process_that_stood_still_stores_its_late_result() -> anyhow::Result<()> {
    stalls::stand_still::<Scene>(false).await
}

#[tokio::test]
async fn under_retry_the_late_result_of_a_process_that_stood_still_is_refused() -> anyhow::Result<()>
{
    stalls::stand_still::<Scene>(true).await
}
