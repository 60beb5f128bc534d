//! Consumers whose messages have their record in one transaction with their effect: the record gets
//! its result first, and a handler that fails takes it back with what it has written.
//!
//! The loop is the engine's own, that of `handle_in`. The pool is not: it is the client's.

use std::ops::ControlFlow;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use idempotency::__private::{
    Attempt, Attempts, Calls, First, FirstResult, TransactionConnection as _, record_first,
    unknown_by_key,
};
use idempotency::clock::Clock as _;
use idempotency::record::State;
use idempotency::{Error, ErrorKind, OnConflict};
use idempotency_test_support::history::Rule;
use idempotency_test_support::random::Random;
use tokio::time::{sleep, timeout};

use super::connection::{Committed, Transaction};
use super::mutant::Mutant;
use super::plan::{End, Script};
use super::process::{OPERATION, Process, World};
use crate::plan::{index, millis_below};

/// The numbers are others than those of the rest of the run.
const OTHER_NUMBERS: u64 = 0x6d65_7373_6167_6573;
/// The keys of the messages are no keys of the plan.
const FIRST_MESSAGE: u64 = 2_000;
const MESSAGES: usize = 3;
const CONSUMERS: usize = 3;
/// How often a consumer is given a message: each comes more than once, and to several at a time.
const DELIVERIES: usize = 5;
/// How often a transaction is run again.
const RETRIES: usize = 6;
const PAUSE: Duration = Duration::from_millis(10);
const TTL: Duration = Duration::from_secs(3600);

pub fn messages() -> impl Iterator<Item = u64> {
    FIRST_MESSAGE..FIRST_MESSAGE + MESSAGES as u64
}

pub fn label(message: u64) -> String {
    format!("message {message}")
}

/// The numbers of the consumers of `seed`. They are in every fourth seed.
pub fn random(seed: u64) -> Option<Random> {
    (seed % 4 == 1).then(|| Random::new(seed ^ OTHER_NUMBERS))
}

/// Starts the consumers, of which some are killed.
pub fn start(world: &Arc<World>, mut random: Random) {
    for number in 0..CONSUMERS {
        let process = Process::start(world, format!("consumer{number}"), &mut random);
        let (counted, mut choices) = (world.calls.one(), random.fork());
        let consumer = Consumer { process: process.clone() };
        process.life.spawn(async move {
            let _counted = counted;
            for _ in 0..DELIVERIES {
                sleep(millis_below(&mut choices, Duration::from_millis(200))).await;
                let message = FIRST_MESSAGE + index(&mut choices, MESSAGES) as u64;
                consumer.deliver(message, Script::new(&mut choices)).await;
            }
        });
        if random.chance(40) {
            let after = millis_below(&mut random, Duration::from_secs(3));
            tokio::spawn(async move {
                sleep(after).await;
                process.life.end();
            });
        }
    }
}

/// Delivers each message until it is acknowledged, and looks for its one effect.
pub async fn settle(world: &Arc<World>, mut random: Random) {
    let process = Process::start(world, "the last consumer".to_owned(), &mut random).in_calm();
    let consumer = Consumer { process };
    for message in messages() {
        let is_acknowledged = consumer.deliver(message, Script::calm()).await;
        let effects = consumer.effects(message);
        if !is_acknowledged || effects != 1 {
            let seen = format!("acknowledged: {is_acknowledged}, and it has {effects} effects");
            consumer.broken(Rule::EffectWithRecord, message, seen);
        }
    }
}

/// What a delivery ends with that is not acknowledged.
#[derive(Debug)]
enum Failure {
    /// The handler's own error.
    Refused,
    Engine(Error),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::error::Error for Failure {}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Engine(error)
    }
}

struct Consumer {
    process: Process,
}

impl Consumer {
    /// The number of effects of `message` that are committed.
    fn effects(&self, message: u64) -> u32 {
        let hash =
            self.process.engine.record(OPERATION, message).hash().expect("a number is a key");
        self.process.world.database.effects(hash)
    }

    fn broken(&self, rule: Rule, message: u64, seen: String) {
        let world = &self.process.world;
        world.log.broken(self.process.pool.clock.monotonic(), rule, &label(message), 0, seen);
    }

    /// Returns true if the message is acknowledged.
    async fn deliver(&self, message: u64, script: Script) -> bool {
        let mut attempts = Attempts::new(std::iter::repeat_n(PAUSE, RETRIES));
        let handled = async {
            loop {
                let calls = Arc::new(Calls::default());
                let attempt = calls.around(self.attempt(message, script, &calls)).await;
                match attempts.after(attempt, &calls) {
                    ControlFlow::Break(result) => return result,
                    ControlFlow::Continue(pause) => sleep(pause).await,
                }
            }
        };
        let handled = AssertUnwindSafe(handled).catch_unwind();
        let handled = match script.cut_off {
            Some(limit) => timeout(limit, handled).await.ok(),
            None => Some(handled.await),
        };
        self.process.life.goes_on().await;
        if !matches!(handled, Some(Ok(Ok(())))) {
            self.process.pool.note("a message is not acknowledged");
            return false;
        }
        let effects = self.effects(message);
        if effects != 1 {
            let seen = format!("it is acknowledged, and {effects} effects are committed");
            self.broken(Rule::NoResultWithoutEffect, message, seen);
        }
        true
    }

    async fn attempt(
        &self,
        message: u64,
        script: Script,
        calls: &Arc<Calls>,
    ) -> Attempt<(), Failure> {
        let mut transaction = Box::new(self.process.pool.begin().await);
        let lent = calls.lend(transaction.place());
        let call = self.process.engine.call(OPERATION, message).ttl(TTL);
        let call = call.on_conflict(OnConflict::Wait(script.patience));
        let result =
            FirstResult { state: State::Completed, body: b"null".as_slice().into(), ttl: None };
        match record_first(call, &result, &mut *transaction).await {
            Ok(First::Answered(_)) => self.process.pool.note("a message is a duplicate"),
            Ok(First::Mine(first)) => {
                let handled = first.body(|| handler(&mut transaction, script)).await;
                first.body_has_ended();
                match handled {
                    Ok(()) => {}
                    Err(Failure::Engine(error)) => return Attempt::Again(error.into()),
                    Err(refused) => {
                        drop(lent);
                        if self.process.world.mutant == Some(Mutant::FailuresRecorded) {
                            transaction.undo_effects();
                            transaction.commit().await;
                        } else {
                            transaction.roll_back().await;
                        }
                        return Attempt::Done(Err(refused));
                    }
                }
            }
            Err(error) if error.kind() == ErrorKind::StoreUnavailable => {
                return Attempt::Again(error.into());
            }
            Err(error) => return Attempt::Done(Err(error.into())),
        }
        drop(lent);
        match transaction.commit().await {
            Committed::Yes => Attempt::Done(Ok(())),
            Committed::Unknown if self.process.world.mutant == Some(Mutant::UnknownCommitsTold) => {
                Attempt::Done(Ok(()))
            }
            Committed::No => Attempt::Again(unavailable()),
            Committed::Unknown => Attempt::Unknown {
                records: calls.records(),
                error: unknown_by_key("the answer to the commit was lost"),
            },
        }
    }
}

async fn handler(transaction: &mut Transaction, script: Script) -> Result<(), Failure> {
    sleep(script.before).await;
    transaction.effect().await.map_err(|_| unavailable())?;
    sleep(script.after).await;
    match script.end {
        End::Value => Ok(()),
        // No message on the test's output.
        End::Panics => std::panic::resume_unwind(Box::new("after the effect")),
        End::Declines | End::Refuses | End::Doubts => Err(Failure::Refused),
    }
}

fn unavailable() -> Failure {
    use idempotency::store::{Operation, StoreError, StoreErrorKind};
    let lost = StoreError::new(StoreErrorKind::Unavailable, Operation::Transaction);
    Failure::Engine(lost.into())
}
