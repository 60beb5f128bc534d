//! Several runtimes on one store: what one of them keeps while it stands still, nobody else waits
//! for.

use std::time::Duration;

use idempotency::store::{PostgresStore, Store as _};
use idempotency::{Error, Idempotency};
use idempotency_test_support::deadline::{eventually_async, within};
use tokio::runtime::{Builder, Runtime};

use crate::world::{DAY, OPERATION, World, claim, key, number, patient, run};

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

async fn call(engine: &Idempotency, key: u64) -> Result<u64, Error> {
    engine.call(OPERATION, key).ttl(DAY).run(|| async move { Ok::<_, Error>(key) }).await
}

#[test]
fn runtimes_that_stand_still_between_their_calls_take_no_connection_from_others()
-> anyhow::Result<()> {
    const CONNECTIONS: u32 = 2;
    let home = runtime();
    let world = home.block_on(World::new())?;
    let engine = home.block_on(async {
        let store =
            PostgresStore::builder(&world.url).max_connections(CONNECTIONS).connect().await?;
        anyhow::Ok(Idempotency::new(store))
    })?;
    let mut runtimes = Vec::new();
    for key in 0..2 * u64::from(CONNECTIONS) {
        let runtime = runtime();
        assert_eq!(runtime.block_on(call(&engine, key))?, key);
        runtimes.push(runtime);
    }
    assert_eq!(home.block_on(call(&engine, 99))?, 99);
    // The first one goes on where it was.
    assert_eq!(runtimes[0].block_on(call(&engine, 100))?, 100);
    Ok(())
}

#[test]
fn calls_that_were_dropped_on_a_runtime_that_stands_still_take_no_connection_from_others()
-> anyhow::Result<()> {
    let (home, callers) = (runtime(), runtime());
    let world = home.block_on(World::new())?;
    let engine = home.block_on(async {
        let store = PostgresStore::builder(&world.url).max_connections(2).connect().await?;
        anyhow::Ok(Idempotency::new(store))
    })?;
    let mut lock = home.block_on(async {
        let pool = sqlx::PgPool::connect(&world.url).await?;
        let mut lock = pool.begin().await?;
        sqlx::query("LOCK TABLE idempotency_records IN EXCLUSIVE MODE").execute(&mut *lock).await?;
        anyhow::Ok(lock)
    })?;
    // Their claims wait for the lock when they are given up, and their runtime is polled no more.
    callers.block_on(async {
        let both = async { tokio::join!(call(&engine, 1), call(&engine, 2)) };
        let waiting =
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
        tokio::select! {
            biased;
            _ = both => anyhow::bail!("the table is locked"),
            waited = eventually_async("both claims to wait", async || {
                world.sql(waiting).await.is_ok_and(|rows| number(&rows).is_ok_and(|count| count == 2))
            }) => waited,
        }
    })?;
    home.block_on(async {
        sqlx::query("SELECT 1").execute(&mut *lock).await?;
        lock.rollback().await?;
        assert_eq!(call(&engine, 3).await?, 3);
        // Nobody owns what they may have written.
        let left = "SELECT count(*) FROM idempotency_records WHERE state = 1";
        let none = async || {
            world.sql(left).await.is_ok_and(|rows| number(&rows).is_ok_and(|count| count == 0))
        };
        eventually_async("their claims to be released", none).await?;
        assert_eq!([call(&engine, 1).await?, call(&engine, 2).await?], [1, 2]);
        anyhow::Ok(())
    })?;
    drop(callers);
    Ok(())
}

#[test]
fn who_waits_for_a_record_is_woken_though_another_runtime_that_waits_stands_still()
-> anyhow::Result<()> {
    let (home, still) = (runtime(), runtime());
    let world = home.block_on(World::new())?;
    home.block_on(world.store.claim(claim(1)))?;
    let _first = still.block_on(world.store.watch(key(1)))?;
    home.block_on(async {
        let watch = world.store.watch(key(1)).await?;
        // Another process.
        let other = patient(&world.url).connect().await?;
        run(&other, 1, "done", Duration::from_secs(60)).await?;
        within("the waiter to be woken", watch).await
    })
}
