//! Which messages are the same.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use idempotency::inbox::{ConsumeError, OnFailure};
use idempotency_sqs::aws_sdk_sqs::primitives::Blob;
use idempotency_sqs::aws_sdk_sqs::types::MessageAttributeValue;
use idempotency_sqs::{Error, SqsMessage};
use idempotency_test_support::deadline::eventually;
use serde_json::json;

use crate::scene::{Kind, STORY, Scene, append, consume, engine, inbox, said, text};

/// A body as SNS writes it without raw delivery.
fn envelope(id: &str, message: &str, attributes: &serde_json::Value) -> String {
    let body = json!({
        "Type": "Notification",
        "MessageId": id,
        "TopicArn": "arn:aws:sns:us-east-1:000000000000:orders",
        "Message": message,
        "Timestamp": "2026-12-01T00:00:00.000Z",
        "MessageAttributes": attributes,
    });
    body.to_string()
}

#[tokio::test]
async fn the_attribute_comes_before_the_envelope_and_that_before_the_id() -> anyhow::Result<()> {
    let scene = Scene::new(Kind::Standard).await?;
    // One payload: a key that is another one's would be a duplicate.
    let keyed = json!({"idempotency-key": {"Type": "String", "Value": "7"}});
    let binary = MessageAttributeValue::builder().data_type("Binary");
    let binary = binary.binary_value(Blob::new([7, 0, 255])).build()?;
    let send = async |body: &str, key: Option<MessageAttributeValue>| {
        let mut message = scene.message(body);
        if let Some(key) = key {
            message = message.message_attributes("idempotency-key", key);
        }
        anyhow::Ok(message.send().await?.message_id.context("an id")?)
    };
    // One effect each.
    send("one", Some(text("7"))).await?;
    send("one", Some(binary.clone())).await?;
    send(&envelope("7", "one", &json!({})), None).await?;
    let id = send("one", None).await?;
    send("one", None).await?;
    send("one", Some(text(&id))).await?;
    send(&envelope(&id, "one", &json!({})), None).await?;
    // And duplicates.
    send("one", Some(text("7"))).await?;
    send("one", Some(binary)).await?;
    send(&envelope("7", "one", &json!({})), None).await?;
    send(&envelope("8", "one", &keyed), None).await?;
    send(&envelope("9", "one", &json!({})), Some(text("7"))).await?;
    // Attributes that are none leave the envelope what it is.
    send(&envelope("7", "one", &json!(null)), None).await?;
    send(&envelope("7", "one", &json!({"idempotency-key": {"Type": "Number", "Value": 7}})), None)
        .await?;
    consume(inbox(&engine()), scene.source().await?, scene.handler(), scene.is_empty()).await??;
    assert_eq!(scene.effects.count("one")?, 7);
    assert_eq!(scene.left().await?, (0, 0));
    Ok(())
}

#[tokio::test]
async fn a_message_of_sns_is_the_same_with_and_without_its_envelope() -> anyhow::Result<()> {
    let scene = Scene::new(Kind::Standard).await?;
    scene.subscribe_with("raw", true).await?;
    scene.subscribe_with("enveloped", false).await?;
    scene.announce_with(Some("k-0"), "paid").await?;
    let seen = Arc::new(Mutex::new(Vec::new()));
    for name in ["raw", "enveloped"] {
        let queue = scene.queue_of(name);
        let options = idempotency_sqs::Sqs::new(scene.client.clone(), scene.url_of(&queue));
        let seen = seen.clone();
        let handler = move |message: Arc<SqsMessage>| {
            assert_eq!(message.payload(), b"paid");
            assert_eq!(message.attribute("idempotency-key"), Some("k-0"));
            seen.lock().unwrap().push(message);
            std::future::ready(Ok(()))
        };
        let until = scene.has_none(&queue);
        consume(inbox(&engine()), options.connect().await?, handler, until).await??;
    }
    let seen = seen.lock().unwrap();
    assert_eq!((seen[0].topic(), seen[0].body()), (None, "paid"));
    assert!(seen[1].topic().is_some_and(|topic| topic.starts_with("arn:aws:sns:")));
    assert!(seen[1].body().contains("\"Notification\""));
    Ok(())
}

#[tokio::test]
async fn what_only_looks_like_an_envelope_is_the_payload() -> anyhow::Result<()> {
    let scene = Scene::new(Kind::Standard).await?;
    let bodies = [
        r#"{"TopicArn":"#,
        r#"{"TopicArn":"t","Type":"Notification","MessageId":7,"Message":"m"}"#,
        r#"{"TopicArn":"t","Type":"Notification","MessageId":"7"}"#,
        r#"{"TopicArn":"t","Type":"SubscriptionConfirmation","MessageId":"7","Message":"m"}"#,
    ];
    for body in bodies {
        scene.message(body).send().await?;
    }
    consume(inbox(&engine()), scene.source().await?, scene.handler(), scene.is_empty()).await??;
    let mut lines = scene.effects.lines()?;
    lines.sort();
    let mut expected = bodies.map(str::to_owned);
    expected.sort();
    assert_eq!(lines, expected);
    Ok(())
}

#[tokio::test]
async fn the_key_can_be_the_user_s_and_none_is_a_dead_letter() -> anyhow::Result<()> {
    let scene = Scene::new(Kind::Standard).await?;
    for order in ["order-1", "order-1", "order-2"] {
        scene.message("one").message_attributes("order", text(order)).send().await?;
    }
    scene.message("none").send().await?;
    let options = scene.options().dead_letters(scene.url_of(&scene.dead));
    let order = |message: &SqsMessage| message.attribute("order").map(str::to_owned);
    let effects = scene.effects.clone();
    let handler = move |message: Arc<SqsMessage>| {
        effects.append(message.attribute("order").unwrap_or("none")).expect("an effect");
        std::future::ready(Ok(()))
    };
    let source = options.with_key(order).connect().await?;
    consume(inbox(&engine()), source, handler, scene.is_empty()).await??;
    scene.assert_once(["order-1".to_owned(), "order-2".to_owned()])?;
    assert_eq!(scene.left().await?, (0, 1));
    let letter = scene.dead_letter().await?;
    assert_eq!(said(&letter, "reason").as_deref(), Some("missing-key"));
    assert_eq!((letter.body(), said(&letter, "record")), (Some("none"), None));
    Ok(())
}

#[tokio::test]
async fn a_key_that_is_too_long_is_a_dead_letter_that_arrives() -> anyhow::Result<()> {
    let scene = Scene::new(Kind::Standard).await?;
    // With its copy, the dead letter would be larger than any message can be.
    scene.publish(&"k".repeat(600_000), "m-0").await?;
    scene.publish("last", "last").await?;
    consume(inbox(&engine()), scene.source().await?, scene.handler(), scene.is_empty()).await??;
    scene.assert_once(["last".to_owned()])?;
    let letter = scene.dead_letter().await?;
    assert_eq!(said(&letter, "reason").as_deref(), Some("invalid-key"));
    assert_eq!(
        (said(&letter, "key"), said(&letter, "key_origin").as_deref()),
        (None, Some("header"))
    );
    Ok(())
}

#[tokio::test]
async fn a_story_that_says_less_than_this_version_knows_takes_no_key_away() -> anyhow::Result<()> {
    let scene = Scene::new(Kind::Standard).await?;
    for story in ["{}", "{", r#"{"key":"7","key_origin":"elsewhere","message_id":""}"#] {
        let message = scene.message("one").message_attributes(STORY, text(story));
        message.send().await?;
    }
    consume(inbox(&engine()), scene.source().await?, scene.handler(), scene.is_empty()).await??;
    assert_eq!(scene.effects.count("one")?, 3);
    assert_eq!(scene.left().await?, (0, 0));
    Ok(())
}

#[tokio::test]
async fn one_id_with_another_payload_is_a_dead_letter() -> anyhow::Result<()> {
    let scene = Scene::new(Kind::Standard).await?;
    let engine = engine();
    for payload in ["first", "second"] {
        scene.publish("m-0", payload).await?;
        let source = scene.source().await?;
        consume(inbox(&engine), source, scene.handler(), scene.is_empty()).await??;
    }
    scene.assert_once(["first".to_owned()])?;
    let letter = scene.dead_letter().await?;
    assert_eq!(letter.body(), Some("second"));
    assert_eq!(said(&letter, "reason").as_deref(), Some("mismatch"));
    Ok(())
}

#[tokio::test]
async fn a_dead_letter_that_is_moved_back_has_the_key_of_its_message() -> anyhow::Result<()> {
    for kind in [Kind::Standard, Kind::Fifo] {
        let scene = Scene::new(kind).await?;
        let engine = engine();
        // Of each origin; the payload names it.
        scene.publish("7", "header").await?;
        scene.message(&envelope("7", "sns", &json!({}))).send().await?;
        scene.message("message-id").send().await?;
        // The first attempt has the effect, and is in doubt.
        let effects = scene.effects.clone();
        let handler = move |message: Arc<SqsMessage>| {
            append(&effects, &message);
            std::future::ready(Err("no answer"))
        };
        let hold = inbox(&engine).with_on_failure(|_: &&str| OnFailure::Hold);
        consume(hold, scene.source().await?, handler, scene.is_empty()).await??;
        assert_eq!((scene.effects.lines()?.len(), scene.left().await?), (3, (0, 3)));
        let mut records = Vec::new();
        for round in 0..3 {
            let mut letters = Vec::new();
            for _ in 0..3 {
                letters.push(scene.dead_letter().await?);
            }
            letters.sort_by_key(|letter| said(letter, "key_origin"));
            let told = |name: &str| letters.iter().map(|one| said(one, name)).collect::<Vec<_>>();
            let origins = ["header", "message-id", "sns"].map(|origin| Some(origin.to_owned()));
            assert_eq!(told("key_origin"), origins);
            let found = told("record");
            assert!(found.iter().all(Option::is_some) && (round == 0 || records == found));
            records = found;
            if round == 2 {
                break;
            }
            // Nothing is resolved: what is the same message is in doubt again, and no other runs.
            for letter in &letters {
                scene.redrive(letter).await?;
            }
            let source = scene.source().await?;
            consume(inbox(&engine), source, scene.handler(), scene.is_empty()).await??;
            assert_eq!((scene.effects.lines()?.len(), scene.left().await?), (3, (0, 3)));
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_dead_letter_of_a_consumer_with_its_own_key_has_the_default_key_too() -> anyhow::Result<()>
{
    let scene = Scene::new(Kind::Standard).await?;
    let engine = engine();
    let id = scene.message("m-0").send().await?.message_id.context("an id")?;
    // The consumers of both queues know the message by its id, each in its own way.
    let source = scene.options().dead_letters(scene.url_of(&scene.dead));
    let source = source.with_key(|message| message.id().to_owned()).connect().await?;
    let refuses = |_: Arc<SqsMessage>| std::future::ready(Err("the card is unknown"));
    let refusing = inbox(&engine).with_on_failure(|_: &&str| OnFailure::DeadLetter);
    consume(refusing, source, refuses, scene.is_empty()).await??;
    let letter = scene.dead_letter().await?;
    assert_eq!(said(&letter, "key_origin").as_deref(), Some("message-id"));
    assert_eq!((said(&letter, "key"), said(&letter, "message_id")), (Some(id.clone()), Some(id)));
    // Twice: the copies have ids of their own.
    for _ in 0..2 {
        scene.redrive(&letter).await?;
    }
    let own = scene.options().with_key(|message| message.id().to_owned()).connect().await?;
    consume(inbox(&engine), own, scene.handler(), scene.is_empty()).await??;
    scene.assert_once(["m-0".to_owned()])?;
    for _ in 0..2 {
        scene.redrive(&letter).await?;
    }
    let default = scene.options().connect().await?;
    consume(inbox(&engine), default, scene.handler(), scene.is_empty()).await??;
    assert_eq!(scene.effects.count("m-0")?, 2, "one for each key");
    Ok(())
}

#[tokio::test]
async fn a_dead_letter_that_is_moved_back_has_its_first_deduplication_id() -> anyhow::Result<()> {
    let scene = Scene::new(Kind::Fifo).await?;
    let engine = engine();
    scene.message("m-0").send().await?;
    let source = async || {
        let source = scene.options().dead_letters(scene.url_of(&scene.dead));
        source.with_key(|message| message.deduplication_id().map(str::to_owned)).connect().await
    };
    // It has its effect, and is in doubt.
    let effects = scene.effects.clone();
    let handler = move |message: Arc<SqsMessage>| {
        append(&effects, &message);
        std::future::ready(Err("no answer"))
    };
    let hold = inbox(&engine).with_on_failure(|_: &&str| OnFailure::Hold);
    consume(hold, source().await?, handler, scene.is_empty()).await??;
    for _ in 0..2 {
        scene.redrive(&scene.dead_letter().await?).await?;
        consume(inbox(&engine), source().await?, scene.handler(), scene.is_empty()).await??;
        assert_eq!((scene.effects.count("m-0")?, scene.left().await?), (1, (0, 1)));
    }
    Ok(())
}

#[tokio::test]
async fn a_queue_that_is_deleted_ends_the_consumer_and_one_that_is_created_again_has_new_messages()
-> anyhow::Result<()> {
    let scene = Scene::new(Kind::Standard).await?;
    let engine = engine();
    for generation in 1..=2 {
        scene.message("one").send().await?;
        let gone = async {
            let count = || scene.effects.count("one").is_ok_and(|count| count == generation);
            eventually("the effect", count).await?;
            scene.is_empty().await?;
            scene.delete(&scene.queue).await?;
            std::future::pending().await
        };
        // It ends by itself: the other future never does.
        let ended = consume(inbox(&engine), scene.source().await?, scene.handler(), gone);
        let ended = tokio::time::timeout(Duration::from_secs(60), ended).await??;
        let is_its_end = matches!(ended, Err(ConsumeError::Source(Error::MissingQueue { .. })));
        assert!(is_its_end, "{ended:?}");
        scene.create(&scene.queue, &[]).await?;
    }
    assert_eq!(scene.dead_letters().await?, 0);
    Ok(())
}
