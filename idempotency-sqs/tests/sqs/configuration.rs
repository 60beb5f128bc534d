//! Queues that are refused, and what is read of the others.

use std::time::Duration;

use idempotency::inbox::Source as _;
use idempotency_sqs::aws_sdk_sqs::types::QueueAttributeName as Attribute;
use idempotency_sqs::{Error, Sqs};
use tokio::net::TcpListener;

use crate::scene::{Kind, Scene, client};
use crate::warnings::Warnings;

async fn refused(options: Sqs) -> Error {
    options.connect().await.expect_err("it is refused")
}

#[tokio::test]
async fn a_queue_that_does_not_exist_is_named() -> anyhow::Result<()> {
    let scene = Scene::new(Kind::Standard).await?;
    let error = refused(scene.options().dead_letters(scene.url_of("nowhere"))).await;
    assert!(matches!(error, Error::MissingDeadLetters { .. }), "{error:?}");
    assert!(error.to_string().contains("/nowhere for dead letters does not exist"), "{error}");

    scene.delete(&scene.queue).await?;
    let error = refused(scene.options()).await;
    assert!(matches!(error, Error::MissingQueue { .. }), "{error:?}");
    assert!(error.to_string().contains(&scene.queue), "{error}");
    Ok(())
}

#[tokio::test]
async fn dead_letters_in_the_queue_itself_are_refused() -> anyhow::Result<()> {
    let scene = Scene::new(Kind::Standard).await?;
    let url = scene.url_of(&scene.queue);
    // By another URL, too.
    for url in [url.clone(), url.replace("127.0.0.1", "localhost")] {
        let error = refused(scene.options().dead_letters(url)).await;
        assert!(matches!(error, Error::OwnDeadLetters { .. }), "{error:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_queue_for_dead_letters_of_the_other_type_is_refused() -> anyhow::Result<()> {
    let scenes = [Scene::new(Kind::Standard).await?, Scene::new(Kind::Fifo).await?];
    for (mine, other, wanted) in [(0, 1, "a standard queue"), (1, 0, "a FIFO queue")] {
        let (scene, other) = (&scenes[mine], &scenes[other]);
        let error = refused(scene.options().dead_letters(other.url_of(&other.dead))).await;
        assert!(matches!(error, Error::OtherType { .. }), "{error:?}");
        assert!(error.to_string().contains(wanted), "{error}");
    }
    Ok(())
}

#[tokio::test]
async fn a_visibility_timeout_that_cannot_be_kept_is_refused() -> anyhow::Result<()> {
    for (seconds, patience) in [("0", None), ("2", None), ("3", Some(3)), ("120", Some(120))] {
        let scene = Scene::with(Kind::Standard, &[(Attribute::VisibilityTimeout, seconds)]).await?;
        match (scene.options().connect().await, patience) {
            (Ok(source), Some(patience)) => {
                assert_eq!(source.patience(), Some(Duration::from_secs(patience)));
            }
            (Err(error), None) => {
                assert!(matches!(error, Error::VisibilityTimeout { .. }), "{error:?}");
                assert!(error.to_string().contains("`VisibilityTimeout` to 3"), "{error}");
            }
            other => anyhow::bail!("{seconds}: {other:?}"),
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_redrive_policy_that_moves_messages_early_is_a_warning() -> anyhow::Result<()> {
    for (count, warns) in [(None, 0), (Some(3), 1), (Some(10), 1), (Some(11), 0), (Some(500), 0)] {
        let scene = Scene::new(Kind::Standard).await?;
        if let Some(count) = count {
            scene.set_redrive_policy(count).await?;
        }
        let warnings = Warnings::listen();
        scene.source().await?;
        assert_eq!(warnings.count("the redrive policy moves messages"), warns, "{count:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_not_waited_for() -> anyhow::Result<()> {
    // It accepts connections, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", silent.local_addr()?);
    let options = Sqs::new(client(&url), format!("{url}/000000000000/orders"));
    let error = tokio::time::timeout(Duration::from_secs(20), refused(options)).await?;
    assert!(matches!(error, Error::NoAnswer { .. }), "{error:?}");
    Ok(())
}

#[tokio::test]
async fn the_reason_is_named_where_there_is_no_way_to_sqs() -> anyhow::Result<()> {
    // A port on which no server listens.
    let url = format!("http://{}", TcpListener::bind("127.0.0.1:0").await?.local_addr()?);
    let error = refused(Sqs::new(client(&url), format!("{url}/000000000000/orders"))).await;
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    assert!(error.to_string().contains("Connection refused"), "{error}");
    Ok(())
}
