//! What all processes of a run share: the store, the world outside, and the log.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use idempotency::clock::Clock as _;
use idempotency::key::KeyHash;
use idempotency::store::Record;
use tokio::sync::Notify;

use crate::clock::{ProcessClock, RunClock};
use crate::ends::Ends;
use crate::life::Life;
use crate::log::{Entry, Log, Turn};
use crate::mutant::Mutant;
use crate::outside::Outside;
use crate::plan::Plan;
use crate::server::Server;
use crate::windows::Windows;

pub struct World {
    pub plan: Plan,
    pub mutant: Option<Mutant>,
    pub clock: RunClock,
    pub log: Arc<Log>,
    pub server: Server,
    pub outside: Outside,
    pub ends: Ends,
    calm: AtomicBool,
    on_its_way: Count,
    pub calls: Count,
    stale: Mutex<BTreeMap<KeyHash, Option<Record>>>,
    windows: Windows,
}

impl World {
    pub fn new(plan: Plan, mutant: Option<Mutant>) -> Arc<Self> {
        let (clock, log) = (RunClock::start(), Arc::new(Log::default()));
        Arc::new(Self {
            server: Server::new(clock, log.clone(), mutant),
            outside: Outside::default(),
            ends: Ends::default(),
            plan,
            mutant,
            clock,
            log,
            calm: AtomicBool::new(false),
            on_its_way: Count::default(),
            calls: Count::default(),
            stale: Mutex::default(),
            windows: Windows::default(),
        })
    }

    pub fn now(&self) -> Duration {
        self.clock.monotonic()
    }

    /// The clock of a process.
    pub fn clock_of(&self, life: &Arc<Life>) -> ProcessClock {
        ProcessClock {
            run: self.clock,
            life: life.clone(),
            stops: self.mutant == Some(Mutant::ClocksStop),
        }
    }

    pub fn turn(&self, process: &str, turn: Turn) {
        self.log.write(Entry::Turn { at: self.now(), process: process.to_owned(), turn });
    }

    /// Whether faults are over.
    pub fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }

    pub fn calm_down(&self) {
        self.calm.store(true, Ordering::Relaxed);
        self.turn("", Turn::Calm);
    }

    /// A request that was sent and may still arrive.
    pub fn on_its_way(&self) -> Counted {
        self.on_its_way.one()
    }

    /// Resolves when no request can arrive any more that was sent in a storm.
    pub async fn nothing_is_on_its_way(&self) {
        self.on_its_way.is_zero().await;
    }

    /// Names the records of keys with windows that a call may come to now.
    pub fn names_windows(&self) {
        let now = self.clock.now();
        for key in &self.plan.keys {
            self.windows.name(key, now, &self.server);
        }
    }

    /// For a mutant: the record as it was when somebody looked first.
    pub fn stale(&self, key: KeyHash) -> Option<Record> {
        let mut stale = self.stale.lock().unwrap_or_else(PoisonError::into_inner);
        let record = stale.entry(key).or_insert_with(|| self.server.record(key));
        let mut record = record.clone()?;
        // It looks as if it had been read now.
        record.lease_until = self.clock.now() + self.plan.lease;
        record.read_at = self.clock.now();
        Some(record)
    }
}

/// How many there are of something.
#[derive(Clone, Default)]
pub struct Count(Arc<(AtomicUsize, Notify)>);

/// One of them, until it is dropped.
pub struct Counted(Count);

impl Count {
    pub fn one(&self) -> Counted {
        self.0.0.fetch_add(1, Ordering::Relaxed);
        Counted(self.clone())
    }

    pub async fn is_zero(&self) {
        while self.0.0.load(Ordering::Relaxed) > 0 {
            self.0.1.notified().await;
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if self.0.0.0.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.0.1.notify_one();
        }
    }
}
