//! `on_conflict` and `on_crash`.

use super::*;

/// A body that says that it started and waits until it may end.
struct Gate {
    started: Semaphore,
    open: Semaphore,
    effects: Effects,
}

impl Gate {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            started: Semaphore::new(0),
            open: Semaphore::new(0),
            effects: Effects::default(),
        })
    }

    async fn pass(&self) -> Result<usize, Error> {
        self.started.add_permits(1);
        self.open.acquire().await.unwrap().forget();
        Ok(self.effects.happen())
    }

    async fn started(&self) {
        self.started.acquire().await.unwrap().forget();
    }
}

#[idempotent(key = 1, ttl = "1h", on_conflict = reject)]
async fn rejects(gate: Arc<Gate>) -> Result<usize, Error> {
    gate.pass().await
}

#[idempotent(key = 1, ttl = "1h", on_conflict = wait("1ms"))]
async fn waits_shortly(gate: Arc<Gate>) -> Result<usize, Error> {
    gate.pass().await
}

#[idempotent(key = 1, ttl = "1h", on_conflict = wait)]
async fn waits(gate: Arc<Gate>) -> Result<usize, Error> {
    gate.pass().await
}

#[idempotent(key = 1, ttl = "1h", on_crash = hold)]
async fn holds(gate: Arc<Gate>) -> Result<usize, Error> {
    gate.pass().await
}

#[idempotent(key = 1, ttl = "1h", on_crash = retry)]
async fn retries(gate: Arc<Gate>) -> Result<usize, Error> {
    gate.pass().await
}

#[tokio::test]
async fn a_conflict_is_refused_at_once() {
    let (gate, engine) = (Gate::new(), engine());
    let first = tokio::spawn(rejects(gate.clone()).with_engine(&engine));
    gate.started().await;
    let (second, report) = with_report(rejects(gate.clone())).with_engine(&engine).await;
    assert_eq!(second.unwrap_err().kind(), ErrorKind::InProgress);
    assert!(!report.unwrap().waited);
    gate.open.add_permits(1);
    assert_eq!(first.await.unwrap().unwrap(), 1);
}

#[tokio::test]
async fn a_conflict_is_waited_for_as_long_as_it_says() {
    let gate = Gate::new();
    let engine =
        Idempotency::builder(MemoryStore::new()).on_conflict(OnConflict::Reject).build().unwrap();
    let first = tokio::spawn(waits_shortly(gate.clone()).with_engine(&engine));
    gate.started().await;
    let (second, report) = with_report(waits_shortly(gate.clone())).with_engine(&engine).await;
    assert_eq!(second.unwrap_err().kind(), ErrorKind::InProgress);
    assert!(report.unwrap().waited);
    gate.open.add_permits(1);
    assert_eq!(first.await.unwrap().unwrap(), 1);
}

#[tokio::test]
async fn waiting_is_said_although_the_engine_refuses() {
    let gate = Gate::new();
    let engine =
        Idempotency::builder(MemoryStore::new()).on_conflict(OnConflict::Reject).build().unwrap();
    let first = tokio::spawn(waits(gate.clone()).with_engine(&engine));
    gate.started().await;
    let second = tokio::spawn(waits(gate.clone()).with_engine(&engine));
    tokio::task::yield_now().await;
    gate.open.add_permits(1);
    assert_eq!(first.await.unwrap().unwrap(), 1);
    assert_eq!(second.await.unwrap().unwrap(), 1);
    assert_eq!(gate.effects.count(), 1);
}

#[tokio::test]
async fn after_a_crash_the_call_is_in_doubt_or_runs_again() {
    let (gate, engine) = (Gate::new(), engine());
    let crashed = tokio::spawn(holds(gate.clone()).with_engine(&engine));
    gate.started().await;
    crashed.abort();
    assert!(crashed.await.unwrap_err().is_cancelled());
    let second = holds(gate.clone()).with_engine(&engine).await;
    assert_eq!(second.unwrap_err().kind(), ErrorKind::InDoubt);

    let crashed = tokio::spawn(retries(gate.clone()).with_engine(&engine));
    gate.started().await;
    crashed.abort();
    assert!(crashed.await.unwrap_err().is_cancelled());
    gate.open.add_permits(1);
    assert_eq!(retries(gate.clone()).with_engine(&engine).await.unwrap(), 1);
}

#[idempotent(key = 1, ttl = "1h", on_crash = resume)]
async fn resumes(gate: Arc<Gate>) -> Result<(usize, usize), Error> {
    let reserve = async || Ok::<_, Error>(gate.effects.happen());
    let reserved = Context::current().step("reserve", reserve).await?;
    Ok((reserved, gate.pass().await?))
}

#[tokio::test]
async fn after_a_crash_the_call_resumes_after_its_finished_steps() {
    let (gate, engine) = (Gate::new(), engine());
    let crashed = tokio::spawn(resumes(gate.clone()).with_engine(&engine));
    gate.started().await;
    crashed.abort();
    assert!(crashed.await.unwrap_err().is_cancelled());
    gate.open.add_permits(1);
    assert_eq!(resumes(gate.clone()).with_engine(&engine).await.unwrap(), (1, 2));
}
