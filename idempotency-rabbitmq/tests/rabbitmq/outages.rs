//! The connection, the broker and the store go away, under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::ensure;
use idempotency::inbox::{ConsumeError, Consumer};
use idempotency::store::RedisStore;
use idempotency::{Idempotency, OnCrash};
use idempotency_rabbitmq::lapin::ConnectionProperties;
use idempotency_rabbitmq::{Error, QueueMessage, RabbitMq};
use idempotency_test_support::consuming::{self, Orders, quiet};
use idempotency_test_support::deadline::{eventually, within};
use idempotency_test_support::server::{
    RabbitMqOptions, RabbitMqServer, RedisOptions, RedisServer,
};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::scene::{Kind, Scene, append, broker, consume, engine, finish, ids, inbox};
use crate::wire::Wire;

#[tokio::test]
async fn a_message_whose_consumer_is_cut_off_waits_for_its_handler_at_the_next_one()
-> anyhow::Result<()> {
    for retries in [false, true] {
        let scene = Scene::new(Kind::Quorum).await?;
        let wire = Wire::to(broker().await?.address()).await?;
        let (engine, orders) = (engine(), Orders { retries, ..Orders::of(&scene).await? });
        scene.publish("m-0", "m-0").await?;
        let (gate, begun) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicBool::new(false)));
        let handler = {
            let (effects, gate, begun) = (scene.effects.clone(), gate.clone(), begun.clone());
            move |message: Arc<QueueMessage>| {
                let (effects, gate) = (effects.clone(), gate.clone());
                begun.store(true, Ordering::SeqCst);
                async move {
                    let _ = gate.acquire().await;
                    append(&effects, &message);
                    Ok::<_, &'static str>(())
                }
            }
        };
        let connection = scene.connection_by(&wire.url(), ConnectionProperties::default()).await?;
        let source = RabbitMq::new(&connection, &*scene.queue).connect().await?;
        let first = Consumer::new(orders.inbox(engine.clone()), source);
        let first = tokio::spawn(first.run(std::future::pending(), handler));
        eventually("the handler to begin", || begun.load(Ordering::SeqCst)).await?;
        wire.cut();
        scene.is_ready(&scene.queue, 1).await?;

        let until = async {
            scene.is_ready(&scene.queue, 0).await?;
            // The second one has it, and runs nothing.
            gate.add_permits(1);
            scene.have_happened(["m-0".to_owned()]).await
        };
        let second = orders.inbox(engine.clone());
        consume(second, scene.source().await?, scene.handler(), until).await??;
        consuming::finish(&scene, &orders.inbox(engine.clone())).await?;
        let ended = within("the first consumer to end", first).await??;
        let is_its_end = matches!(ended, Err(ConsumeError::Source(Error::ConnectionEnded(_))));
        ensure!(is_its_end, "{ended:?}");
        scene.assert_once(["m-0".to_owned()])?;
        assert_eq!(scene.left().await?, (0, 0));
    }
    Ok(())
}

#[tokio::test]
async fn a_broker_that_is_killed_and_restarted_loses_nothing_of_a_durable_queue()
-> anyhow::Result<()> {
    let is_quiet = quiet().await?;
    let mut broker = RabbitMqServer::start(RabbitMqOptions::new().private()).await?;
    drop(is_quiet);
    let url = broker.url();
    for _ in 0..2 {
        // The only node of a quorum queue can come back without a leader.
        let scene = Scene::at(&url, Kind::Classic).await?;
        // A durable queue is on the disk a few seconds after it was declared. Messages are at once.
        broker.control(&["eval", "mnesia:sync_log()."]).await?;
        scene.publish_all(ids("m", 300)).await?;
        let engine = engine();
        let (done, is_done) = watch::channel(false);
        let effects = scene.effects.clone();
        let handler = move |message: Arc<QueueMessage>| {
            let effects = effects.clone();
            async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                append(&effects, &message);
                Ok::<_, &'static str>(())
            }
        };
        // As a service does it: connects again until it is stopped.
        let service = async {
            while !*is_done.borrow() {
                // The client knows no limit for it, and can wait for ever while the broker starts.
                let connect = scene.connection_by(&url, ConnectionProperties::default());
                let connected = tokio::time::timeout(Duration::from_secs(3), connect).await;
                let Ok(Ok(connection)) = connected else {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    continue;
                };
                let source = RabbitMq::new(&connection, &*scene.queue).dead_letters(&*scene.dead);
                let Ok(source) = source.connect().await else { continue };
                let mut is_done = is_done.clone();
                let stop = async move {
                    let _ = is_done.wait_for(|is_done| *is_done).await;
                };
                let consumer = Consumer::new(inbox(&engine), source);
                match consumer.run(stop, handler.clone()).await {
                    Ok(_) | Err(ConsumeError::Source(_)) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            anyhow::Ok(())
        };
        let outage = async {
            let some = || scene.effects.lines().is_ok_and(|lines| lines.len() > 60);
            eventually("60 effects", some).await?;
            let _is_quiet = quiet().await?;
            broker.kill()?;
            broker.restart().await?;
            let result = scene.have_happened(ids("m", 300)).await;
            done.send_replace(true);
            result
        };
        let (served, outage) = tokio::join!(within("the service to end", service), outage);
        outage?;
        served??;
        scene.assert_once(ids("m", 300))?;
        // The test has lost its own connection too.
        let again = scene.again_at(&url).await?;
        finish(&again, &engine).await?;
        again.assert_once(ids("m", 300))?;
        assert_eq!(again.left().await?, (0, 0));
    }
    Ok(())
}

#[tokio::test]
async fn a_store_that_is_away_for_ten_seconds_costs_no_message_and_no_dead_letter()
-> anyhow::Result<()> {
    let store = RedisServer::start(RedisOptions::new().private()).await?;
    // It drops what comes back a fourth time.
    let scene = Scene::new(Kind::Limited(3)).await?;
    let store_of = RedisStore::connect(&store.url()).await?;
    let lease = Duration::from_secs(20);
    let engine = Idempotency::builder(store_of).lease(lease).build()?;
    let inbox = inbox(&engine).with_on_crash(OnCrash::Retry);
    let effects = scene.effects.clone();
    let handler = move |message: Arc<QueueMessage>| {
        append(&effects, &message);
        std::future::ready(Ok(()))
    };
    let count = 1_000;
    let until = async {
        scene.publish_all(ids("early", count)).await?;
        let some = || scene.effects.lines().is_ok_and(|lines| lines.len() > 100);
        eventually("100 effects", some).await?;
        store.pause()?;
        let away = Instant::now();
        // The load goes on meanwhile.
        let mut number = 0;
        while away.elapsed() < Duration::from_secs(10) {
            scene.publish(&format!("late-{number}"), &format!("late-{number}")).await?;
            number += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        store.resume()?;
        scene.have_happened(ids("early", count).chain(ids("late", number))).await?;
        scene.assert_once(ids("early", count).chain(ids("late", number)))
    };
    consume(inbox, scene.source().await?, handler, until).await??;
    let (_, dead) = scene.left().await?;
    assert_eq!(dead, 0);
    finish(&scene, &engine).await?;
    let lines = scene.effects.count_by_key()?;
    ensure!(lines.values().all(|effects| *effects == 1), "{lines:?}");
    assert_eq!(scene.left().await?, (0, 0));
    Ok(())
}
