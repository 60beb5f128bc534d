//! A table on a server, engines that reach it through proxies, and the effects of their bodies.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use idempotency::store::{DynStore, Record};
use idempotency::{Builder, Call, Error, ErrorKind, Idempotency};
use idempotency_test_support::deadline::within;
use idempotency_test_support::effects::EffectLog;
use idempotency_test_support::proxy::Proxy;
use idempotency_test_support::server::Server;
use tempfile::TempDir;

use crate::backend::{Backend, PATIENCE, shared};

pub const OPERATION: &str = "payments.charge";
pub const DAY: Duration = Duration::from_secs(86_400);
/// Longer than any test takes: no renewal comes in between.
pub const LONG_LEASE: Duration = Duration::from_secs(120);
/// Longer than a busy machine keeps a process waiting, and some times what most stores wait for an
/// answer.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(20);

pub struct World<B> {
    url: String,
    address: String,
    /// Past all proxies.
    pub direct: Arc<dyn DynStore>,
    effects: EffectLog,
    _directory: TempDir,
    _backend: PhantomData<B>,
}

/// An engine that knows only its proxy.
pub struct Way {
    pub proxy: Proxy,
    pub engine: Idempotency,
    /// On the same store, for calls that are given up soon.
    hasty: Idempotency,
}

impl<B: Backend> World<B> {
    pub async fn new() -> anyhow::Result<Self> {
        Self::on(shared::<B>().await?).await
    }

    /// In a database of its own on `server`.
    pub async fn on(server: &Server<B>) -> anyhow::Result<Self> {
        let url = B::database(server).await?;
        let direct = B::migrated(&url).await?;
        let directory = tempfile::tempdir()?;
        let effects = EffectLog::open(directory.path().join("effects"))?;
        Ok(Self {
            url,
            address: server.address(),
            direct,
            effects,
            _directory: directory,
            _backend: PhantomData,
        })
    }

    /// A new way to the server, on which nothing was sent yet.
    pub async fn way(&self) -> anyhow::Result<Way> {
        self.way_with(|builder| builder).await
    }

    pub async fn way_with(
        &self,
        configure: impl FnOnce(Builder) -> Builder,
    ) -> anyhow::Result<Way> {
        self.patient_way(PATIENCE, configure).await
    }

    /// One whose store waits `patience` for an answer.
    pub async fn patient_way(
        &self,
        patience: Duration,
        configure: impl FnOnce(Builder) -> Builder,
    ) -> anyhow::Result<Way> {
        let proxy = Proxy::start_for(B::PROTOCOL, &*self.address).await?;
        let store = B::impatient(&proxy.url(&self.url), patience)?;
        let hasty = engine_on(store.clone()).claim_timeout(PATIENCE * 3).build()?;
        let engine = configure(engine_on(store)).build()?;
        Ok(Way { proxy, engine, hasty })
    }

    /// One on which connections are open and all statements of a call are prepared.
    pub async fn warm_way(&self) -> anyhow::Result<Way> {
        self.warm_way_with(|builder| builder).await
    }

    pub async fn warm_way_with(
        &self,
        configure: impl FnOnce(Builder) -> Builder,
    ) -> anyhow::Result<Way> {
        let way = self.way_with(configure).await?;
        // Nobody else's: a replay would not prepare them.
        let key = u64::MAX - u64::from(way.proxy.address().port());
        self.charge(&way.engine, key).await?;
        Ok(way)
    }

    /// Another process, past all proxies.
    pub fn elsewhere(&self) -> Builder {
        engine_on(self.direct.clone())
    }

    /// A store that no engine uses, past all proxies.
    pub fn impatient(&self) -> anyhow::Result<Arc<dyn DynStore>> {
        B::impatient(&self.url, PATIENCE)
    }

    /// Charges once, and returns how often it was done then.
    pub async fn charge(&self, engine: &Idempotency, key: u64) -> Result<String, Error> {
        call(engine, key).run(|| async { Ok(self.effect(key)) }).await
    }

    pub fn effect(&self, key: u64) -> String {
        self.effects.append(&format!("{key} charged")).expect("the log takes a line");
        format!("receipt {key}.{}", self.count(key))
    }

    pub fn count(&self, key: u64) -> usize {
        self.effects.count(&key.to_string()).expect("the log can be read")
    }

    pub async fn record(&self, key: u64) -> Option<Record> {
        let hash = self
            .elsewhere()
            .build()
            .unwrap()
            .record(OPERATION, key)
            .hash()
            .expect("the key is fine");
        self.direct.clone().read(hash).await.expect("the server answers")
    }

    /// A call that the store does not answer: no effect, and the caller learns why.
    pub async fn refused(&self, way: &Way, key: u64) -> anyhow::Result<()> {
        let error = within("the refusal", self.charge(&way.hasty, key)).await?.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{error}");
        assert!(error.is_retryable());
        assert_eq!(error.store(), Some(B::STORE));
        assert_eq!(self.count(key), 0, "the body did not run");
        Ok(())
    }

    /// The same engine takes the call once the store is back, at once: what the outage left behind
    /// does not block it.
    pub async fn recovers(&self, engine: &Idempotency, key: u64) -> anyhow::Result<()> {
        assert_eq!(
            within("the recovery", self.charge(engine, key)).await??,
            format!("receipt {key}.1")
        );
        assert_eq!(self.count(key), 1);
        Ok(())
    }
}

pub fn call(engine: &Idempotency, key: u64) -> Call {
    engine.call(OPERATION, key).ttl(DAY)
}

/// Sends nothing but what calls send.
pub fn engine_on(store: Arc<dyn DynStore>) -> Builder {
    Idempotency::builder(store)
        .lease(LONG_LEASE)
        .claim_timeout(CLAIM_TIMEOUT)
        .background_purge(false)
}
