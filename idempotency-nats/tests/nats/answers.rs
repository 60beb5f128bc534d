//! What the server is answered about each delivery.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use idempotency::inbox::{Consumer, Source as _};
use idempotency_nats::StreamMessage;
use idempotency_nats::async_nats::jetstream::consumer::pull;
use idempotency_nats::async_nats::jetstream::message::PublishMessage;
use idempotency_test_support::deadline::{eventually, eventually_async};
use tokio::time::Instant;

use crate::scene::{Scene, append, consume, durable, engine, ids, inbox};

#[tokio::test]
async fn messages_are_handled_once_and_acked() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let ids = ids("m", 300);
    scene.publish_all(ids.clone()).await?;
    consume(inbox(&engine()), scene.source().await?, scene.handler(), scene.is_empty()).await??;
    scene.assert_once(ids)?;
    assert_eq!(scene.left().await?, (0, 0));
    Ok(())
}

#[tokio::test]
async fn messages_of_a_consumer_with_narrow_limits_are_handled_once() -> anyhow::Result<()> {
    let config = pull::Config {
        max_batch: 3,
        max_expires: Duration::from_millis(200),
        max_ack_pending: 5,
        ..durable()
    };
    let scene = Scene::with(config).await?;
    scene.publish_all(ids("m", 100)).await?;
    consume(inbox(&engine()), scene.source().await?, scene.handler(), scene.is_empty()).await??;
    scene.assert_once(ids("m", 100))?;
    Ok(())
}

#[tokio::test]
async fn a_duplicate_is_acked_and_runs_nothing() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let key = || PublishMessage::build().header("idempotency-key", "k-0");
    let until = async {
        for _ in 0..4 {
            // Each is another message to the server, which has forgotten the id.
            scene.publish("m-0", "m-0").await?;
            scene.publish_with(key(), "k-0").await?;
        }
        scene.publish("last", "last").await?;
        scene.have_happened(["last".to_owned()]).await?;
        scene.is_empty().await
    };
    consume(inbox(&engine()), scene.source().await?, scene.handler(), until).await??;
    let stream = scene.context().get_stream(&scene.stream).await?;
    assert_eq!(stream.cached_info().state.messages, 9);
    scene.assert_once(["m-0", "k-0", "last"].map(str::to_owned))?;
    assert_eq!(scene.left().await?, (0, 0));
    Ok(())
}

#[tokio::test]
async fn a_failed_message_comes_again_after_its_pause_with_its_count() -> anyhow::Result<()> {
    let ack_wait = Duration::from_secs(5);
    let scene = Scene::with(pull::Config { ack_wait, ..durable() }).await?;
    scene.publish("m-0", "m-0").await?;
    let (effects, seen) = (scene.effects.clone(), Arc::new(std::sync::Mutex::new(Vec::new())));
    let tries = seen.clone();
    let handler = move |message: Arc<StreamMessage>| {
        let mut tries = tries.lock().unwrap();
        tries.push((Instant::now(), message.deliveries()));
        let is_enough = tries.len() == 3;
        if is_enough {
            append(&effects, &message);
        }
        std::future::ready(if is_enough { Ok(()) } else { Err("no connection") })
    };
    let slow = inbox(&engine()).with_backoff(Duration::from_millis(600), Duration::from_secs(60));
    consume(slow, scene.source().await?, handler, scene.is_empty()).await??;
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    // One by one, unless this process is held up for longer than `ack_wait`.
    let counts: Vec<_> = seen.iter().map(|(_, count)| count.unwrap_or(0)).collect();
    assert!(counts[0] > 0 && counts.is_sorted_by(|one, next| one < next), "{counts:?}");
    // With its jitter a pause is half of what it says at least.
    let pauses: Vec<_> = seen.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    assert!(pauses.iter().all(|pause| *pause >= Duration::from_millis(300)), "{pauses:?}");
    assert_eq!(scene.left().await?, (0, 0));
    Ok(())
}

#[tokio::test]
async fn a_handler_that_is_slower_than_ack_wait_runs_once() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    // The second one waits in the consumer meanwhile.
    scene.publish_all(ids("m", 2)).await?;
    let effects = scene.effects.clone();
    let handler = move |message: Arc<StreamMessage>| {
        let effects = effects.clone();
        async move {
            // Three times `ack_wait`.
            tokio::time::sleep(Duration::from_secs(3)).await;
            append(&effects, &message);
            Ok::<_, &'static str>(())
        }
    };
    let consumer = Consumer::new(inbox(&engine()), scene.source().await?).with_concurrency(1);
    let stop = async {
        let _ = scene.is_empty().await;
    };
    // It would get what the first one does not keep.
    let other = scene.source().await?;
    let watch = async {
        eventually_async("both to be in hand", async || {
            scene.pending().await.is_ok_and(|pending| pending == (0, 2))
        })
        .await?;
        let taken = other.receive(1).await?;
        anyhow::bail!("delivered to another consumer: {taken:?}")
    };
    tokio::select! {
        ended = consumer.run(stop, handler) => ensure!(ended?.left == 0),
        failed = watch => return failed,
    }
    scene.assert_once(ids("m", 2))?;
    Ok(())
}

#[tokio::test]
async fn a_message_reads_as_it_was_published() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let message = PublishMessage::build().message_id("m-0").header("trace", "t-1");
    scene.publish_with(message, r#"{"amount":100}"#).await?;
    let seen = Arc::new(std::sync::Mutex::new(None));
    let handler = {
        let seen = seen.clone();
        move |message: Arc<StreamMessage>| {
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
    assert_eq!((message.header("trace"), message.header("Trace")), (Some("t-1"), None));
    // A name that no header can have is one that there is not.
    assert_eq!(message.header("a:b\n"), None);
    assert_eq!((message.subject(), message.message_id()), (&*scene.stream, Some("m-0")));
    assert_eq!((message.sequence(), message.deliveries()), (Some(1), Some(1)));
    // Neither keys nor payloads belong in logs.
    let shown = format!("{message:?}");
    assert!(!shown.contains("amount") && !shown.contains("m-0"), "{shown}");
    Ok(())
}
