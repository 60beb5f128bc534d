//! A store, a log of effects outside the code under test, and the calls of the test process itself.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use idempotency::store::{DynStore, Record};
use idempotency::{Idempotency, OnConflict};
use idempotency_test_support::deadline::DEADLINE;
use idempotency_test_support::history::{Effect, Event, EventLog};
use idempotency_test_support::worker::{KillPoints, Worker};
use tempfile::TempDir;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::backend::{Backend, Place, connect};
use crate::service::{CHARGE, LIVING_LEASE, STEADY_LEASE, Service, questions_beside};
use crate::worker::{Orders, PATIENCE, START, Work, spawn};

/// How many workers live at once. Most of them wait.
static PLACES: Semaphore = Semaphore::const_new(16);
/// How many of them start at once, which is work.
static STARTS: Semaphore = Semaphore::const_new(4);

pub struct Scene {
    effects: EventLog,
    questions: EventLog,
    store: Arc<dyn DynStore>,
    here: Service,
    place: Place,
    // Removed last.
    _directory: TempDir,
}

impl Scene {
    pub async fn new(backend: Backend) -> anyhow::Result<Self> {
        let place = backend.share().await?;
        let directory = tempfile::tempdir()?;
        let effects = EventLog::open(directory.path().join("effects"))?;
        let questions = EventLog::open(questions_beside(effects.path()))?;
        let store = connect(&place.url()).await?;
        let here = service(store.clone(), 10 * STEADY_LEASE, effects.path())?;
        Ok(Self { effects, questions, store, here, place, _directory: directory })
    }

    /// Room for one more worker: to be held until it is dead, or stopped.
    pub async fn room() -> anyhow::Result<SemaphorePermit<'static>> {
        Ok(PLACES.acquire().await?)
    }

    /// A worker that waits at `points`.
    pub fn worker(&self, lease: Duration, work: Work, points: &[&str]) -> anyhow::Result<Worker> {
        let orders =
            Orders { url: self.place.url(), effects: self.effects.path().to_owned(), lease, work };
        spawn(&orders, points)
    }

    /// A worker whose lease is long enough for a busy machine, started and on its way to `points`.
    pub async fn steady(&self, work: Work, points: &[&str]) -> anyhow::Result<Worker> {
        self.started(STEADY_LEASE, work, points).await
    }

    /// As [`steady`](Self::steady), and its lease is also long enough to be renewed in time.
    pub async fn living(&self, work: Work, points: &[&str]) -> anyhow::Result<Worker> {
        self.started(LIVING_LEASE, work, points).await
    }

    async fn started(
        &self,
        lease: Duration,
        work: Work,
        points: &[&str],
    ) -> anyhow::Result<Worker> {
        let _start = STARTS.acquire().await?;
        let mut worker = self.worker(lease, work, &[&[START], points].concat())?;
        worker.wait_for_point(START).await?;
        worker.go().await?;
        Ok(worker)
    }

    /// The service of the test process. It loses no lease on a busy machine.
    pub fn here(&self) -> &Service {
        &self.here
    }

    /// Another one, as in a process of its own.
    pub fn another(&self, lease: Duration) -> anyhow::Result<Service> {
        service(self.store.clone(), lease, self.effects.path())
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
    Service::new(builder.build()?, effects, KillPoints::from_env())
}

fn effect(event: Event) -> Option<Effect> {
    if let Event::Effect(effect) = event { Some(effect) } else { None }
}
