//! One process: an engine whose calls keep their records in transactions, and its callers.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt as _;
use idempotency::clock::Clock as _;
use idempotency::store::MemoryStore;
use idempotency::{Idempotency, OnConflict};
use idempotency_test_support::history::Outcome;
use idempotency_test_support::random::Random;
use tokio::time::{sleep, timeout};

use super::connection::{Committed, Pool, Transaction};
use super::database::Database;
use super::messages;
use super::mutant::Mutant;
use super::plan::{Afterwards, End, Faults, Plan, Script};
use super::queue::{self, Worker};
use crate::body::Failure;
use crate::clock::{ProcessClock, RunClock, Tokens};
use crate::life::Life;
use crate::log::{Called, Entry, Log};
use crate::plan::{Key, index, millis_below};

pub const OPERATION: &str = "simulated";
/// How often a transaction is made again whose commit nobody knows of, or which could not go on.
const TRIES: usize = 4;

/// What all processes of a run share.
pub struct World {
    pub plan: Plan,
    pub mutant: Option<Mutant>,
    pub clock: RunClock,
    pub log: Arc<Log>,
    pub database: Arc<Database>,
    pub calls: crate::world::Count,
}

#[derive(Clone)]
pub struct Process {
    pub world: Arc<World>,
    pub life: Arc<Life>,
    pub pool: Pool,
    pub engine: Idempotency,
    in_calm: bool,
}

impl Process {
    pub fn start(world: &Arc<World>, name: String, random: &mut Random) -> Self {
        let life = Arc::new(Life::new(name));
        let clock = ProcessClock { run: world.clock, life: life.clone(), stops: false };
        let keeper = life.clone();
        // Nothing of it is used: the records are the transactions'.
        let engine = Idempotency::builder(MemoryStore::with_clock(world.clock))
            .clock(clock.clone())
            .randomness(Tokens::new(random.fork()))
            .background(move |future| keeper.spawn(future))
            .background_purge(false)
            .build()
            .unwrap();
        let pool = Pool {
            database: world.database.clone(),
            clock,
            log: world.log.clone(),
            random: Arc::new(Mutex::new(random.fork())),
            faults: world.plan.faults,
        };
        for key in &world.plan.keys {
            let hash = engine.record(OPERATION, key.number).hash().expect("a number is a key");
            world.database.label(hash, &key.label());
        }
        for message in messages::messages() {
            let hash = engine.record(OPERATION, message).hash().expect("a number is a key");
            world.database.label(hash, &messages::label(message));
        }
        for job in queue::jobs() {
            let hash = engine.record(OPERATION, job).hash().expect("a number is a key");
            world.database.label(hash, &queue::label(job));
        }
        Self { world: world.clone(), life, pool, engine, in_calm: false }
    }

    /// The same process when faults are over.
    pub fn in_calm(&self) -> Self {
        let pool = Pool { faults: Faults::default(), ..self.pool.clone() };
        Self { pool, in_calm: true, ..self.clone() }
    }

    /// Starts a caller that calls some times.
    pub fn spawn_caller(&self, mut random: Random) {
        let (process, counted) = (self.clone(), self.world.calls.one());
        self.life.spawn(async move {
            let _counted = counted;
            let plan = &process.world.plan;
            for _ in 0..plan.calls {
                process.pool.clock.sleep(millis_below(&mut random, Duration::from_secs(2))).await;
                let key = &plan.keys[index(&mut random, plan.keys.len())];
                process.call(key, Script::new(&mut random)).await;
            }
        });
    }

    /// Starts a worker that takes jobs from a queue.
    pub fn spawn_worker(&self, random: Random) {
        let (worker, counted) = (Worker { process: self.clone(), random }, self.world.calls.one());
        self.life.spawn(async move {
            let _counted = counted;
            worker.work().await;
        });
    }

    /// Makes a call in transactions of its own, and notes what became of it.
    pub async fn call(&self, key: &Key, script: Script) -> Outcome {
        let started = self.pool.clock.monotonic();
        let mut outcome = Outcome::Error("NotStored".to_owned());
        for _ in 0..TRIES {
            if let Some(known) = self.attempt(key, script).await {
                outcome = known;
                break;
            }
        }
        let (process, ended) = (self.life.name.clone(), self.pool.clock.monotonic());
        self.world.log.write(Entry::Called(Called {
            process,
            key: key.label(),
            fingerprint: None,
            in_calm: self.in_calm,
            started,
            ended,
            bound: Duration::MAX,
            outcome: outcome.clone(),
        }));
        outcome
    }

    /// One transaction. `None` if it has to be made again: it was not committed, or nobody knows.
    async fn attempt(&self, key: &Key, script: Script) -> Option<Outcome> {
        let pool = &self.pool;
        let mut transaction = pool.begin().await;
        let call = self
            .engine
            .call(OPERATION, key.number)
            .ttl(self.world.plan.ttl)
            .on_error(Failure::policy);
        let call = call.on_conflict(OnConflict::Wait(script.patience));
        let life = self.life.clone();
        let run = call.run_in(&mut transaction, async |transaction: &mut Transaction| {
            body(transaction, &life, script).await
        });
        let run = AssertUnwindSafe(run).catch_unwind();
        let result = match script.cut_off {
            Some(limit) => timeout(limit, run).await.ok(),
            None => Some(run.await),
        };
        self.life.goes_on().await;
        let was_cut_off = result.is_none();
        let outcome = match result {
            Some(Ok(Ok(value))) => Outcome::Value(value.into()),
            Some(Ok(Err(Failure::Declined(value)))) => Outcome::StoredError(value.into()),
            Some(Ok(Err(Failure::Guard(kind)))) => Outcome::Error(kind),
            Some(Ok(Err(failure))) => Outcome::Error(format!("{failure:?}")),
            Some(Err(_)) => Outcome::Error("panic".to_owned()),
            None => Outcome::Error("cut off".to_owned()),
        };
        let committed = match script.afterwards {
            Afterwards::Commit => transaction.commit().await,
            Afterwards::RollBack => {
                transaction.roll_back().await;
                return Some(Outcome::Error("rolled back".to_owned()));
            }
            Afterwards::Drop => {
                drop(transaction);
                return Some(Outcome::Error("dropped".to_owned()));
            }
        };
        match committed {
            Committed::Yes => {
                if was_cut_off {
                    pool.note("what was cut off is committed");
                }
                let is_unfinished = outcome == Outcome::Error("StoreUnavailable".to_owned());
                (!is_unfinished).then_some(outcome)
            }
            Committed::Unknown if self.world.mutant == Some(Mutant::UnknownCommitsTold) => {
                Some(outcome)
            }
            Committed::No | Committed::Unknown => None,
        }
    }
}

async fn body(
    transaction: &mut Transaction,
    life: &Life,
    script: Script,
) -> Result<String, Failure> {
    sleep(script.before).await;
    life.goes_on().await;
    let value =
        transaction.effect().await.map_err(|_| Failure::Guard("StoreUnavailable".to_owned()))?;
    sleep(script.after).await;
    life.goes_on().await;
    match script.end {
        End::Value => Ok(value),
        End::Declines => Err(Failure::Declined(value)),
        End::Refuses => Err(Failure::Refused),
        End::Doubts => Err(Failure::Ambiguous),
        // No message on the test's output.
        End::Panics => resume_unwind(Box::new("after the effect")),
    }
}
