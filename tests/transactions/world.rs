//! A database with a ledger: what is in its table has happened, and nothing else.

use std::path::{Path, PathBuf};
use std::time::Duration;

use idempotency::record::State;
use idempotency::store::SqliteStore;
use idempotency::{Call, Error, Idempotency};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
use sqlx::{Sqlite, SqliteConnection, SqlitePool, Transaction};
use tempfile::TempDir;

pub const DAY: Duration = Duration::from_secs(86_400);
pub const OPERATION: &str = "ledger.add";
/// How long a store waits for an answer: longer than a busy machine keeps a process waiting.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct World {
    pub engine: Idempotency,
    pub pool: SqlitePool,
    path: PathBuf,
    // Removed last.
    _directory: TempDir,
}

impl World {
    pub async fn new() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("ledger.db");
        let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let options =
            options.journal_mode(SqliteJournalMode::Wal).busy_timeout(Duration::from_millis(200));
        let pool = SqlitePoolOptions::new().max_connections(4).connect_with(options).await?;
        sqlx::query("CREATE TABLE ledger (entry TEXT NOT NULL)").execute(&pool).await?;
        let engine = engine(&path).await?;
        Ok(Self { engine, pool, path, _directory: directory })
    }

    /// An engine on the same database, as another version of the program has it.
    pub async fn another_engine(&self) -> anyhow::Result<Idempotency> {
        engine(&self.path).await
    }

    pub fn call(&self, key: &str) -> Call {
        self.engine.call(OPERATION, key).ttl(DAY)
    }

    pub async fn begin(&self) -> anyhow::Result<Transaction<'static, Sqlite>> {
        Ok(self.pool.begin_with("BEGIN IMMEDIATE").await?)
    }

    /// How often `entry` was added, as another connection sees it.
    pub async fn entries(&self, entry: &str) -> anyhow::Result<i64> {
        let count = sqlx::query_as("SELECT count(*) FROM ledger WHERE entry = ?").bind(entry);
        let (count,): (i64,) = count.fetch_one(&self.pool).await?;
        Ok(count)
    }

    pub async fn state(&self, key: &str) -> anyhow::Result<Option<State>> {
        Ok(self.engine.record(OPERATION, key).inspect().await?.map(|view| view.state))
    }
}

async fn engine(path: &Path) -> anyhow::Result<Idempotency> {
    let store = SqliteStore::builder(path).response_timeout(PATIENCE).open().await?;
    Ok(Idempotency::builder(store).claim_timeout(PATIENCE).build()?)
}

/// The effect.
pub async fn add(connection: &mut SqliteConnection, entry: &str) -> Result<String, Fault> {
    sqlx::query("INSERT INTO ledger VALUES (?)").bind(entry).execute(connection).await?;
    Ok(format!("added {entry}"))
}

#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("no")]
    No,
    #[error(transparent)]
    Client(#[from] sqlx::Error),
    #[error(transparent)]
    Idempotency(#[from] Error),
}
