//! A server, a database of the test's own on it, and the store on that.

use std::sync::OnceLock;
use std::time::Duration;

use idempotency::key::KeyHash;
use idempotency::store::{
    Claim, Commit, PostgresStore, PostgresStoreBuilder, Store as _, Token, WriteOutcome,
};
use idempotency::{Builder, Idempotency};
use idempotency_test_support::server::{PostgresOptions, PostgresServer, Rows};

pub const DAY: Duration = Duration::from_secs(86_400);
pub const HOUR: Duration = Duration::from_secs(3_600);
pub const OPERATION: &str = "payments.charge";
/// How long a store or a claim waits for an answer where that is not what a test is about: longer
/// than a busy machine keeps a process waiting.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// One server for the tests that do nothing to it. It ends with this process.
pub async fn shared_server() -> anyhow::Result<&'static PostgresServer> {
    static SERVER: OnceLock<PostgresServer> = OnceLock::new();
    let start = || {
        SERVER.get_or_init(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime
                .block_on(PostgresServer::start(PostgresOptions::new()))
                .expect("the server starts")
        })
    };
    Ok(tokio::task::spawn_blocking(start).await?)
}

/// A server whose statistics and log of writes tell of nothing but the test, and the same each
/// time: no page is logged as a whole because it is the first change after a checkpoint.
pub async fn quiet_server() -> anyhow::Result<PostgresServer> {
    let options = PostgresOptions::new()
        .private()
        .setting("autovacuum", "off")
        .setting("full_page_writes", "off")
        .setting("wal_level", "minimal")
        .setting("max_wal_senders", "0")
        .setting("checkpoint_timeout", "1d")
        .setting("shared_preload_libraries", "pg_stat_statements");
    let server = PostgresServer::start(options).await?;
    server.sql("CREATE EXTENSION pg_stat_statements").await?;
    Ok(server)
}

/// A database of its own with the table in it.
pub struct World {
    pub server: &'static PostgresServer,
    pub url: String,
    pub store: PostgresStore,
}

impl World {
    pub async fn new() -> anyhow::Result<Self> {
        let server = shared_server().await?;
        let url = server.database("store").await?;
        let store = migrated(&url).await?;
        Ok(Self { server, url, store })
    }

    pub async fn sql(&self, statements: &str) -> anyhow::Result<Rows> {
        self.server.sql_at(&self.url, statements).await
    }

    /// How many rows the table has.
    pub async fn rows(&self) -> anyhow::Result<i64> {
        number(&self.sql("SELECT count(*) FROM idempotency_records").await?)
    }

    pub fn engine(&self, configure: impl FnOnce(Builder) -> Builder) -> Idempotency {
        configure(Idempotency::builder(self.store.clone()).claim_timeout(PATIENCE)).build().unwrap()
    }
}

pub fn patient(url: &str) -> PostgresStoreBuilder {
    PostgresStore::builder(url).response_timeout(PATIENCE)
}

/// A store on the database at `url`, which gets its table.
pub async fn migrated(url: &str) -> anyhow::Result<PostgresStore> {
    let store = patient(url).connect().await?;
    store.migrate().await?;
    Ok(store)
}

/// The one figure of an answer.
pub fn number(rows: &Rows) -> anyhow::Result<i64> {
    let [row] = &rows[..] else { anyhow::bail!("one row: {rows:?}") };
    let [Some(value)] = &row[..] else { anyhow::bail!("one value: {row:?}") };
    Ok(value.parse()?)
}

pub fn key(number: u32) -> KeyHash {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    KeyHash::from_bytes(bytes)
}

pub fn claim(number: u32) -> Claim {
    Claim::new(key(number), token(number), OPERATION.into())
}

pub fn token(number: u32) -> Token {
    Token::from_bits(u128::from(number) + 1)
}

/// Claims and commits.
pub async fn run(
    store: &PostgresStore,
    number: u32,
    body: &str,
    ttl: Duration,
) -> anyhow::Result<()> {
    let mut claim = claim(number);
    claim.ttl = ttl;
    store.claim(claim).await?;
    let written = store
        .complete(Commit::new(key(number), token(number), body.to_owned().into(), ttl))
        .await?;
    assert_eq!(written, WriteOutcome::Applied);
    Ok(())
}
