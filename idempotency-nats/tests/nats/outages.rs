//! The connection, the server and the store go away, under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::ensure;
use idempotency::inbox::{ConsumeError, Consumer};
use idempotency::store::RedisStore;
use idempotency::{Idempotency, OnCrash};
use idempotency_nats::async_nats::jetstream::consumer::pull;
use idempotency_nats::async_nats::{self, jetstream};
use idempotency_nats::{Error, JetStream, StreamMessage};
use idempotency_test_support::deadline::{eventually, eventually_async};
use idempotency_test_support::server::{NatsOptions, NatsServer, RedisOptions, RedisServer};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::scene::{CONSUMER, Scene, append, consume, durable, engine, ids, inbox, server};
use crate::warnings::Warnings;
use crate::wire::Wire;

#[tokio::test]
async fn a_message_whose_consumer_is_cut_off_waits_for_its_handler_at_the_next_one()
-> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let wire = Wire::to(server().await?.address()).await?;
    let engine = engine();
    scene.publish("m-0", "m-0").await?;
    let (gate, begun) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicBool::new(false)));
    let handler = {
        let (effects, gate, begun) = (scene.effects.clone(), gate.clone(), begun.clone());
        move |message: Arc<StreamMessage>| {
            let (effects, gate) = (effects.clone(), gate.clone());
            begun.store(true, Ordering::SeqCst);
            async move {
                let _ = gate.acquire().await;
                append(&effects, &message);
                Ok::<_, &'static str>(())
            }
        }
    };
    let source = scene.source_by(&wire.url()).await?;
    let second = async {
        eventually("the handler to begin", || begun.load(Ordering::SeqCst)).await?;
        // For good: it can neither keep the message nor answer.
        drop(wire);
        let until = async {
            let redelivered = async || {
                let consumer = scene.consumer().await;
                consumer.is_ok_and(|consumer| consumer.cached_info().num_redelivered == 1)
            };
            let what = "the second consumer to get the message";
            eventually_async(what, redelivered).await?;
            ensure!(scene.effects.lines()?.is_empty());
            gate.add_permits(1);
            scene.is_empty().await
        };
        consume(inbox(&engine), scene.source().await?, scene.handler(), until).await??;
        anyhow::Ok(())
    };
    let first = Consumer::new(inbox(&engine), source);
    let first = first.run(std::future::pending(), handler);
    tokio::select! {
        ended = first => anyhow::bail!("the first consumer has ended: {ended:?}"),
        ended = second => ended?,
    }
    scene.assert_once(["m-0".to_owned()])?;
    assert_eq!(scene.left().await?, (0, 0));
    Ok(())
}

#[tokio::test]
async fn a_connection_that_is_cut_again_and_again_costs_no_message_and_no_second_effect()
-> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let wire = Wire::to(server().await?.address()).await?;
    scene.publish_all(ids("m", 200)).await?;
    let effects = scene.effects.clone();
    let handler = move |message: Arc<StreamMessage>| {
        let effects = effects.clone();
        async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            append(&effects, &message);
            Ok(())
        }
    };
    let until = async {
        for count in [20, 60, 100, 140] {
            let some = || scene.effects.lines().is_ok_and(|lines| lines.len() >= count);
            eventually(format!("{count} effects"), some).await?;
            wire.cut();
        }
        scene.is_empty().await
    };
    consume(inbox(&engine()), scene.source_by(&wire.url()).await?, handler, until).await??;
    scene.assert_once(ids("m", 200))?;
    assert_eq!(scene.left().await?, (0, 0));
    Ok(())
}

#[tokio::test]
async fn a_client_that_is_closed_ends_the_consumer() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let client = async_nats::connect(server().await?.url()).await?;
    let context = jetstream::new(client.clone());
    let consumer = scene.consumer_by(&context, CONSUMER).await?;
    let source = JetStream::new(consumer).connect().await?;
    scene.publish("m-0", "m-0").await?;
    let (begun, gate) = (Arc::new(AtomicBool::new(false)), Arc::new(Semaphore::new(0)));
    let handler = {
        let (begun, gate) = (begun.clone(), gate.clone());
        move |_: Arc<StreamMessage>| {
            begun.store(true, Ordering::SeqCst);
            let gate = gate.clone();
            async move {
                let _ = gate.acquire().await;
                Ok(())
            }
        }
    };
    let closed = async {
        eventually("the handler to begin", || begun.load(Ordering::SeqCst)).await?;
        client.drain().await?;
        // The consumer ends while the handler runs, and asks nothing of this future any more.
        tokio::spawn(async move {
            while client.flush().await.is_ok() {
                tokio::task::yield_now().await;
            }
            gate.add_permits(1);
        });
        std::future::pending().await
    };
    let warnings = Warnings::listen();
    // It ends by itself: the other future never does.
    let ended = consume(inbox(&engine()), source, handler, closed);
    let ended = tokio::time::timeout(Duration::from_secs(20), ended).await??;
    let is_its_end = matches!(ended, Err(ConsumeError::Source(Error::ConnectionEnded(_))));
    ensure!(is_its_end, "{ended:?}");
    ensure!(warnings.mention("dispositions did not reach the broker"), "the answer was lost");
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_killed_and_restarted_loses_nothing() -> anyhow::Result<()> {
    let mut server = NatsServer::start(NatsOptions::new().private()).await?;
    let url = server.url();
    for _ in 0..2 {
        let scene = Scene::at(&url, durable()).await?;
        scene.publish_all(ids("m", 300)).await?;
        let effects = scene.effects.clone();
        let handler = move |message: Arc<StreamMessage>| {
            let effects = effects.clone();
            async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                append(&effects, &message);
                Ok(())
            }
        };
        let until = async {
            let some = || scene.effects.lines().is_ok_and(|lines| lines.len() > 60);
            eventually("60 effects", some).await?;
            server.kill()?;
            server.restart().await?;
            scene.is_empty().await
        };
        consume(inbox(&engine()), scene.source().await?, handler, until).await??;
        scene.assert_once(ids("m", 300))?;
        assert_eq!(scene.left().await?, (0, 0));
    }
    Ok(())
}

#[tokio::test]
async fn a_store_that_is_away_for_ten_seconds_costs_no_message_and_no_dead_letter()
-> anyhow::Result<()> {
    let store = RedisServer::start(RedisOptions::new().private()).await?;
    // It drops what it has delivered three times.
    let scene = Scene::with(pull::Config { max_deliver: 3, ..durable() }).await?;
    let store_of = RedisStore::connect(&store.url()).await?;
    let lease = Duration::from_secs(15);
    let engine = Idempotency::builder(store_of).lease(lease).build()?;
    let inbox = inbox(&engine).with_on_crash(OnCrash::Retry);
    let (effects, most) = (scene.effects.clone(), Arc::new(AtomicU32::new(0)));
    let counter = most.clone();
    let handler = move |message: Arc<StreamMessage>| {
        counter.fetch_max(message.deliveries().unwrap_or_default(), Ordering::SeqCst);
        append(&effects, &message);
        std::future::ready(Ok(()))
    };
    let (count, late) = (1_000, AtomicUsize::new(0));
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
        late.store(number, Ordering::SeqCst);
        scene.have_happened(ids("early", count).chain(ids("late", number))).await
    };
    consume(inbox.clone(), scene.source().await?, handler, until).await??;
    // The result of a handler that ran when the store went is stored later than it was reported: its
    // message comes again after the lease.
    consume(inbox, scene.source().await?, scene.handler(), scene.is_empty()).await??;
    scene.assert_once(ids("early", count).chain(ids("late", late.load(Ordering::SeqCst))))?;
    assert_eq!(scene.left().await?, (0, 0));
    ensure!(most.load(Ordering::SeqCst) <= 2, "more than one delivery for one outage");
    Ok(())
}
