//! The stores on which the tests run, and what they need.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use anyhow::bail;
use idempotency::store::{DynStore, MySqlStore, PostgresStore, RedisStore, SqliteStore};
use idempotency_test_support::deadline::DEADLINE;
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

/// Where the records of one test are. What is private ends with this value.
pub enum Place {
    Redis(RedisServer),
    Postgres(PostgresServer),
    MariaDb(MariaDbServer),
    Sqlite(TempDir),
    /// On the server of all tests of this process.
    Shared(String),
}

impl Backend {
    /// A server of its own where there are servers.
    pub async fn start(self) -> anyhow::Result<Place> {
        Ok(match self {
            Self::Redis => Place::Redis(RedisServer::start(RedisOptions::new().private()).await?),
            Self::Postgres => {
                Place::Postgres(PostgresServer::start(PostgresOptions::new().private()).await?)
            }
            Self::MariaDb => {
                Place::MariaDb(MariaDbServer::start(MariaDbOptions::new().private()).await?)
            }
            Self::Sqlite => Place::Sqlite(memory_directory()?),
        })
    }

    /// A database of its own, where a server takes long to start.
    pub async fn share(self) -> anyhow::Result<Place> {
        static POSTGRES: OnceLock<PostgresServer> = OnceLock::new();
        static MARIADB: OnceLock<MariaDbServer> = OnceLock::new();
        Ok(Place::Shared(match self {
            Self::Redis | Self::Sqlite => return self.start().await,
            Self::Postgres => {
                let start = || {
                    PostgresServer::start(
                        PostgresOptions::new().setting("max_connections", CONNECTIONS),
                    )
                };
                shared(&POSTGRES, start).await?.database("processes").await?
            }
            Self::MariaDb => {
                let start = || {
                    MariaDbServer::start(
                        MariaDbOptions::new().setting("max_connections", CONNECTIONS),
                    )
                };
                shared(&MARIADB, start).await?.database("processes").await?
            }
        }))
    }
}

/// Enough for all tests at once with their workers.
const CONNECTIONS: &str = "600";

/// The server of all tests. It ends with this process, and is waited for outside of the runtime of
/// the test that happens to start it.
async fn shared<S, F>(server: &'static OnceLock<S>, start: fn() -> F) -> anyhow::Result<&'static S>
where
    S: Send + Sync,
    F: Future<Output = anyhow::Result<S>> + 'static,
{
    let start = move || {
        server.get_or_init(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(start()).expect("the server starts")
        })
    };
    Ok(tokio::task::spawn_blocking(start).await?)
}

/// In memory where the system has files there: what a killed process has written is kept as well as
/// on a disk, and no test waits for a disk that is busy with other things.
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
            Self::Shared(url) => url.clone(),
            Self::Sqlite(directory) => {
                format!("sqlite:{}", directory.path().join("records.db").display())
            }
        }
    }
}

/// The store at `url`, with its table, patient on a busy machine. The engine chooses by the URL
/// too; here its store has to be wrapped.
pub async fn connect(url: &str) -> anyhow::Result<Arc<dyn DynStore>> {
    Ok(match url.split(':').next() {
        Some("redis") => {
            let builder =
                RedisStore::builder(url).connect_timeout(DEADLINE).response_timeout(DEADLINE);
            Arc::new(builder.connect().await?)
        }
        Some("postgres") => {
            let store = PostgresStore::builder(url).response_timeout(DEADLINE).connect().await?;
            store.migrate().await?;
            Arc::new(store)
        }
        Some("mysql") => {
            let store = MySqlStore::builder(url).response_timeout(DEADLINE).connect().await?;
            store.migrate().await?;
            Arc::new(store)
        }
        Some("sqlite") => {
            let path = url.trim_start_matches("sqlite:");
            Arc::new(SqliteStore::builder(path).response_timeout(DEADLINE).open().await?)
        }
        _ => bail!("no store has the URL {url}"),
    })
}
