//! Which messages are the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use idempotency::inbox::{Inbox, OnFailure};
use idempotency_nats::async_nats::jetstream::consumer::pull;
use idempotency_nats::async_nats::jetstream::message::PublishMessage;
use idempotency_nats::{JetStream, StreamMessage};
use idempotency_test_support::consuming::DAY;
use idempotency_test_support::deadline::eventually_async;

use crate::scene::{Scene, WINDOW, append, consume, durable, engine, header, inbox};

fn plain() -> PublishMessage {
    PublishMessage::build()
}

fn by_id(id: &str) -> PublishMessage {
    plain().message_id(id)
}

fn by_header(key: &str) -> PublishMessage {
    plain().header("idempotency-key", key)
}

#[tokio::test]
async fn the_header_comes_before_the_id_and_none_equals_another() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    // One payload: a key that is another one's would be a duplicate.
    let position = format!("{}:1:0", scene.stream);
    for message in [
        by_header("7"),
        by_header("7").message_id("another"),
        by_id("7"),
        by_id("7"),
        // Headers of a dead letter, on what is none.
        by_header("7").header("idempotency-position", "elsewhere"),
        by_id("7").header("idempotency-message-id", "elsewhere"),
        by_id(&position),
        by_header(&position),
        // By their positions.
        plain(),
        plain(),
        plain().message_id(""),
    ] {
        scene.publish_with(message, "one").await?;
    }
    consume(inbox(&engine()), scene.source().await?, scene.handler(), scene.is_empty()).await??;
    assert_eq!(scene.effects.count("one")?, 7);
    assert_eq!(scene.left().await?, (0, 0));
    Ok(())
}

#[tokio::test]
async fn a_position_recognises_what_is_delivered_again_and_no_message_of_a_recreated_stream()
-> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let engine = engine();
    for generation in 1..=3 {
        scene.publish_with(plain(), "one").await?;
        for again in [false, true] {
            if again {
                // The same message, by a consumer that begins at the first one again.
                let stream = scene.context().get_stream(&scene.stream).await?;
                stream.delete_consumer(crate::scene::CONSUMER).await?;
                stream.create_consumer(durable()).await?;
                assert_eq!(scene.left().await?, (1, 0));
            }
            let source = scene.source().await?;
            consume(inbox(&engine), source, scene.handler(), scene.is_empty()).await??;
            assert_eq!(scene.effects.count("one")?, generation);
        }
        // Its numbers begin at one again.
        scene.context().delete_stream(&scene.stream).await?;
        scene.create(WINDOW).await?.create_consumer(durable()).await?;
    }
    assert_eq!(scene.dead_letters().await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_message_with_an_empty_key_is_a_dead_letter_and_the_others_go_on() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    scene.publish_with(by_header("").message_id("m-1"), "nameless").await?;
    scene.publish("last", "last").await?;
    consume(inbox(&engine()), scene.source().await?, scene.handler(), scene.is_empty()).await??;
    scene.assert_once(["last".to_owned()])?;
    assert_eq!(scene.left().await?, (0, 1));
    let letter = scene.dead_letter().await?;
    assert_eq!(header(&letter.headers, "idempotency-reason"), Some("missing-key"));
    assert_eq!(header(&letter.headers, "idempotency-record"), None);
    Ok(())
}

#[tokio::test]
async fn the_key_can_be_the_user_s() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    for (id, order) in [("a", "order-1"), ("b", "order-1"), ("c", "order-2")] {
        scene.publish_with(by_id(id).header("order", order), "one").await?;
    }
    scene.publish("d", "none").await?;
    let source = scene.options().await?.dead_letters(scene.context().clone(), &*scene.dead);
    let order = |message: &StreamMessage| message.header("order").map(str::to_owned);
    let source = source.with_key(order).connect().await?;
    let effects = scene.effects.clone();
    let handler = move |message: Arc<StreamMessage>| {
        effects.append(message.header("order").unwrap_or("none")).expect("an effect");
        std::future::ready(Ok(()))
    };
    consume(inbox(&engine()), source, handler, scene.is_empty()).await??;
    scene.assert_once(["order-1".to_owned(), "order-2".to_owned()])?;
    assert_eq!(scene.left().await?, (0, 1));
    let letter = scene.dead_letter().await?;
    assert_eq!(header(&letter.headers, "idempotency-key"), None);
    assert_eq!(header(&letter.headers, "idempotency-message-id"), Some("d"));
    Ok(())
}

#[tokio::test]
async fn one_id_with_another_payload_is_a_dead_letter() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    scene.publish("m-0", "first").await?;
    let engine = engine();
    let until = scene.is_empty();
    consume(inbox(&engine), scene.source().await?, scene.handler(), until).await??;
    scene.publish("m-0", "second").await?;
    let until = scene.is_empty();
    consume(inbox(&engine), scene.source().await?, scene.handler(), until).await??;
    scene.assert_once(["first".to_owned()])?;
    let letter = scene.dead_letter().await?;
    assert_eq!(&*letter.payload, b"second");
    assert_eq!(header(&letter.headers, "idempotency-reason"), Some("mismatch"));
    Ok(())
}

#[tokio::test]
async fn a_dead_letter_that_is_moved_back_has_the_key_of_its_message() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let engine = engine();
    // Of each origin; the payload names it.
    // And with headers of a dead letter, which count for none that is not one.
    let forged = || {
        let forged = plain().header("idempotency-message-id", "7");
        forged.header("idempotency-position", "7").header("idempotency-record", "7")
    };
    for (message, payload) in [
        (by_header("7"), "header"),
        (by_id("7"), "message-id"),
        (plain(), "position"),
        (forged(), "forged"),
        (forged(), "forged too"),
    ] {
        scene.publish_with(message, payload).await?;
    }
    // The first attempt has the effect, and is in doubt.
    let tries = Arc::new(AtomicU32::new(0));
    let (effects, counter) = (scene.effects.clone(), tries.clone());
    let handler = move |message: Arc<StreamMessage>| {
        counter.fetch_add(1, Ordering::SeqCst);
        append(&effects, &message);
        std::future::ready(Err("no answer"))
    };
    let hold = inbox(&engine).with_on_failure(|_: &&str| OnFailure::Hold);
    consume(hold, scene.source().await?, handler, scene.is_empty()).await??;
    assert_eq!((tries.load(Ordering::SeqCst), scene.left().await?), (5, (0, 5)));
    let mut records = Vec::new();
    for round in 0..2 {
        let mut letters = Vec::new();
        for _ in 0..5 {
            letters.push(scene.dead_letter().await?);
        }
        letters.sort_by_key(|letter| letter.payload.to_vec());
        let found: Vec<_> = letters
            .iter()
            .map(|letter| header(&letter.headers, "idempotency-record").unwrap().to_owned())
            .collect();
        if round > 0 {
            assert_eq!(records, found, "another key than before");
            break;
        }
        records = found;
        // Nothing is resolved: what is the same message is in doubt again, and no other runs.
        for letter in &letters {
            scene.redrive(letter).await?;
        }
        let source = scene.source().await?;
        consume(inbox(&engine), source, scene.handler(), scene.is_empty()).await??;
        assert_eq!(scene.effects.lines()?.len(), 5);
        assert_eq!(scene.left().await?, (0, 5));
    }
    Ok(())
}

#[tokio::test]
async fn a_dead_letter_of_one_consumer_is_the_same_message_to_the_others_when_it_is_moved_back()
-> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let config = pull::Config { durable_name: Some("shipping".to_owned()), ..durable() };
    scene.context().create_consumer_on_stream(config, &*scene.stream).await?;
    let engine = engine();
    for (message, payload) in
        [(by_header("7"), "header"), (by_id("7"), "message-id"), (plain(), "position")]
    {
        scene.publish_with(message, payload).await?;
    }
    // The one with a key of its own fails, also when its messages are moved back, and twice.
    let dies = async |letters| {
        let source = scene.options().await?.dead_letters(scene.context().clone(), &*scene.dead);
        let key = |message: &StreamMessage| message.payload().to_vec();
        let source = source.with_key(key).connect().await?;
        let refused = |_: Arc<StreamMessage>| std::future::ready(Err("no answer"));
        let dead = inbox(&engine).with_on_failure(|_: &&str| OnFailure::DeadLetter);
        consume(dead, source, refused, scene.has_dead_letters(letters)).await??;
        anyhow::Ok(())
    };
    let shipped = async || {
        let source = JetStream::new(scene.consumer_by(scene.context(), "shipping").await?);
        let inbox = Inbox::new(engine.clone(), "shipping", DAY);
        let is_empty = eventually_async("no message to be left", async || {
            let consumer = scene.consumer_by(scene.context(), "shipping").await;
            consumer.is_ok_and(|consumer| {
                let info = consumer.cached_info();
                (info.num_pending, info.num_ack_pending) == (0, 0)
            })
        });
        consume(inbox, source.connect().await?, scene.handler(), is_empty).await??;
        scene.assert_once(["header", "message-id", "position"].map(str::to_owned))
    };
    for _ in 0..2 {
        dies(3).await?;
        shipped().await?;
        for _ in 0..3 {
            let letter = scene.dead_letter().await?;
            assert!(
                header(&letter.headers, "idempotency-position")
                    .is_some_and(|at| { at.starts_with(&*scene.stream) })
            );
            scene.redrive(&letter).await?;
        }
    }
    dies(3).await?;
    shipped().await
}
