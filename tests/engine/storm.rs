//! Ends of calls under a storm: as many are reported as calls were polled, however they end.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use idempotency::events::{Event, Interest, Observer, What};
use idempotency::store::{MemoryStore, Operation, StoreErrorKind};
use idempotency::{Idempotency, OnConflict, OnCrash};
use idempotency_test_support::random::Random;

use crate::faults::{Fault, FaultyStore};
use crate::world::{DAY, OPERATION, eventually};

const CALLS: u64 = 2_000;
const KEYS: u64 = 60;

/// Counts ends, by their names.
#[derive(Default)]
struct Ends {
    all: AtomicU64,
    seen: Mutex<BTreeMap<&'static str, u64>>,
}

impl Observer for Ends {
    fn interest(&self) -> Interest {
        Interest::FINISHED
    }

    fn observe(&self, event: &Event<'_>) {
        if let What::Finished { outcome, .. } = event.what {
            self.all.fetch_add(1, Ordering::SeqCst);
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            *seen.entry(outcome.name()).or_default() += 1;
        }
    }
}

/// What becomes of one call.
async fn one(engine: Idempotency, mut random: Random, polled: Arc<AtomicU64>) {
    let key = random.below(KEYS);
    let (end, pauses) = (random.below(10), random.below(4));
    let mut call = engine.call(OPERATION, key).ttl(DAY).on_conflict(match random.below(3) {
        0 => OnConflict::Reject,
        _ => OnConflict::Wait(Duration::from_millis(20)),
    });
    if random.chance(50) {
        call = call.on_crash(OnCrash::Retry);
    }
    let body = async move || {
        for _ in 0..pauses {
            tokio::task::yield_now().await;
        }
        match end {
            0..=5 => Ok("receipt".to_owned()),
            // Without the message of a panic.
            6 => std::panic::resume_unwind(Box::new("the provider's client")),
            7 => std::future::pending().await,
            _ => Err(anyhow::anyhow!("declined")),
        }
    };
    let given_up = random.duration_below(Duration::from_millis(30));
    let polls = async move {
        polled.fetch_add(1, Ordering::SeqCst);
        call.run(body).await
    };
    // Its caller goes away at some time.
    let _ = tokio::time::timeout(given_up, polls).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn as_many_ends_are_reported_as_calls_were_polled() {
    let (ends, polled) = (Arc::new(Ends::default()), Arc::new(AtomicU64::new(0)));
    // A clone: no request has to meet each of the faults.
    let store = FaultyStore::new(MemoryStore::new()).clone();
    let engine =
        Idempotency::builder(store.clone()).observer(ends.clone()).build().expect("valid settings");
    let mut random = Random::new(7);
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..CALLS {
        if number % 5 == 0 {
            let fault = match random.below(3) {
                0 => Fault::LostAnswer,
                1 => Fault::LostRequest,
                _ => Fault::Refused(StoreErrorKind::Full),
            };
            let operations =
                [Operation::Claim, Operation::Complete, Operation::Release, Operation::Park];
            let at = usize::try_from(random.below(4)).expect("an index");
            store.next(operations[at], fault);
        }
        if number == CALLS / 2 {
            engine.disable(OPERATION);
        } else if number == CALLS / 2 + 50 {
            engine.enable(OPERATION);
        }
        calls.spawn(one(engine.clone(), random.fork(), polled.clone()));
        if number % 20 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if number == CALLS - 100 {
            // The rest is refused.
            let engine = engine.clone();
            tokio::spawn(async move { engine.shutdown(Duration::from_millis(50)).await });
        }
    }
    while let Some(ended) = calls.join_next().await {
        // The panics of the bodies.
        let _ = ended;
    }
    eventually("the ends", async || {
        ends.all.load(Ordering::SeqCst) >= polled.load(Ordering::SeqCst)
    })
    .await;
    let seen = ends.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert_eq!(ends.all.load(Ordering::SeqCst), polled.load(Ordering::SeqCst), "{seen:?}");
    for name in ["executed", "replayed", "refused", "dropped", "panicked"] {
        assert!(seen.contains_key(name), "no call was {name}: {seen:?}");
    }
}
