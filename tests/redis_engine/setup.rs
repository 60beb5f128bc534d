//! A server, a proxy in front of it, an engine behind the proxy, and a ledger.

use std::sync::Arc;
use std::time::{Duration, Instant};

use idempotency::store::RedisStore;
use idempotency::{Call, Error, Idempotency, OnCrash};
use idempotency_test_support::effects::EffectLog;
use idempotency_test_support::proxy::Proxy;
use idempotency_test_support::server::{RedisOptions, RedisServer};

pub const OPERATION: &str = "payments.charge";
pub const LEASE: Duration = Duration::from_millis(600);
pub const DAY: Duration = Duration::from_secs(86_400);

pub struct Setup {
    pub server: RedisServer,
    pub proxy: Proxy,
    pub engine: Idempotency,
    pub ledger: Arc<EffectLog>,
    _directory: tempfile::TempDir,
}

impl Setup {
    pub async fn new() -> anyhow::Result<Self> {
        Self::on(RedisOptions::new().private()).await
    }

    pub async fn on(options: RedisOptions) -> anyhow::Result<Self> {
        let server = RedisServer::start(options).await?;
        let proxy = Proxy::start(server.address()?).await?;
        let engine = engine(&proxy.url(&server.url())).await?;
        let directory = tempfile::tempdir()?;
        let ledger = Arc::new(EffectLog::open(directory.path().join("effects"))?);
        Ok(Self { server, proxy, engine, ledger, _directory: directory })
    }

    /// An engine of another process on the same server, without the proxy.
    pub async fn elsewhere(&self) -> anyhow::Result<Idempotency> {
        engine(&self.server.url()).await
    }

    /// Charges, and returns what the ledger then shows.
    pub async fn charge(&self, engine: &Idempotency, key: u64, on_crash: OnCrash) -> Result<String, Error> {
        call(engine, key).on_crash(on_crash).run(|| async { self.effect(key) }).await
    }

    #[expect(clippy::unnecessary_wraps, reason = "it is what a body returns")]
    pub fn effect(&self, key: u64) -> Result<String, Error> {
        self.ledger.append(&format!("charge-{key}")).expect("the ledger takes a line");
        Ok(format!("receipt {key}.{}", self.effects(key)))
    }

    pub fn effects(&self, key: u64) -> usize {
        self.ledger.count(&format!("charge-{key}")).expect("the ledger can be read")
    }
}

pub fn call(engine: &Idempotency, key: u64) -> Call {
    engine.call(OPERATION, key).ttl(DAY)
}

pub async fn engine(url: &str) -> anyhow::Result<Idempotency> {
    let store = RedisStore::builder(url).response_timeout(Duration::from_millis(300)).connect().await?;
    Ok(Idempotency::builder(store).lease(LEASE).claim_timeout(Duration::from_secs(1)).build())
}

/// Repeats `attempt` until it succeeds, for at most a deadline.
pub async fn until_ok<T>(mut attempt: impl AsyncFnMut() -> Result<T, Error>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(error) => assert!(Instant::now() < deadline, "it never succeeded: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
