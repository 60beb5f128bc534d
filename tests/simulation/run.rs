//! One run: a storm, and the calm after it, in which everything has to come to an end.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use idempotency_test_support::history::{Rule, Violation};
use idempotency_test_support::random::Random;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::body::Script;
use crate::log::{Entry, Turn};
use crate::mutant::Mutant;
use crate::operator::looks_after;
use crate::plan::{Disaster, Plan, index, millis_below};
use crate::process::{PURGE_INTERVAL, Process, Wish};
use crate::rules;
use crate::world::World;

/// Longer than anything takes that ends at all.
const LONGEST: Duration = Duration::from_secs(600);

/// What a run was like.
#[derive(Debug, PartialEq)]
pub struct Run {
    pub entries: Vec<Entry>,
    pub broken: Vec<Violation>,
}

/// The run of `seed`, on a runtime of its own.
pub fn run(seed: u64, mutant: Option<Mutant>) -> Run {
    let mut random = Random::new(seed);
    let plan = Plan::of(seed, &mut random);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without sockets needs nothing");
    let world = runtime.block_on(async {
        let world = World::new(plan, mutant);
        Fleet::new(&world, random).goes_through_it().await;
        world
    });
    drop(runtime);
    if let Some(seen) = world.ends.wrong() {
        world.log.broken(Duration::ZERO, Rule::EndsAreReported, "all keys", 0, seen);
    }
    let entries = std::mem::take(&mut *world.log.entries());
    let broken = rules::broken(&world.plan, &entries);
    Run { entries, broken }
}

/// All processes.
struct Fleet {
    world: Arc<World>,
    random: Random,
    processes: Arc<Mutex<Vec<Process>>>,
}

impl Fleet {
    fn new(world: &Arc<World>, mut random: Random) -> Self {
        let start = |number| Process::start(world, format!("p{number}"), &mut random);
        let processes: Vec<_> = (0..world.plan.processes).map(start).collect();
        for key in world.plan.keys.iter().filter(|key| key.window.is_none()) {
            world
                .server
                .label(processes[0].record(key).hash().expect("a number is a key"), &key.label());
        }
        Self { world: world.clone(), random, processes: Arc::new(Mutex::new(processes)) }
    }

    fn all(&self) -> Vec<Process> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn goes_through_it(mut self) {
        self.storm().await;
        let world = self.world.clone();
        let comes_to_an_end = async {
            world.calls.is_zero().await;
            self.calm().await;
        };
        if timeout(LONGEST, comes_to_an_end).await.is_err() {
            let seen = format!("a call has not come back after {LONGEST:?}");
            world.log.broken(world.now(), Rule::CallsReturn, "a key", 0, seen);
        }
    }

    async fn storm(&mut self) {
        let plan = &self.world.plan;
        for process in self.all() {
            for _ in 0..plan.callers {
                process.spawn_caller(self.random.fork());
            }
        }
        if plan.has_operator {
            let desk = Process::start(&self.world, "operator".to_owned(), &mut self.random);
            tokio::spawn(looks_after(desk, self.random.fork()));
        }
        let mut disasters = JoinSet::new();
        for disaster in plan.disasters.clone() {
            let number = index(&mut self.random, plan.processes);
            let after = millis_below(&mut self.random, plan.lease * 3);
            let strike = strike(
                self.world.clone(),
                self.processes.clone(),
                disaster,
                number,
                self.random.fork(),
            );
            disasters.spawn(async move {
                sleep(after).await;
                strike.await;
            });
        }
        while disasters.join_next().await.is_some() {}
        if self.world.mutant == Some(Mutant::ProcessHangs) {
            self.all()[0].life.freeze();
        }
    }

    /// Everybody calls once more and waits, and then once more and does not.
    async fn calm(&self) {
        let (world, plan) = (&self.world, &self.world.plan);
        world.calm_down();
        self.all().iter().for_each(|process| process.life.heal());
        world.nothing_is_on_its_way().await;
        for patience in [Some(plan.lease * 4 + Duration::from_secs(20)), None] {
            let mut calls = JoinSet::new();
            for process in self.all() {
                for key in plan.keys.clone() {
                    let script = Script::calm(plan.lease + plan.lease / 2);
                    let wish = Wish { key, fingerprint: None, script, patience, is_strict: true };
                    let process = process.clone();
                    calls.spawn(async move { process.call(wish).await });
                }
            }
            while calls.join_next().await.is_some() {}
        }
        if plan.expires() {
            sleep(plan.ttl + plan.after_expiry.unwrap_or_default() + PURGE_INTERVAL * 2).await;
            if let Some(lag) =
                world.server.lag().filter(|lag| *lag > PURGE_INTERVAL + Duration::from_secs(1))
            {
                let seen = format!("a record that has been over for {lag:?} is still there");
                world.log.broken(world.now(), Rule::ExpiredAreRemoved, "a key", 0, seen);
            }
        }
    }
}

/// Lets a disaster happen to a process or to the store, and what follows it.
async fn strike(
    world: Arc<World>,
    processes: Arc<Mutex<Vec<Process>>>,
    disaster: Disaster,
    number: usize,
    mut random: Random,
) {
    let process = || processes.lock().unwrap_or_else(PoisonError::into_inner)[number].clone();
    let (struck, lasts) = (process(), millis_below(&mut random, world.plan.lease * 3));
    let name = struck.life.name.clone();
    match disaster {
        Disaster::Freeze => {
            world.turn(&name, Turn::Frozen);
            struck.life.freeze();
            sleep(lasts).await;
            struck.life.thaw(world.now());
            world.turn(&name, Turn::Thawed);
        }
        Disaster::Suspend => {
            world.turn(&name, Turn::Suspended);
            struck.life.suspend(world.now());
            // Long enough for an operator to answer for it.
            sleep(lasts + world.plan.lease * 2).await;
            struck.life.thaw(world.now());
            world.turn(&name, Turn::Awake);
        }
        Disaster::Partition => {
            world.turn(&name, Turn::CutOff);
            struck.life.cut_off_until(world.now() + lasts);
        }
        Disaster::StoreRestart => {
            world.turn("", Turn::StoreAway);
            world.server.stay_away_until(world.now() + lasts / 3);
            sleep(lasts / 3).await;
            world.turn("", Turn::StoreBack);
        }
        Disaster::Kill | Disaster::Shutdown => {
            if disaster == Disaster::Shutdown {
                world.turn(&name, Turn::ShutsDown);
                // Somebody else ends it when that takes too long.
                let _ = timeout(
                    lasts / 3 + world.plan.claim_timeout * 2,
                    struck.engine.shutdown(lasts / 3),
                )
                .await;
            }
            // Somebody else may have been quicker.
            if struck.life.is_dead() {
                return;
            }
            world.turn(&name, Turn::Killed);
            struck.life.end();
            drop(struck);
            sleep(lasts / 3).await;
            let next = Process::start(&world, format!("{name}'"), &mut random);
            next.spawn_caller(random.fork());
            processes.lock().unwrap_or_else(PoisonError::into_inner)[number] = next;
        }
    }
}
