//! A consumer that stops.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::ensure;
use idempotency::inbox::Source as _;
use idempotency_nats::async_nats::jetstream::consumer::pull;
use idempotency_nats::{PullSource, StreamMessage};
use idempotency_test_support::consuming::stalls;
use idempotency_test_support::deadline::{eventually, eventually_async, within};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::scene::{Scene, append, consume, durable, engine, ids, inbox};

/// A minute, in which no test waits for it.
const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn what_waits_goes_back_at_once_and_what_runs_is_finished() -> anyhow::Result<()> {
    let scene = Scene::with(pull::Config { ack_wait: LONG, ..durable() }).await?;
    scene.publish_all(ids("m", 100)).await?;
    let (effects, gate) = (scene.effects.clone(), Arc::new(Semaphore::new(0)));
    let running = Arc::new(AtomicU32::new(0));
    let handler = {
        let (gate, running) = (gate.clone(), running.clone());
        move |message: Arc<StreamMessage>| {
            let (effects, gate) = (effects.clone(), gate.clone());
            running.fetch_add(1, Ordering::SeqCst);
            async move {
                let _ = gate.acquire().await;
                append(&effects, &message);
                Ok(())
            }
        }
    };
    let until = async {
        eventually("16 handlers", || running.load(Ordering::SeqCst) == 16).await?;
        eventually_async("some to wait", async || {
            scene.pending().await.is_ok_and(|(_, in_hand)| in_hand > 16)
        })
        .await
    };
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
        ensure!(begun.elapsed() < LONG / 2, "what waits came back after its time");
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

/// A source that has requested `room` messages, taken one, and got three that it has not returned.
async fn with_three_that_wait(
    config: pull::Config,
    room: usize,
) -> anyhow::Result<(Scene, PullSource)> {
    loop {
        let scene = Scene::with(config.clone()).await?;
        let source = scene.source().await?;
        scene.publish("m-0", "m-0").await?;
        ensure!(source.receive(room).await?.len() == 1);
        scene.publish_all((1..4).map(|number| format!("m-{number}"))).await?;
        let waits = async || scene.pending().await.is_ok_and(|pending| pending == (0, 4));
        let wait = eventually_async("three to wait", waits);
        // The request has its end. On a slow machine it was too early.
        if let Ok(wait) = tokio::time::timeout(Duration::from_secs(1), wait).await {
            wait?;
            return Ok((scene, source));
        }
    }
}

#[tokio::test]
async fn what_has_come_without_room_is_kept_until_it_is_taken() -> anyhow::Result<()> {
    let (scene, source) = with_three_that_wait(durable(), 5).await?;
    let other = scene.source().await?;
    let others = async {
        // The first message is kept by no consumer here.
        while other.receive(4).await?.iter().all(|message| message.payload() == b"m-0") {}
        anyhow::Ok(())
    };
    // Without room nothing is returned, and longer than `ack_wait` nothing goes elsewhere.
    tokio::select! {
        taken = source.receive(0) => anyhow::bail!("it has returned without room: {taken:?}"),
        others = others => anyhow::bail!("delivered to another consumer: {others:?}"),
        () = tokio::time::sleep(Duration::from_secs(3)) => {}
    }
    let mut taken = source.receive(1).await?;
    ensure!(taken.len() == 1, "more than there is room for");
    taken.extend(source.receive(5).await?);
    let counts: Vec<_> = taken.iter().map(|message| message.deliveries()).collect();
    assert_eq!(counts, [Some(1), Some(1), Some(1)]);
    Ok(())
}

#[tokio::test]
async fn what_has_come_and_was_not_taken_goes_back_when_the_source_stops() -> anyhow::Result<()> {
    let config = pull::Config { ack_wait: LONG, ..durable() };
    let (scene, source) = with_three_that_wait(config, 500).await?;
    // And what comes of the request that is still open.
    let (stopped, published) = tokio::join!(source.stop(), scene.publish("m-4", "m-4"));
    stopped?;
    published?;
    let again = scene.source().await?;
    let mut taken = BTreeMap::new();
    let all = within("all that waited", async {
        while taken.len() < 4 {
            for message in again.receive(5).await? {
                let payload = String::from_utf8_lossy(message.payload()).into_owned();
                taken.insert(payload, message.deliveries());
            }
        }
        anyhow::Ok(())
    });
    all.await??;
    assert!(taken.keys().eq(["m-1", "m-2", "m-3", "m-4"]), "{taken:?}");
    // None went round and round by the open request.
    assert!(taken.values().all(|deliveries| *deliveries <= Some(2)), "{taken:?}");
    Ok(())
}

#[tokio::test]
async fn dropping_a_receive_loses_none() -> anyhow::Result<()> {
    let scene = Scene::with(pull::Config { ack_wait: LONG, ..durable() }).await?;
    let source = scene.source().await?;
    let publish = async {
        for number in 0..50 {
            scene.publish_all([format!("m-{number}")]).await?;
        }
        anyhow::Ok(())
    };
    let receive = async {
        let mut taken = std::collections::BTreeSet::new();
        let mut spins = 0_u64;
        while taken.len() < 50 {
            spins += 1;
            let patience = Duration::from_micros(spins * 37 % 3_000);
            if let Ok(messages) = tokio::time::timeout(patience, source.receive(3)).await {
                for message in messages? {
                    assert_eq!(message.deliveries(), Some(1));
                    assert!(taken.insert(message.sequence()), "twice");
                }
            }
        }
        anyhow::Ok(())
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
