//! What the broker is answered about each delivery.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use idempotency_rabbitmq::QueueMessage;
use idempotency_rabbitmq::lapin::BasicProperties;
use idempotency_test_support::deadline::eventually;
use tokio::time::Instant;

use crate::scene::{Kind, Scene, append, consume, engine, finish, ids, inbox};

#[tokio::test]
async fn messages_are_handled_once_and_acked() -> anyhow::Result<()> {
    for kind in [Kind::Classic, Kind::Quorum] {
        let scene = Scene::new(kind).await?;
        let ids = ids("m", 100);
        scene.publish_all(ids.clone()).await?;
        let until = scene.have_happened(ids.clone());
        let engine = engine();
        consume(inbox(&engine), scene.source().await?, scene.handler(), until).await??;
        finish(&scene, &engine).await?;
        scene.assert_once(ids)?;
        assert_eq!(scene.left().await?, (0, 0));
    }
    Ok(())
}

#[tokio::test]
async fn a_duplicate_is_acked_and_runs_nothing() -> anyhow::Result<()> {
    let scene = Scene::new(Kind::Quorum).await?;
    for _ in 0..5 {
        scene.publish("m-0", "m-0").await?;
    }
    scene.publish("last", "last").await?;
    let until = async {
        scene.have_happened(["last".to_owned()]).await?;
        scene.is_ready(&scene.queue, 0).await
    };
    let engine = engine();
    consume(inbox(&engine), scene.source().await?, scene.handler(), until).await??;
    finish(&scene, &engine).await?;
    scene.assert_once(["m-0".to_owned(), "last".to_owned()])?;
    assert_eq!(scene.left().await?, (0, 0));
    Ok(())
}

#[tokio::test]
async fn a_failed_message_comes_again_after_its_pause_and_a_quorum_queue_counts()
-> anyhow::Result<()> {
    let scene = Scene::new(Kind::Quorum).await?;
    scene.publish("m-0", "m-0").await?;
    let (effects, seen) = (scene.effects.clone(), Arc::new(std::sync::Mutex::new(Vec::new())));
    let tries = seen.clone();
    let handler = move |message: Arc<QueueMessage>| {
        let mut tries = tries.lock().unwrap();
        tries.push((Instant::now(), message.deliveries(), message.is_redelivered()));
        let is_enough = tries.len() == 3;
        if is_enough {
            append(&effects, &message);
        }
        std::future::ready(if is_enough { Ok(()) } else { Err("no connection") })
    };
    let engine = engine();
    let slow = inbox(&engine).with_backoff(Duration::from_millis(600), Duration::from_secs(60));
    let until = scene.have_happened(["m-0".to_owned()]);
    consume(slow, scene.source().await?, handler, until).await??;
    finish(&scene, &engine).await?;
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    let counts: Vec<_> = seen.iter().map(|(_, count, again)| (*count, *again)).collect();
    assert_eq!(counts, [(None, false), (Some(2), true), (Some(3), true)]);
    // With its jitter a pause is half of what it says at least.
    let pauses: Vec<_> = seen.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    assert!(pauses.iter().all(|pause| *pause >= Duration::from_millis(300)), "{pauses:?}");
    assert_eq!(scene.left().await?, (0, 0));
    Ok(())
}

#[tokio::test]
async fn messages_that_wait_for_their_next_try_keep_no_other_from_being_handled()
-> anyhow::Result<()> {
    let scene = Scene::new(Kind::Classic).await?;
    scene.publish_all(ids("bad", 10)).await?;
    scene.publish_all(ids("good", 50)).await?;
    let (effects, failures) = (scene.effects.clone(), Arc::new(AtomicU32::new(0)));
    let failed = failures.clone();
    let handler = move |message: Arc<QueueMessage>| {
        let is_bad = message.payload().starts_with(b"bad");
        if is_bad {
            failed.fetch_add(1, Ordering::SeqCst);
        } else {
            append(&effects, &message);
        }
        std::future::ready(if is_bad { Err("no connection") } else { Ok(()) })
    };
    let minute = Duration::from_secs(60);
    let until = scene.have_happened(ids("good", 50));
    let inbox = inbox(&engine()).with_backoff(minute, minute);
    consume(inbox, scene.source().await?, handler, until).await??;
    assert_eq!(failures.load(Ordering::SeqCst), 10);
    // They were returned at the end, not a minute later.
    assert_eq!(scene.left().await?, (10, 0));
    Ok(())
}

#[tokio::test]
async fn a_message_reads_as_it_was_published() -> anyhow::Result<()> {
    let scene = Scene::new(Kind::Classic).await?;
    let properties = BasicProperties::default()
        .with_message_id("m-0".into())
        .with_content_type("application/json".into());
    scene.publish_with(properties, r#"{"amount":100}"#).await?;
    let seen = Arc::new(std::sync::Mutex::new(None));
    let handler = {
        let seen = seen.clone();
        move |message: Arc<QueueMessage>| {
            *seen.lock().unwrap() = Some(message);
            std::future::ready(Ok(()))
        }
    };
    let until = eventually("the message", || seen.lock().unwrap().is_some());
    consume(inbox(&engine()), scene.source().await?, handler, until).await??;
    let message = seen.lock().unwrap().take().unwrap();
    let json: std::collections::BTreeMap<String, u32> = message.json()?;
    assert_eq!(json["amount"], 100);
    assert!(message.json::<Vec<u32>>().is_err());
    assert_eq!(message.properties().content_type().as_ref().unwrap().as_str(), "application/json");
    assert_eq!((message.exchange(), message.routing_key()), ("", &*scene.queue));
    assert!(!message.is_redelivered());
    // Neither keys nor payloads belong in logs.
    let shown = format!("{message:?}");
    assert!(!shown.contains("amount") && !shown.contains("m-0"), "{shown}");
    Ok(())
}
