//! The stores, each with the server that it is on.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use idempotency::store::{MemoryStore, Store};

/// How long a store waits for an answer: a release whose answer is given up would find nothing when
/// it is sent again.
#[cfg(any(feature = "mysql", feature = "postgres", feature = "redis", feature = "sqlite"))]
const PATIENCE: Duration = Duration::from_secs(20);

/// A store, and what is removed after it.
pub struct Subject<S> {
    pub store: Arc<S>,
    /// How long a claim lives: some times what the store takes for an answer while 64 tasks ask.
    pub lease: Duration,
    _server: Box<dyn Any + Send>,
}

impl<S: Store> Subject<S> {
    fn new(store: S, lease: Duration, server: impl Any + Send) -> Self {
        Self { store: Arc::new(store), lease, _server: Box::new(server) }
    }
}

pub fn memory() -> Subject<MemoryStore> {
    Subject::new(MemoryStore::new(), Duration::from_millis(100), ())
}

#[cfg(feature = "sqlite")]
pub async fn sqlite() -> anyhow::Result<Subject<idempotency::store::SqliteStore>> {
    let directory = tempfile::tempdir()?;
    let store = idempotency::store::SqliteStore::builder(directory.path().join("records.db"))
        .response_timeout(PATIENCE)
        .open()
        .await?;
    Ok(Subject::new(store, Duration::from_millis(400), directory))
}

#[cfg(feature = "mysql")]
pub async fn mysql() -> anyhow::Result<Subject<idempotency::store::MySqlStore>> {
    use idempotency_test_support::server::{MariaDbOptions, MariaDbServer};

    let server = MariaDbServer::start(MariaDbOptions::new().private()).await?;
    let store = idempotency::store::MySqlStore::builder(server.url())
        .response_timeout(PATIENCE)
        .connect()
        .await?;
    store.migrate().await?;
    Ok(Subject::new(store, Duration::from_millis(300), server))
}

#[cfg(feature = "postgres")]
pub async fn postgres() -> anyhow::Result<Subject<idempotency::store::PostgresStore>> {
    use idempotency_test_support::server::{PostgresOptions, PostgresServer};

    let server = PostgresServer::start(PostgresOptions::new().private()).await?;
    let store = idempotency::store::PostgresStore::builder(server.url())
        .response_timeout(PATIENCE)
        .connect()
        .await?;
    store.migrate().await?;
    Ok(Subject::new(store, Duration::from_millis(300), server))
}

#[cfg(feature = "redis")]
pub async fn redis() -> anyhow::Result<Subject<idempotency::store::RedisStore>> {
    use idempotency_test_support::server::{RedisOptions, RedisServer};

    let server = RedisServer::start(RedisOptions::new().private()).await?;
    let store = idempotency::store::RedisStore::builder(server.url())
        .response_timeout(PATIENCE)
        .connect()
        .await?;
    Ok(Subject::new(store, Duration::from_millis(150), server))
}
