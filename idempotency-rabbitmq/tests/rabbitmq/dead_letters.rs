//! Dead letters: what they say, that none is lost, and that they come back as the same message.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use idempotency::inbox::{Inbox, OnFailure};
use idempotency::key::KeyHash;
use idempotency::record::Resolution;
use idempotency_rabbitmq::lapin::BasicProperties;
use idempotency_rabbitmq::lapin::message::Delivery;
use idempotency_rabbitmq::lapin::options::QueueDeclareOptions;
use idempotency_rabbitmq::lapin::types::{AMQPValue, FieldTable};
use idempotency_rabbitmq::{QueueMessage, RabbitMq};
use idempotency_test_support::deadline::eventually;

use crate::scene::{Kind, Scene, append, consume, engine, finish, inbox};
use crate::warnings::Warnings;

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

fn header<'l>(letter: &'l Delivery, name: &str) -> Option<&'l AMQPValue> {
    letter.properties.headers().as_ref()?.inner().get(name)
}

fn record(letter: &Delivery) -> anyhow::Result<KeyHash> {
    let Some(AMQPValue::LongString(hash)) = header(letter, "idempotency-record") else {
        anyhow::bail!("no record in {letter:?}");
    };
    assert_eq!(hash.as_bytes().len(), 64);
    Ok(hash.to_string().parse()?)
}

fn refuses(_: Arc<QueueMessage>) -> std::future::Ready<Result<(), &'static str>> {
    std::future::ready(Err("the card is unknown"))
}

#[tokio::test]
async fn a_dead_letter_is_the_message_with_its_story_and_the_original_is_acked()
-> anyhow::Result<()> {
    let scene = Scene::new(Kind::Classic).await?;
    let elsewhere = format!("{}.elsewhere", scene.queue);
    scene.declare(&elsewhere, Kind::Classic).await?;
    let mut headers = FieldTable::default();
    headers.insert("trace".into(), text("t-1"));
    headers.insert("idempotency-key".into(), text("key-1"));
    // What would send a copy elsewhere, and what would make it vanish.
    headers.insert("CC".into(), AMQPValue::FieldArray(vec![text(&elsewhere)].into()));
    let published = BasicProperties::default()
        .with_headers(headers)
        .with_message_id("m-0".into())
        .with_content_type("text/plain".into())
        .with_correlation_id("c-1".into())
        .with_priority(3)
        .with_user_id("guest".into())
        .with_expiration("60000".into());
    let engine = engine();
    let inbox = inbox(&engine).with_on_failure(|_: &&str| OnFailure::DeadLetter);
    let source = scene.source().await?;
    scene.publish_with(published, "the payload").await?;
    let before = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    consume(inbox, source, refuses, scene.is_ready(&scene.dead, 1)).await??;
    assert_eq!(scene.left().await?, (0, 1));
    assert_eq!(
        scene.ready(&elsewhere).await?,
        1,
        "that of the message, and none of its dead letter"
    );

    let letter = scene.dead_letter().await?;
    assert_eq!(letter.data, b"the payload");
    let properties = &letter.properties;
    let short = |value: &Option<_>| value.as_ref().map(ToString::to_string);
    assert_eq!(short(properties.message_id()).as_deref(), Some("m-0"));
    assert_eq!(short(properties.content_type()).as_deref(), Some("text/plain"));
    assert_eq!(short(properties.correlation_id()).as_deref(), Some("c-1"));
    assert_eq!((*properties.priority(), *properties.delivery_mode()), (Some(3), Some(2)));
    assert_eq!((properties.expiration(), properties.user_id()), (&None, &None));
    for (name, value) in [
        ("trace", text("t-1")),
        ("idempotency-key", text("key-1")),
        ("idempotency-reason", text("failed")),
        ("idempotency-attempts", AMQPValue::LongLongInt(1)),
        ("idempotency-queue", text(&scene.queue)),
        ("idempotency-exchange", text("")),
        ("idempotency-routing-key", text(&scene.queue)),
        ("idempotency-expiration", text("60000")),
        ("idempotency-user-id", text("guest")),
    ] {
        assert_eq!(header(&letter, name), Some(&value), "{name}");
    }
    assert_eq!(header(&letter, "CC"), None);
    let Some(AMQPValue::Timestamp(at)) = header(&letter, "idempotency-time") else {
        panic!("{letter:?}");
    };
    assert!((before..before + 60).contains(at));
    assert_eq!(record(&letter)?, engine.record("billing", ("header", "key-1")).hash()?);
    Ok(())
}

/// A key may be made of them, and stays the same however often the message is moved back. A count that
/// came with it is that of another queue.
#[tokio::test]
async fn a_dead_letter_that_dies_again_says_where_it_came_from_first() -> anyhow::Result<()> {
    let scene = Scene::new(Kind::Classic).await?;
    let origin = [
        ("idempotency-queue", "orders"),
        ("idempotency-exchange", "shop"),
        ("idempotency-routing-key", "order.7"),
    ];
    let mut headers = FieldTable::default();
    for (name, value) in origin {
        headers.insert(name.into(), text(value));
    }
    headers.insert("x-delivery-count".into(), AMQPValue::LongLongInt(40));
    let moved = BasicProperties::default().with_headers(headers).with_message_id("m-0".into());
    scene.publish_with(moved, "the payload").await?;
    let counts = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = counts.clone();
    let handler = move |message: Arc<QueueMessage>| {
        seen.lock().unwrap().push(message.deliveries());
        refuses(message)
    };
    let inbox = inbox(&engine()).with_on_failure(|_: &&str| OnFailure::DeadLetter);
    let until = scene.is_ready(&scene.dead, 1);
    consume(inbox, scene.source().await?, handler, until).await??;
    let letter = scene.dead_letter().await?;
    for (name, value) in origin {
        assert_eq!(header(&letter, name), Some(&text(value)), "{name}");
    }
    assert_eq!(*counts.lock().unwrap(), [None]);
    Ok(())
}

#[tokio::test]
async fn a_dead_letter_of_a_failure_runs_when_it_is_moved_back_and_then_is_a_duplicate()
-> anyhow::Result<()> {
    let scene = Scene::new(Kind::Quorum).await?;
    let engine = engine();
    scene.publish("m-0", "m-0").await?;
    let inbox = || inbox(&engine).with_max_attempts(2);
    consume(inbox(), scene.source().await?, refuses, scene.is_ready(&scene.dead, 1)).await??;
    let letter = scene.dead_letter().await?;
    assert_eq!(header(&letter, "idempotency-reason"), Some(&text("attempts")));
    assert_eq!(header(&letter, "idempotency-attempts"), Some(&AMQPValue::LongLongInt(2)));
    assert_eq!(header(&letter, "x-delivery-count"), None, "it is not a part of the message");
    for _ in 0..2 {
        scene.redrive(&letter).await?;
    }
    let until = async {
        scene.have_happened(["m-0".to_owned()]).await?;
        scene.is_ready(&scene.queue, 0).await
    };
    consume(inbox(), scene.source().await?, scene.handler(), until).await??;
    finish(&scene, &engine).await?;
    scene.assert_once(["m-0".to_owned()])?;
    assert_eq!(scene.left().await?, (0, 0));
    Ok(())
}

#[tokio::test]
async fn a_dead_letter_in_doubt_is_acked_or_runs_as_the_operator_says() -> anyhow::Result<()> {
    for has_happened in [true, false] {
        let scene = Scene::new(Kind::Classic).await?;
        let engine = engine();
        scene.publish("m-0", "m-0").await?;
        let hold = |_: &&str| OnFailure::Hold;
        let until = scene.is_ready(&scene.dead, 1);
        let holding = inbox(&engine).with_on_failure(hold);
        consume(holding, scene.source().await?, refuses, until).await??;
        let letter = scene.dead_letter().await?;
        assert_eq!(header(&letter, "idempotency-reason"), Some(&text("in-doubt")));

        // Before the answer, it is a dead letter again.
        scene.redrive(&letter).await?;
        let until = scene.is_ready(&scene.dead, 1);
        consume(inbox(&engine), scene.source().await?, scene.handler(), until).await??;
        let letter = scene.dead_letter().await?;

        let record = engine.record_by_hash(record(&letter)?);
        let view = record.inspect().await?.context("the record")?;
        let answer =
            if has_happened { Resolution::completed(()) } else { Resolution::not_executed() };
        record.resolve(&view, answer).await?;
        scene.redrive(&letter).await?;
        scene.publish("last", "last").await?;
        let until = async {
            scene.have_happened(["last".to_owned()]).await?;
            scene.is_ready(&scene.queue, 0).await
        };
        consume(inbox(&engine), scene.source().await?, scene.handler(), until).await??;
        let expected = if has_happened { vec!["last"] } else { vec!["last", "m-0"] };
        scene.assert_once(expected.into_iter().map(str::to_owned))?;
        assert_eq!(scene.left().await?, (0, 0));
    }
    Ok(())
}

/// Runs a consumer whose dead letters do not arrive, until each message has been tried twice.
async fn tried_twice(scene: &Scene, source: RabbitMq, spoil: bool) -> anyhow::Result<()> {
    let source = source.connect().await?;
    if spoil {
        scene.delete(&scene.dead).await?;
    }
    scene.publish("m-0", "m-0").await?;
    let tries = Arc::new(AtomicU32::new(0));
    let counter = tries.clone();
    let handler = move |_: Arc<QueueMessage>| {
        counter.fetch_add(1, Ordering::SeqCst);
        std::future::ready(Err("the card is unknown"))
    };
    let inbox = inbox(&engine()).with_on_failure(|_: &&str| OnFailure::DeadLetter);
    let warnings = Warnings::listen();
    let until = eventually("two tries", || tries.load(Ordering::SeqCst) >= 2);
    consume(inbox, source, handler, until).await??;
    assert!(warnings.count("a dead letter has not arrived") >= 2, "an error for each");
    scene.is_ready(&scene.queue, 1).await.context("the message is lost")
}

#[tokio::test]
async fn a_dead_letter_that_is_returned_by_the_broker_is_not_acked() -> anyhow::Result<()> {
    let scene = Scene::new(Kind::Quorum).await?;
    let source = RabbitMq::new(&scene.connection().await?, &*scene.queue);
    tried_twice(&scene, source.dead_letters(&*scene.dead), true).await
}

#[tokio::test]
async fn without_a_place_for_dead_letters_nothing_is_dropped() -> anyhow::Result<()> {
    let scene = Scene::new(Kind::Classic).await?;
    let source = RabbitMq::new(&scene.connection().await?, &*scene.queue);
    tried_twice(&scene, source, false).await
}

#[tokio::test]
async fn a_dead_letter_that_the_broker_does_not_take_comes_later() -> anyhow::Result<()> {
    let scene = Scene::new(Kind::Classic).await?;
    // It is full, and refuses what is published to it.
    scene.delete(&scene.dead).await?;
    let mut full = FieldTable::default();
    full.insert("x-max-length".into(), AMQPValue::LongLongInt(1));
    full.insert("x-overflow".into(), text("reject-publish"));
    scene
        .channel()
        .queue_declare((&*scene.dead).into(), QueueDeclareOptions::default(), full)
        .await?;
    scene.publish_to(&scene.dead, BasicProperties::default(), b"an older one").await?;
    scene.publish("m-0", "m-0").await?;
    let has_failed = Arc::new(AtomicBool::new(false));
    let (failed, effects) = (has_failed.clone(), scene.effects.clone());
    let handler = move |message: Arc<QueueMessage>| {
        failed.store(true, Ordering::SeqCst);
        append(&effects, &message);
        std::future::ready(Err("the card is unknown"))
    };
    let inbox: Inbox<_> = inbox(&engine()).with_on_failure(|_: &&str| OnFailure::DeadLetter);
    let until = async {
        eventually("a second try", || scene.effects.count("m-0").is_ok_and(|count| count > 1))
            .await?;
        assert_eq!(scene.dead_letter().await?.data, b"an older one");
        assert_eq!(scene.dead_letter().await?.data, b"m-0");
        scene.is_ready(&scene.queue, 0).await
    };
    consume(inbox, scene.source().await?, handler, until).await??;
    assert_eq!(scene.left().await?, (0, 0));
    Ok(())
}

#[tokio::test]
async fn pauses_grow_where_dead_letters_do_not_arrive() -> anyhow::Result<()> {
    let scene = Scene::new(Kind::Quorum).await?;
    let source = RabbitMq::new(&scene.connection().await?, &*scene.queue).connect().await?;
    scene.publish("m-0", "m-0").await?;
    let tries = Arc::new(std::sync::Mutex::new(Vec::new()));
    let counter = tries.clone();
    let handler = move |_: Arc<QueueMessage>| {
        counter.lock().unwrap().push(tokio::time::Instant::now());
        std::future::ready(Err("the card is unknown"))
    };
    let inbox = inbox(&engine()).with_on_failure(|_: &&str| OnFailure::DeadLetter);
    let until = eventually("three tries", || tries.lock().unwrap().len() == 3);
    consume(inbox, source, handler, until).await??;
    let tries = tries.lock().unwrap();
    let pauses: Vec<_> = tries.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(
        pauses[0] >= Duration::from_secs(1) && pauses[1] >= Duration::from_secs(2),
        "{pauses:?}"
    );
    Ok(())
}
