//! The server restarts, pauses, or is out of reach, and comes back: the engine recovers by itself.

use std::time::Duration;

use futures::FutureExt as _;
use idempotency::store::StoreErrorKind;
use idempotency::{Error, ErrorKind, OnConflict};
use idempotency_test_support::deadline::{eventually_async, within};
use idempotency_test_support::proxy::{Action, Fault, Moment};
use idempotency_test_support::server::RedisOptions;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::oneshot;

use crate::world::{DAY, LONG_LEASE, OPERATION, PATIENCE, World, engine_on, impatient};

fn durable() -> RedisOptions {
    RedisOptions::new().append_only()
}

/// A call that the store does not answer: no effect, and the caller learns why.
async fn refused(world: &World, key: u64) -> anyhow::Result<Error> {
    let error = within("the refusal", world.charge_on(&world.hasty, key)).await?.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{error}");
    assert!(error.is_retryable());
    assert_eq!(error.store(), Some("redis"));
    assert_eq!(world.count(key), 0, "the body did not run");
    Ok(error)
}

/// The same engine takes the call once the store is back, at once: what the outage left behind does
/// not block it.
async fn recovers(world: &World, key: u64) -> anyhow::Result<()> {
    assert_eq!(within("the recovery", world.charge(key)).await??, format!("receipt {key}.1"));
    assert_eq!(world.count(key), 1);
    Ok(())
}

#[tokio::test]
async fn results_replay_after_a_restart_and_after_a_kill() -> anyhow::Result<()> {
    let mut world = World::with(durable(), |builder| builder).await?;
    world.charge(1).await?;
    world.server.restart().await?;
    assert_eq!(world.charge(1).await?, "receipt 1.1");
    recovers(&world, 2).await?;
    world.server.kill()?;
    refused(&world, 3).await?;
    world.server.restart().await?;
    for key in [1, 2] {
        assert_eq!(world.charge(key).await?, format!("receipt {key}.1"));
        assert_eq!(world.count(key), 1);
    }
    recovers(&world, 3).await
}

#[tokio::test]
async fn a_body_that_outlives_its_servers_restart_stores_its_result() -> anyhow::Result<()> {
    let mut world = World::with(durable(), |builder| builder).await?;
    let (engine, effects) = (world.engine.clone(), world.effects.clone());
    let (start, started) = oneshot::channel();
    let (finish, finished) = oneshot::channel::<()>();
    let owner = tokio::spawn(async move {
        let call = engine.call(OPERATION, 1_u64).ttl(DAY).run(|| async {
            effects.append("1 charged").expect("the log takes a line");
            let _ = start.send(());
            let _ = finished.await;
            Ok::<_, Error>("receipt 1.1".to_owned())
        });
        call.await
    });
    started.await?;
    world.server.kill()?;
    finish.send(()).expect("the body waits");
    world.server.restart().await?;
    assert_eq!(owner.await??, "receipt 1.1");
    assert_eq!(world.charge(1).await?, "receipt 1.1");
    assert_eq!((world.count(1), world.engine.duplicates()), (1, 0));
    Ok(())
}

#[tokio::test]
async fn a_server_that_pauses_runs_no_body_and_is_used_again_when_it_resumes() -> anyhow::Result<()>
{
    let world = World::new().await?;
    world.charge(1).await?;
    world.server.pause()?;
    refused(&world, 2).await?;
    world.server.resume()?;
    assert_eq!(world.charge(1).await?, "receipt 1.1");
    recovers(&world, 2).await
}

/// Nothing arrives any more and nobody says so: only time tells.
#[tokio::test]
async fn a_half_open_connection_is_given_up_and_another_one_made() -> anyhow::Result<()> {
    let world = World::new().await?;
    world.warm_up().await?;
    let before = world.proxy.connections();
    world.proxy.half_open();
    refused(&world, 1).await?;
    world.proxy.heal();
    recovers(&world, 1).await?;
    // One is new on the engine's own thread, which followed the claim that was given up.
    assert!(world.proxy.connections() <= before + 2, "the dead connections are closed");
    Ok(())
}

/// The store would wait for longer than the engine does, which has given the claim up.
#[tokio::test]
async fn a_connection_that_is_silent_for_one_request_keeps_no_other_waiting() -> anyhow::Result<()>
{
    let world = World::patient().await?;
    world.warm_up().await?;
    let silence = world.proxy.next("SET", Fault::new(Moment::BeforeRequest, Action::Silence));
    refused(&world, 1).await?;
    silence.happened().await?;
    let charged = tokio::time::timeout(PATIENCE / 2, world.charge_on(&world.hasty, 2)).await??;
    assert_eq!((charged.as_str(), world.count(2)), ("receipt 2.1", 1));
    Ok(())
}

#[tokio::test]
async fn a_connection_that_is_reset_is_made_anew_within_the_call() -> anyhow::Result<()> {
    let world = World::new().await?;
    for key in 1..6 {
        world.proxy.reset_all();
        recovers(&world, key).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_server_that_refuses_connections_runs_no_body_and_is_found_again() -> anyhow::Result<()> {
    let world = World::new().await?;
    world.charge(1).await?;
    world.proxy.refuse().await?;
    world.proxy.close_all();
    refused(&world, 2).await?;
    world.proxy.accept().await?;
    recovers(&world, 2).await?;
    assert_eq!(world.charge(1).await?, "receipt 1.1");
    Ok(())
}

/// The claim was applied and its owner never heard of it.
#[tokio::test]
async fn a_claim_that_an_outage_left_behind_is_released_after_it() -> anyhow::Result<()> {
    let world = World::new().await?;
    world.warm_up().await?;
    world.proxy.delay_answers(Duration::from_secs(60));
    refused(&world, 1).await?;
    assert!(world.record(1).await.is_some(), "the claim was applied");
    world.proxy.delay_answers(Duration::ZERO);
    world.proxy.close_all();
    eventually_async("the release, long before the lease ends", async || {
        world.record(1).await.is_none()
    })
    .await?;
    assert!(LONG_LEASE > idempotency_test_support::deadline::DEADLINE);
    recovers(&world, 1).await
}

#[tokio::test]
async fn what_is_no_redis_server_is_said_to_be_none() -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("redis://{}", listener.local_addr()?);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 1024]).await;
                let _ = stream
                    .write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
                    .await;
            });
        }
    });
    let error = within("the refusal", impatient(&url).connect()).await?.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    assert!(error.to_string().contains("is it a Redis server?"), "{error}");

    let world = World::new().await?;
    let engine =
        engine_on(impatient(&url).build()?).claim_timeout(Duration::from_secs(2)).build()?;
    let error = within("the refusal", world.charge_on(&engine, 1)).await?.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable);
    assert!(error.to_string().contains("is it a Redis server?"), "{error}");
    assert_eq!(world.count(1), 0);
    Ok(())
}

/// The caller that waits is told by the store's error, not by its own deadline.
#[tokio::test]
async fn a_waiter_outlives_an_outage_of_the_server() -> anyhow::Result<()> {
    let mut world = World::with(durable(), |builder| builder).await?;
    let there = engine_on(impatient(&world.server.url()).build()?).build()?;
    let (start, started) = oneshot::channel();
    let (finish, finished) = oneshot::channel::<()>();
    let (engine, effects) = (world.engine.clone(), world.effects.clone());
    let owner = tokio::spawn(async move {
        let call = engine.call(OPERATION, 1_u64).ttl(DAY).run(|| async {
            let _ = start.send(());
            let _ = finished.await;
            effects.append("1 charged").expect("the log takes a line");
            Ok::<_, Error>("receipt".to_owned())
        });
        call.await
    });
    started.await?;
    let waiter = tokio::spawn(async move {
        let call = there
            .call(OPERATION, 1_u64)
            .ttl(DAY)
            .on_conflict(OnConflict::Wait(Duration::from_secs(60)));
        call.run(|| async { Ok::<_, Error>("not waited".to_owned()) }).await
    });
    tracked(&world).await?;
    world.server.kill()?;
    world.server.restart().await?;
    finish.send(()).expect("the body waits");
    assert_eq!(owner.await??, "receipt");
    assert_eq!(waiter.await??, "receipt");
    assert_eq!(world.count(1), 1);
    Ok(())
}

/// Waits until the server tracks a key for somebody.
async fn tracked(world: &World) -> anyhow::Result<()> {
    eventually_async("the server to track the key", async || {
        let stats = world.server.command(&["INFO", "stats"]).await.unwrap_or_default();
        stats.contains("tracking_total_keys:1\r")
    })
    .await
}

/// As in a `select!`, or a stream of calls whose results are looked at slowly.
#[tokio::test]
async fn a_call_that_nobody_polls_while_it_connects_keeps_no_other_one_waiting()
-> anyhow::Result<()> {
    let world = World::new().await?;
    world.warm_up().await?;
    world.proxy.close_all();
    eventually_async("the connections to be closed", async || world.proxy.connections() == 0)
        .await?;
    // What makes a connection is under way for some time.
    world.proxy.hold_answers();
    let before = world.proxy.requests();
    let mut unpolled = Box::pin(world.charge(1));
    eventually_async("the first words on the new connection", async || {
        let _ = unpolled.as_mut().now_or_never();
        world.proxy.requests() > before
    })
    .await?;
    world.proxy.heal();
    recovers(&world, 2).await?;
    assert_eq!(world.count(1), 0, "it was not polled");
    assert_eq!(unpolled.await?, "receipt 1.1");
    Ok(())
}
