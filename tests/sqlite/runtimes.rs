//! Several runtimes on one store: what one of them keeps while it stands still, or while a body
//! blocks it, nobody else waits for.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use idempotency::store::{SqliteStore, Store as _};
use idempotency::{Error, Idempotency};
use idempotency_test_support::deadline::{DEADLINE, eventually_async};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use crate::world::{DAY, OPERATION};

const LEASE: Duration = Duration::from_secs(3);

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn workers() -> Runtime {
    Builder::new_multi_thread().worker_threads(4).enable_all().build().expect("a runtime")
}

async fn opened(directory: &TempDir) -> anyhow::Result<(SqliteStore, Idempotency)> {
    let store = SqliteStore::open(directory.path().join("records.db")).await?;
    Ok((store.clone(), Idempotency::builder(store).lease(LEASE).build()?))
}

async fn call(engine: &Idempotency, key: u64) -> Result<u64, Error> {
    engine.call(OPERATION, key).ttl(DAY).run(|| async move { Ok::<_, Error>(key) }).await
}

/// A call whose body blocks its thread until it is told to go on, and says when it begins.
fn blocking(
    engine: &Idempotency,
    key: u64,
) -> (impl Future<Output = Result<u64, Error>> + 'static, Receiver<()>, Sender<()>) {
    let ((began, begins), (go_on, goes_on)) = (channel(), channel());
    let call = engine.call(OPERATION, key).ttl(DAY).run(move || async move {
        began.send(()).expect("the test waits");
        let _ = goes_on.recv_timeout(DEADLINE);
        Ok::<_, Error>(key)
    });
    (call, begins, go_on)
}

async fn renewed(store: &SqliteStore, engine: &Idempotency, key: u64) -> anyhow::Result<()> {
    let hash = engine.record(OPERATION, key).hash()?;
    let first = store.read(hash).await?.map(|record| record.lease_until);
    anyhow::ensure!(first.is_some(), "there is a record");
    let renewed = async || {
        store.read(hash).await.is_ok_and(|record| record.map(|record| record.lease_until) > first)
    };
    eventually_async("the lease to be renewed", renewed).await
}

#[test]
fn a_body_that_blocks_its_executor_keeps_no_connection_and_its_lease() -> anyhow::Result<()> {
    let (one, other) = (runtime(), runtime());
    let directory = tempfile::tempdir()?;
    let (store, engine) = one.block_on(opened(&directory))?;
    one.block_on(call(&engine, 1))?;
    let (blocking, begins, go_on) = blocking(&engine, 2);
    let owner = std::thread::spawn(move || one.block_on(blocking));
    begins.recv_timeout(DEADLINE)?;
    other.block_on(async {
        renewed(&store, &engine, 2).await?;
        anyhow::ensure!(call(&engine, 3).await? == 3);
        anyhow::Ok(())
    })?;
    go_on.send(())?;
    assert_eq!(owner.join().expect("no panic")?, 2);
    Ok(())
}

#[test]
fn others_on_a_runtime_write_while_a_body_blocks_its_worker() -> anyhow::Result<()> {
    let runtime = workers();
    let directory = tempfile::tempdir()?;
    runtime.block_on(async {
        let (store, engine) = opened(&directory).await?;
        let (blocking, begins, go_on) = blocking(&engine, 2);
        let owner = tokio::spawn(blocking);
        tokio::task::spawn_blocking(move || begins.recv_timeout(DEADLINE)).await??;
        anyhow::ensure!(call(&engine, 3).await? == 3);
        renewed(&store, &engine, 2).await?;
        go_on.send(())?;
        anyhow::ensure!(owner.await?? == 2);
        Ok(())
    })
}

#[test]
fn calls_that_waited_for_the_connection_of_a_body_that_blocks_its_worker_get_it()
-> anyhow::Result<()> {
    let runtime = workers();
    let directory = tempfile::tempdir()?;
    runtime.block_on(async {
        let (_, engine) = opened(&directory).await?;
        for round in 0..10 {
            // Both are on their way at once, so one of them waits for the other's connection.
            let (one, one_begins, one_goes_on) = blocking(&engine, 2 * round);
            let (other, other_begins, other_goes_on) = blocking(&engine, 2 * round + 1);
            let (one, other) = (tokio::spawn(one), tokio::spawn(other));
            for begins in [one_begins, other_begins] {
                tokio::task::spawn_blocking(move || begins.recv_timeout(DEADLINE)).await??;
            }
            anyhow::ensure!(call(&engine, 1_000 + round).await? == 1_000 + round);
            one_goes_on.send(())?;
            other_goes_on.send(())?;
            anyhow::ensure!(one.await?? == 2 * round && other.await?? == 2 * round + 1);
        }
        Ok(())
    })
}

#[test]
fn a_runtime_that_stands_still_between_its_calls_keeps_no_other_waiting() -> anyhow::Result<()> {
    let (one, two) = (runtime(), runtime());
    let directory = tempfile::tempdir()?;
    let (_, engine) = one.block_on(opened(&directory))?;
    assert_eq!(one.block_on(call(&engine, 1))?, 1);
    assert_eq!(two.block_on(call(&engine, 2))?, 2);
    assert_eq!(one.block_on(call(&engine, 3))?, 3);
    Ok(())
}

/// Connections share a database in memory by its name; one without a name is seen by the pool's own
/// alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_of_a_pool_in_memory_are_renewed() -> anyhow::Result<()> {
    let named: SqliteConnectOptions = "sqlite::memory:".parse()?;
    for options in [named, SqliteConnectOptions::new()] {
        let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
        let store = SqliteStore::from_pool(pool);
        store.migrate().await?;
        let engine = Idempotency::builder(store.clone()).lease(LEASE).build()?;
        let (blocking, begins, go_on) = blocking(&engine, 1);
        let owner = tokio::spawn(blocking);
        tokio::task::spawn_blocking(move || begins.recv_timeout(DEADLINE)).await??;
        renewed(&store, &engine, 1).await?;
        go_on.send(())?;
        assert_eq!(owner.await??, 1);
    }
    Ok(())
}
