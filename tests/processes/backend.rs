//! The stores on which the tests run, and what they need.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use idempotency::store::{DynStore, MySqlStore, PostgresStore, RedisStore, SqliteStore};
use idempotency_test_support::server::{
    MariaDbOptions, MariaDbServer, PostgresOptions, PostgresServer, RedisOptions, RedisServer,
};
use tempfile::TempDir;

/// A kind of store.
#[derive(Clone, Copy, Debug)]
pub enum Backend {
    Redis,
    Postgres,
    MariaDb,
    Sqlite,
}

/// Where the records of one test are. It ends with this value.
pub enum Place {
    Redis(RedisServer),
    Postgres(PostgresServer),
    MariaDb(MariaDbServer),
    Sqlite(TempDir),
}

impl Backend {
    pub async fn start(self) -> anyhow::Result<Place> {
        Ok(match self {
            Self::Redis => Place::Redis(RedisServer::start(RedisOptions::new().private()).await?),
            Self::Postgres => Place::Postgres(PostgresServer::start(PostgresOptions::new().private()).await?),
            Self::MariaDb => Place::MariaDb(MariaDbServer::start(MariaDbOptions::new().private()).await?),
            Self::Sqlite => Place::Sqlite(memory_directory()?),
        })
    }

    /// What half of the claims take at most above the lease: less than any slow look of a waiter that nothing wakes.
    pub fn usual_margin(self) -> Duration {
        match self {
            Self::Redis => Duration::from_millis(300),
            Self::Postgres | Self::MariaDb | Self::Sqlite => Duration::from_millis(600),
        }
    }
}

/// In memory where the system has files there: what a killed process has written is kept as well as on a disk, and no
/// test waits for a disk that is busy with other things.
fn memory_directory() -> anyhow::Result<TempDir> {
    let memory = Path::new("/dev/shm");
    Ok(if memory.is_dir() { TempDir::new_in(memory)? } else { TempDir::new()? })
}

impl Place {
    pub fn url(&self) -> String {
        match self {
            Self::Redis(server) => server.url(),
            Self::Postgres(server) => server.url(),
            Self::MariaDb(server) => server.url(),
            Self::Sqlite(directory) => format!("sqlite:{}", directory.path().join("records.db").display()),
        }
    }
}

/// The store at `url`, with its table. The engine chooses by the URL too; here its store has to be wrapped.
pub async fn connect(url: &str) -> anyhow::Result<Arc<dyn DynStore>> {
    Ok(match url.split(':').next() {
        Some("redis") => Arc::new(RedisStore::connect(url).await?),
        Some("postgres") => {
            let store = PostgresStore::connect(url).await?;
            store.migrate().await?;
            Arc::new(store)
        }
        Some("mysql") => {
            let store = MySqlStore::connect(url).await?;
            store.migrate().await?;
            Arc::new(store)
        }
        Some("sqlite") => Arc::new(SqliteStore::connect(url).await?),
        _ => bail!("no store has the URL {url}"),
    })
}
