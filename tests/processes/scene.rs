//! A store, a log of effects outside the code under test, and the calls of the test process itself.

use std::sync::Arc;
use std::time::Duration;

use idempotency::store::{DynStore, Record};
use idempotency::{Error, Idempotency, OnConflict, OnCrash, Report, observe};
use idempotency_test_support::history::{Effect, Event, EventLog};
use idempotency_test_support::worker::{KillPoints, Worker};
use tempfile::TempDir;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::backend::{Backend, Place, connect};
use crate::worker::{LEASE, OPERATION, Orders, Planned, Receipt, Service, spawn};

/// Who measures times has the machine for itself.
static TURNS: RwLock<()> = RwLock::const_new(());

enum Turn {
    Shared(#[expect(dead_code, reason = "held")] RwLockReadGuard<'static, ()>),
    Alone(#[expect(dead_code, reason = "held")] RwLockWriteGuard<'static, ()>),
}

pub struct Scene {
    effects: EventLog,
    store: Arc<dyn DynStore>,
    place: Place,
    _turn: Turn,
    // Removed last.
    _directory: TempDir,
}

impl Scene {
    pub async fn new(backend: Backend) -> anyhow::Result<Self> {
        Self::with(backend, Turn::Shared(TURNS.read().await)).await
    }

    /// One beside which no other runs in this process, for tests that measure times.
    pub async fn alone(backend: Backend) -> anyhow::Result<Self> {
        Self::with(backend, Turn::Alone(TURNS.write().await)).await
    }

    async fn with(backend: Backend, turn: Turn) -> anyhow::Result<Self> {
        let place = backend.start().await?;
        let directory = tempfile::tempdir()?;
        let effects = EventLog::open(directory.path().join("effects"))?;
        let store = connect(&place.url()).await?;
        Ok(Self { effects, store, place, _turn: turn, _directory: directory })
    }

    pub fn orders(&self, on_crash: OnCrash, calls: Vec<Planned>) -> Orders {
        Orders {
            url: self.place.url(),
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
        let effects = EventLog::open(self.effects.path())?;
        let service = Service { engine, effects, points: KillPoints::from_env(), on_crash, endless: false };
        let (result, report) = observe(service.charge(&Planned::now(key))).await;
        Ok((result, report.expect("the call reports")))
    }

    /// The effects for `key`, in their order.
    pub fn effects(&self, key: &str) -> anyhow::Result<Vec<Effect>> {
        Ok(self.effects.events_of(key)?.into_iter().filter_map(effect).collect())
    }

    /// The effects for all keys.
    pub fn all_effects(&self) -> anyhow::Result<Vec<Effect>> {
        Ok(self.effects.events()?.into_iter().filter_map(effect).collect())
    }

    /// What the store keeps for `key`.
    pub async fn record(&self, key: &str) -> anyhow::Result<Option<Record>> {
        let hash = Idempotency::new(self.store.clone()).record(OPERATION, key).hash()?;
        Ok(DynStore::read(self.store.clone(), hash).await?)
    }
}

fn effect(event: Event) -> Option<Effect> {
    if let Event::Effect(effect) = event { Some(effect) } else { None }
}
