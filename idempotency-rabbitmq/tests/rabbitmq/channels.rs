//! Channels and connections that end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::ensure;
use futures::future::BoxFuture;
use idempotency::inbox::{ConsumeError, Consumer, Inbox, Source as _};
use idempotency_rabbitmq::lapin::ConnectionProperties;
use idempotency_rabbitmq::lapin::options::ConfirmSelectOptions;
use idempotency_rabbitmq::{Error, Queue, QueueMessage, RabbitMq};
use idempotency_test_support::deadline::{eventually, within};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::scene::{Kind, Scene, append, broker, consume, engine, finish, ids, inbox};
use crate::wire::{LATIN, Wire};

async fn wire() -> anyhow::Result<Wire> {
    Wire::to(broker().await?.address()).await
}

async fn source(scene: &Scene, wire: &Wire, recovers: bool) -> anyhow::Result<Queue> {
    let properties = ConnectionProperties::default();
    let properties = if recovers { properties.enable_auto_recover() } else { properties };
    let connection = scene.connection_by(&wire.url(), properties).await?;
    let source = RabbitMq::new(&connection, &*scene.queue).dead_letters(&*scene.dead);
    // A recovery that is interrupted can hang in the client.
    Ok(source.with_recovery_within(Duration::from_secs(5)).connect().await?)
}

/// A handler that waits at a gate before its effect, and notes that it has begun.
fn gated(
    scene: &Scene,
    gate: &Arc<Semaphore>,
    begun: &Arc<AtomicBool>,
) -> impl Fn(Arc<QueueMessage>) -> BoxFuture<'static, Result<(), &'static str>>
+ Clone
+ Send
+ Sync
+ use<> {
    let (effects, gate, begun) = (scene.effects.clone(), gate.clone(), begun.clone());
    move |message| {
        let (effects, gate, begun) = (effects.clone(), gate.clone(), begun.clone());
        Box::pin(async move {
            if message.payload().starts_with(b"slow") {
                begun.store(true, Ordering::SeqCst);
                let _ = gate.acquire().await;
            }
            append(&effects, &message);
            Ok(())
        })
    }
}

#[tokio::test]
async fn a_channel_that_the_broker_closes_is_opened_again_and_running_handlers_go_on()
-> anyhow::Result<()> {
    for recovers in [false, true] {
        let (scene, wire) = (Scene::new(Kind::Quorum).await?, wire().await?);
        let (gate, begun) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicBool::new(false)));
        scene.publish("slow-0", "slow-0").await?;
        let until = async {
            eventually("the slow one to begin", || begun.load(Ordering::SeqCst)).await?;
            wire.protocol().close_channel();
            scene.publish_all(ids("m", 20)).await?;
            eventually("another consumer", || wire.protocol().consumers() == 2).await?;
            gate.add_permits(1);
            scene.have_happened(ids("m", 20).chain(ids("slow", 1))).await
        };
        let (engine, source) = (engine(), source(&scene, &wire, recovers).await?);
        consume(inbox(&engine), source, gated(&scene, &gate, &begun), until).await??;
        finish(&scene, &engine).await?;
        scene.assert_once(ids("m", 20).chain(ids("slow", 1)))?;
        assert_eq!(scene.left().await?, (0, 0));
    }
    Ok(())
}

/// Connects and consumes until `until` is done, as often as the connection ends.
async fn consume_again_and_again(
    connect: impl AsyncFn() -> anyhow::Result<Queue>,
    inbox: Inbox,
    handler: impl Fn(Arc<QueueMessage>) -> BoxFuture<'static, Result<(), &'static str>>
    + Clone
    + Send
    + Sync
    + 'static,
    until: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let (done, is_done) = watch::channel(false);
    let consumers = async {
        while !*is_done.borrow() {
            let mut is_done = is_done.clone();
            let stop = async move {
                let _ = is_done.wait_for(|is_done| *is_done).await;
            };
            let consumer = Consumer::new(inbox.clone(), connect().await?);
            // What runs on is not waited for: the next consumer is to meet it.
            let consumer = consumer.with_drain(Duration::from_millis(100));
            match consumer.run(stop, handler.clone()).await {
                Ok(_) | Err(ConsumeError::Source(Error::ConnectionEnded(_))) => {}
                Err(error) => return Err(error.into()),
            }
        }
        anyhow::Ok(())
    };
    let until = async {
        let result = until.await;
        done.send_replace(true);
        result
    };
    let (ended, result) = tokio::join!(within("the consumers to end", consumers), until);
    result.and(ended?)
}

#[tokio::test]
async fn a_connection_that_is_lost_again_and_again_costs_no_message_and_no_second_effect()
-> anyhow::Result<()> {
    for recovers in [false, true] {
        let (scene, wire) = (Scene::new(Kind::Quorum).await?, wire().await?);
        let (gate, begun) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicBool::new(false)));
        scene.publish("slow-0", "slow-0").await?;
        let until = async {
            eventually("the slow one to begin", || begun.load(Ordering::SeqCst)).await?;
            for cut in 0..3 {
                scene.publish_all(ids(&format!("m{cut}"), 20)).await?;
                wire.cut();
            }
            scene.have_happened((0..3).flat_map(|cut| ids(&format!("m{cut}"), 20))).await?;
            gate.add_permits(1);
            scene.have_happened(ids("slow", 1)).await
        };
        let connect = async || source(&scene, &wire, recovers).await;
        let (engine, handler) = (engine(), gated(&scene, &gate, &begun));
        consume_again_and_again(connect, inbox(&engine), handler, until).await?;
        finish(&scene, &engine).await?;
        let all = (0..3).flat_map(|cut| ids(&format!("m{cut}"), 20)).chain(ids("slow", 1));
        scene.assert_once(all)?;
        assert_eq!(scene.left().await?, (0, 0));
    }
    Ok(())
}

#[tokio::test]
async fn a_connection_that_does_not_recover_ends_the_consumer_with_what_to_do() -> anyhow::Result<()>
{
    let (scene, wire) = (Scene::new(Kind::Quorum).await?, wire().await?);
    scene.publish("m-0", "m-0").await?;
    let until = async {
        scene.have_happened(["m-0".to_owned()]).await?;
        wire.cut();
        std::future::pending().await
    };
    let source = source(&scene, &wire, false).await?;
    let ended = consume(inbox(&engine()), source, scene.handler(), until).await?;
    let Err(ConsumeError::Source(error @ Error::ConnectionEnded(_))) = ended else {
        panic!("{ended:?}");
    };
    assert!(error.to_string().contains("connect again"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_recovery_that_takes_too_long_ends_the_consumer() -> anyhow::Result<()> {
    let (scene, wire) = (Scene::new(Kind::Quorum).await?, wire().await?);
    scene.publish("m-0", "m-0").await?;
    let until = async {
        scene.have_happened(["m-0".to_owned()]).await?;
        wire.close();
        std::future::pending().await
    };
    let properties = ConnectionProperties::default().enable_auto_recover();
    let connection = scene.connection_by(&wire.url(), properties).await?;
    let source = RabbitMq::new(&connection, &*scene.queue);
    let source = source.with_recovery_within(Duration::from_secs(2)).connect().await?;
    let ended = consume(inbox(&engine()), source, scene.handler(), until).await?;
    let is_its_end = matches!(ended, Err(ConsumeError::Source(Error::ConnectionEnded(_))));
    assert!(is_its_end, "{ended:?}");
    Ok(())
}

#[tokio::test]
async fn a_message_that_the_client_cannot_read_ends_the_consumer_with_what_to_do()
-> anyhow::Result<()> {
    for recovers in [false, true] {
        let (scene, wire) = (Scene::new(Kind::Quorum).await?, wire().await?);
        let producer = scene.again_at(&wire.url()).await?;
        producer.channel().confirm_select(ConfirmSelectOptions::default()).await?;
        producer.publish(LATIN, "m-0").await?;
        let source = source(&scene, &wire, recovers).await?;
        let ended = consume(inbox(&engine()), source, scene.handler(), std::future::pending());
        let Err(ConsumeError::Source(error @ Error::Unreadable { .. })) = ended.await? else {
            panic!("it goes on")
        };
        assert!(error.to_string().contains("by another client"), "{error}");
        assert!(scene.effects.lines()?.is_empty());
    }
    Ok(())
}

#[tokio::test]
async fn a_queue_that_is_deleted_ends_the_consumer_and_names_it() -> anyhow::Result<()> {
    let scene = Scene::new(Kind::Classic).await?;
    let until = async {
        scene.delete(&scene.queue).await?;
        std::future::pending().await
    };
    let source = scene.source().await?;
    let ended = consume(inbox(&engine()), source, scene.handler(), until).await?;
    let Err(ConsumeError::Source(Error::MissingQueue { queue, .. })) = ended else {
        panic!("{ended:?}");
    };
    assert_eq!(queue, scene.queue);
    Ok(())
}

#[tokio::test]
async fn a_receive_that_is_dropped_leaves_no_consumer_behind_that_is_read_by_none()
-> anyhow::Result<()> {
    let round = async |round: u64| {
        let scene = Scene::new(Kind::Classic).await?;
        let source = scene.source().await?;
        // The broker cancels the consumer, and its channel lives on.
        scene.delete(&scene.queue).await?;
        scene.declare(&scene.queue, Kind::Classic).await?;
        let begun = Instant::now();
        let mut spins = round;
        while begun.elapsed() < Duration::from_millis(1_500) {
            spins += 1;
            let patience = Duration::from_micros(100 + spins * 137 % 2_000);
            ensure!(tokio::time::timeout(patience, source.receive(1)).await.is_err());
        }
        scene.publish_all(ids("m", 20)).await?;
        let all = within("all messages", async {
            let mut received = 0;
            while received < 20 {
                received += source.receive(20).await?.len();
            }
            anyhow::Ok(())
        });
        all.await?
    };
    futures::future::try_join_all((0..5).map(round)).await?;
    Ok(())
}

#[tokio::test]
async fn what_is_missing_is_named_at_connect_with_what_to_do() -> anyhow::Result<()> {
    let scene = Scene::new(Kind::Classic).await?;
    let connection = scene.connection().await?;
    let refused = async |options: RabbitMq| options.connect().await.unwrap_err();

    let error = refused(RabbitMq::new(&connection, "no-such-queue")).await;
    assert!(matches!(&error, Error::MissingQueue { queue, .. } if queue == "no-such-queue"));
    assert!(error.to_string().contains("`no-such-queue` does not exist: declare it"), "{error}");

    let error = refused(RabbitMq::new(&connection, &*scene.queue).dead_letters("no-place")).await;
    assert!(matches!(&error, Error::MissingDeadLetters { queue, .. } if queue == "no-place"));
    assert!(error.to_string().contains("leave `dead_letters` out"), "{error}");

    let error = refused(RabbitMq::new(&connection, "q".repeat(256))).await;
    assert!(matches!(error, Error::Name));
    let error = refused(RabbitMq::new(&connection, &*scene.queue).with_prefetch(0)).await;
    assert!(matches!(error, Error::Prefetch));

    // The connection is as good as before.
    RabbitMq::new(&connection, &*scene.queue).dead_letters(&*scene.dead).connect().await?;
    Ok(())
}
