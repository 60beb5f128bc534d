//! Settings that are refused, and what is looked for.

use std::time::{Duration, Instant};

use idempotency_kafka::rdkafka::ClientConfig;
use idempotency_kafka::{Error, Kafka};

use crate::scene::{Scene, settings};

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
