//! Which messages are the same.

use std::sync::Arc;

use idempotency_rabbitmq::lapin::BasicProperties;
use idempotency_rabbitmq::lapin::types::{AMQPValue, FieldTable};
use idempotency_rabbitmq::{QueueMessage, RabbitMq};

use crate::scene::{Kind, Scene, consume, engine, inbox};

fn with_header(name: &str, value: AMQPValue) -> BasicProperties {
    let mut headers = FieldTable::default();
    headers.insert(name.into(), value);
    BasicProperties::default().with_headers(headers)
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

fn by_id(id: &str) -> BasicProperties {
    BasicProperties::default().with_message_id(id.into())
}

#[tokio::test]
async fn the_header_comes_before_the_id_and_never_equals_one() -> anyhow::Result<()> {
    let scene = Scene::new(Kind::Classic).await?;
    let key = |value| with_header("idempotency-key", value);
    // One payload: a key that is another one's would be a duplicate.
    for properties in [
        key(text("7")),
        key(text("7")).with_message_id("another".into()),
        by_id("7"),
        by_id("7"),
        key(AMQPValue::LongLongInt(7)),
        key(AMQPValue::LongInt(7)),
        key(AMQPValue::LongString(vec![0xff, 0xfe].into())),
    ] {
        scene.publish_with(properties, "one").await?;
    }
    scene.publish("last", "last").await?;
    let until = async {
        scene.have_happened(["last".to_owned()]).await?;
        scene.is_ready(&scene.queue, 0).await
    };
    consume(inbox(&engine()), scene.source().await?, scene.handler(), until).await??;
    assert_eq!(scene.effects.count("one")?, 4);
    assert_eq!(scene.left().await?, (0, 0));
    Ok(())
}

#[tokio::test]
async fn a_message_without_a_key_is_a_dead_letter_and_the_others_go_on() -> anyhow::Result<()> {
    let scene = Scene::new(Kind::Classic).await?;
    let key = |value| with_header("idempotency-key", value);
    let nameless = [
        BasicProperties::default(),
        by_id(""),
        key(text("")),
        // A header that is neither text nor a number is a mistake, also beside an id.
        key(AMQPValue::Boolean(true)).with_message_id("m-1".into()),
    ];
    let count = u32::try_from(nameless.len())?;
    for properties in nameless {
        scene.publish_with(properties, "nameless").await?;
    }
    scene.publish("last", "last").await?;
    let until = async {
        scene.have_happened(["last".to_owned()]).await?;
        scene.is_ready(&scene.dead, count).await
    };
    consume(inbox(&engine()), scene.source().await?, scene.handler(), until).await??;
    scene.assert_once(["last".to_owned()])?;
    assert_eq!(scene.left().await?, (0, count));
    let letter = scene.dead_letter().await?;
    let headers = letter.properties.headers().as_ref().unwrap().inner();
    assert_eq!(headers["idempotency-reason"], text("missing-key"));
    assert!(!headers.contains_key("idempotency-record"));
    Ok(())
}

#[tokio::test]
async fn the_key_can_be_the_user_s() -> anyhow::Result<()> {
    let scene = Scene::new(Kind::Classic).await?;
    for (id, order) in [("a", "order-1"), ("b", "order-1"), ("c", "order-2")] {
        scene
            .publish_with(with_header("order", text(order)).with_message_id(id.into()), "one")
            .await?;
    }
    scene.publish("d", "none").await?;
    let order = |message: &QueueMessage| message.header("order").map(str::to_owned);
    let source = RabbitMq::new(&scene.connection().await?, &*scene.queue)
        .dead_letters(&*scene.dead)
        .with_key(order)
        .connect()
        .await?;
    let until = async {
        scene.is_ready(&scene.dead, 1).await?;
        scene.is_ready(&scene.queue, 0).await
    };
    let effects = scene.effects.clone();
    let handler = move |message: Arc<QueueMessage>| {
        effects.append(message.header("order").unwrap_or("none")).expect("an effect");
        std::future::ready(Ok(()))
    };
    consume(inbox(&engine()), source, handler, until).await??;
    scene.assert_once(["order-1".to_owned(), "order-2".to_owned()])?;
    assert_eq!(scene.left().await?, (0, 1));
    Ok(())
}

#[tokio::test]
async fn one_id_with_another_payload_is_a_dead_letter() -> anyhow::Result<()> {
    let scene = Scene::new(Kind::Classic).await?;
    scene.publish("m-0", "first").await?;
    let engine = engine();
    let until = scene.have_happened(["first".to_owned()]);
    consume(inbox(&engine), scene.source().await?, scene.handler(), until).await??;
    scene.publish("m-0", "second").await?;
    let until = scene.is_ready(&scene.dead, 1);
    consume(inbox(&engine), scene.source().await?, scene.handler(), until).await??;
    scene.assert_once(["first".to_owned()])?;
    let letter = scene.dead_letter().await?;
    assert_eq!(letter.data, b"second");
    let headers = letter.properties.headers().as_ref().unwrap().inner();
    assert_eq!(headers["idempotency-reason"], text("mismatch"));
    Ok(())
}
