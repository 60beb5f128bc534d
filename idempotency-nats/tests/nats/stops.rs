//! A consumer that stops.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use idempotency::inbox::Source as _;
use idempotency_nats::StreamMessage;
use idempotency_nats::async_nats::jetstream::consumer::pull;
use idempotency_test_support::deadline::{eventually, eventually_async};
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
        anyhow::ensure!(begun.elapsed() < LONG / 2, "what waits came back after its time");
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

#[tokio::test]
async fn what_has_come_and_was_not_taken_is_kept_and_goes_back_at_the_stop() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let source = scene.source().await?;
    // A request for five, of which one is there. It is dropped when it has waited for more.
    scene.publish("m-0", "m-0").await?;
    assert_eq!(source.receive(5).await?.len(), 1);
    scene.publish_all((1..4).map(|number| format!("m-{number}"))).await?;
    // Without room nothing is returned, and longer than `ack_wait` nothing comes again.
    let rest = tokio::time::timeout(Duration::from_secs(3), source.receive(0));
    assert!(rest.await.is_err(), "it has returned without room");
    let taken = source.receive(1).await?;
    assert_eq!((taken.len(), taken[0].deliveries()), (1, Some(1)));
    source.stop().await?;
    let again = scene.source().await?;
    let mut counts = Vec::new();
    while counts.len() < 2 {
        counts.extend(again.receive(5).await?.iter().map(|message| {
            (String::from_utf8_lossy(message.payload()).into_owned(), message.deliveries())
        }));
    }
    counts.retain(|(id, _)| id == "m-2" || id == "m-3");
    counts.sort();
    let expected = ["m-2", "m-3"].map(|id| (id.to_owned(), Some(2)));
    assert_eq!(counts, expected, "they went back at once, and no more than once");
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
    let all = idempotency_test_support::deadline::within("all messages", async {
        tokio::try_join!(publish, receive)
    });
    all.await??;
    Ok(())
}
