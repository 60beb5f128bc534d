//! Bodies that take longer than their lease.

use std::time::Duration;

use idempotency::{Error, OnConflict, OnCrash};
use idempotency_test_support::deadline::eventually_async;
use idempotency_test_support::server::RedisOptions;
use tokio::sync::oneshot;

use crate::world::{DAY, OPERATION, STEADY_LEASE, World, engine_on, patient};

/// Another process waits to take over all the while.
async fn runs_once(world: &World, body: impl AsyncFnOnce() + Send) -> anyhow::Result<()> {
    let url = world.server.url();
    let (start, started) = oneshot::channel();
    let effects = world.effects.clone();
    // On a thread and a runtime of its own: the owner's executor may be blocked.
    let thread = std::thread::spawn(move || -> anyhow::Result<String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let elsewhere =
                engine_on(patient(&url).connect().await?).lease(STEADY_LEASE).build()?;
            started.await?;
            let call = elsewhere.call(OPERATION, 1_u64).ttl(DAY).on_crash(OnCrash::Retry);
            let call = call.on_conflict(OnConflict::Wait(Duration::from_secs(60)));
            Ok(call
                .run(|| async {
                    effects.append("1 charged").expect("the log takes a line");
                    Ok::<_, Error>("taken over".to_owned())
                })
                .await?)
        })
    });
    let owner = world.call(1).on_crash(OnCrash::Retry).run(|| async {
        let _ = start.send(());
        body().await;
        Ok::<_, Error>(world.effect(1))
    });
    assert_eq!(owner.await?, "receipt 1.1");
    let waited = tokio::task::spawn_blocking(|| thread.join()).await?;
    assert_eq!(waited.expect("the waiter does not panic")?, "receipt 1.1");
    assert_eq!((world.count(1), world.engine.duplicates()), (1, 0));
    Ok(())
}

async fn world() -> anyhow::Result<World> {
    World::with(RedisOptions::new().private(), |builder| builder.lease(STEADY_LEASE)).await
}

#[tokio::test]
async fn a_body_that_outlives_its_lease_runs_once() -> anyhow::Result<()> {
    let world = world().await?;
    let body = async || {
        let first = world.record(1).await.expect("the claim is there").lease_until;
        let is_over = async || world.record(1).await.is_some_and(|record| record.read_at > first);
        eventually_async("the first lease to end", is_over)
            .await
            .expect("the server's clock goes on");
    };
    runs_once(&world, body).await
}

#[tokio::test]
async fn a_body_that_outlives_its_lease_runs_once_on_a_blocked_executor() -> anyhow::Result<()> {
    runs_once(&world().await?, async || std::thread::sleep(STEADY_LEASE * 4 / 3)).await
}
