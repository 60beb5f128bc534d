//! Which messages are the same.

use std::sync::Arc;

use idempotency::inbox::OnFailure;
use idempotency_kafka::rdkafka::producer::FutureRecord;
use idempotency_kafka::{Kafka, TopicMessage};

use crate::cluster::Cluster;
use crate::scene::{Scene, consume, engine, header, inbox, settings};

#[tokio::test]
async fn a_header_an_event_and_a_position_are_never_equal() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let position = format!("{}:0:0:1", scene.topic);
    let key = "idempotency-key";
    // One payload: a key that is another one's would be a duplicate.
    for (partition, headers) in [
        (0, [].as_slice()),
        (0, &[(key, "7")]),
        (1, &[(key, "7")]),
        // The last one counts.
        (1, &[(key, "6"), (key, "7")]),
        (0, &[("ce_source", "shop"), ("ce_id", "7")]),
        (2, &[("ce_source", "shop"), ("ce_id", "7")]),
        (0, &[("ce_source", "mill"), ("ce_id", "7")]),
        (0, &[(key, "7"), ("ce_source", "shop"), ("ce_id", "8")]),
        // By their positions: an event has both.
        (0, &[("ce_id", "7")]),
        (0, &[("ce_source", ""), ("ce_id", "7")]),
        (0, &[(key, &position)]),
    ] {
        let mut record = FutureRecord::to(&scene.topic).partition(partition).payload("one");
        record.timestamp = Some(1);
        let headers: Vec<_> = headers.to_vec();
        scene.send(record.headers(crate::scene::headers(&headers)).key("k")).await?;
    }
    consume(inbox(&engine()), scene.source().await?, scene.handler(), scene.is_empty()).await??;
    // Four positions, of which one is a header; "7"; two events.
    assert_eq!(scene.effects.count("one")?, 7);
    assert_eq!(scene.letters()?, 0);
    Ok(())
}

#[tokio::test]
async fn a_position_recognises_what_comes_again_and_no_message_of_a_recreated_topic()
-> anyhow::Result<()> {
    let engine = engine();
    let topic = format!("partitions-{}", uuid::Uuid::new_v4());
    for generation in 1..=2 {
        // Its offsets begin at zero again, and so does the group.
        let scene = Scene::named(Cluster::mock(1)?, &topic, 1).await?;
        scene.publish_with(0, "k", &[], "one").await?;
        consume(inbox(&engine), scene.source().await?, scene.handler(), scene.is_empty()).await??;
        assert_eq!(scene.effects.count("one")?, 1, "generation {generation}");
        // All of it again, as after a reset of the offsets.
        let again = Kafka::new(settings(scene.cluster.url(), "again"), [&*topic]);
        let until = scene.has_read_all_as("again");
        consume(inbox(&engine), again.connect().await?, scene.handler(), until).await??;
        assert_eq!(scene.effects.count("one")?, 1, "generation {generation}");
    }
    Ok(())
}

#[tokio::test]
async fn a_message_with_an_empty_key_is_a_dead_letter_and_the_others_go_on() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    scene.publish_with(0, "k", &[("idempotency-key", "")], "nameless").await?;
    scene.publish_with(0, "k", &[("idempotency-key", &"x".repeat(2_000))], "long").await?;
    scene.publish_with(0, "k", &[], "last").await?;
    consume(inbox(&engine()), scene.source().await?, scene.handler(), scene.is_empty()).await??;
    scene.assert_once(["last".to_owned()])?;
    for reason in ["missing-key", "invalid-key"] {
        let letter = scene.letter().await?;
        assert_eq!(header(&letter, "idempotency-reason"), Some(reason));
        assert_eq!(header(&letter, "idempotency-record"), None);
    }
    assert_eq!(scene.letters()?, 0);
    Ok(())
}

#[tokio::test]
async fn a_dead_letter_of_a_key_of_the_user_s_is_the_same_message_for_other_groups()
-> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let engine = engine();
    for (order, payload) in [("order-1", "first"), ("order-1", "first"), ("order-2", "second")] {
        scene.publish_with(0, "k", &[("order", order)], payload).await?;
    }
    // Another group handles them by their positions.
    let others = || Kafka::new(settings(scene.cluster.url(), "others"), [&*scene.topic]);
    let by_position = idempotency::inbox::Inbox::new(engine.clone(), "others", crate::scene::DAY);
    let until = scene.has_read_all_as("others");
    let source = others().connect().await?;
    consume(by_position.clone(), source, scene.handler(), until).await??;
    assert_eq!((scene.effects.count("first")?, scene.effects.count("second")?), (2, 1));

    let order = |message: &TopicMessage| message.header("order").map(str::to_owned);
    let source = scene.options().with_key(order).connect().await?;
    let failing = inbox(&engine).with_on_failure(|_: &&str| OnFailure::DeadLetter);
    let refuses = |message: Arc<TopicMessage>| {
        let is_bad = message.header("order") == Some("order-2");
        std::future::ready(if is_bad { Err("the card is unknown") } else { Ok(()) })
    };
    consume(failing, source, refuses, scene.is_empty()).await??;
    let letter = scene.letter().await?;
    assert_eq!(scene.letters()?, 0);
    assert_eq!(header(&letter, "idempotency-key"), None);
    let at = ["idempotency-topic", "idempotency-offset"].map(|name| header(&letter, name));
    assert_eq!(at, [Some(&*scene.topic), Some("2")]);
    scene.redrive(&letter).await?;
    // It is a duplicate for the others.
    let until = scene.has_read_all_as("others");
    consume(by_position, others().connect().await?, scene.handler(), until).await??;
    assert_eq!(scene.effects.count("second")?, 1);
    // And runs here.
    let source = scene.options().with_key(order).connect().await?;
    consume(inbox(&engine), source, scene.handler(), scene.is_empty()).await??;
    assert_eq!(scene.effects.count("second")?, 2);
    assert_eq!(scene.letters()?, 0);
    Ok(())
}

#[tokio::test]
async fn one_key_with_another_payload_is_a_dead_letter() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    for payload in ["first", "second"] {
        scene.publish_with(0, "k", &[("idempotency-key", "m-0")], payload).await?;
    }
    consume(inbox(&engine()), scene.source().await?, scene.handler(), scene.is_empty()).await??;
    scene.assert_once(["first".to_owned()])?;
    let letter = scene.letter().await?;
    assert_eq!(header(&letter, "idempotency-reason"), Some("mismatch"));
    Ok(())
}
