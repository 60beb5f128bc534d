//! A store, a log of effects outside the code under test, and the calls of the test process itself.

use std::sync::Arc;
use std::time::Duration;

use idempotency::store::{DynStore, Record};
use idempotency::{Error, Idempotency, OnConflict, OnCrash, Report, observe};
use idempotency_test_support::history::{Effect, Event, EventLog};
use idempotency_test_support::worker::{KillPoints, Worker};
use tempfile::TempDir;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard, Semaphore, SemaphorePermit};

use crate::backend::{Backend, Place, connect};
use crate::service::{CHARGE, LEASE, Planned, Receipt, Service, questions_beside};
use crate::worker::{Orders, PATIENCE, Work, spawn};

/// Who measures times has the machine for itself.
static TURNS: RwLock<()> = RwLock::const_new(());
/// How many owners of the tests that measure nothing live at once.
static PLACES: Semaphore = Semaphore::const_new(6);

enum Turn {
    Shared(#[expect(dead_code, reason = "held")] RwLockReadGuard<'static, ()>),
    Alone(#[expect(dead_code, reason = "held")] RwLockWriteGuard<'static, ()>),
}

pub struct Scene {
    effects: EventLog,
    questions: EventLog,
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
        let questions = EventLog::open(questions_beside(effects.path()))?;
        let store = connect(&place.url()).await?;
        Ok(Self { effects, questions, store, place, _turn: turn, _directory: directory })
    }

    /// Room for one more owner: to be held until it is dead.
    pub async fn room() -> anyhow::Result<SemaphorePermit<'static>> {
        Ok(PLACES.acquire().await?)
    }

    /// A worker that waits at `points`.
    pub fn worker(&self, lease: Duration, work: Work, points: &[&str]) -> anyhow::Result<Worker> {
        let orders = Orders { url: self.place.url(), effects: self.effects.path().to_owned(), lease, work };
        spawn(&orders, points)
    }

    /// A worker that makes one call, and waits at `point`.
    pub fn caller(&self, on_crash: OnCrash, key: &str, point: &str, endless: bool) -> anyhow::Result<Worker> {
        let calls = vec![Planned::now(key)];
        self.worker(LEASE, Work::Charge { retries: on_crash == OnCrash::Retry, endless, calls }, &[point])
    }

    /// The service of the test process.
    pub fn service(&self, lease: Duration) -> anyhow::Result<Service> {
        let builder = Idempotency::builder(self.store.clone()).lease(lease).on_conflict(OnConflict::Wait(PATIENCE));
        Service::new(builder.build(), self.effects.path(), KillPoints::from_env())
    }

    /// The call of [`caller`](Self::caller), made by the test process.
    pub async fn call(&self, on_crash: OnCrash, key: &str) -> anyhow::Result<(Result<Receipt, Error>, Report)> {
        let service = self.service(LEASE)?;
        let (result, report) = observe(service.charge(&Planned::now(key), on_crash, false)).await;
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

    /// What the outside world was asked about `key`.
    pub fn questions(&self, key: &str) -> anyhow::Result<Vec<Effect>> {
        Ok(self.questions.events_of(key)?.into_iter().filter_map(effect).collect())
    }

    /// What the outside world was asked.
    pub fn all_questions(&self) -> anyhow::Result<Vec<Effect>> {
        Ok(self.questions.events()?.into_iter().filter_map(effect).collect())
    }

    /// What the store keeps for `key` of the operation `payments.charge`.
    pub async fn record(&self, key: &str) -> anyhow::Result<Option<Record>> {
        self.record_of(CHARGE, key).await
    }

    /// What the store keeps for `key`.
    pub async fn record_of(&self, operation: &str, key: &str) -> anyhow::Result<Option<Record>> {
        let hash = Idempotency::new(self.store.clone()).record(operation, key).hash()?;
        Ok(DynStore::read(self.store.clone(), hash).await?)
    }
}

fn effect(event: Event) -> Option<Effect> {
    if let Event::Effect(effect) = event { Some(effect) } else { None }
}
