//! Consumers that are refused, and what is read of the others.

use std::time::Duration;

use idempotency::inbox::Source as _;
use idempotency_nats::async_nats::jetstream::consumer::{AckPolicy, pull, push};
use idempotency_nats::{Error, JetStream};

use crate::scene::{CONSUMER, Scene, consume, durable, engine, inbox};
use crate::warnings::Warnings;

/// The error of a consumer that was created as `first` and is what `change` makes of it now.
async fn refused(
    first: pull::Config,
    change: impl AsyncFnOnce(&Scene) -> anyhow::Result<()>,
) -> anyhow::Result<Error> {
    let scene = Scene::with(durable()).await?;
    let name = first.durable_name.clone().or(first.name.clone()).unwrap_or_default();
    if name != CONSUMER {
        scene.context().create_consumer_on_stream(first, &*scene.stream).await?;
    }
    let consumer = scene.consumer_by(scene.context(), &name).await?;
    change(&scene).await?;
    Ok(JetStream::new(consumer).connect().await.expect_err("it is refused"))
}

async fn delete(scene: &Scene) -> anyhow::Result<()> {
    let stream = scene.context().get_stream(&scene.stream).await?;
    stream.delete_consumer(CONSUMER).await?;
    Ok(())
}

async fn push_with(scene: &Scene, ack_policy: AckPolicy) -> anyhow::Result<()> {
    delete(scene).await?;
    let push = push::Config {
        durable_name: Some(CONSUMER.to_owned()),
        deliver_subject: "somewhere".to_owned(),
        ack_policy,
        ..push::Config::default()
    };
    scene.context().create_consumer_on_stream(push, &*scene.stream).await?;
    Ok(())
}

#[tokio::test]
async fn a_push_consumer_is_refused() -> anyhow::Result<()> {
    let error =
        refused(durable(), async |scene| push_with(scene, AckPolicy::Explicit).await).await?;
    assert!(matches!(error, Error::Push { .. }), "{error:?}");
    assert!(error.to_string().contains("without `deliver_subject`"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_consumer_without_an_ack_of_each_message_is_refused() -> anyhow::Result<()> {
    for ack_policy in [AckPolicy::None, AckPolicy::All] {
        let error = refused(durable(), async |scene| {
            delete(scene).await?;
            let config = pull::Config { ack_policy, ..durable() };
            scene.context().create_consumer_on_stream(config, &*scene.stream).await?;
            Ok(())
        });
        let error = error.await?;
        assert!(matches!(error, Error::AckPolicy { .. }), "{error:?}");
        assert!(error.to_string().contains("`AckPolicy::Explicit`"), "{error}");
    }
    Ok(())
}

#[tokio::test]
async fn a_consumer_that_the_server_forgets_is_refused() -> anyhow::Result<()> {
    let named = || pull::Config { durable_name: Some("short".to_owned()), ..durable() };
    for (config, setting) in [
        (
            pull::Config { name: Some("short".to_owned()), ..pull::Config::default() },
            "`durable_name`",
        ),
        (
            pull::Config { inactive_threshold: Duration::from_secs(60), ..named() },
            "`inactive_threshold`",
        ),
        (pull::Config { memory_storage: true, ..named() }, "`memory_storage`"),
    ] {
        let error = refused(config, async |_| Ok(())).await?;
        assert!(matches!(error, Error::NotDurable { .. }), "{error:?}");
        assert!(error.to_string().contains(setting), "{error}");
    }
    Ok(())
}

#[tokio::test]
async fn a_consumer_without_payloads_is_refused() -> anyhow::Result<()> {
    let config = pull::Config {
        durable_name: Some("bare".to_owned()),
        headers_only: true,
        ..pull::Config::default()
    };
    let error = refused(config, async |_| Ok(())).await?;
    assert!(matches!(error, Error::HeadersOnly { .. }), "{error:?}");
    Ok(())
}

#[tokio::test]
async fn what_does_not_exist_is_named() -> anyhow::Result<()> {
    let error = refused(durable(), async |scene| delete(scene).await).await?;
    assert!(matches!(error, Error::MissingConsumer { .. }), "{error:?}");
    assert!(error.to_string().contains("`billing`"), "{error}");

    let scene = Scene::new().await?;
    let options = scene.options().await?;
    let error = options.dead_letters(scene.context().clone(), "nowhere").connect().await;
    let error = error.expect_err("there is no such stream");
    assert!(matches!(error, Error::MissingDeadLetters { .. }), "{error:?}");
    assert!(error.to_string().contains("`nowhere`"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_consumer_that_is_deleted_ends_with_its_name() -> anyhow::Result<()> {
    for with_stream in [false, true] {
        let scene = Scene::new().await?;
        scene.publish("m-0", "m-0").await?;
        let source = scene.source().await?;
        let gone = async {
            scene.have_happened(["m-0".to_owned()]).await?;
            if with_stream {
                scene.context().delete_stream(&scene.stream).await?;
            } else {
                delete(&scene).await?;
            }
            std::future::pending().await
        };
        // It ends by itself: the other future never does.
        let ended = consume(inbox(&engine()), source, scene.handler(), gone);
        let error = match tokio::time::timeout(Duration::from_secs(20), ended).await? {
            Ok(Err(error)) => format!("{error:?}"),
            other => anyhow::bail!("{other:?}"),
        };
        assert!(error.contains("MissingConsumer"), "{error}");
    }
    Ok(())
}

#[tokio::test]
async fn the_patience_is_the_shortest_of_ack_wait_and_backoff() -> anyhow::Result<()> {
    let seconds = Duration::from_secs;
    for (backoff, expected) in [
        (vec![], seconds(7)),
        (vec![seconds(3), seconds(5)], seconds(3)),
        (vec![seconds(9), seconds(4)], seconds(4)),
    ] {
        let config = pull::Config { ack_wait: seconds(7), max_deliver: 20, backoff, ..durable() };
        let scene = Scene::with(config).await?;
        assert_eq!(scene.source().await?.patience(), Some(expected));
    }
    Ok(())
}

#[tokio::test]
async fn a_low_max_deliver_is_a_warning() -> anyhow::Result<()> {
    for (max_deliver, warns) in [(-1, 0), (3, 1), (10, 1), (1_000, 0)] {
        let scene = Scene::with(pull::Config { max_deliver, ..durable() }).await?;
        let warnings = Warnings::listen();
        scene.source().await?;
        assert_eq!(warnings.count("the server drops messages"), warns, "{max_deliver}");
    }
    Ok(())
}
