//! The connection, the server and the store go away, under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::ensure;
use futures::future::BoxFuture;
use idempotency::inbox::{Consumer, Source as _};
use idempotency::store::RedisStore;
use idempotency::{Idempotency, OnCrash};
use idempotency_sqs::aws_sdk_sqs::types::QueueAttributeName as Attribute;
use idempotency_sqs::{Error, SqsMessage};
use idempotency_test_support::deadline::{eventually, eventually_async, within};
use idempotency_test_support::server::{
    MiniStackOptions, MiniStackServer, RedisOptions, RedisServer,
};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::scene::{Kind, Scene, append, consume, engine, ids, inbox, server};
use crate::wire::Wire;

#[tokio::test]
async fn a_message_whose_consumer_is_cut_off_waits_for_its_handler_at_the_next_one()
-> anyhow::Result<()> {
    let scene = Scene::new(Kind::Standard).await?;
    let wire = Wire::to(server().await?.address()).await?;
    let engine = engine();
    scene.publish("m-0", "m-0").await?;
    let (gate, begun) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicBool::new(false)));
    let handler = {
        let (effects, gate, begun) = (scene.effects.clone(), gate.clone(), begun.clone());
        move |message: Arc<SqsMessage>| {
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
        eventually_async("the message to come back", async || {
            scene.pending().await.is_ok_and(|(visible, _)| visible == 1)
        })
        .await?;
        let until = async {
            eventually_async("the second consumer to get the message", async || {
                scene.pending().await.is_ok_and(|pending| pending == (0, 1))
            })
            .await?;
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
    for kind in [Kind::Standard, Kind::Fifo] {
        let scene = Scene::new(kind).await?;
        let wire = Wire::to(server().await?.address()).await?;
        scene.publish_all(ids("m", 200)).await?;
        let until = async {
            for count in [20, 60, 100, 140] {
                let some = || scene.effects.lines().is_ok_and(|lines| lines.len() >= count);
                eventually(format!("{count} effects"), some).await?;
                wire.cut();
            }
            scene.is_empty().await
        };
        let source = scene.source_by(&wire.url()).await?;
        consume(inbox(&engine()), source, slow(&scene), until).await??;
        scene.assert_once(ids("m", 200))?;
        assert_eq!(scene.left().await?, (0, 0));
    }
    Ok(())
}

/// A handler that takes a while.
fn slow(
    scene: &Scene,
) -> impl Fn(Arc<SqsMessage>) -> BoxFuture<'static, Result<(), &'static str>> + use<> {
    let effects = scene.effects.clone();
    move |message| {
        let effects = effects.clone();
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            append(&effects, &message);
            Ok(())
        })
    }
}

#[tokio::test]
async fn a_server_that_is_stopped_and_restarted_loses_nothing() -> anyhow::Result<()> {
    // If it is killed it loses its queues, as Amazon's do not.
    let mut server = MiniStackServer::start(MiniStackOptions::new()).await?;
    let scene = Scene::at(&server.url(), Kind::Standard, &[]).await?;
    scene.publish_all(ids("m", 300)).await?;
    let until = async {
        let some = || scene.effects.lines().is_ok_and(|lines| lines.len() > 60);
        eventually("60 effects", some).await?;
        server.stop().await?;
        server.restart().await?;
        scene.is_empty().await
    };
    consume(inbox(&engine()), scene.source().await?, slow(&scene), until).await??;
    scene.assert_once(ids("m", 300))?;
    assert_eq!(scene.left().await?, (0, 0));
    Ok(())
}

#[tokio::test]
async fn a_server_that_stands_still_is_not_waited_for_and_costs_no_message() -> anyhow::Result<()> {
    let server = MiniStackServer::start(MiniStackOptions::new()).await?;
    let scene = Scene::at(&server.url(), Kind::Standard, &[]).await?;
    scene.publish_all(ids("m", 20)).await?;
    let source = scene.source().await?;
    let mut held = within("some messages", source.receive(10)).await??;
    held.extend(within("some more", source.receive(10)).await??);
    let count = held.len();
    server.pause()?;
    // Longer than any request but one for messages may take.
    let bounded = Duration::from_secs(15);
    let error = tokio::time::timeout(bounded, source.keep(held)).await?;
    let error = error.expect_err("there is no answer");
    let is_all =
        matches!(error, Error::Unanswered { failed, of, .. } if (failed, of) == (count, count));
    ensure!(is_all && error.to_string().contains("no answer within 10 seconds"), "{error:?}");
    tokio::time::timeout(bounded, source.stop()).await??;
    server.resume()?;
    consume(inbox(&engine()), scene.source().await?, scene.handler(), scene.is_empty()).await??;
    scene.assert_once(ids("m", 20))?;
    assert_eq!(scene.left().await?, (0, 0));
    Ok(())
}

#[tokio::test]
async fn a_store_that_is_away_for_ten_seconds_costs_no_message_and_no_dead_letter()
-> anyhow::Result<()> {
    let store = RedisServer::start(RedisOptions::new().private()).await?;
    let scene = Scene::with(Kind::Standard, &[(Attribute::VisibilityTimeout, "5")]).await?;
    // It moves what comes a fourth time.
    scene.set_redrive_policy(3).await?;
    let store_of = RedisStore::connect(&store.url()).await?;
    let lease = Duration::from_secs(15);
    let engine = Idempotency::builder(store_of).lease(lease).build()?;
    let inbox = inbox(&engine).with_on_crash(OnCrash::Retry);
    let (effects, most) = (scene.effects.clone(), Arc::new(AtomicU32::new(0)));
    let counter = most.clone();
    let handler = move |message: Arc<SqsMessage>| {
        counter.fetch_max(message.deliveries().unwrap_or_default(), Ordering::SeqCst);
        append(&effects, &message);
        std::future::ready(Ok(()))
    };
    let (count, late) = (500, AtomicUsize::new(0));
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
        scene.effects.have_happened(ids("early", count).chain(ids("late", number))).await
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
