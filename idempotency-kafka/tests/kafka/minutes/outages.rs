//! The connection, the broker and the store go away, under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::ensure;
use idempotency::inbox::Consumer;
use idempotency::store::RedisStore;
use idempotency::{Idempotency, OnCrash};
use idempotency_kafka::rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr as Code};
use idempotency_kafka::{TopicMessage, Topics};
use idempotency_test_support::consuming::Broker as _;
use idempotency_test_support::deadline::{eventually, within};
use idempotency_test_support::server::{RedisOptions, RedisServer};
use tokio::time::Instant;

use crate::cluster::Cluster;
use crate::scene::{Scene, append, consume, engine, ids, inbox};
use crate::wire::Wire;

/// A handler that takes a while.
fn slow(
    scene: &Scene,
) -> impl Fn(Arc<TopicMessage>) -> futures::future::BoxFuture<'static, Result<(), &'static str>>
+ Send
+ Sync
+ use<> {
    let effects = scene.effects.clone();
    move |message| {
        let effects = effects.clone();
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            append(&effects, &message);
            Ok(())
        })
    }
}

async fn mock() -> anyhow::Result<Scene> {
    Scene::at(Cluster::mock(1)?, "partitions", 4).await
}

/// Connects a consumer by a way that can be cut.
async fn by(scene: &Scene, wire: &Wire) -> anyhow::Result<Topics> {
    let mut address = scene.address();
    address.url = wire.url();
    Scene::connect(&address).await
}

async fn has_effects(scene: &Scene, count: usize) -> anyhow::Result<()> {
    let some = || scene.effects.lines().is_ok_and(|lines| lines.len() >= count);
    eventually(format!("{count} effects"), some).await
}

#[tokio::test]
async fn a_broker_that_goes_and_comes_back_costs_no_message_and_no_second_effect()
-> anyhow::Result<()> {
    let scene = mock().await?;
    let wire = scene.wire().await?;
    scene.publish_all(ids("m", 400)).await?;
    let until = async {
        for count in [40, 120] {
            has_effects(&scene, count).await?;
            wire.keep_away(true);
            tokio::time::sleep(Duration::from_secs(1)).await;
            wire.keep_away(false);
        }
        scene.is_empty().await
    };
    let source = by(&scene, &wire).await?;
    consume(inbox(&engine()), source, slow(&scene), until).await??;
    scene.assert_once(ids("m", 400))?;
    assert_eq!(scene.letters()?, 0);
    Ok(())
}

#[tokio::test]
async fn commits_that_fail_cost_no_message_and_no_second_effect() -> anyhow::Result<()> {
    let scene = mock().await?;
    scene.publish_all(ids("m", 400)).await?;
    let until = async {
        for (count, code) in [
            (20, Code::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE),
            (60, Code::RD_KAFKA_RESP_ERR_NOT_COORDINATOR),
            (100, Code::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT),
            (140, Code::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION),
            (180, Code::RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS),
        ] {
            has_effects(&scene, count).await?;
            scene.cluster.ask(move |mock| {
                mock.request_errors(RDKafkaApiKey::OffsetCommit, &[code; 3]);
            })?;
        }
        scene.is_empty().await
    };
    consume(inbox(&engine()), scene.source().await?, slow(&scene), until).await??;
    scene.assert_once(ids("m", 400))?;
    assert_eq!(scene.letters()?, 0);
    Ok(())
}

#[tokio::test]
async fn fetches_and_heartbeats_that_fail_cost_no_message_and_no_second_effect()
-> anyhow::Result<()> {
    let scene = mock().await?;
    scene.publish_all(ids("m", 400)).await?;
    let until = async {
        for (count, key, codes) in [
            (
                20,
                RDKafkaApiKey::Fetch,
                [Code::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION; 3].as_slice(),
            ),
            (60, RDKafkaApiKey::Fetch, &[Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART; 3]),
            // Each makes the group begin again, which takes seconds.
            (100, RDKafkaApiKey::Heartbeat, &[Code::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID]),
            (140, RDKafkaApiKey::Heartbeat, &[Code::RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS]),
        ] {
            has_effects(&scene, count).await?;
            scene.cluster.ask(move |mock| mock.request_errors(key, codes))?;
        }
        scene.is_empty().await
    };
    consume(inbox(&engine()), scene.source().await?, slow(&scene), until).await??;
    scene.assert_once(ids("m", 400))?;
    assert_eq!(scene.letters()?, 0);
    Ok(())
}

#[tokio::test]
async fn a_connection_that_is_cut_again_and_again_costs_no_message_and_no_second_effect()
-> anyhow::Result<()> {
    let scene = mock().await?;
    let wire = scene.wire().await?;
    scene.publish_all(ids("m", 400)).await?;
    let until = async {
        for count in [20, 60, 100, 140] {
            has_effects(&scene, count).await?;
            wire.cut();
        }
        scene.is_empty().await
    };
    let source = by(&scene, &wire).await?;
    consume(inbox(&engine()), source, slow(&scene), until).await??;
    scene.assert_once(ids("m", 400))?;
    assert_eq!(scene.letters()?, 0);
    Ok(())
}

#[tokio::test]
async fn a_consumer_that_stops_does_not_wait_for_a_broker_that_is_away() -> anyhow::Result<()> {
    let scene = mock().await?;
    let wire = scene.wire().await?;
    scene.publish_all(ids("m", 40)).await?;
    let source = by(&scene, &wire).await?;
    let engine = engine();
    let consumer = Consumer::new(inbox(&engine), source);
    let mut stopped = None;
    let stop = async {
        has_effects(&scene, 10).await.expect("some effects");
        wire.keep_away(true);
        stopped = Some(Instant::now());
    };
    let drained = within("the end", Box::pin(consumer.run(stop, slow(&scene)))).await??;
    ensure!(drained.left == 0, "{drained:?}");
    let took = stopped.map(|stopped| stopped.elapsed()).unwrap_or_default();
    ensure!(took < Duration::from_secs(13), "{took:?}");
    consume(inbox(&engine), scene.source().await?, slow(&scene), scene.is_empty()).await??;
    scene.assert_once(ids("m", 40))
}

#[tokio::test]
async fn a_store_that_is_away_for_ten_seconds_costs_no_message_and_no_dead_letter()
-> anyhow::Result<()> {
    let store = RedisServer::start(RedisOptions::new().private()).await?;
    let scene = mock().await?;
    let store_of = RedisStore::connect(&store.url()).await?;
    let engine = Idempotency::builder(store_of).lease(Duration::from_secs(15)).build()?;
    let inbox = inbox(&engine).with_on_crash(OnCrash::Retry);
    let (count, late) = (400, AtomicUsize::new(0));
    scene.publish_all(ids("early", count)).await?;
    let until = async {
        has_effects(&scene, 40).await?;
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
        has_effects(&scene, 80).await
    };
    consume(inbox.clone(), scene.source().await?, slow(&scene), until).await??;
    // A handler that ran when the store went holds its partition back until its lease ends.
    consume(inbox, scene.source().await?, slow(&scene), scene.is_empty()).await??;
    scene.assert_once(ids("early", count).chain(ids("late", late.load(Ordering::SeqCst))))?;
    assert_eq!(scene.letters()?, 0);
    Ok(())
}
