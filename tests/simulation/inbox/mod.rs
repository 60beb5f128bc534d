//! Messages: the real engine and the real consumer between a store and a broker that lose, delay and
//! repeat. Processes are killed, stand still and stop, connections are cut, futures are dropped.

mod broker;
mod mutant;
mod plan;
mod process;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use idempotency::OnCrash;
use idempotency::edge::EdgeCall;
use idempotency::key::Key;
use idempotency_test_support::history::{Rule, Violation};
use idempotency_test_support::random::Random;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use broker::Broker;
use mutant::Mutant;
use plan::{Disaster, Kind, Plan};
use process::{Effect, Effects, INBOX, Member};

use crate::log::Entry;
use crate::plan::{DAY, millis_below};
use crate::process::Process;
use crate::rules;
use crate::run::Run;
use crate::world::World;

/// Longer than anything takes that ends at all.
const LONGEST: Duration = Duration::from_secs(1_800);
/// The numbers are others than those of the runs of the same seed without messages.
const OTHER_NUMBERS: u64 = 0x6d65_7373_6167_6573;

/// The run of `seed`, on a runtime of its own.
pub fn run(seed: u64) -> Run {
    run_with(seed, None)
}

fn run_with(seed: u64, mutant: Option<Mutant>) -> Run {
    let mut random = Random::new(seed ^ OTHER_NUMBERS);
    // Of the run without messages: leases, timeouts, and what happens between engine and store.
    let mut store = crate::plan::Plan::of(0, &mut random);
    store.ttl = DAY;
    if mutant == Some(Mutant::ReleasedOnDrop) {
        store.faults = crate::plan::Faults::default();
    }
    let mut plan = Plan::new(&mut random, store.processes, store.lease);
    if mutant == Some(Mutant::ReleasedOnDrop) {
        // Only a message whose dead letter is lost is delivered once more.
        (plan.panics, plan.lost, plan.on_crash) = (30, 30, OnCrash::Hold);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without sockets needs nothing");
    let world = runtime.block_on(async {
        let for_store = (mutant == Some(Mutant::ReleasedOnDrop))
            .then_some(crate::mutant::Mutant::DropsReleased);
        let world = World::new(store, for_store);
        goes_through_it(&world, plan, mutant, random).await;
        world
    });
    drop(runtime);
    let entries = std::mem::take(&mut *world.log.entries());
    let broken = rules::seen_at_once(&entries).collect();
    Run { entries, broken }
}

/// A storm, and the calm after it, in which every message comes to its end.
async fn goes_through_it(
    world: &Arc<World>,
    plan: Plan,
    mutant: Option<Mutant>,
    mut random: Random,
) {
    let desk = Process::start(world, "desk".to_owned(), &mut random);
    let record = |id: u64| EdgeCall::new(&desk.engine, INBOX, Key::of(&id), DAY).record();
    let records: BTreeMap<_, _> = (0..plan.messages)
        .map(|id| (id, record(id).hash().expect("a number is a key")))
        .inspect(|(id, hash)| world.server.label(*hash, &format!("m{id}")))
        .collect();
    let effects = Effects::default();
    let broker = Arc::new(Broker::new(world.clone(), plan.clone(), mutant, random.fork(), records));
    let start = |name: String, random: &mut Random| {
        let process = Process::start(world, name, random);
        Member::start(process, &broker, &effects, random.fork())
    };
    let members: Vec<_> =
        (0..world.plan.processes).map(|number| start(format!("p{number}"), &mut random)).collect();
    let members = Arc::new(Mutex::new(members));
    let mut disasters = JoinSet::new();
    for (after, disaster, number) in plan.disasters.clone() {
        let strikes = Strikes {
            world: world.clone(),
            broker: broker.clone(),
            effects: effects.clone(),
            members: members.clone(),
        };
        disasters.spawn(strikes.strike(after, disaster, number, random.fork()));
    }
    while disasters.join_next().await.is_some() {}
    // Some of it goes on without disasters, and with the faults.
    sleep(world.plan.lease).await;
    world.calm_down();
    for member in all(&members) {
        member.life().heal();
    }
    if timeout(LONGEST, broker.done()).await.is_err() {
        let seen = format!("a message has not come to its end after {LONGEST:?}");
        world.log.broken(world.now(), Rule::NoMessageLost, "a message", 0, seen);
    }
    let effects = std::mem::take(&mut *effects.lock().unwrap_or_else(PoisonError::into_inner));
    look_at(world, &broker, &effects);
}

fn all(members: &Arc<Mutex<Vec<Member>>>) -> Vec<Member> {
    members.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// What disasters strike.
struct Strikes {
    world: Arc<World>,
    broker: Arc<Broker>,
    effects: Effects,
    members: Arc<Mutex<Vec<Member>>>,
}

impl Strikes {
    async fn strike(self, after: Duration, disaster: Disaster, number: usize, mut random: Random) {
        sleep(after).await;
        let lease = self.world.plan.lease;
        let (struck, lasts) =
            (all(&self.members)[number].clone(), millis_below(&mut random, lease * 3));
        match disaster {
            Disaster::Freeze => {
                struck.life().freeze();
                sleep(lasts).await;
                struck.life().thaw(self.world.now());
            }
            Disaster::Partition => struck.life().cut_off_until(self.world.now() + lasts),
            Disaster::StoreRestart => {
                self.broker.note(struck.life(), "the store is away");
                self.world.server.stay_away_until(self.world.now() + lasts);
                sleep(lasts).await;
            }
            Disaster::Cut => struck.cut(),
            Disaster::Drop => struck.drop_future(),
            Disaster::Kill | Disaster::Stop => {
                if disaster == Disaster::Stop {
                    struck.stop();
                    sleep(lasts).await;
                    // It may be killed meanwhile.
                    let shutdown = struck.process.engine.shutdown(Duration::ZERO);
                    let _ = timeout(lasts + lease, shutdown).await;
                }
                if struck.life().is_dead() {
                    return;
                }
                struck.life().end();
                self.broker.loses_process(struck.life());
                sleep(lasts / 3).await;
                let name = format!("{}'", struck.life().name);
                let process = Process::start(&self.world, name, &mut random);
                let next = Member::start(process, &self.broker, &self.effects, random.fork());
                self.members.lock().unwrap_or_else(PoisonError::into_inner)[number] = next;
            }
        }
    }
}

/// The rules over the effects of a whole run.
fn look_at(world: &World, broker: &Broker, effects: &[Effect]) {
    let note = |rule, id: u64, seen: String| {
        world.log.broken(world.now(), rule, &format!("m{id}"), 0, seen);
    };
    for id in broker.ids() {
        let count = effects.iter().filter(|effect| effect.id == id).count();
        if broker.plan.on_crash == OnCrash::Hold && count > 1 {
            note(Rule::OneEffectUnderHold, id, format!("has {count} effects"));
        }
        if count == 0 && !broker.is_copied(id) {
            note(Rule::NoMessageLost, id, "has no effect and is no dead letter".to_owned());
        }
    }
    if broker.plan.kind == Kind::Queue || !broker.plan.is_orderly() {
        return;
    }
    let mut last = BTreeMap::new();
    // A dead letter has left its lane. A late delivery of it may still run.
    for effect in effects.iter().filter(|effect| !broker.is_copied(effect.id)) {
        let before = last.insert(broker.lane(effect.id), effect.id);
        if before.is_some_and(|before| before > effect.id) {
            note(Rule::LanesInOrder, effect.id, format!("comes after {before:?}"));
        }
    }
}

/// What runs are about: each of it has to happen in some of them.
#[test]
fn everything_happens_in_some_seed_with_messages() {
    let mut missing =
        vec!["in-doubt", "attempts", "a second delivery", "a second attempt", "the store is away"];
    for seed in 0..2_000 {
        for entry in &run(seed).entries {
            if let Entry::InTransaction { what, .. } = entry {
                missing.retain(|it| it != what);
            }
        }
        if missing.is_empty() {
            return;
        }
    }
    panic!("these have not happened: {missing:?}");
}

fn is_noticed(mutant: Mutant, rule: Rule) {
    let breaks = |seed: &u64| {
        run_with(*seed, Some(mutant))
            .broken
            .iter()
            .any(|violation: &Violation| violation.rule == rule)
    };
    let seed =
        (0..2_000).find(breaks).unwrap_or_else(|| panic!("{mutant:?} does not break {rule}"));
    println!("{mutant:?} breaks {rule} in seed {seed}");
}

macro_rules! noticed {
    ($($test:ident: $mutant:ident breaks $rule:ident;)*) => {
        $(
            #[test]
            fn $test() {
                is_noticed(Mutant::$mutant, Rule::$rule);
            }
        )*
    };
}

noticed! {
    m1_notices_an_ack_while_another_consumer_is_at_work: AckedWhileInProgress breaks NoMessageLost;
    m1_notices_an_ack_before_the_result_is_stored: AckedBeforeCommit breaks NoMessageLost;
    m1_notices_an_ack_before_the_dead_letter_is_confirmed: AckedBeforeDeadLetter breaks NoMessageLost;
    m1_notices_an_offset_beyond_an_unfinished_message: OffsetBeyondUnfinished breaks NoMessageLost;
    m2_notices_lanes_that_are_ignored: LanesIgnored breaks LanesInOrder;
    s5_notices_a_handler_that_is_cut_off_and_released: ReleasedOnDrop breaks OneEffectUnderHold;
}
