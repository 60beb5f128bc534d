//! What another transaction has written and not committed is told to nobody, whatever isolation the
//! sessions have.

use std::cell::Cell;

use idempotency::store::SqliteStore;
#[cfg(feature = "mysql")]
use idempotency::store::{MySqlStore, StoreErrorKind};
use idempotency::{ErrorKind, Idempotency};
#[cfg(feature = "mysql")]
use idempotency_test_support::deadline::{eventually_async, within};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};

#[cfg(feature = "mysql")]
use crate::databases::MariaDb;
use crate::scene::call;
#[cfg(feature = "mysql")]
use crate::scene::{Database as _, Scene};
use crate::world::{Fault, PATIENCE, add};

/// An engine on sessions that read everything is refused while the result of another transaction
/// may still go away.
async fn is_refused(engine: &Idempotency) -> String {
    let runs = Cell::new(0);
    let told = call(engine, "a").run(async || {
        runs.set(runs.get() + 1);
        Ok::<_, Fault>("outside".to_owned())
    });
    let told = told.await;
    assert_eq!(runs.get(), 0, "somebody else has run it");
    let Err(Fault::Idempotency(error)) = told else { panic!("nobody has committed it: {told:?}") };
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    error.to_string()
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_a_pool_that_reads_what_is_not_committed_is_refused() -> anyhow::Result<()> {
    let scene = Scene::<MariaDb>::new(4, Some("READ UNCOMMITTED")).await?;
    let store = || MySqlStore::builder(scene.pool.clone()).response_timeout(PATIENCE);
    let refused = store().connect().await.unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::Config, "{refused}");
    assert!(refused.to_string().contains("READ UNCOMMITTED"), "{refused}");

    let engine = Idempotency::builder(store().build()?).claim_timeout(PATIENCE).build()?;
    let mut transaction = scene.pool.begin().await?;
    let first = call(&scene.engine, "a").run_in(&mut transaction, async |connection| {
        MariaDb::add(connection, "a", "first").await?;
        Ok::<_, Fault>("first".to_owned())
    });
    first.await?;
    let refused = is_refused(&engine).await;
    assert!(refused.contains("READ UNCOMMITTED"), "{refused}");
    transaction.rollback().await?;
    assert!(scene.effects().await?.is_empty());
    Ok(())
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_a_transaction_that_reads_what_is_not_committed_waits_for_its_end()
-> anyhow::Result<()> {
    for (commits, value) in [(false, "second"), (true, "first")] {
        let scene = Scene::<MariaDb>::new(4, Some("READ UNCOMMITTED")).await?;
        let mut one = scene.pool.begin().await?;
        let first = call(&scene.engine, "a").run_in(&mut one, async |connection| {
            MariaDb::add(connection, "a", "first").await?;
            Ok::<_, Fault>("first".to_owned())
        });
        first.await?;
        let other = async {
            let mut two = scene.pool.begin().await?;
            let second = call(&scene.engine, "a").run_in(&mut two, async |connection| {
                MariaDb::add(connection, "a", "second").await?;
                Ok::<_, Fault>("second".to_owned())
            });
            let told = second.await?;
            two.commit().await?;
            anyhow::Ok(told)
        };
        let end = async {
            let waits = "SELECT count(*) FROM information_schema.processlist WHERE info LIKE '%LOCK IN SHARE MODE'";
            let is_waiting = async || {
                sqlx::query_as(waits)
                    .fetch_one(&scene.pool)
                    .await
                    .is_ok_and(|(waiting,): (i64,)| waiting > 0)
            };
            eventually_async("the second to wait", is_waiting).await?;
            if commits {
                one.commit().await?;
            } else {
                one.rollback().await?;
            }
            anyhow::Ok(())
        };
        let (told, end) = within("both", Box::pin(async { tokio::join!(other, end) })).await?;
        end?;
        assert_eq!(told?, value);
        assert_eq!(
            scene.effects().await?.get("a").map(Vec::as_slice),
            Some(&[value.to_owned()][..])
        );
    }
    Ok(())
}

#[tokio::test]
async fn on_sqlite_a_pool_that_reads_what_is_not_committed_is_refused() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let options = SqliteConnectOptions::new()
        .filename(directory.path().join("ledger.db"))
        .create_if_missing(true);
    let options = options.journal_mode(SqliteJournalMode::Wal).shared_cache(true);
    let sees_all = options.clone().pragma("read_uncommitted", "1");
    let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
    sqlx::query("CREATE TABLE ledger (entry TEXT NOT NULL)").execute(&pool).await?;
    let store = SqliteStore::from_pool(pool.clone());
    store.migrate().await?;
    let engine = Idempotency::builder(store).claim_timeout(PATIENCE).build()?;
    let sees_all = SqlitePoolOptions::new().max_connections(4).connect_with(sees_all).await?;
    let seeing =
        Idempotency::builder(SqliteStore::from_pool(sees_all)).claim_timeout(PATIENCE).build()?;
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
    call(&engine, "a")
        .run_in(&mut transaction, async |connection| add(connection, "a").await)
        .await?;
    let refused = is_refused(&seeing).await;
    assert!(refused.contains("read_uncommitted"), "{refused}");
    transaction.rollback().await?;
    let (count,): (i64,) = sqlx::query_as("SELECT count(*) FROM ledger").fetch_one(&pool).await?;
    assert_eq!(count, 0);
    Ok(())
}
