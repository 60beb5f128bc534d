//! A file, the store on it, and a connection of the test's own to look at it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use idempotency::clock::Timestamp;
use idempotency::store::{SqliteStore, SqliteStoreBuilder};
use idempotency::testing::ManualClock;
use idempotency::{Builder, Idempotency};
use sqlx::SqlitePool;
use sqlx::sqlite::SqliteConnectOptions;
use tempfile::TempDir;

pub const DAY: Duration = Duration::from_secs(86_400);
pub const HOUR: Duration = Duration::from_secs(3_600);
pub const OPERATION: &str = "payments.charge";

/// A store that waits for an answer longer than a busy machine keeps a process waiting.
pub fn patient(path: impl AsRef<Path>) -> SqliteStoreBuilder {
    SqliteStore::builder(path).response_timeout(Duration::from_secs(20))
}

pub struct World {
    pub clock: ManualClock,
    pub store: SqliteStore,
    pub pool: SqlitePool,
    pub path: PathBuf,
    // Removed last.
    _directory: TempDir,
}

impl World {
    pub async fn new() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("records.db");
        let clock = ManualClock::new();
        clock.set_wall(Timestamp::from_millis(1_700_000_000_000));
        let store = patient(&path).clock(clock.clone()).open().await?;
        let pool = SqlitePool::connect_with(SqliteConnectOptions::new().filename(&path)).await?;
        Ok(Self { clock, store, pool, path, _directory: directory })
    }

    pub fn engine(&self, configure: impl FnOnce(Builder) -> Builder) -> Idempotency {
        configure(Idempotency::builder(self.store.clone()).clock(self.clock.clone()))
            .build()
            .unwrap()
    }

    /// How many rows the table has.
    pub async fn rows(&self) -> anyhow::Result<i64> {
        let (rows,): (i64,) = sqlx::query_as("SELECT count(*) FROM idempotency_records")
            .fetch_one(&self.pool)
            .await?;
        Ok(rows)
    }
}
