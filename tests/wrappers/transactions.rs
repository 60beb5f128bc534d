//! Calls whose record is in a transaction of the user's, through a wrapper.

use std::time::Duration;

use idempotency::store::{MemoryStore, SqliteStore, Store};
use idempotency::tx::in_transaction;
use idempotency::{Error, ErrorKind, Idempotency, OnError};
use serde::{Deserialize, Serialize};
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
use tempfile::TempDir;

use crate::counting::Counting;
use crate::delaying::Delaying;
use crate::failing::{Failing, Failure};
use crate::sealing::Sealing;

const DAY: Duration = Duration::from_secs(86_400);

#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Client(#[from] sqlx::Error),
    #[error(transparent)]
    Idempotency(#[from] Error),
}

/// A database with a ledger and a store.
async fn database() -> anyhow::Result<(SqlitePool, SqliteStore, TempDir)> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("ledger.db");
    let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
    let options =
        options.journal_mode(SqliteJournalMode::Wal).busy_timeout(Duration::from_secs(20));
    let pool = SqlitePoolOptions::new().max_connections(2).connect_with(options).await?;
    sqlx::query("CREATE TABLE ledger (entry TEXT NOT NULL)").execute(&pool).await?;
    let store = SqliteStore::builder(&path).response_timeout(Duration::from_secs(20));
    Ok((pool, store.open().await?, directory))
}

async fn add(pool: &SqlitePool, engine: &Idempotency, entry: &str) -> Result<String, Fault> {
    in_transaction(pool, |mut transaction| async move {
        let call = engine.call("ledger.add", 1).ttl(DAY);
        call.run_in(&mut transaction, async |connection| {
            sqlx::query("INSERT INTO ledger VALUES (?)").bind(entry).execute(connection).await?;
            Ok::<_, Fault>(format!("added {entry}"))
        })
        .await
    })
    .await
}

/// Two calls of one key add one entry, and both get the answer of the first.
async fn adds_once(pool: &SqlitePool, store: impl Store) -> anyhow::Result<()> {
    let engine = Idempotency::builder(store).claim_timeout(Duration::from_secs(20)).build()?;
    anyhow::ensure!(add(pool, &engine, "tea").await? == "added tea");
    anyhow::ensure!(add(pool, &engine, "coffee").await? == "added tea");
    let (entries,): (String,) =
        sqlx::query_as("SELECT group_concat(entry) FROM ledger").fetch_one(pool).await?;
    anyhow::ensure!(entries == "tea", "{entries}");
    Ok(())
}

#[tokio::test]
async fn a_counted_store_keeps_records_in_transactions() -> anyhow::Result<()> {
    let (pool, store, _directory) = database().await?;
    adds_once(&pool, Counting::new(store)).await
}

#[tokio::test]
async fn a_store_that_is_delayed_keeps_records_in_transactions() -> anyhow::Result<()> {
    let (pool, store, _directory) = database().await?;
    adds_once(&pool, Delaying::new(store)).await
}

#[tokio::test]
async fn a_store_that_is_sealed_keeps_sealed_records_in_transactions() -> anyhow::Result<()> {
    let (pool, store, _directory) = database().await?;
    adds_once(&pool, Sealing::new(store)).await?;
    let rows: Vec<(Vec<u8>,)> =
        sqlx::query_as("SELECT body FROM idempotency_records").fetch_all(&pool).await?;
    let plain = b"added tea";
    anyhow::ensure!(rows.len() == 1, "{} records", rows.len());
    anyhow::ensure!(!rows[0].0.windows(plain.len()).any(|window| window == plain));
    Ok(())
}

/// A message whose record such a store writes in the ordinary way: it is acknowledged, every time.
#[cfg(feature = "inbox")]
async fn handles_once(pool: &SqlitePool, store: impl Store) -> anyhow::Result<()> {
    use idempotency::inbox::{Delivery, Disposition, Inbox};
    let engine = Idempotency::builder(store).claim_timeout(Duration::from_secs(20)).build()?;
    let inbox = Inbox::new(engine, "billing", DAY);
    for _ in 0..3 {
        let handled = inbox.handle_in(pool, Delivery::new("m-1"), |mut transaction| async move {
            let add = sqlx::query("INSERT INTO ledger VALUES ('tea')");
            add.execute(&mut **transaction).await.map(drop)
        });
        let handled = handled.await;
        anyhow::ensure!(handled.disposition == Disposition::Ack, "{handled:?}");
    }
    let (entries,): (i64,) = sqlx::query_as("SELECT count(*) FROM ledger").fetch_one(pool).await?;
    anyhow::ensure!(entries == 1, "{entries}");
    Ok(())
}

#[cfg(feature = "inbox")]
#[tokio::test]
async fn a_store_that_is_wrapped_keeps_the_records_of_messages_in_transactions()
-> anyhow::Result<()> {
    let (pool, store, _directory) = database().await?;
    handles_once(&pool, Counting::new(store)).await?;
    let (pool, store, _directory) = database().await?;
    handles_once(&pool, Sealing::new(store)).await
}

/// The same on a server, whose own way marks the transaction.
#[cfg(all(feature = "inbox", feature = "postgres"))]
#[tokio::test]
async fn a_store_that_is_wrapped_acknowledges_duplicates_on_postgresql() -> anyhow::Result<()> {
    use idempotency::inbox::{Delivery, Disposition, Inbox};
    use idempotency::store::PostgresStore;
    use idempotency_test_support::server::{PostgresOptions, PostgresServer};
    let server = PostgresServer::start(PostgresOptions::new()).await?;
    let url = server.database("wrapped").await?;
    let pool = sqlx::PgPool::connect(&url).await?;
    let store = PostgresStore::from_pool(pool.clone());
    store.migrate().await?;
    sqlx::query("CREATE TABLE ledger (entry text)").execute(&pool).await?;
    let engine = Idempotency::new(Sealing::new(store));
    let inbox = Inbox::new(engine, "billing", DAY);
    for _ in 0..3 {
        let handled = inbox.handle_in(&pool, Delivery::new("m-1"), |mut transaction| async move {
            let add = sqlx::query("INSERT INTO ledger VALUES ('tea')");
            add.execute(&mut **transaction).await.map(drop)
        });
        let handled = handled.await;
        anyhow::ensure!(handled.disposition == Disposition::Ack, "{handled:?}");
    }
    let (entries,): (i64,) = sqlx::query_as("SELECT count(*) FROM ledger").fetch_one(&pool).await?;
    anyhow::ensure!(entries == 1, "{entries}");
    Ok(())
}

#[tokio::test]
async fn a_store_without_transactions_is_refused_before_anything_is_written() -> anyhow::Result<()>
{
    let (pool, _, _directory) = database().await?;
    let engine = Idempotency::new(Counting::new(MemoryStore::new()));
    let Err(Fault::Idempotency(error)) = add(&pool, &engine, "tea").await else {
        anyhow::bail!("it was not refused")
    };
    anyhow::ensure!(error.kind() == ErrorKind::Config);
    let text = error.to_string();
    anyhow::ensure!(text.contains("`memory`, which keeps no records in transactions"), "{text}");
    let (entries,): (i64,) = sqlx::query_as("SELECT count(*) FROM ledger").fetch_one(&pool).await?;
    anyhow::ensure!(entries == 0);
    Ok(())
}

/// What it wrote after that is committed, so nobody may be told that nothing is kept.
#[tokio::test]
async fn a_transaction_that_is_over_is_known_through_the_error_of_a_wrapper() -> anyhow::Result<()>
{
    let (pool, store, _directory) = database().await?;
    let engine = Idempotency::new(Failing::new(store, Failure::Translates));
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
    let call = engine.call("ledger.add", 1).ttl(DAY);
    let ended = call.run_in(&mut transaction, async |connection| {
        sqlx::raw_sql("ROLLBACK").execute(&mut *connection).await?;
        sqlx::query("INSERT INTO ledger VALUES ('after')").execute(connection).await?;
        Ok::<_, Fault>(String::from("added"))
    });
    let Err(Fault::Idempotency(error)) = ended.await else { anyhow::bail!("it is over") };
    anyhow::ensure!(error.kind() == ErrorKind::NotStored && !error.is_retryable(), "{error}");
    Ok(())
}

#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
#[error("{0}")]
struct Stored(String);

impl From<Error> for Stored {
    fn from(error: Error) -> Self {
        Self(error.to_string())
    }
}

impl From<sqlx::Error> for Stored {
    fn from(error: sqlx::Error) -> Self {
        Self(error.to_string())
    }
}

#[tokio::test]
async fn what_a_body_wrote_is_undone_also_where_a_wrapper_cannot_store_its_error()
-> anyhow::Result<()> {
    let (pool, store, _directory) = database().await?;
    let engine = Idempotency::new(Failing::new(store, Failure::StoresNoErrors));
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
    let call = engine.call("ledger.add", 1).ttl(DAY).on_error(OnError::Store);
    let ended = call.run_in(&mut transaction, async |connection| {
        sqlx::query("INSERT INTO ledger VALUES ('half')").execute(connection).await?;
        Err::<String, _>(Stored("no".to_owned()))
    });
    anyhow::ensure!(ended.await.is_err_and(|error| error.0 == "no"));
    transaction.commit().await?;
    let (entries,): (i64,) = sqlx::query_as("SELECT count(*) FROM ledger").fetch_one(&pool).await?;
    let record = engine.record("ledger.add", 1).inspect().await?;
    anyhow::ensure!(entries == 0 && record.is_none(), "{entries} entries, {record:?}");
    Ok(())
}
