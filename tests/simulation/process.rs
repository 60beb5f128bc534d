//! One process: an engine on a link of its own, and its callers.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt as _;
use idempotency::clock::Clock as _;
use idempotency::key::window;
use idempotency::record::RecordHandle;
use idempotency::{Call, Idempotency, OnConflict, OnCrash, OnError, with_report};
use idempotency_test_support::history::Outcome;
use idempotency_test_support::random::Random;

use crate::body::{Failure, Script, Site};
use crate::clock::Tokens;
use crate::life::Life;
use crate::link::Link;
use crate::log::{Called, Entry, Turn};
use crate::plan::{Class, Key, index, millis_below, number};
use crate::world::World;

pub const OPERATION: &str = "simulated";
pub const PURGE_INTERVAL: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub struct Process {
    pub world: Arc<World>,
    pub life: Arc<Life>,
    pub engine: Idempotency,
}

impl Process {
    pub fn start(world: &Arc<World>, name: String, random: &mut Random) -> Self {
        let life = Arc::new(Life::new(name));
        let link = Link::new(world.clone(), life.clone(), random.fork());
        let plan = &world.plan;
        let keeper = life.clone();
        let mut builder = Idempotency::builder(link)
            .clock(world.clock_of(&life))
            .randomness(Tokens::new(random.fork()))
            .observer(world.ends.clone())
            .background(move |future| keeper.spawn(future))
            .lease(plan.lease)
            .claim_timeout(plan.claim_timeout)
            .commit_timeout(plan.commit_timeout)
            .background_commit(plan.background_commit)
            .max_run(plan.max_run)
            .background_purge(plan.expires())
            .purge_interval(PURGE_INTERVAL);
        if let Some(retention) = plan.in_doubt_retention {
            builder = builder.in_doubt_retention(retention);
        }
        world.turn(&life.name, Turn::Started);
        Self { world: world.clone(), life, engine: builder.build().unwrap() }
    }

    /// Starts a caller that calls some times.
    pub fn spawn_caller(&self, mut random: Random) {
        let (process, counted) = (self.clone(), self.world.calls.one());
        self.life.spawn(async move {
            let _counted = counted;
            let clock = process.world.clock_of(&process.life);
            for _ in 0..process.world.plan.calls {
                clock.sleep(millis_below(&mut random, process.world.plan.lease)).await;
                let wish = Wish::new(&process.world, &mut random);
                let gives_up = random
                    .chance(15)
                    .then(|| millis_below(&mut random, process.world.plan.lease * 2));
                tokio::select! {
                    biased;
                    () = process.call(wish) => {}
                    () = clock.sleep(gives_up.unwrap_or_default()), if gives_up.is_some() => {}
                }
            }
        });
    }

    /// Makes a call, and notes what became of it.
    pub async fn call(&self, wish: Wish) {
        let Wish { key, fingerprint, script, patience, is_strict } = wish;
        let (world, started, in_calm) = (&self.world, self.world.now(), self.world.is_calm());
        let site = Site {
            world: world.clone(),
            life: self.life.clone(),
            key: key.clone(),
            fingerprint,
            script,
            spent: Arc::default(),
        };
        let spent = site.spent.clone();
        let on_conflict = patience.map_or(OnConflict::Reject, OnConflict::Wait);
        world.names_windows();
        let call = match key.window {
            Some(length) => self.engine.call(OPERATION, (key.number, window(length))),
            None => self.engine.call(OPERATION, key.number),
        };
        let call = call.ttl(world.plan.ttl).on_conflict(on_conflict);
        let call = match fingerprint {
            Some(fingerprint) => call.fingerprint(&fingerprint),
            None => call,
        };
        let call = if key.counts_attempts { call.count_attempts() } else { call };
        let call = match world.plan.after_expiry {
            Some(after_expiry) => call.after_expiry(after_expiry),
            None => call,
        };
        let label = key.label();
        world.ends.begins();
        let answer =
            AssertUnwindSafe(with_report(make(call, site, is_strict))).catch_unwind().await;
        let (answer, report) =
            answer.map_or_else(|panic| (Err(panic), None), |(answer, report)| (Ok(answer), report));
        // With a window, the record that the call belongs to is known only now.
        let label = report
            .filter(|_| key.window.is_some())
            .map_or(label, |report| world.server.name(report.key));
        let outcome = match answer {
            Ok(Ok(value)) => Outcome::Value(value.into()),
            Ok(Err(Failure::Declined(value))) => Outcome::StoredError(value.into()),
            Ok(Err(Failure::Guard(kind))) if kind == "Mismatch" => Outcome::Mismatch,
            Ok(Err(Failure::Guard(kind))) => Outcome::Error(kind),
            Ok(Err(failure)) => Outcome::Error(format!("{failure:?}")),
            Err(_) => Outcome::Error("panic".to_owned()),
        };
        self.life.goes_on().await;
        // A call with a window may start anew some times, each time with the patience that it had.
        let starts = if key.window.is_some() { 5 } else { 1 };
        let bound =
            self.bound(patience) * starts + Duration::from_millis(spent.load(Ordering::Relaxed));
        let (process, ended) = (self.life.name.clone(), world.now());
        world.log.write(Entry::Called(Called {
            process,
            key: label,
            fingerprint,
            in_calm,
            started,
            ended,
            bound,
            outcome,
        }));
    }

    /// The record of `key`, in the window of now where it has one.
    pub fn record(&self, key: &Key) -> RecordHandle {
        match key.window {
            Some(length) => self.engine.record(OPERATION, (key.number, window(length))),
            None => self.engine.record(OPERATION, key.number),
        }
    }

    /// How long a call may take beside its body and its question: it waits for others until its
    /// patience is over, claims, stores, and waits once more for the result of who has overtaken
    /// it.
    fn bound(&self, patience: Option<Duration>) -> Duration {
        let plan = &self.world.plan;
        let settle = plan.settle;
        let claims = plan.claim_timeout * 6 + plan.lease * 2;
        patience.unwrap_or_default() * 2
            + claims
            + settle
            + plan.commit_timeout * 3
            + Duration::from_secs(1)
    }
}

/// What a caller wants.
pub struct Wish {
    pub key: Key,
    pub fingerprint: Option<u64>,
    pub script: Script,
    /// How long it waits for others; `None` if it does not.
    pub patience: Option<Duration>,
    /// Where callers differ: whether this one says hold.
    pub is_strict: bool,
}

impl Wish {
    fn new(world: &World, random: &mut Random) -> Self {
        let plan = &world.plan;
        let key = plan.keys[index(random, plan.keys.len())].clone();
        Self {
            fingerprint: (key.has_fingerprints && random.chance(80))
                .then(|| u64::from(random.chance(30))),
            script: Script::new(random, plan.lease),
            patience: random.chance(70).then(|| Duration::from_millis(500) * number(random, 1, 40)),
            is_strict: random.chance(50),
            key,
        }
    }
}

async fn make(call: Call, site: Site, is_strict: bool) -> Result<String, Failure> {
    let (settle, class, asked) = (site.world.plan.settle, site.key.class, site.clone());
    let on_crash = match class {
        Class::VerifyByKey | Class::VerifyWhenOver => {
            let call =
                call.on_error(Failure::policy).settle(settle).on_crash_verify(|_| asked.question());
            return call.run(|| site.body()).await;
        }
        Class::Hold | Class::InTask => OnCrash::Hold,
        Class::Mixed if is_strict => OnCrash::Hold,
        Class::Retry | Class::Mixed => OnCrash::Retry,
        Class::Resume | Class::ResumeOnce | Class::InTaskResume => OnCrash::Resume,
    };
    let policy: fn(&Failure) -> OnError =
        if class.has_steps() { Failure::policy_with_steps } else { Failure::policy };
    call.on_error(policy).on_crash(on_crash).run(|| site.body()).await
}
