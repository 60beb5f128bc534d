//! A store, a log of effects outside the code under test, and the calls of the test process itself.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use idempotency::store::{DynStore, Record};
use idempotency::{Error, Idempotency, OnConflict, OnCrash, Report, observe};
use idempotency_test_support::deadline::DEADLINE;
use idempotency_test_support::history::{Effect, Event, EventLog};
use idempotency_test_support::worker::{KillPoints, Worker};
use tempfile::TempDir;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard, Semaphore, SemaphorePermit};

use crate::backend::{Backend, Place, connect};
use crate::service::{CHARGE, LEASE, Planned, Receipt, STEADY_LEASE, Service, questions_beside};
use crate::worker::{Orders, PATIENCE, START, Work, spawn};

/// Who measures times has the machine for itself.
static TURNS: RwLock<()> = RwLock::const_new(());
/// How many workers of the tests that measure nothing live at once. Most of them wait.
static PLACES: Semaphore = Semaphore::const_new(16);
/// How many of them start at once, which is work.
static STARTS: Semaphore = Semaphore::const_new(4);

enum Turn {
    Shared(#[expect(dead_code, reason = "held")] RwLockReadGuard<'static, ()>),
    Alone(#[expect(dead_code, reason = "held")] RwLockWriteGuard<'static, ()>),
}

pub struct Scene {
    effects: EventLog,
    questions: EventLog,
    store: Arc<dyn DynStore>,
    here: Service,
    place: Place,
    _turn: Turn,
    // Removed last.
    _directory: TempDir,
}

impl Scene {
    pub async fn new(backend: Backend) -> anyhow::Result<Self> {
        let turn = Turn::Shared(TURNS.read().await);
        Self::with(backend.share().await?, turn).await
    }

    /// One beside which no other runs in this process, for tests that measure times.
    pub async fn alone(backend: Backend) -> anyhow::Result<Self> {
        let turn = Turn::Alone(TURNS.write().await);
        Self::with(backend.start().await?, turn).await
    }

    async fn with(place: Place, turn: Turn) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let effects = EventLog::open(directory.path().join("effects"))?;
        let questions = EventLog::open(questions_beside(effects.path()))?;
        let store = connect(&place.url()).await?;
        let here = service(store.clone(), 10 * STEADY_LEASE, effects.path())?;
        Ok(Self { effects, questions, store, here, place, _turn: turn, _directory: directory })
    }

    /// Room for one more worker: to be held until it is dead, or stopped.
    pub async fn room() -> anyhow::Result<SemaphorePermit<'static>> {
        Ok(PLACES.acquire().await?)
    }

    /// A worker that waits at `points`.
    pub fn worker(&self, lease: Duration, work: Work, points: &[&str]) -> anyhow::Result<Worker> {
        let orders = Orders { url: self.place.url(), effects: self.effects.path().to_owned(), lease, work };
        spawn(&orders, points)
    }

    /// A worker whose lease is long enough for a busy machine, started and on its way to `points`.
    pub async fn steady(&self, work: Work, points: &[&str]) -> anyhow::Result<Worker> {
        let _start = STARTS.acquire().await?;
        let mut worker = self.worker(STEADY_LEASE, work, &[&[START], points].concat())?;
        worker.wait_for_point(START).await?;
        worker.go().await?;
        Ok(worker)
    }

    /// A worker that makes one call, and waits at `point`.
    pub fn caller(&self, on_crash: OnCrash, key: &str, point: &str, endless: bool) -> anyhow::Result<Worker> {
        let calls = vec![Planned::now(key)];
        self.worker(LEASE, Work::Charge { retries: on_crash == OnCrash::Retry, endless, calls }, &[point])
    }

    /// The service of the test process. It loses no lease on a busy machine.
    pub fn here(&self) -> &Service {
        &self.here
    }

    /// Another one, as in a process of its own.
    pub fn another(&self, lease: Duration) -> anyhow::Result<Service> {
        service(self.store.clone(), lease, self.effects.path())
    }

    /// The call of [`caller`](Self::caller), made by the test process.
    pub async fn call(&self, on_crash: OnCrash, key: &str) -> anyhow::Result<(Result<Receipt, Error>, Report)> {
        let service = self.another(LEASE)?;
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

fn service(store: Arc<dyn DynStore>, lease: Duration, effects: &Path) -> anyhow::Result<Service> {
    let builder = Idempotency::builder(store).lease(lease).on_conflict(OnConflict::Wait(PATIENCE));
    let builder = builder.claim_timeout(DEADLINE).commit_timeout(DEADLINE);
    Service::new(builder.build(), effects, KillPoints::from_env())
}

fn effect(event: Event) -> Option<Effect> {
    if let Event::Effect(effect) = event { Some(effect) } else { None }
}
