//! Dead letters: what they say, that none is lost, and that they come back as the same message.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use idempotency::inbox::OnFailure;
use idempotency::key::KeyHash;
use idempotency::record::Resolution;
use idempotency_nats::async_nats::jetstream::consumer::pull;
use idempotency_nats::async_nats::jetstream::message::{PublishMessage, StreamMessage as Stored};
use idempotency_nats::async_nats::jetstream::stream;
use idempotency_nats::{JetStream, StreamMessage};
use idempotency_test_support::deadline::eventually;

use crate::scene::{Scene, consume, engine, header, inbox};
use crate::warnings::Warnings;

fn record(letter: &Stored) -> anyhow::Result<KeyHash> {
    let hash = header(&letter.headers, "idempotency-record").context("no record")?;
    assert_eq!(hash.len(), 64);
    Ok(hash.parse()?)
}

fn refuses(_: Arc<StreamMessage>) -> std::future::Ready<Result<(), &'static str>> {
    std::future::ready(Err("the card is unknown"))
}

#[tokio::test]
async fn a_dead_letter_is_the_message_with_its_story_and_the_original_is_acked()
-> anyhow::Result<()> {
    let scene = Scene::new().await?;
    // An order to the server, which would refuse the copy.
    let message = PublishMessage::build()
        .message_id("m-0")
        .header("trace", "t-1")
        .header("idempotency-key", "key-1")
        .expected_stream(&scene.stream);
    scene.publish_with(message, "the payload").await?;
    let engine = engine();
    let failing = inbox(&engine).with_on_failure(|_: &&str| OnFailure::DeadLetter);
    consume(failing, scene.source().await?, refuses, scene.is_empty()).await??;
    assert_eq!(scene.left().await?, (0, 1));

    let letter = scene.dead_letter().await?;
    assert_eq!(&*letter.payload, b"the payload");
    for (name, value) in [
        ("trace", Some("t-1")),
        ("idempotency-key", Some("key-1")),
        ("idempotency-message-id", Some("m-0")),
        ("idempotency-reason", Some("failed")),
        ("idempotency-attempts", Some("1")),
        ("idempotency-stream", Some(&*scene.stream)),
        ("idempotency-subject", Some(&*scene.stream)),
        ("idempotency-sequence", Some("1")),
        ("Nats-Expected-Stream", None),
    ] {
        assert_eq!(header(&letter.headers, name), value, "{name}");
    }
    let id = header(&letter.headers, "Nats-Msg-Id").context("its own id")?;
    assert!(id.starts_with("dead/billing/"), "{id}");
    let time = header(&letter.headers, "idempotency-time").context("a time")?;
    assert!(time.starts_with("20") && time.ends_with('Z') && time.len() == 20, "{time}");
    assert_eq!(record(&letter)?, engine.record("billing", ("header", "key-1")).hash()?);
    Ok(())
}

#[tokio::test]
async fn a_dead_letter_of_a_failure_runs_when_it_is_moved_back_and_then_is_a_duplicate()
-> anyhow::Result<()> {
    let scene = Scene::new().await?;
    scene.recognise().await?;
    let engine = engine();
    scene.publish("m-0", "m-0").await?;
    let inbox = || inbox(&engine).with_max_attempts(2);
    // It dies again when it is moved back: another dead letter, not a duplicate of the first one.
    let mut last = None;
    for _ in 0..2 {
        consume(inbox(), scene.source().await?, refuses, scene.is_empty()).await??;
        assert_eq!(scene.left().await?, (0, 1));
        let letter = scene.dead_letter().await?;
        assert_eq!(header(&letter.headers, "idempotency-reason"), Some("attempts"));
        assert_eq!(header(&letter.headers, "idempotency-attempts"), Some("2"));
        scene.redrive(&letter).await?;
        last = Some(letter);
    }
    consume(inbox(), scene.source().await?, scene.handler(), scene.is_empty()).await??;
    // Once more, as another copy.
    let mut letter = last.context("a letter")?;
    letter.headers.insert("Nats-Msg-Id", "another copy");
    scene.redrive(&letter).await?;
    consume(inbox(), scene.source().await?, scene.handler(), scene.is_empty()).await??;
    scene.assert_once(["m-0".to_owned()])?;
    assert_eq!(scene.left().await?, (0, 0));
    Ok(())
}

#[tokio::test]
async fn a_dead_letter_in_doubt_is_acked_or_runs_as_the_operator_says() -> anyhow::Result<()> {
    for has_happened in [true, false] {
        let scene = Scene::new().await?;
        let engine = engine();
        // Without an id: by its position.
        scene.publish_with(PublishMessage::build(), "m-0").await?;
        let holding = inbox(&engine).with_on_failure(|_: &&str| OnFailure::Hold);
        consume(holding, scene.source().await?, refuses, scene.is_empty()).await??;
        let letter = scene.dead_letter().await?;
        assert_eq!(header(&letter.headers, "idempotency-reason"), Some("in-doubt"));

        let record = engine.record_by_hash(record(&letter)?);
        let view = record.inspect().await?.context("the record")?;
        let answer =
            if has_happened { Resolution::completed(()) } else { Resolution::not_executed() };
        record.resolve(&view, answer).await?;
        scene.redrive(&letter).await?;
        let until = scene.is_empty();
        consume(inbox(&engine), scene.source().await?, scene.handler(), until).await??;
        let expected = if has_happened { vec![] } else { vec!["m-0"] };
        scene.assert_once(expected.into_iter().map(str::to_owned))?;
        assert_eq!(scene.left().await?, (0, 0));
    }
    Ok(())
}

#[tokio::test]
async fn two_consumers_of_a_stream_share_a_place_for_their_dead_letters() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    scene.publish("m-0", "m-0").await?;
    let engine = engine();
    let second =
        pull::Config { durable_name: Some("shipping".to_owned()), ..crate::scene::durable() };
    scene.context().create_consumer_on_stream(second, &*scene.stream).await?;
    for (name, count) in [("billing", 1), ("shipping", 2)] {
        let consumer = scene.consumer_by(scene.context(), name).await?;
        let source = JetStream::new(consumer).dead_letters(scene.context().clone(), &*scene.dead);
        let failing = inbox(&engine).with_on_failure(|_: &&str| OnFailure::DeadLetter);
        let until = scene.has_dead_letters(count);
        consume(failing, source.connect().await?, refuses, until).await??;
    }
    Ok(())
}

/// Runs a consumer whose dead letters do not arrive, until each message has been tried twice.
async fn tried_twice(scene: &Scene, source: JetStream, spoil: bool) -> anyhow::Result<()> {
    let source = source.connect().await?;
    if spoil {
        scene.context().delete_stream(scene.dead_stream()).await?;
    }
    scene.publish("m-0", "m-0").await?;
    let tries = Arc::new(AtomicU32::new(0));
    let counter = tries.clone();
    let handler = move |_: Arc<StreamMessage>| {
        counter.fetch_add(1, Ordering::SeqCst);
        std::future::ready(Err("the card is unknown"))
    };
    let inbox = inbox(&engine()).with_on_failure(|_: &&str| OnFailure::DeadLetter);
    let warnings = Warnings::listen();
    let until = eventually("two tries", || tries.load(Ordering::SeqCst) >= 2);
    consume(inbox, source, handler, until).await??;
    assert!(warnings.count("a dead letter has not arrived") >= 2, "an error for each");
    assert_eq!(scene.pending().await?, (0, 1), "the message is lost");
    Ok(())
}

#[tokio::test]
async fn a_dead_letter_whose_stream_is_gone_is_not_acked() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let source = scene.options().await?.dead_letters(scene.context().clone(), &*scene.dead);
    tried_twice(&scene, source, true).await
}

#[tokio::test]
async fn without_a_place_for_dead_letters_nothing_is_dropped() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    tried_twice(&scene, scene.options().await?, false).await
}

#[tokio::test]
async fn a_dead_letter_that_the_server_does_not_take_comes_later() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    // It is full, and refuses what is published to it.
    let full = stream::Config {
        name: scene.dead_stream(),
        subjects: vec![scene.dead.clone()],
        max_messages: 1,
        discard: stream::DiscardPolicy::New,
        ..stream::Config::default()
    };
    scene.context().update_stream(full).await?;
    scene.context().publish(scene.dead.clone(), "an older one".into()).await?.await?;
    scene.publish("m-0", "m-0").await?;
    let tries = Arc::new(std::sync::Mutex::new(Vec::new()));
    let counter = tries.clone();
    let handler = move |_: Arc<StreamMessage>| {
        counter.lock().unwrap().push(tokio::time::Instant::now());
        std::future::ready(Err("the card is unknown"))
    };
    let inbox = inbox(&engine()).with_on_failure(|_: &&str| OnFailure::DeadLetter);
    let until = async {
        eventually("three tries", || tries.lock().unwrap().len() == 3).await?;
        assert_eq!(scene.pending().await?, (0, 1));
        assert_eq!(&*scene.dead_letter().await?.payload, b"an older one");
        assert_eq!(&*scene.dead_letter().await?.payload, b"m-0");
        scene.is_empty().await
    };
    consume(inbox, scene.source().await?, handler, until).await??;
    assert_eq!(scene.left().await?, (0, 0));
    // The pauses grow.
    let tries = tries.lock().unwrap();
    let pauses: Vec<_> = tries.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let seconds = Duration::from_secs;
    assert!(pauses[0] >= seconds(1) && pauses[1] >= seconds(2), "{pauses:?}");
    Ok(())
}
