//! The run: who takes part, and for how long.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use idempotency::key::KeyHash;
use idempotency::store::{Store, StoreError, WriteOutcome};
use idempotency_test_support::random::{Random, seed};
use tokio::task::JoinSet;

use crate::log::{Class, Key, Log, Span, Write};
use crate::stores::Subject;
use crate::{caller, operator, rules};

const CALLERS: usize = 64;
const OPERATORS: usize = 2;
/// How many keys are called at one time.
const PLACES: usize = 40;
/// After this many calls of a key, another one takes its place.
const CALLS_OF_A_KEY: u64 = 30;
const SHORT: Duration = Duration::from_secs(6);
const LONG: Duration = Duration::from_secs(120);
/// How much longer the storm goes on where something that it is about has not happened: on a busy
/// machine little does.
const LONGER: Duration = Duration::from_secs(120);
/// How long a request is repeated that was refused or not answered.
const PATIENCE: Duration = Duration::from_secs(20);

/// What all tasks share.
pub struct Scene<S> {
    pub store: Arc<S>,
    pub lease: Duration,
    pub log: Log,
    is_over: AtomicBool,
    places: Vec<Mutex<Place>>,
    results: AtomicU64,
}

/// Where a key is called until it has been called often enough.
struct Place {
    key: KeyHash,
    calls: u64,
}

/// Lets the storm pass over a store, and looks whether it kept the rules.
pub async fn storm<S: Store>(subject: Subject<S>) -> anyhow::Result<()> {
    let seed = seed();
    let run = run(subject, Random::new(seed)).await;
    run.with_context(|| format!("IDEMPOTENCY_SEED={seed} repeats the choices"))
}

async fn run<S: Store>(subject: Subject<S>, mut random: Random) -> anyhow::Result<()> {
    let duration = if std::env::var_os("IDEMPOTENCY_LONG").is_some() { LONG } else { SHORT };
    let scene = Arc::new(
        Scene {
            store: subject.store,
            lease: subject.lease,
            log: Log::default(),
            is_over: AtomicBool::new(false),
            places: Vec::new(),
            results: AtomicU64::new(0),
        }
        .with_places(&mut random),
    );
    let mut tasks = JoinSet::new();
    for number in 0..CALLERS {
        tasks.spawn(caller::calls(Arc::clone(&scene), number, random.fork()));
    }
    for _ in 0..OPERATORS {
        tasks.spawn(operator::resolves(Arc::clone(&scene), random.fork()));
    }
    tasks.spawn(operator::purges(Arc::clone(&scene)));
    tasks.spawn(ends(Arc::clone(&scene), duration));
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    operator::reads_all(&scene).await?;
    let keys = scene.log.all();
    let broken: Vec<_> = keys.values().flat_map(rules::broken).collect();
    ensure!(broken.is_empty(), "{} rules were broken:\n{}", broken.len(), broken.join("\n"));
    let counts = counts(&keys);
    println!("{} keys: {counts:?}", keys.len());
    match missing(&counts) {
        Some(what) => bail!("there were no {what}: {counts:?}"),
        None => Ok(()),
    }
}

/// Ends the storm after `duration`, and not before each of what it is about has happened.
async fn ends<S: Store>(scene: Arc<Scene<S>>, duration: Duration) -> anyhow::Result<()> {
    let began = Instant::now();
    tokio::time::sleep(duration).await;
    while missing(&counts(&scene.log.all())).is_some() && began.elapsed() < duration + LONGER {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    scene.is_over.store(true, Ordering::Relaxed);
    Ok(())
}

type Counts = [(&'static str, usize); 10];

/// What has not happened.
fn missing(counts: &Counts) -> Option<&'static str> {
    counts.iter().find(|(_, count)| *count == 0).map(|(what, _)| *what)
}

/// How often each of what a storm is about has happened.
fn counts(keys: &BTreeMap<KeyHash, Key>) -> Counts {
    let count = |what: fn(&Key) -> usize| keys.values().map(what).sum::<usize>();
    let writes = |key: &Key, write, answer: fn(WriteOutcome) -> bool| {
        key.writes.iter().filter(|written| written.write == write && answer(written.answer)).count()
    };
    let lost = |written| matches!(written, WriteOutcome::Lost | WriteOutcome::Gone);
    [
        ("effects", count(|key| key.effects.len())),
        ("takeovers", count(|key| key.grants.iter().filter(|grant| grant.taken_over).count())),
        (
            "renewals",
            keys.values().map(|key| writes(key, Write::Renew, WriteOutcome::is_done)).sum(),
        ),
        (
            "commits",
            keys.values().map(|key| writes(key, Write::Commit, WriteOutcome::is_done)).sum(),
        ),
        (
            "releases",
            keys.values().map(|key| writes(key, Write::Release, WriteOutcome::is_done)).sum(),
        ),
        (
            "owners that gave up",
            keys.values().map(|key| writes(key, Write::Abandon, WriteOutcome::is_done)).sum(),
        ),
        (
            "owners in doubt",
            keys.values().map(|key| writes(key, Write::Park, WriteOutcome::is_done)).sum(),
        ),
        (
            "commits that came too late",
            keys.values().map(|key| writes(key, Write::Commit, lost)).sum(),
        ),
        ("answers of operators", count(|key| key.resolved.len())),
        ("fences", count(|key| key.fences.len())),
    ]
}

impl<S: Store> Scene<S> {
    fn with_places(mut self, random: &mut Random) -> Self {
        for _ in 0..PLACES {
            let place = self.place(random);
            self.places.push(Mutex::new(place));
        }
        self
    }

    /// A place with a key that nobody has called.
    fn place(&self, random: &mut Random) -> Place {
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(&random.token().to_be_bytes());
        let key = KeyHash::from_bytes(bytes);
        let classes = Class::ALL;
        let class = classes[usize::try_from(random.below(3)).unwrap_or_default()];
        self.log.add(key, Key::new(format!("{}-{class:?}", &key.to_hex()[..8]), class));
        Place { key, calls: 0 }
    }

    /// The key for the next call.
    pub fn next_key(&self, random: &mut Random) -> KeyHash {
        let number = usize::try_from(random.below(PLACES as u64)).unwrap_or_default();
        let mut place = self.places[number].lock().unwrap_or_else(PoisonError::into_inner);
        if place.calls >= CALLS_OF_A_KEY {
            *place = self.place(random);
        }
        place.calls += 1;
        place.key
    }

    /// A number for a result, so that no two are the same.
    pub fn next_result(&self) -> u64 {
        self.results.fetch_add(1, Ordering::Relaxed)
    }

    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }
}

/// The answer to a request, which is repeated as long as it is not answered. Any other error fails
/// the test.
pub async fn answered<A, F>(request: impl Fn() -> F) -> anyhow::Result<(A, Span)>
where
    F: Future<Output = Result<A, StoreError>>,
{
    let first_sent = Instant::now();
    loop {
        let sent = Instant::now();
        match request().await {
            Ok(answer) => return Ok((answer, Span { first_sent, sent, answered: Instant::now() })),
            Err(error) if error.is_transient() && first_sent.elapsed() < PATIENCE => {
                // A pool or a lock that is busy now; there is nothing that would tell when it no
                // longer is.
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Err(error) => return Err(error).context("the store failed"),
        }
    }
}
