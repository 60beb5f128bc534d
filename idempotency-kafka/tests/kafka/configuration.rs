//! Settings that are refused, and what is looked for.

use std::time::{Duration, Instant};

use anyhow::ensure;
use idempotency::inbox::{ConsumeError, OnFailure};
use idempotency_kafka::rdkafka::ClientConfig;
use idempotency_kafka::rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use idempotency_kafka::{Error, Kafka};

use crate::cluster::Cluster;
use crate::scene::{Scene, consume, engine, ids, inbox, settings};

async fn refused(options: Kafka) -> Error {
    options.connect().await.expect_err("it is refused")
}

#[tokio::test]
async fn a_setting_that_would_lose_messages_is_refused_with_its_name() {
    for (name, value, what) in [
        ("enable.auto.offset.store", "true", "once the message is finished"),
        ("enable.auto.commit", "false", "the client commits what is stored"),
        ("auto.commit.interval.ms", "0", "nothing would be committed"),
        ("auto.offset.reset", "latest", "would be lost"),
        ("auto.offset.reset", "Largest", "would be lost"),
        ("offset.store.method", "file", "another member"),
    ] {
        let mut settings = settings("127.0.0.1:1", "billing");
        settings.set(name, value);
        let error = refused(Kafka::new(settings, ["orders"])).await;
        assert!(matches!(error, Error::Setting { name: found, .. } if found == name), "{error:?}");
        let text = error.to_string();
        assert!(text.starts_with(&format!("`{name}` is `{}`", value.to_lowercase())), "{text}");
        assert!(text.contains(what) && text.contains("leave it out"), "{text}");
    }
}

#[tokio::test]
async fn a_client_without_a_group_or_without_topics_is_refused() {
    for group in [None, Some("")] {
        let mut settings = settings("127.0.0.1:1", "billing");
        match group {
            Some(empty) => settings.set("group.id", empty),
            None => settings.remove("group.id"),
        };
        let error = refused(Kafka::new(settings, ["orders"])).await;
        assert!(matches!(error, Error::NoGroup), "{error:?}");
        assert!(error.to_string().contains("`group.id` is missing"), "{error}");
    }
    let error = refused(Kafka::new(settings("127.0.0.1:1", "billing"), [""; 0])).await;
    assert!(matches!(error, Error::NoTopic), "{error:?}");
}

#[tokio::test]
async fn a_setting_that_the_client_does_not_know_is_named() {
    let mut settings = settings("127.0.0.1:1", "billing");
    settings.set("grup.id", "billing");
    let error = refused(Kafka::new(settings, ["orders"])).await;
    assert!(matches!(error, Error::Client(_)), "{error:?}");
    assert!(error.to_string().contains("grup.id"), "{error}");
}

#[tokio::test]
async fn a_topic_that_does_not_exist_is_named_and_not_created() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let of = || settings(scene.cluster.url(), &scene.topic);
    // Twice: the first look would have created it.
    for _ in 0..2 {
        let error = refused(Kafka::new(of(), ["nowhere"])).await;
        assert!(matches!(error, Error::MissingTopic { .. }), "{error:?}");
        assert!(error.to_string().contains("`nowhere`"), "{error}");
        let error = refused(Kafka::new(of(), [&*scene.topic]).dead_letters("nowhere.dead")).await;
        assert!(matches!(error, Error::MissingDeadLetters { .. }), "{error:?}");
        assert!(error.to_string().contains("`nowhere.dead`"), "{error}");
    }
    Ok(())
}

#[tokio::test]
async fn dead_letters_that_would_come_back_are_refused() {
    let options = Kafka::new(settings("127.0.0.1:1", "billing"), ["orders", "returns"]);
    let error = refused(options.dead_letters("returns")).await;
    assert!(matches!(error, Error::DeadLettersComeBack { .. }), "{error:?}");
    for pattern in ["^orders.*", "^(orders|returns)[.](dead|late)$", "^.*dead"] {
        let options = Kafka::new(settings("127.0.0.1:1", "billing"), ["orders", pattern]);
        let error = refused(options.dead_letters("orders.dead")).await;
        assert!(matches!(error, Error::DeadLettersComeBack { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.starts_with("`orders.dead` is consumed here"), "{text}");
        assert!(text.ends_with("or a pattern that does not match it"), "{text}");
    }
}

#[tokio::test]
async fn a_pattern_consumes_topics_and_no_dead_letters() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    scene.publish_with(0, "k", &[], "m-0").await?;
    let of = || settings(scene.cluster.url(), &scene.topic);
    let pattern = format!("^{}$", scene.topic);
    let source = Kafka::new(of(), [pattern]).dead_letters(&*scene.dead).connect().await?;
    consume(inbox(&engine()), source, scene.handler(), scene.is_empty()).await??;
    scene.assert_once(["m-0".to_owned()])
}

/// A reference back to a group is understood by the client alone.
#[tokio::test]
async fn a_pattern_that_turns_out_to_match_the_dead_letters_ends_the_consumer() -> anyhow::Result<()>
{
    let scene = Scene::new().await?;
    for id in ids("m", 20) {
        scene.publish_with(0, "k", &[], &id).await?;
    }
    let (kind, rest) = scene.topic.split_at("partitions".len());
    ensure!(kind == "partitions", "{kind}");
    let pattern = format!("^par(t)i\\1ions{rest}");
    let options = Kafka::new(settings(scene.cluster.url(), &scene.topic), [pattern]);
    let source = options.dead_letters(&*scene.dead).connect().await?;
    let failing = inbox(&engine()).with_on_failure(|_: &&str| OnFailure::DeadLetter);
    let handler = |_| std::future::ready(Err("the card is unknown"));
    let ended = consume(failing, source, handler, std::future::pending()).await?;
    let Err(ConsumeError::Source(Error::DeadLettersComeBack { topic })) = ended else {
        anyhow::bail!("{ended:?}");
    };
    assert_eq!((topic, scene.letters()?), (scene.dead.clone(), 0));
    Ok(())
}

/// A broker that says that another member has the same name in the group.
#[tokio::test]
async fn a_client_that_cannot_go_on_ends_the_consumer() -> anyhow::Result<()> {
    let scene = Scene::at(Cluster::mock(1)?, "partitions", 1).await?;
    let mut settings = settings(scene.cluster.url(), &scene.topic);
    settings.set("group.instance.id", "the only one");
    let source = Kafka::new(settings, [&*scene.topic]).connect().await?;
    let fenced = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID];
    scene.cluster.ask(move |mock| mock.request_errors(RDKafkaApiKey::Heartbeat, &fenced))?;
    let ended = consume(inbox(&engine()), source, scene.handler(), std::future::pending()).await?;
    let Err(ConsumeError::Source(Error::Ended(error))) = ended else {
        anyhow::bail!("{ended:?}");
    };
    ensure!(error.to_string().contains("Fatal"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_broker_that_does_not_answer_is_not_waited_for() -> anyhow::Result<()> {
    // It takes connections, and says nothing.
    let broker = std::net::TcpListener::bind("127.0.0.1:0")?;
    let url = broker.local_addr()?.to_string();
    let begun = Instant::now();
    let error = refused(Kafka::new(settings(&url, "billing"), ["orders"])).await;
    assert!(matches!(error, Error::NoAnswer { .. }), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    Ok(())
}

#[test]
fn options_show_no_password() {
    let mut settings = ClientConfig::new();
    settings.set("sasl.password", "hunter2");
    let shown = format!("{:?}", Kafka::new(settings, ["orders"]).dead_letters("orders.dead"));
    assert!(shown.contains("orders.dead") && !shown.contains("hunter2"), "{shown}");
}
