//! Dead letters: what they say, that none is lost, and that they come back as the same message.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use idempotency::inbox::{Consumer, OnFailure};
use idempotency::key::KeyHash;
use idempotency::record::Resolution;
use idempotency_sqs::aws_sdk_sqs::primitives::Blob;
use idempotency_sqs::aws_sdk_sqs::types::{
    Message, MessageAttributeValue, QueueAttributeName as Attribute,
};
use idempotency_sqs::{Sqs, SqsMessage};
use idempotency_test_support::deadline::eventually;
use tokio::time::Instant;

use crate::scene::{Kind, STORY, Scene, consume, engine, inbox, said, server, story, text};
use crate::warnings::Warnings;
use crate::wire::Wire;

fn record(letter: &Message) -> anyhow::Result<KeyHash> {
    let hash = said(letter, "record").context("no record")?;
    assert_eq!(hash.len(), 64);
    Ok(hash.parse()?)
}

fn refuses(_: Arc<SqsMessage>) -> std::future::Ready<Result<(), &'static str>> {
    std::future::ready(Err("the card is unknown"))
}

#[tokio::test]
async fn a_dead_letter_is_the_message_with_its_story_and_the_original_is_deleted()
-> anyhow::Result<()> {
    let scene = Scene::new(Kind::Standard).await?;
    let engine = engine();
    let message = scene.message("m-0").message_attributes("trace", text("t-1"));
    let id = message.send().await?.message_id.context("an id")?;
    let inbox = inbox(&engine).with_on_failure(|_: &&str| OnFailure::DeadLetter);
    consume(inbox, scene.source().await?, refuses, scene.is_empty()).await??;
    assert_eq!(scene.left().await?, (0, 1));
    let letter = scene.dead_letter().await?;
    let attributes = letter.message_attributes().context("attributes")?;
    assert_eq!((letter.body(), attributes.len()), (Some("m-0"), 2));
    assert_eq!(attributes["trace"].string_value(), Some("t-1"));
    let said = |name: &str| said(&letter, name);
    assert_eq!((said("key"), said("message_id")), (Some(id.clone()), Some(id)));
    assert_eq!(said("key_origin").as_deref(), Some("message-id"));
    assert_eq!(said("reason").as_deref(), Some("failed"));
    assert_eq!(said("queue"), Some(scene.queue.clone()));
    assert_eq!(story(&letter).context("a story")?["attempts"], 1);
    assert!(said("time").is_some_and(|time| time.ends_with('Z')));
    let record = engine.record_by_hash(record(&letter)?);
    assert!(record.inspect().await?.is_none(), "a failure leaves no result");
    Ok(())
}

#[tokio::test]
async fn a_dead_letter_of_a_failure_runs_when_it_is_moved_back_and_then_is_a_duplicate()
-> anyhow::Result<()> {
    let scene = Scene::new(Kind::Standard).await?;
    let engine = engine();
    scene.message("m-0").send().await?;
    let refusing = inbox(&engine).with_on_failure(|_: &&str| OnFailure::DeadLetter);
    consume(refusing, scene.source().await?, refuses, scene.is_empty()).await??;
    let letter = scene.dead_letter().await?;
    for _ in 0..3 {
        scene.redrive(&letter).await?;
        let source = scene.source().await?;
        consume(inbox(&engine), source, scene.handler(), scene.is_empty()).await??;
    }
    scene.assert_once(["m-0".to_owned()])?;
    assert_eq!(scene.left().await?, (0, 0));
    Ok(())
}

#[tokio::test]
async fn a_dead_letter_in_doubt_is_deleted_or_runs_as_the_operator_says() -> anyhow::Result<()> {
    for (resolution, effects) in [(Resolution::completed(()), 0), (Resolution::not_executed(), 1)] {
        let scene = Scene::new(Kind::Fifo).await?;
        let engine = engine();
        scene.publish("m-0", "m-0").await?;
        let hold = inbox(&engine).with_on_failure(|_: &&str| OnFailure::Hold);
        consume(hold, scene.source().await?, refuses, scene.is_empty()).await??;
        let letter = scene.dead_letter().await?;
        assert_eq!(said(&letter, "reason").as_deref(), Some("in-doubt"));
        let record = engine.record_by_hash(record(&letter)?);
        let view = record.inspect().await?.context("the record")?;
        record.resolve(&view, resolution).await?;
        scene.redrive(&letter).await?;
        let source = scene.source().await?;
        consume(inbox(&engine), source, scene.handler(), scene.is_empty()).await??;
        assert_eq!(scene.effects.count("m-0")?, effects);
        assert_eq!(scene.left().await?, (0, 0));
    }
    Ok(())
}

#[tokio::test]
async fn a_message_with_ten_attributes_loses_none_of_them() -> anyhow::Result<()> {
    let scene = Scene::new(Kind::Standard).await?;
    let engine = engine();
    let binary = MessageAttributeValue::builder().data_type("Binary");
    let binary = binary.binary_value(Blob::new([7, 0, 255])).build()?;
    let mut message = scene.message("m-0").message_attributes("idempotency-key", text("k-0"));
    // The last two by their names.
    message = message.message_attributes("z-binary", binary.clone());
    message = message.message_attributes("z-text", text("the last one"));
    for number in 0..7 {
        message = message.message_attributes(format!("a-{number}"), text("some text"));
    }
    message.send().await?;
    let refusing = || inbox(&engine).with_on_failure(|_: &&str| OnFailure::DeadLetter);
    // One that dies again says the same.
    for _ in 0..2 {
        consume(refusing(), scene.source().await?, refuses, scene.is_empty()).await??;
        let letter = scene.dead_letter().await?;
        let attributes = letter.message_attributes().context("attributes")?;
        assert!(attributes.len() == 10 && attributes.contains_key(STORY), "{attributes:?}");
        assert!(attributes.contains_key("idempotency-key"));
        scene.redrive(&letter).await?;
    }
    let seen = Arc::new(Mutex::new(None));
    let handler = {
        let seen = seen.clone();
        move |message: Arc<SqsMessage>| {
            *seen.lock().unwrap() = Some(message);
            std::future::ready(Ok(()))
        }
    };
    consume(inbox(&engine), scene.source().await?, handler, scene.is_empty()).await??;
    let message = seen.lock().unwrap().take().context("the message")?;
    assert_eq!(
        (message.attributes().len(), message.attribute("z-text")),
        (10, Some("the last one"))
    );
    assert_eq!(message.attributes().get("z-binary"), Some(&binary));
    assert_eq!(message.attribute("idempotency-key"), Some("k-0"));
    Ok(())
}

/// Lets a message die twice whose dead letter cannot be sent, and checks that it is kept.
async fn tried_twice(scene: &Scene, source: Sqs, dead_is_gone: bool) -> anyhow::Result<()> {
    scene.publish("m-0", "m-0").await?;
    let source = source.connect().await?;
    if dead_is_gone {
        scene.delete(&scene.dead).await?;
    }
    let tries = Arc::new(AtomicU32::new(0));
    let counter = tries.clone();
    let handler = move |_: Arc<SqsMessage>| {
        counter.fetch_add(1, Ordering::SeqCst);
        std::future::ready(Err("the card is unknown"))
    };
    let inbox = inbox(&engine()).with_on_failure(|_: &&str| OnFailure::DeadLetter);
    let warnings = Warnings::listen();
    let until = eventually("two tries", || tries.load(Ordering::SeqCst) >= 2);
    consume(inbox, source, handler, until).await??;
    assert!(warnings.count("a dead letter has not arrived") >= 2, "an error for each");
    let (visible, in_hand) = scene.pending().await?;
    assert_eq!(visible + in_hand, 1, "the message is lost");
    Ok(())
}

#[tokio::test]
async fn a_dead_letter_whose_queue_is_gone_is_not_deleted() -> anyhow::Result<()> {
    let scene = Scene::new(Kind::Standard).await?;
    tried_twice(&scene, scene.options().dead_letters(scene.url_of(&scene.dead)), true).await
}

#[tokio::test]
async fn without_a_queue_for_dead_letters_nothing_is_dropped() -> anyhow::Result<()> {
    let scene = Scene::new(Kind::Standard).await?;
    tried_twice(&scene, scene.options(), false).await
}

#[tokio::test]
async fn without_a_queue_for_dead_letters_the_redrive_policy_moves_them_after_growing_pauses()
-> anyhow::Result<()> {
    let scene = Scene::new(Kind::Standard).await?;
    scene.set_redrive_policy(3).await?;
    scene.publish_all(["m-0", "m-1"].map(str::to_owned)).await?;
    let tries = Arc::new(Mutex::new(Vec::new()));
    let (counter, effects) = (tries.clone(), scene.effects.clone());
    let handler = move |message: Arc<SqsMessage>| {
        if message.payload() == b"m-1" {
            effects.append("m-1").expect("an effect");
            return std::future::ready(Ok(()));
        }
        counter.lock().unwrap().push(Instant::now());
        std::future::ready(Err("the card is unknown"))
    };
    let refusing = inbox(&engine()).with_on_failure(|_: &&str| OnFailure::DeadLetter);
    consume(refusing, scene.options().connect().await?, handler, scene.is_empty()).await??;
    scene.assert_once(["m-1".to_owned()])?;
    assert_eq!(scene.left().await?, (0, 1));
    assert_eq!(scene.dead_letter().await?.body(), Some("m-0"));
    let tries = tries.lock().unwrap();
    let pauses: Vec<_> = tries.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let seconds = Duration::from_secs;
    assert!(tries.len() == 3 && pauses[0] >= seconds(1) && pauses[1] >= seconds(2), "{pauses:?}");
    Ok(())
}

#[tokio::test]
async fn a_dead_letter_that_is_sent_again_is_one_copy_in_a_fifo_queue_and_two_in_another()
-> anyhow::Result<()> {
    for (kind, copies) in [(Kind::Standard, 2), (Kind::Fifo, 1)] {
        let scene = Scene::new(kind).await?;
        let engine = engine();
        scene.publish("m-0", "m-0").await?;
        let refusing = || inbox(&engine).with_on_failure(|_: &&str| OnFailure::DeadLetter);
        let wire = Wire::to(server().await?.address()).await?;
        wire.swallow_acks();
        let source = scene.source_by(&wire.url()).await?;
        let first = Consumer::new(refusing(), source).run(std::future::pending(), refuses);
        // It ends as with its process: before the message is deleted.
        tokio::select! {
            ended = first => anyhow::bail!("the first consumer has ended: {ended:?}"),
            swallowed = wire.has_swallowed(1) => swallowed?,
        }
        assert_eq!(scene.dead_letters().await?, 1);
        consume(refusing(), scene.source().await?, refuses, scene.is_empty()).await??;
        assert_eq!(scene.left().await?, (0, copies));
    }
    Ok(())
}

/// Its visibility would end twice before the copy arrives.
#[tokio::test]
async fn a_message_is_kept_until_its_dead_letter_has_arrived() -> anyhow::Result<()> {
    for kind in [Kind::Standard, Kind::Fifo] {
        let scene = Scene::with(kind, &[(Attribute::VisibilityTimeout, "3")]).await?;
        scene.publish("m-0", "m-0").await?;
        let wire = Wire::to(server().await?.address()).await?;
        wire.protocol().delay_send(7_000);
        let tries = Arc::new(AtomicU32::new(0));
        let handler = {
            let tries = tries.clone();
            move |_: Arc<SqsMessage>| {
                tries.fetch_add(1, Ordering::SeqCst);
                std::future::ready(Err("the card is unknown"))
            }
        };
        let failing = inbox(&engine()).with_on_failure(|_: &&str| OnFailure::DeadLetter);
        let source = scene.source_by(&wire.url()).await?;
        consume(failing, source, handler, scene.is_empty()).await??;
        assert_eq!((tries.load(Ordering::SeqCst), scene.left().await?), (1, (0, 1)), "{kind:?}");
    }
    Ok(())
}
