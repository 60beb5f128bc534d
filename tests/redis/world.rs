//! A server, a proxy in front of it, an engine that knows only the proxy, and the effects of its
//! bodies.

use std::sync::Arc;
use std::time::Duration;

use idempotency::store::{Record, RedisStore, RedisStoreBuilder, Store as _};
use idempotency::{Builder, Call, Error, Idempotency};
use idempotency_test_support::effects::EffectLog;
use idempotency_test_support::proxy::{Proxy, Request};
use idempotency_test_support::server::{RedisOptions, RedisServer};
use tempfile::TempDir;

pub const OPERATION: &str = "payments.charge";
pub const DAY: Duration = Duration::from_secs(86_400);
/// Longer than any test takes: no renewal comes in between.
pub const LONG_LEASE: Duration = Duration::from_secs(120);
/// For tests in which a lease ends. No claim is answered so late that its body does not start.
pub const SHORT_LEASE: Duration = Duration::from_secs(4);
/// For tests in which a lease is renewed: two thirds of it are left for a renewal that comes late
/// on a busy machine.
pub const STEADY_LEASE: Duration = Duration::from_secs(9);
/// How long a claim, or a store that is not impatient, waits for an answer: longer than a busy
/// machine keeps a process waiting.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct World {
    pub server: RedisServer,
    pub proxy: Proxy,
    /// Past the proxy.
    pub direct: RedisStore,
    pub engine: Idempotency,
    /// On the same store, for calls that are given up soon.
    pub hasty: Idempotency,
    pub effects: Arc<EffectLog>,
    _directory: TempDir,
}

impl World {
    pub async fn new() -> anyhow::Result<Self> {
        Self::with(RedisOptions::new().private(), |builder| builder).await
    }

    /// One whose engine waits long for each answer, so that it sends nothing twice.
    pub async fn patient() -> anyhow::Result<Self> {
        Self::on(RedisOptions::new().private(), patient, |builder| builder).await
    }

    pub async fn with(
        options: RedisOptions,
        configure: impl FnOnce(Builder) -> Builder,
    ) -> anyhow::Result<Self> {
        Self::on(options, impatient, configure).await
    }

    pub async fn on(
        options: RedisOptions,
        store: impl FnOnce(&str) -> RedisStoreBuilder,
        configure: impl FnOnce(Builder) -> Builder,
    ) -> anyhow::Result<Self> {
        let server = RedisServer::start(options).await?;
        let proxy = Proxy::start(server.address()).await?;
        let direct = patient(&server.url()).connect().await?;
        // Connecting asks for more than one answer, and asks once.
        let store = store(&proxy.url(&server.url())).build()?;
        let hasty = engine_on(store.clone()).claim_timeout(Duration::from_secs(2)).build()?;
        let engine = configure(engine_on(store)).build()?;
        let directory = tempfile::tempdir()?;
        let effects = Arc::new(EffectLog::open(directory.path().join("effects"))?);
        Ok(Self { server, proxy, direct, engine, hasty, effects, _directory: directory })
    }

    /// Another process, past the proxy.
    pub fn elsewhere(&self) -> Idempotency {
        engine_on(self.direct.clone()).build().unwrap()
    }

    pub fn call(&self, key: u64) -> Call {
        self.engine.call(OPERATION, key).ttl(DAY)
    }

    /// Charges once, and returns what the log then shows.
    pub async fn charge(&self, key: u64) -> Result<String, Error> {
        self.charge_on(&self.engine, key).await
    }

    pub async fn charge_on(&self, engine: &Idempotency, key: u64) -> Result<String, Error> {
        engine.call(OPERATION, key).ttl(DAY).run(|| async { Ok(self.effect(key)) }).await
    }

    pub fn effect(&self, key: u64) -> String {
        self.effects.append(&format!("{key} charged")).expect("the log takes a line");
        format!("receipt {key}.{}", self.count(key))
    }

    pub fn count(&self, key: u64) -> usize {
        self.effects.count(&key.to_string()).expect("the log can be read")
    }

    pub async fn record(&self, key: u64) -> Option<Record> {
        let hash = self.engine.record(OPERATION, key).hash().expect("the key is fine");
        self.direct.read(hash).await.expect("the server answers")
    }

    /// The Redis key of the record.
    pub fn name(&self, key: u64) -> String {
        format!(
            "idempotency:{{{}}}",
            self.engine.record(OPERATION, key).hash().expect("the key is fine").to_hex()
        )
    }

    /// Connects and loads the scripts of a whole call, so that what follows sends no other
    /// commands.
    pub async fn warm_up(&self) -> anyhow::Result<()> {
        const KEY: u64 = u64::MAX;
        let call = self.call(KEY).run(|| async {
            idempotency::Context::current().fence().await?;
            Ok::<_, Error>(String::new())
        });
        call.await?;
        Ok(())
    }
}

/// A store that does not wait long for answers.
pub fn impatient(url: &str) -> RedisStoreBuilder {
    RedisStore::builder(url)
        .connect_timeout(Duration::from_secs(1))
        .response_timeout(Duration::from_millis(400))
}

pub fn patient(url: &str) -> RedisStoreBuilder {
    RedisStore::builder(url).connect_timeout(PATIENCE).response_timeout(PATIENCE)
}

pub fn engine_on(store: RedisStore) -> Builder {
    Idempotency::builder(store).lease(LONG_LEASE).claim_timeout(PATIENCE)
}

/// Whether this runs the script that stores a result, with the key of its staged body where it has
/// one.
pub fn is_commit(request: &Request) -> bool {
    request.command() == "EVALSHA" && [12, 13].contains(&request.arguments().len())
}

/// Whether this runs the script that allocates a fence.
pub fn is_fence(request: &Request) -> bool {
    request.command() == "EVALSHA" && request.arguments().len() == 4
}

/// A result that does not go with the script.
pub fn large() -> String {
    "x".repeat(100_000)
}
