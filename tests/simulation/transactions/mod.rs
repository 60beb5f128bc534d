//! Calls whose claim, effect and record are in a transaction of the user's: the real engine on a
//! database that is not real. Clients are killed, connections break, commits and their answers are
//! lost, futures are dropped and what they left is committed all the same.
//!
//! A transaction here is for one call. It is made again by the caller, as the documentation says,
//! when nobody knows whether it was committed.

mod connection;
mod database;
mod messages;
mod mutant;
mod plan;
mod process;
mod queue;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use idempotency::clock::Clock as _;
use idempotency_test_support::history::{Outcome, Rule, Violation, check_transitions};
use idempotency_test_support::random::Random;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use database::Database;
use mutant::Mutant;
use plan::{Disaster, Plan, Script};
use process::{Process, World};

use crate::clock::RunClock;
use crate::log::{Entry, Log};
use crate::plan::millis_below;
use crate::rules;
use crate::run::Run;

/// Longer than anything takes that ends at all.
const LONGEST: Duration = Duration::from_secs(600);
/// Longer than what was sent before may take to arrive.
const SETTLED: Duration = Duration::from_secs(30);
/// The numbers are others than those of the run of the same seed without transactions.
const OTHER_NUMBERS: u64 = 0x7472_616e_7361_6374;

/// The run of `seed`, on a runtime of its own.
pub fn run(seed: u64) -> Run {
    run_with(seed, None)
}

fn run_with(seed: u64, mutant: Option<Mutant>) -> Run {
    let mut random = Random::new(seed ^ OTHER_NUMBERS);
    let plan = Plan::new(&mut random);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without sockets needs nothing");
    let world = runtime.block_on(async {
        let (clock, log) = (RunClock::start(), Arc::new(Log::default()));
        let database = Arc::new(Database::new(clock, log.clone(), mutant));
        let world = Arc::new(World {
            plan,
            mutant,
            clock,
            log,
            database,
            calls: crate::world::Count::default(),
        });
        let others = (queue::random(seed), messages::random(seed));
        if timeout(LONGEST, goes_through_it(&world, random, others)).await.is_err() {
            let hangs = format!("a call has not come back after {LONGEST:?}");
            world.log.broken(clock.monotonic(), Rule::CallsReturn, "a key", 0, hangs);
        }
        world
    });
    drop(runtime);
    let entries = std::mem::take(&mut *world.log.entries());
    let broken = broken(&world.plan, &entries);
    Run { entries, broken }
}

/// A storm, and the calm after it, in which everybody gets the answer of each key.
async fn goes_through_it(
    world: &Arc<World>,
    mut random: Random,
    (queue, messages): (Option<Random>, Option<Random>),
) {
    let plan = &world.plan;
    let messages = messages.map(|mut random| (random.fork(), random));
    if let Some((choices, _)) = &messages {
        messages::start(world, choices.clone());
    }
    if let Some(mut random) = queue {
        Process::start(world, "worker".to_owned(), &mut random).spawn_worker(random.fork());
    }
    let start = |number| Process::start(world, format!("p{number}"), &mut random);
    let processes: Vec<_> = (0..plan.processes).map(start).collect();
    for process in &processes {
        (0..plan.callers).for_each(|_| process.spawn_caller(random.fork()));
    }
    let processes = Arc::new(Mutex::new(processes));
    let mut disasters = JoinSet::new();
    for disaster in plan.disasters.clone() {
        disasters.spawn(strike(world.clone(), processes.clone(), disaster, random.fork()));
    }
    while disasters.join_next().await.is_some() {}
    world.calls.is_zero().await;
    sleep(SETTLED).await;
    if let Some((_, random)) = messages {
        messages::settle(world, random).await;
    }
    let processes = std::mem::take(&mut *processes.lock().unwrap_or_else(PoisonError::into_inner));
    let mut calls = JoinSet::new();
    for process in &processes {
        for key in plan.keys.clone() {
            let process = process.in_calm();
            calls.spawn(async move {
                let outcome = process.call(&key, Script::calm()).await;
                (key, outcome)
            });
        }
    }
    while let Some(Ok((key, outcome))) = calls.join_next().await {
        if matches!(&outcome, Outcome::Error(kind) if kind != "InDoubt") {
            let seen = format!("a call got {outcome:?} from a database that answers");
            world.log.broken(world.clock.monotonic(), Rule::CallsReturn, &key.label(), 0, seen);
        }
    }
}

async fn strike(
    world: Arc<World>,
    processes: Arc<Mutex<Vec<Process>>>,
    (after, disaster, number): (Duration, Disaster, usize),
    mut random: Random,
) {
    sleep(after).await;
    let struck = processes.lock().unwrap_or_else(PoisonError::into_inner)[number].clone();
    match disaster {
        Disaster::Freeze => {
            struck.life.freeze();
            sleep(millis_below(&mut random, SETTLED / 2)).await;
            struck.life.thaw(world.clock.monotonic());
        }
        Disaster::Kill => {
            struck.life.end();
            let next = Process::start(&world, format!("{}'", struck.life.name), &mut random);
            next.spawn_caller(random.fork());
            processes.lock().unwrap_or_else(PoisonError::into_inner)[number] = next;
        }
    }
}

fn broken(plan: &Plan, entries: &[Entry]) -> Vec<Violation> {
    let mut broken: Vec<_> = rules::seen_at_once(entries).collect();
    let transitions: Vec<_> = rules::applied(entries).cloned().collect();
    broken.extend(check_transitions(&transitions));
    broken.extend(plan.keys.iter().flat_map(|key| rules::results(key, entries)));
    broken.extend(queue::denied_effects(entries));
    broken
}

/// What runs are about: each of it has to happen in some of them.
const EVENTS: &[&str] = &[
    "a connection breaks",
    "a commit is lost",
    "the answer to a commit is lost",
    "a transaction is dropped",
    "a claim waits for another transaction",
    "a claim is out of patience",
    "what was cut off is committed",
    "the commits of two jobs are lost",
    "what became of a job stays unknown",
    "a message is a duplicate",
    "a message is not acknowledged",
    "a record is written first",
];

#[test]
fn everything_happens_in_some_seed_with_transactions() {
    let mut missing = EVENTS.to_vec();
    let mut outcomes = vec!["InDoubt", "NotStored", "InProgress", "panic"];
    for seed in 0..2_000 {
        for entry in &run(seed).entries {
            match entry {
                Entry::InTransaction { what, .. } => missing.retain(|it| it != what),
                Entry::Called(called) => {
                    outcomes.retain(|it| called.outcome != Outcome::Error((*it).to_owned()));
                }
                _ => {}
            }
        }
        if missing.is_empty() && outcomes.is_empty() {
            return;
        }
    }
    panic!("these have not happened: {missing:?} {outcomes:?}");
}

fn is_noticed(mutant: Mutant, rule: Rule) {
    let breaks = |seed: &u64| {
        run_with(*seed, Some(mutant)).broken.iter().any(|violation| violation.rule == rule)
    };
    let seed =
        (0..2_000).find(breaks).unwrap_or_else(|| panic!("{mutant:?} does not break {rule}"));
    println!("{mutant:?} breaks {rule} in seed {seed}");
}

#[test]
fn s6_notices_a_record_outside_of_the_transaction() {
    is_noticed(Mutant::RecordOutside, Rule::EffectWithRecord);
}

#[test]
fn s6_notices_an_effect_outside_of_the_transaction() {
    is_noticed(Mutant::EffectOutside, Rule::EffectWithRecord);
}

#[test]
fn s6_notices_a_claim_that_does_not_wait() {
    is_noticed(Mutant::ClaimsDoNotWait, Rule::EffectWithRecord);
}

#[test]
fn s6_notices_an_error_whose_effect_is_not_undone() {
    is_noticed(Mutant::EffectNotUndone, Rule::EffectWithRecord);
}

#[test]
fn s8_notices_a_result_whose_commit_is_unknown() {
    is_noticed(Mutant::UnknownCommitsTold, Rule::NoResultWithoutEffect);
}

#[test]
fn s6_notices_a_failed_handler_whose_record_is_committed() {
    is_noticed(Mutant::FailuresRecorded, Rule::EffectWithRecord);
}

#[test]
fn s13_notices_a_lost_commit_that_is_forgotten() {
    is_noticed(Mutant::LostCommitsForgotten, Rule::NoErrorWithEffect);
}
