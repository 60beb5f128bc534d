//! An engine, its store, its clock and a ledger: what every test starts from.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use idempotency::clock::{Clock as _, Timestamp};
use idempotency::store::{MemoryStore, Operation, Record, Store as _, Token};
use idempotency::testing::ManualClock;
use idempotency::{Builder, Call, Error, Idempotency};

use super::faults::FaultyStore;
use super::ledger::Ledger;

pub const LEASE: Duration = Duration::from_secs(15);
pub const DAY: Duration = Duration::from_secs(86_400);
pub const OPERATION: &str = "payments.charge";

/// How long a renewal that is due may take to be sent, in real time. One that is never sent costs
/// as much.
const RENEWAL: Duration = Duration::from_secs(3);

/// How long a condition may take to come true, in real time.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct World {
    pub clock: ManualClock,
    pub memory: MemoryStore,
    pub store: FaultyStore,
    pub engine: Idempotency,
    pub ledger: Arc<Ledger>,
}

impl World {
    pub fn new() -> Self {
        Self::with(|builder| builder)
    }

    pub fn with(configure: impl FnOnce(Builder) -> Builder) -> Self {
        Self::try_with(configure).expect("the settings are valid")
    }

    pub fn try_with(configure: impl FnOnce(Builder) -> Builder) -> Result<Self, Error> {
        let clock = ManualClock::new();
        let memory = MemoryStore::with_clock(clock.clone());
        let store = FaultyStore::new(memory.clone());
        let engine = configure(Idempotency::builder(store.clone()).clock(clock.clone())).build()?;
        Ok(Self { clock, memory, store, engine, ledger: Arc::new(Ledger::new()) })
    }

    /// Another process on the same store.
    pub fn other_process(&self) -> Self {
        self.other_process_with(|builder| builder)
    }

    pub fn other_process_with(&self, configure: impl FnOnce(Builder) -> Builder) -> Self {
        let store = FaultyStore::new(self.memory.clone());
        let engine = configure(Idempotency::builder(store.clone()).clock(self.clock.clone()))
            .build()
            .unwrap();
        Self {
            clock: self.clock.clone(),
            memory: self.memory.clone(),
            store,
            engine,
            ledger: self.ledger.clone(),
        }
    }

    pub fn call(&self, key: u64) -> Call {
        self.engine.call(OPERATION, key).ttl(DAY)
    }

    /// Charges once, and returns what the ledger then shows.
    pub async fn charge(&self, key: u64) -> Result<String, Error> {
        self.call(key).run(|| async { self.effect(key) }).await
    }

    #[expect(clippy::unnecessary_wraps, reason = "it is what a body returns")]
    pub fn effect(&self, key: u64) -> Result<String, Error> {
        self.ledger.charge(&format!("charge {key}"));
        Ok(format!("receipt {key}.{}", self.ledger.count()))
    }

    pub async fn record(&self, key: u64) -> Option<Record> {
        let hash = self.engine.record(OPERATION, key).hash().expect("the key is fine");
        self.memory.read(hash).await.expect("the store works")
    }

    pub fn clock_now(&self) -> Duration {
        self.clock.monotonic()
    }

    /// Waits until the clock shows this monotonic time, however long the machine takes for it.
    pub async fn time_is(&self, monotonic: Duration) {
        while self.clock_now() <= monotonic {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Waits until the record is as asked.
    pub async fn record_is(&self, key: u64, condition: impl Fn(Option<&Record>) -> bool) {
        eventually("the record to be as asked", async || {
            condition(self.record(key).await.as_ref())
        })
        .await;
    }

    /// Finishes `future` while time passes, no faster than this engine renews its leases.
    pub async fn while_time_passes<F: Future>(&self, future: F) -> F::Output {
        let time = async {
            let mut seen = HashMap::new();
            loop {
                tokio::time::sleep(Duration::from_millis(1)).await;
                self.renewals_are_sent(&mut seen).await;
                self.clock.advance(Duration::from_millis(20));
            }
        };
        tokio::select! {
            biased;
            output = future => output,
            () = time => unreachable!("time passes for ever"),
        }
    }

    /// Finishes `future` while time passes, for at most `limit` on the clock of the engine.
    pub async fn while_at_most<F: Future>(&self, limit: Duration, future: F) -> F::Output {
        let over = self.clock.sleep(limit);
        let future = async {
            tokio::select! {
                biased;
                output = future => output,
                () = over => panic!("it takes longer than {limit:?}"),
            }
        };
        self.while_time_passes(future).await
    }

    /// Waits for renewals that are long due: the thread that sends them may be late on a busy
    /// machine. Some are never sent, and each is waited for once: `seen` has the ends of leases,
    /// and how many renewals were sent before.
    async fn renewals_are_sent(&self, seen: &mut HashMap<Token, (Timestamp, usize)>) {
        for claim in self.store.sent_claims() {
            let record = self.memory.read(claim.key).await.expect("the store works");
            let Some(record) =
                record.filter(|record| record.owner == claim.token && record.is_running())
            else {
                continue;
            };
            let sent = self.store.requests(Operation::Renew);
            let (lease_until, before) =
                seen.entry(claim.token).or_insert((record.lease_until, sent));
            if *lease_until != record.lease_until {
                (*lease_until, *before) = (record.lease_until, sent);
            } else if *before == sent && record.lease_until < record.read_at + claim.lease / 2 {
                let renewal = eventually("the renewal", async || {
                    self.store.requests(Operation::Renew) > sent
                });
                let _ = tokio::time::timeout(RENEWAL, renewal).await;
                *before = usize::MAX;
            }
        }
    }
}

/// Finishes `future` while time passes where no renewal is waited for.
pub async fn without_renewals<F: Future>(world: &World, future: F) -> F::Output {
    let time = async {
        loop {
            tokio::time::sleep(Duration::from_millis(1)).await;
            world.clock.advance(Duration::from_millis(100));
        }
    };
    tokio::select! {
        biased;
        output = future => output,
        () = time => unreachable!("time passes for ever"),
    }
}

/// Waits until `condition` is true, for at most a deadline of real time.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Finishes `future`, for at most a deadline of real time.
pub async fn in_time<F: Future>(what: &str, future: F) -> F::Output {
    let output = tokio::time::timeout(PATIENCE, future).await;
    output.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// Polls `future` once.
pub fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    std::pin::Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}
