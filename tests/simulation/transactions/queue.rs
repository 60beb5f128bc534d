//! A worker that takes jobs from a queue: each attempt of a transaction that is run again takes
//! whichever job is free then, so attempts of one transaction call different keys.
//!
//! The loop is the engine's own, that of `in_transaction`. The pool is not: it is the client's.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use idempotency::__private::{
    Attempt, Attempts, Calls, TransactionConnection as _, unknown_by_key,
};
use idempotency::clock::Clock as _;
use idempotency::{Error, ErrorKind, OnConflict};
use idempotency_test_support::history::{Rule, Violation};
use idempotency_test_support::random::Random;
use tokio::time::sleep;

use super::connection::{Committed, Transaction};
use super::mutant::Mutant;
use super::process::{OPERATION, Process};
use crate::log::Entry;
use crate::plan::{index, millis_below};

/// The numbers are others than those of the rest of the run.
const OTHER_NUMBERS: u64 = 0x71_7565_7565;
/// The number of transactions of a worker, and of jobs from which the attempts of each take one.
const TRANSACTIONS: u64 = 4;
const JOBS: usize = 2;
/// The keys of the jobs are no keys of the plan.
const FIRST_JOB: u64 = 1_000;
/// How often a transaction is run again.
const RETRIES: usize = 6;
const PAUSE: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_secs(1);
/// Longer than a commit takes to arrive: of a record that has expired by then, nothing shows it.
const TTL: Duration = Duration::from_secs(3600);

/// The keys of the jobs that a worker takes.
pub fn jobs() -> impl Iterator<Item = u64> {
    FIRST_JOB..FIRST_JOB + TRANSACTIONS * JOBS as u64
}

pub fn label(job: u64) -> String {
    format!("job {job}")
}

/// The numbers of the worker of `seed`. It is in every fourth seed.
pub fn random(seed: u64) -> Option<Random> {
    (seed % 4 == 3).then(|| Random::new(seed ^ OTHER_NUMBERS))
}

/// What the transaction of a worker ends with.
#[derive(Debug)]
enum Failure {
    /// The worker's own: nothing happened.
    Refused,
    Engine(Error),
}

impl Failure {
    fn is_unknown(&self) -> bool {
        match self {
            Self::Engine(error) => error.kind() == ErrorKind::NotStored,
            Self::Refused => false,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::error::Error for Failure {}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Engine(error)
    }
}

/// Where a worker refuses a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refuses {
    BeforeTheCall,
    AfterTheCall,
    Never,
}

impl Refuses {
    fn new(random: &mut Random) -> Self {
        match random.below(10) {
            0 => Self::BeforeTheCall,
            1..4 => Self::AfterTheCall,
            _ => Self::Never,
        }
    }
}

/// A worker on a process of its own.
pub struct Worker {
    pub process: Process,
    pub random: Random,
}

impl Worker {
    pub async fn work(mut self) {
        for first in jobs().step_by(JOBS) {
            self.transaction(first).await;
        }
    }

    /// Runs one transaction until there is a result. If that says that nothing happened, none of
    /// the effects that its attempts had may ever be committed.
    async fn transaction(&mut self, first: u64) {
        let effects = Effects::default();
        let mut attempts = Attempts::new(std::iter::repeat_n(PAUSE, RETRIES));
        let mut lost = Vec::new();
        let result = loop {
            let job = first + index(&mut self.random, JOBS) as u64;
            let refuses = Refuses::new(&mut self.random);
            let calls = Arc::new(Calls::default());
            let attempt = calls.around(self.attempt(job, refuses, &calls, &effects)).await;
            if matches!(attempt, Attempt::Unknown { .. }) {
                if lost.iter().any(|other| *other != job) {
                    self.process.pool.note("the commits of two jobs are lost");
                }
                lost.push(job);
            }
            match attempts.after(attempt, &calls) {
                ControlFlow::Break(result) => break result,
                ControlFlow::Continue(pause) => sleep(pause).await,
            }
            sleep(millis_below(&mut self.random, PAUSE)).await;
        };
        match result {
            Err(failure) if !failure.is_unknown() => {
                self.process.world.log.write(Entry::NothingHappened {
                    at: self.process.pool.clock.monotonic(),
                    values: effects.take(),
                    failure: failure.to_string(),
                });
            }
            Err(_) if !lost.is_empty() => {
                self.process.pool.note("what became of a job stays unknown");
            }
            _ => {}
        }
    }

    async fn attempt(
        &self,
        job: u64,
        refuses: Refuses,
        calls: &Arc<Calls>,
        effects: &Effects,
    ) -> Attempt<String, Failure> {
        let world = &self.process.world;
        let mut transaction = Box::new(self.process.pool.begin().await);
        let lent = calls.lend(transaction.place());
        if refuses == Refuses::BeforeTheCall {
            return Attempt::Done(Err(Failure::Refused));
        }
        let call = self.process.engine.call(OPERATION, job).ttl(TTL);
        let mut has_run = false;
        let run = call.on_conflict(OnConflict::Wait(PATIENCE)).run_in(
            &mut *transaction,
            async |transaction: &mut Transaction| {
                let value = transaction.effect().await.map_err(|_| unavailable())?;
                effects.note(&value);
                has_run = true;
                Ok::<_, Failure>(value)
            },
        );
        let value = match run.await {
            Ok(value) => value,
            Err(Failure::Engine(error)) if error.kind() == ErrorKind::StoreUnavailable => {
                return Attempt::Again(error.into());
            }
            Err(failure) => return Attempt::Done(Err(failure)),
        };
        if !has_run {
            // The worker was answered with what an attempt before has committed. What it says from
            // here on, it says knowing that.
            effects.is_known(&value);
        }
        if refuses == Refuses::AfterTheCall {
            return Attempt::Done(Err(Failure::Refused));
        }
        drop(lent);
        match transaction.commit().await {
            Committed::Yes => Attempt::Done(Ok(value)),
            Committed::No => Attempt::Again(unavailable()),
            Committed::Unknown if world.mutant == Some(Mutant::LostCommitsForgotten) => {
                Attempt::Again(unavailable())
            }
            Committed::Unknown => Attempt::Unknown {
                records: calls.records(),
                error: unknown_by_key("the answer to the commit was lost"),
            },
        }
    }
}

fn unavailable() -> Failure {
    use idempotency::store::{Operation, StoreError, StoreErrorKind};
    let lost = StoreError::new(StoreErrorKind::Unavailable, Operation::Transaction);
    Failure::Engine(lost.into())
}

/// The values of the effects that the attempts of one transaction had.
#[derive(Default)]
struct Effects(Mutex<Vec<String>>);

impl Effects {
    fn note(&self, value: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(value.to_owned());
    }

    fn is_known(&self, value: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|noted| noted != value);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// S13: whoever is told that nothing happened, and was not answered with the effect before, has
/// none that is committed, then or later.
pub fn denied_effects(entries: &[Entry]) -> impl Iterator<Item = Violation> {
    let denials = entries.iter().filter_map(|entry| match entry {
        Entry::NothingHappened { at, values, failure } => Some((at, values, failure)),
        _ => None,
    });
    denials.filter_map(|(at, values, failure)| {
        entries.iter().find_map(|entry| match entry {
            Entry::Effect(effect) if values.contains(&effect.value) => Some(Violation {
                rule: Rule::NoErrorWithEffect,
                key: effect.key.clone(),
                retention: effect.retention,
                seen: format!("{failure} was told at {at:?}, and this is committed: {effect:?}"),
            }),
            _ => None,
        })
    })
}
