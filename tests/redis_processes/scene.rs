//! A server, an effect log outside the code under test, and the calls of the test process itself.

use std::time::Duration;

use idempotency::store::{Record, RedisStore, Store as _};
use idempotency::{Error, Idempotency, OnConflict, OnCrash, Report, observe};
use idempotency_test_support::effects::EffectLog;
use idempotency_test_support::server::{RedisOptions, RedisServer};
use idempotency_test_support::worker::{KillPoints, Worker};
use tempfile::TempDir;

use crate::worker::{LEASE, OPERATION, Orders, Planned, Receipt, Service, spawn};

pub struct Scene {
    pub effects: EffectLog,
    store: RedisStore,
    server: RedisServer,
    // Removed last.
    _directory: TempDir,
}

impl Scene {
    pub async fn new() -> anyhow::Result<Self> {
        let server = RedisServer::start(RedisOptions::new().private()).await?;
        let directory = tempfile::tempdir()?;
        let effects = EffectLog::open(directory.path().join("effects"))?;
        let store = RedisStore::connect(&server.url()).await?;
        Ok(Self { effects, store, server, _directory: directory })
    }

    pub fn orders(&self, on_crash: OnCrash, calls: Vec<Planned>) -> Orders {
        Orders {
            url: self.server.url(),
            effects: self.effects.path().to_owned(),
            retries: on_crash == OnCrash::Retry,
            lease: LEASE,
            endless: false,
            calls,
        }
    }

    /// A worker that makes one call, and waits at `point`.
    pub fn caller(&self, on_crash: OnCrash, key: &str, point: &str, endless: bool) -> anyhow::Result<Worker> {
        let orders = self.orders(on_crash, vec![Planned::now(key)]);
        spawn(&Orders { endless, ..orders }, &[point])
    }

    /// The same call, made by the test process.
    pub async fn call(&self, on_crash: OnCrash, key: &str) -> anyhow::Result<(Result<Receipt, Error>, Report)> {
        let engine = Idempotency::builder(self.store.clone())
            .lease(LEASE)
            .on_conflict(OnConflict::Wait(Duration::from_secs(25)))
            .build();
        let effects = EffectLog::open(self.effects.path())?;
        let service = Service { engine, effects, points: KillPoints::from_env(), on_crash, endless: false };
        let (result, report) = observe(service.charge(&Planned::now(key))).await;
        Ok((result, report.expect("the call reports")))
    }

    /// What the store keeps for `key`.
    pub async fn record(&self, key: &str) -> anyhow::Result<Option<Record>> {
        let hash = Idempotency::new(self.store.clone()).record(OPERATION, key).hash()?;
        Ok(self.store.read(hash).await?)
    }
}
