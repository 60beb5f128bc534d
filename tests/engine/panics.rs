//! Code of the user that panics: bodies, results, hooks, stores.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use idempotency::clock::{Clock, Randomness, Sleep, Timestamp};
use idempotency::record::State;
use idempotency::store::{MemoryStore, Operation, Reason};
use idempotency::testing::ManualClock;
use idempotency::{Error, ErrorAction, ErrorKind, Idempotency, OnCrash, Verdict};
use serde::{Deserialize, Serialize};

use crate::faults::{Fault, Gate};
use crate::world::{DAY, LEASE, OPERATION, World, eventually, poll_once};

async fn is_in_doubt(world: &World, reason: Reason) {
    world.record_is(1, |record| record.is_some_and(|record| record.state == State::InDoubt)).await;
    assert_eq!(world.record(1).await.unwrap().reason, Some(reason));
    assert_eq!(world.charge(1).await.unwrap_err().kind(), ErrorKind::InDoubt);
}

async fn nothing_is_held(world: &World) {
    let drained = world.while_time_passes(world.engine.shutdown(Duration::from_secs(60))).await;
    assert_eq!(drained.abandoned, 0);
}

/// A server that catches panics keeps the future, or drops it when nothing unwinds any more.
#[tokio::test]
async fn a_panic_that_the_caller_catches_is_an_unknown_outcome_at_once() {
    let world = World::new();
    let mut call = Box::pin(world.call(1).run(|| async {
        world.effect(1)?;
        tokio::task::yield_now().await;
        panic!("the body breaks");
        #[expect(unreachable_code, reason = "it gives the result its type")]
        Ok::<(), Error>(())
    }));
    assert!(AssertUnwindSafe(&mut call).catch_unwind().await.is_err());
    is_in_doubt(&world, Reason::Panicked).await;
    nothing_is_held(&world).await;
    drop(call);
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn a_panic_before_the_first_await_of_the_body_is_an_unknown_outcome() {
    let world = World::new();
    let call = world.call(1).run(|| {
        world.ledger.charge("charge 1");
        assert_ne!(world.ledger.count(), 1, "the body breaks");
        async { Ok::<_, Error>(()) }
    });
    assert!(AssertUnwindSafe(call).catch_unwind().await.is_err());
    is_in_doubt(&world, Reason::Panicked).await;
}

#[tokio::test]
async fn a_body_that_is_dropped_by_another_panic_was_dropped() {
    let world = World::new();
    let mut call = Box::pin(world.call(1).run(std::future::pending::<Result<String, Error>>));
    assert!(poll_once(&mut call).is_pending());
    let other = async move {
        let _dropped_by_the_panic = call;
        panic!("somebody else breaks");
    };
    assert!(AssertUnwindSafe(other).catch_unwind().await.is_err());
    is_in_doubt(&world, Reason::Dropped).await;
}

#[derive(Debug, Deserialize)]
struct Breaks;

impl Serialize for Breaks {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        panic!("the result breaks")
    }
}

#[tokio::test]
async fn a_result_that_panics_when_it_is_encoded_is_an_unknown_outcome() {
    let world = World::new();
    let call = world.call(1).run(|| async {
        world.effect(1)?;
        Ok::<_, Error>(Breaks)
    });
    assert!(AssertUnwindSafe(call).catch_unwind().await.is_err());
    is_in_doubt(&world, Reason::Panicked).await;
    nothing_is_held(&world).await;
}

#[tokio::test]
async fn a_store_that_panics_at_the_commit_leaves_the_record_in_doubt() {
    let world = World::new();
    world.store.next(Operation::Complete, Fault::Panic);
    assert!(AssertUnwindSafe(world.charge(1)).catch_unwind().await.is_err());
    is_in_doubt(&world, Reason::NotStored).await;
    nothing_is_held(&world).await;
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn a_hook_that_panics_does_not_take_the_winner_s_result_away() {
    let told = Arc::new(AtomicUsize::new(0));
    let (hook, count) = (told.clone(), || told.load(Ordering::SeqCst));
    let world = World::with(|builder| {
        builder.on_duplicate(move |_| {
            hook.fetch_add(1, Ordering::SeqCst);
            panic!("the hook breaks")
        })
    });
    let (there, gate) = (world.other_process(), Gate::new());
    world.store.always(Operation::Renew, Some(Fault::LostRequest));
    let stalled = world.call(1).on_crash(OnCrash::Retry).run(|| async {
        gate.wait().await;
        world.effect(1)
    });
    let taker = async {
        world.record_is(1, |record| record.is_some()).await;
        world.clock.advance(LEASE + Duration::from_millis(1));
        let taken = there.call(1).on_crash(OnCrash::Retry).run(|| async { there.effect(1) }).await;
        gate.open();
        taken
    };
    let (stalled, winner) = tokio::join!(stalled, taker);
    let winner = winner.unwrap();
    assert_eq!((stalled.unwrap(), count()), (winner.clone(), 1));
    assert_eq!(world.engine.duplicates(), 1);
    nothing_is_held(&world).await;
    assert_eq!(there.charge(1).await.unwrap(), winner);
}

#[tokio::test]
async fn a_function_over_errors_that_panics_releases_nothing() {
    let world = World::new();
    let classify = |_: &Error| -> ErrorAction { panic!("the function breaks") };
    // Any error will do: this is one of a call inside.
    let call = world.call(1).on_error(classify).run(|| async {
        world.effect(1)?;
        world.charge(1).await
    });
    assert!(AssertUnwindSafe(call).catch_unwind().await.is_err());
    is_in_doubt(&world, Reason::Panicked).await;
    nothing_is_held(&world).await;
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn a_question_that_panics_runs_no_body() {
    for in_encoding in [false, true] {
        let world = World::new();
        let left = world.call(1).on_crash_verify(async |_| Ok(Verdict::Unknown)).run(|| async {
            world.effect(1)?;
            std::future::pending::<Result<Breaks, Error>>().await
        });
        let mut left = Box::pin(left);
        eventually("the effect", async || {
            assert!(poll_once(&mut left).is_pending());
            world.ledger.count() == 1
        })
        .await;
        drop(left);
        world
            .record_is(1, |record| {
                record.is_some_and(|record| record.reason == Some(Reason::Dropped))
            })
            .await;
        let question = async |_| {
            assert!(in_encoding, "the question breaks");
            Ok(Verdict::Completed(Breaks))
        };
        let asks = world.call(1).settle(Duration::ZERO).on_crash_verify(question).run(|| async {
            world.effect(1)?;
            Ok::<_, Error>(Breaks)
        });
        assert!(AssertUnwindSafe(asks).catch_unwind().await.is_err());
        is_in_doubt(&world, Reason::Unverified).await;
        nothing_is_held(&world).await;
        assert_eq!(world.ledger.count(), 1);
    }
}

#[tokio::test]
async fn a_fingerprint_or_a_random_source_that_panics_claims_nothing() {
    #[derive(Debug)]
    struct Unlucky;
    impl Randomness for Unlucky {
        fn fill(&self, _: &mut [u8]) -> std::io::Result<()> {
            panic!("the source breaks")
        }
    }
    let world = World::with(|builder| builder.randomness(Unlucky));
    let fingerprinted =
        std::panic::catch_unwind(AssertUnwindSafe(|| world.call(1).fingerprint(&Breaks)));
    assert!(fingerprinted.is_err());
    assert!(AssertUnwindSafe(world.charge(1)).catch_unwind().await.is_err());
    assert_eq!(world.store.requests(Operation::Claim), 0);
    nothing_is_held(&world).await;
    assert_eq!(world.other_process().charge(1).await.unwrap(), "receipt 1.1");
}

/// A reader that panics is its caller's own misfortune.
#[tokio::test]
async fn an_upgrade_that_panics_leaves_the_result_to_the_others() {
    let world = World::new();
    let receipt = world.charge(1).await.unwrap();
    let reads = || world.call(1).version(2);
    let broken =
        reads().run_with_upgrade(|_, _| panic!("the upgrade breaks"), || async { world.effect(1) });
    assert!(AssertUnwindSafe(broken).catch_unwind().await.is_err());
    let upgrade = |_: u32, body: &[u8]| serde_json::from_slice::<String>(body).ok();
    let read = reads().run_with_upgrade(upgrade, || async { world.effect(1) }).await;
    assert_eq!((read.unwrap(), world.ledger.count()), (receipt, 1));
}

/// The time, which breaks once on the test's own thread.
#[derive(Clone, Debug)]
struct Breaking {
    clock: ManualClock,
    left: Arc<AtomicUsize>,
    thread: std::thread::ThreadId,
}

impl Breaking {
    fn tick(&self) {
        let is_here = std::thread::current().id() == self.thread;
        let last = |left: usize| left.checked_sub(1);
        let before =
            is_here.then(|| self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, last));
        assert_ne!(before, Some(Ok(1)), "the clock breaks");
    }
}

impl Clock for Breaking {
    fn now(&self) -> Timestamp {
        self.tick();
        self.clock.now()
    }

    fn monotonic(&self) -> Duration {
        self.tick();
        self.clock.monotonic()
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        self.tick();
        self.clock.sleep(duration)
    }
}

/// It is asked before the claim, between claim and body, in the body, and at the commit.
#[tokio::test]
async fn a_clock_that_panics_at_any_question_makes_no_second_effect() {
    let mut broke = 0;
    for question in 1.. {
        let left = Arc::new(AtomicUsize::new(0));
        let breaking = left.clone();
        let thread = std::thread::current().id();
        let clock = ManualClock::new();
        let memory = MemoryStore::with_clock(clock.clone());
        let engine =
            |clock: Breaking| Idempotency::builder(memory.clone()).clock(clock).build().unwrap();
        let world = World::with(|builder| builder);
        let effects = &world.ledger;
        let charge = async |engine: &Idempotency| {
            let call = engine.call(OPERATION, 1).ttl(DAY).run(|| async {
                effects.charge("charge");
                Ok::<_, Error>(effects.count())
            });
            call.await
        };
        let here = engine(Breaking { clock: clock.clone(), left: breaking, thread });
        left.store(question, Ordering::SeqCst);
        let first = AssertUnwindSafe(charge(&here)).catch_unwind().await;
        if left.swap(0, Ordering::SeqCst) > 0 {
            assert_eq!(first.unwrap().unwrap(), 1);
            break;
        }
        broke += 1;
        clock.advance(LEASE + Duration::from_millis(1));
        let there = engine(Breaking { clock: clock.clone(), left: Arc::default(), thread });
        let second = charge(&there).await;
        assert!(effects.count() <= 1, "question {question}");
        match (first, second) {
            (Ok(Ok(first)), second) => assert_eq!(second.unwrap(), first, "question {question}"),
            (_, Ok(second)) => assert_eq!(second, 1, "question {question}"),
            (_, Err(error)) => {
                assert_eq!(error.kind(), ErrorKind::InDoubt, "question {question}: {error}");
            }
        }
    }
    assert!(broke > 5, "the clock is asked {broke} times");
}
