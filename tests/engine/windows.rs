//! Keys with a window of time, at the edges of windows.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use idempotency::clock::{Clock as _, Timestamp};
use idempotency::key::{IntoKey, window};
use idempotency::store::{
    Claim, ClaimOutcome, CrashPolicy, Operation, Reason, Scan, Store as _, StoreErrorKind, Token,
};
use idempotency::testing::ClockJump;
use idempotency::{Call, Error, ErrorAction, ErrorKind, OnConflict, OnCrash, Verdict, with_report};

use crate::faults::{Fault, Gate};
use crate::world::{DAY, LEASE, OPERATION, World, eventually, poll_once, without_renewals};

const HOUR: Duration = Duration::from_secs(3600);
const MILLI: Duration = Duration::from_millis(1);

/// A world whose clock stands at the beginning of a window.
fn world() -> World {
    let world = World::new();
    let now = world.clock.now().as_millis();
    world.clock.advance(HOUR.saturating_sub(Duration::from_millis(now % 3_600_000)));
    world
}

fn call(world: &World) -> Call {
    world.engine.call(OPERATION, ("ada", window(HOUR))).ttl(DAY)
}

async fn send(world: &World) -> Result<String, Error> {
    call(world).run(|| async { world.effect(1) }).await
}

#[tokio::test]
async fn calls_in_one_window_are_one_call() {
    let world = world();
    assert_eq!(send(&world).await.unwrap(), "receipt 1.1");
    world.clock.advance(HOUR.saturating_sub(MILLI));
    assert_eq!(send(&world).await.unwrap(), "receipt 1.1");
    assert_eq!(
        world.store.requests(Operation::Read),
        1,
        "the window before is asked by who would run the body"
    );
}

#[tokio::test]
async fn a_call_just_after_the_end_of_a_window_gets_the_result_of_the_one_before() {
    let world = world();
    world.clock.advance(HOUR.saturating_sub(MILLI));
    assert_eq!(send(&world).await.unwrap(), "receipt 1.1");
    world.clock.advance(MILLI);
    let (result, report) = with_report(send(&world)).await;
    assert_eq!(result.unwrap(), "receipt 1.1");
    let report = report.unwrap();
    assert!(report.replayed);
    assert_ne!(
        report.key,
        world.engine.record(OPERATION, ("ada", window(HOUR))).hash().unwrap(),
        "the window before"
    );
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn a_repetition_within_the_length_is_always_recognised_and_one_after_twice_the_length_never()
{
    for start in [Duration::ZERO, HOUR / 2, HOUR.saturating_sub(MILLI)] {
        for (later, runs) in [(HOUR.saturating_sub(MILLI), 1), (HOUR, 1), (HOUR * 2, 2)] {
            let world = world();
            world.clock.advance(start);
            send(&world).await.unwrap();
            world.clock.advance(later);
            send(&world).await.unwrap();
            assert_eq!(
                world.ledger.count(),
                runs,
                "started at {start:?}, repeated after {later:?}"
            );
        }
    }
}

/// A clock shows whole milliseconds, and calls come at any time.
#[tokio::test]
async fn a_repetition_less_than_a_millisecond_before_the_length_is_recognised() {
    let (world, part) = (world(), Duration::from_micros(900));
    let send = || {
        world
            .engine
            .call(OPERATION, ("ada", window(HOUR)))
            .ttl(HOUR)
            .run(|| async { world.effect(1) })
    };
    world.clock.advance(part);
    send().await.unwrap();
    world.clock.advance(HOUR.saturating_sub(Duration::from_micros(300)));
    assert_eq!(send().await.unwrap(), "receipt 1.1");
}

#[tokio::test]
async fn the_first_window_of_all_has_none_before_it() {
    let world = World::new();
    world.clock.set_wall(Timestamp::default());
    assert_eq!(send(&world).await.unwrap(), "receipt 1.1");
    assert_eq!(world.store.requests(Operation::Read), 0, "there is no window before to ask");
    world.clock.advance(HOUR);
    assert_eq!(send(&world).await.unwrap(), "receipt 1.1");
    world.clock.advance(HOUR);
    assert_eq!(send(&world).await.unwrap(), "receipt 1.2");
}

/// A pitfall that the documentation names.
#[tokio::test]
async fn a_clock_that_is_set_back_over_the_beginning_of_a_window_runs_again() {
    let world = world();
    send(&world).await.unwrap();
    world.clock.jump(ClockJump::Back(MILLI));
    assert_eq!(send(&world).await.unwrap(), "receipt 1.2", "its window is still to come");
    world.clock.jump(ClockJump::Forward(MILLI));
    assert_eq!(
        send(&world).await.unwrap(),
        "receipt 1.1",
        "the record of the window itself comes first"
    );
}

#[tokio::test]
async fn a_replay_does_not_prolong_the_window() {
    let world = world();
    for runs in [1, 1, 2] {
        send(&world).await.unwrap();
        assert_eq!(world.ledger.count(), runs);
        world.clock.advance(HOUR);
    }
}

#[tokio::test]
async fn a_call_waits_for_the_one_that_runs_in_the_window_before() {
    let world = world();
    world.clock.advance(HOUR.saturating_sub(MILLI));
    let there = world.other_process();
    let (gate, started) = (Gate::new(), Gate::new());
    let first = call(&world).run(|| async {
        started.open();
        gate.wait().await;
        world.effect(1)
    });
    let second = async {
        started.wait().await;
        world.clock.advance(MILLI);
        let refused =
            call(&there).on_conflict(OnConflict::Reject).run(|| async { world.effect(1) }).await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InProgress);
        let mut waiting = Box::pin(send(&there));
        eventually("the second call to wait", async || {
            assert!(poll_once(&mut waiting).is_pending());
            there.store.requests(Operation::Watch) > 0
        })
        .await;
        gate.open();
        waiting.await
    };
    let (first, second) = tokio::join!(first, second);
    assert_eq!(
        (first.unwrap(), second.unwrap()),
        ("receipt 1.1".to_owned(), "receipt 1.1".to_owned())
    );
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn a_released_call_of_the_window_before_leaves_the_window_to_the_next() {
    let world = world();
    let refused: Result<String, Error> =
        call(&world).run(|| async { Err(Error::from(refusal())) }).await;
    assert!(refused.is_err());
    world.clock.advance(HOUR);
    assert_eq!(send(&world).await.unwrap(), "receipt 1.1");
    world.clock.advance(HOUR);
    assert_eq!(send(&world).await.unwrap(), "receipt 1.1", "its record is in its own window");
}

fn refusal() -> idempotency::store::StoreError {
    idempotency::store::StoreError::new(StoreErrorKind::Refused, Operation::Claim)
}

#[tokio::test]
async fn a_call_in_doubt_in_the_window_before_keeps_the_next_from_running() {
    let world = world();
    let held = call(&world)
        .on_error(ErrorAction::Hold)
        .run(|| async { Err::<String, _>(Error::from(refusal())) });
    held.await.unwrap_err();
    world.clock.advance(HOUR);
    let error = send(&world).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InDoubt);
    assert_eq!(world.ledger.count(), 0);
}

#[tokio::test]
async fn a_dead_owner_in_the_window_before_is_taken_over_there() {
    let world = world();
    let mut crashed = Box::pin(call(&world).on_crash(OnCrash::Retry).run(|| async {
        world.effect(1)?;
        std::future::pending::<Result<String, Error>>().await
    }));
    eventually("the effect", async || {
        assert!(poll_once(&mut crashed).is_pending());
        world.ledger.count() == 1
    })
    .await;
    drop(crashed);
    let record = world.engine.record(OPERATION, ("ada", window(HOUR)));
    eventually("the claim to be given up", async || {
        record.inspect().await.unwrap().is_some_and(|view| view.reason == Some(Reason::Dropped))
    })
    .await;
    world.clock.advance(HOUR);
    let (result, report) =
        with_report(call(&world).on_crash(OnCrash::Retry).run(|| async { world.effect(1) })).await;
    assert_eq!(result.unwrap(), "receipt 1.2");
    assert_eq!(report.unwrap().attempt, 2);
    world.clock.advance(HOUR);
    assert_eq!(send(&world).await.unwrap(), "receipt 1.3", "it counts from when it began");
}

#[tokio::test]
async fn a_claim_that_is_granted_in_the_next_window_starts_anew_there() {
    let world = world();
    world.clock.advance(HOUR.saturating_sub(MILLI));
    let gate = Gate::new();
    world.store.next(Operation::Claim, Fault::LateAnswer(gate.clone()));
    let mut first = Box::pin(send(&world));
    assert!(poll_once(&mut first).is_pending());
    world.clock.advance(MILLI);
    gate.open();
    assert_eq!(first.await.unwrap(), "receipt 1.1");
    world.clock.advance(HOUR);
    assert_eq!(
        send(&world).await.unwrap(),
        "receipt 1.1",
        "the record is in the window in which the body started"
    );
}

#[tokio::test]
async fn a_store_that_cannot_tell_about_the_window_before_runs_nothing_and_keeps_nothing() {
    let world = world();
    world.store.next(Operation::Read, Fault::Refused(StoreErrorKind::Corrupt));
    assert_eq!(send(&world).await.unwrap_err().kind(), ErrorKind::Decode);
    assert_eq!(world.ledger.count(), 0);
    let before = world.clock_now();
    assert_eq!(send(&world).await.unwrap(), "receipt 1.1");
    assert!(world.clock_now().saturating_sub(before) < LEASE, "nobody waited for a lease");
}

/// A process that dies with the claim of the window of now in its hand, before it has looked at the
/// window before.
async fn dies_before_it_looks(world: &World, policy: CrashPolicy) {
    let key = world.engine.record(OPERATION, ("ada", window(HOUR))).hash().unwrap();
    let mut claim = Claim::new(key, Token::from_bits(1), OPERATION.into());
    (claim.policy, claim.lease) = (policy, LEASE);
    assert!(matches!(world.memory.claim(claim).await.unwrap(), ClaimOutcome::Granted(_)));
}

/// The outside world is asked, and says that nothing happened.
async fn ask(world: &World, asked: &AtomicUsize) -> Result<String, Error> {
    let question = |_| async {
        asked.fetch_add(1, Ordering::Relaxed);
        Ok::<_, Error>(Verdict::NotExecuted)
    };
    call(world)
        .settle(Duration::ZERO)
        .on_crash_verify(question)
        .run(|| async { world.effect(1) })
        .await
}

#[tokio::test]
async fn who_takes_over_a_claim_that_only_looked_looks_too() {
    let asked = AtomicUsize::new(0);
    for policy in [CrashPolicy::Retry, CrashPolicy::Resume, CrashPolicy::Verify] {
        let world = world();
        world.clock.advance(HOUR.saturating_sub(MILLI));
        assert_eq!(send(&world).await.unwrap(), "receipt 1.1");
        world.clock.advance(MILLI);
        dies_before_it_looks(&world, policy).await;
        world.clock.advance(LEASE);
        let repeated = match policy {
            CrashPolicy::Verify => ask(&world, &asked).await,
            CrashPolicy::Resume => {
                call(&world).on_crash(OnCrash::Resume).run(|| async { world.effect(1) }).await
            }
            _ => call(&world).on_crash(OnCrash::Retry).run(|| async { world.effect(1) }).await,
        };
        assert_eq!(repeated.unwrap(), "receipt 1.1", "{policy:?}");
        assert_eq!(world.ledger.count(), 1);
    }
    assert_eq!(asked.into_inner(), 0);
}

#[tokio::test]
async fn under_hold_a_claim_that_only_looked_is_in_doubt_and_never_runs() {
    let world = world();
    send(&world).await.unwrap();
    world.clock.advance(HOUR);
    dies_before_it_looks(&world, CrashPolicy::Hold).await;
    world.clock.advance(LEASE);
    assert_eq!(send(&world).await.unwrap_err().kind(), ErrorKind::InDoubt);
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn nothing_is_asked_about_a_claim_that_only_looked() {
    let (world, asked) = (world(), AtomicUsize::new(0));
    dies_before_it_looks(&world, CrashPolicy::Verify).await;
    world.clock.advance(LEASE);
    assert_eq!(ask(&world, &asked).await.unwrap(), "receipt 1.1");
    assert_eq!(asked.into_inner(), 0, "nothing can have happened");
}

#[tokio::test]
async fn a_call_that_takes_such_a_claim_over_and_fails_leaves_the_window_to_the_next() {
    for policy in [CrashPolicy::Retry, CrashPolicy::Verify] {
        let (world, asked) = (world(), AtomicUsize::new(0));
        dies_before_it_looks(&world, policy).await;
        world.clock.advance(LEASE);
        let fails = async || Err::<String, _>(Error::from(refusal()));
        let failed = match policy {
            CrashPolicy::Verify => {
                let question = async |_| Ok::<_, Error>(Verdict::NotExecuted);
                call(&world).on_crash_verify(question).run(fails).await
            }
            _ => call(&world).on_crash(OnCrash::Retry).run(fails).await,
        };
        failed.unwrap_err();
        let records = world.memory.scan(Scan::default()).await.unwrap().records;
        assert!(records.is_empty(), "{policy:?}: its record is gone: {records:?}");
        // Without it, the window of a later call begins with that call.
        world.clock.advance(HOUR.saturating_sub(MILLI));
        assert_eq!(ask(&world, &asked).await.unwrap(), "receipt 1.1", "{policy:?}");
        assert_eq!(asked.into_inner(), 0, "{policy:?}: nothing can have happened");
        world.clock.advance(HOUR.saturating_sub(MILLI));
        assert_eq!(send(&world).await.unwrap(), "receipt 1.1", "{policy:?}: within its window");
    }
}

#[tokio::test]
async fn a_body_that_broke_off_is_taken_over_in_its_window_and_asked_about() {
    let (world, asked) = (world(), AtomicUsize::new(0));
    let crashes = |world| {
        let question = |_| async { Ok::<_, Error>(Verdict::Unknown) };
        call(world).on_crash_verify(question).run(std::future::pending::<Result<String, Error>>)
    };
    let mut owner = Box::pin(crashes(&world));
    eventually("the body to begin", async || {
        assert!(poll_once(&mut owner).is_pending());
        world.store.requests(Operation::Checkpoint) == 1
    })
    .await;
    assert!(poll_once(&mut owner).is_pending());
    drop(owner);
    eventually("the claim to be given up", async || world.store.requests(Operation::Abandon) == 1)
        .await;
    let looks = world.store.requests(Operation::Read);
    assert_eq!(ask(&world, &asked).await.unwrap(), "receipt 1.1");
    assert_eq!(asked.into_inner(), 1);
    assert_eq!(
        world.store.requests(Operation::Read),
        looks,
        "its window was decided when it began"
    );
}

#[tokio::test]
async fn who_looks_for_longer_than_its_lease_does_not_begin() {
    let (world, gate) = (world(), Gate::new());
    let there = world.other_process();
    there.store.next(Operation::Read, Fault::LateAnswer(gate.clone()));
    there.store.always(Operation::Renew, Some(Fault::LostRequest));
    let mut slow =
        Box::pin(call(&there).on_crash(OnCrash::Retry).run(|| async { there.effect(1) }));
    eventually("the look", async || {
        assert!(poll_once(&mut slow).is_pending());
        there.store.requests(Operation::Read) == 1
    })
    .await;
    world.clock.advance(LEASE);
    let quick = call(&world).on_crash(OnCrash::Retry).run(|| async { world.effect(1) });
    assert_eq!(quick.await.unwrap(), "receipt 1.1");
    gate.open();
    assert_eq!(world.while_time_passes(slow).await.unwrap(), "receipt 1.1");
    assert_eq!(world.ledger.count(), 1);
}

/// The owner in the window before only looked there too: the call belongs to its own window.
#[tokio::test]
async fn a_claim_that_only_looked_in_the_window_before_counts_for_nothing() {
    let world = world();
    dies_before_it_looks(&world, CrashPolicy::Retry).await;
    world.clock.advance(HOUR);
    let retry =
        async || call(&world).on_crash(OnCrash::Retry).run(|| async { world.effect(1) }).await;
    let (result, report) = with_report(retry()).await;
    assert_eq!(result.unwrap(), "receipt 1.1");
    assert_eq!(
        report.unwrap().key,
        world.engine.record(OPERATION, ("ada", window(HOUR))).hash().unwrap()
    );
    world.clock.advance(HOUR);
    assert_eq!(retry().await.unwrap(), "receipt 1.1", "within the length after the one that ran");
    assert_eq!(world.ledger.count(), 1);
}

/// Its word that the window is decided comes after the claim was given up, and after another window
/// was decided on.
#[tokio::test]
async fn who_gave_up_while_it_looked_lets_nobody_begin_afterwards() {
    let world = world();
    dies_before_it_looks(&world, CrashPolicy::Retry).await;
    world.clock.advance(HOUR.saturating_sub(MILLI));
    let retry = |world: &World| call(world).on_crash(OnCrash::Retry);
    let (leaves, slow) = (world.other_process(), world.other_process());
    let (decided, claim) = (Gate::new(), Gate::new());
    leaves.store.next(Operation::Checkpoint, Fault::Late(decided.clone()));
    let mut left = Box::pin(retry(&leaves).run(|| async { leaves.effect(1) }));
    eventually("the look to be over", async || {
        assert!(poll_once(&mut left).is_pending());
        leaves.store.requests(Operation::Checkpoint) == 1
    })
    .await;
    drop(left);
    eventually("the claim to be given back", async || {
        leaves.store.requests(Operation::Release) == 1
    })
    .await;
    slow.store.next(Operation::Claim, Fault::Late(claim.clone()));
    let mut late = Box::pin(retry(&slow).run(|| async { slow.effect(1) }));
    assert!(poll_once(&mut late).is_pending());
    world.clock.advance(MILLI);
    assert_eq!(retry(&world).run(|| async { world.effect(1) }).await.unwrap(), "receipt 1.1");
    decided.open();
    leaves.engine.shutdown(Duration::from_secs(1)).await;
    claim.open();
    assert_eq!(late.await.unwrap(), "receipt 1.1");
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn a_store_that_does_not_say_that_the_look_is_recorded_runs_nothing() {
    let world = world();
    world.store.next(Operation::Checkpoint, Fault::Refused(StoreErrorKind::Corrupt));
    assert_eq!(send(&world).await.unwrap_err().kind(), ErrorKind::Decode);
    assert_eq!(world.ledger.count(), 0);
    let before = world.clock_now();
    assert_eq!(send(&world).await.unwrap(), "receipt 1.1");
    assert!(world.clock_now().saturating_sub(before) < LEASE, "nobody waited for a lease");
}

#[tokio::test]
async fn what_a_window_cannot_be_is_told() {
    let world = world();
    let refused =
        async |key: &dyn Fn() -> Call| key().run(|| async { world.effect(1) }).await.unwrap_err();
    let with = |key: &dyn IntoKeyCall| key.call(&world);
    let short = refused(&|| call(&world).ttl(HOUR.saturating_sub(MILLI))).await;
    assert_eq!(short.kind(), ErrorKind::Config);
    assert!(short.to_string().contains("shorter than the window"), "{short}");
    assert_eq!(refused(&|| with(&window(Duration::ZERO))).await.kind(), ErrorKind::InvalidKey);
    assert_eq!(refused(&|| with(&window(Duration::MAX))).await.kind(), ErrorKind::InvalidKey);
    assert_eq!(refused(&|| with(&(window(HOUR), window(DAY)))).await.kind(), ErrorKind::InvalidKey);
    assert_eq!(refused(&|| call(&world).scope(window(HOUR))).await.kind(), ErrorKind::InvalidKey);
    assert_eq!(world.ledger.count(), 0);
}

trait IntoKeyCall {
    fn call(&self, world: &World) -> Call;
}

impl<K: IntoKey> IntoKeyCall for K {
    fn call(&self, world: &World) -> Call {
        world.engine.call(OPERATION, self).ttl(DAY)
    }
}

#[tokio::test]
async fn windows_of_two_lengths_are_two_keys() {
    let world = world();
    for (length, runs) in [(HOUR, 1), (HOUR * 2, 2), (HOUR, 2)] {
        let call = world.engine.call(OPERATION, ("ada", window(length))).ttl(DAY);
        call.run(|| async { world.effect(1) }).await.unwrap();
        assert_eq!(world.ledger.count(), runs);
    }
    assert!(world.clock.now() > Timestamp::default());
}

#[tokio::test]
async fn a_store_that_stops_after_the_claim_keeps_no_caller_for_its_lease() {
    for operation in [Operation::Read, Operation::Checkpoint] {
        for on_conflict in [OnConflict::Reject, OnConflict::Wait(DAY)] {
            let world = world();
            for stopped in [operation, Operation::Release] {
                world.store.always(stopped, Some(Fault::Refused(StoreErrorKind::Unavailable)));
            }
            let start = world.clock_now();
            let call =
                call(&world).lease(HOUR).on_conflict(on_conflict).run(|| async { world.effect(1) });
            let error = without_renewals(&world, call).await.unwrap_err();
            let took = world.clock_now().saturating_sub(start);
            assert_eq!((error.kind(), world.ledger.count()), (ErrorKind::StoreUnavailable, 0));
            assert!(took < Duration::from_secs(7), "one claim_timeout, not {took:?}");
            for back in [operation, Operation::Release] {
                world.store.always(back, None);
            }
            // The claim is given back as soon as the store is there.
            assert_eq!(without_renewals(&world, send(&world)).await.unwrap(), "receipt 1.1");
            assert!(
                world.clock_now().saturating_sub(start) < HOUR / 2,
                "nobody waited for the lease"
            );
        }
    }
}

#[tokio::test]
async fn a_call_with_a_window_waits_no_longer_than_it_was_told_to() {
    const PATIENCE: Duration = Duration::from_secs(5);
    let one = world();
    one.clock.advance(HOUR.saturating_sub(MILLI));
    let (two, three) = (one.other_process(), one.other_process());
    let (first, second) = (Gate::new(), Gate::new());
    let before = call(&one).run(|| async {
        first.wait().await;
        Err::<String, Error>(Error::from(refusal()))
    });
    let mut before = Box::pin(before);
    let own = one.engine.record(OPERATION, ("ada", window(HOUR))).hash().unwrap();
    eventually("the body in the window before", async || {
        assert!(poll_once(&mut before).is_pending());
        one.memory.read(own).await.unwrap().is_some_and(|record| record.checkpoints == 1)
    })
    .await;
    one.clock.advance(MILLI);
    let mut caller = Box::pin(
        call(&two).on_conflict(OnConflict::Wait(PATIENCE)).run(|| async { two.effect(1) }),
    );
    eventually("the caller to wait in the window before", async || {
        assert!(poll_once(&mut caller).is_pending());
        two.store.requests(Operation::Watch) > 0
    })
    .await;
    let start = one.clock_now();
    one.clock.advance(PATIENCE.saturating_sub(Duration::from_millis(500)));
    // Its next claim stands behind that of a competitor in the window of now.
    let gate = Gate::new();
    two.store.next(Operation::Claim, Fault::Late(gate.clone()));
    first.open();
    before.await.unwrap_err();
    let mut competitor = Box::pin(call(&three).run(|| async {
        second.wait().await;
        three.effect(1)
    }));
    let now = one.engine.record(OPERATION, ("ada", window(HOUR))).hash().unwrap();
    eventually("the competitor's body", async || {
        assert!(poll_once(&mut caller).is_pending());
        assert!(poll_once(&mut competitor).is_pending());
        one.memory.read(now).await.unwrap().is_some_and(|record| record.checkpoints == 1)
    })
    .await;
    gate.open();
    let refused = one.while_time_passes(caller).await;
    let took = one.clock_now().saturating_sub(start);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::InProgress);
    assert!(took < PATIENCE + Duration::from_secs(1), "{took:?}");
    second.open();
    assert_eq!(competitor.await.unwrap(), "receipt 1.1");
}

/// The claim of the window of now is held by a caller that only checks, and that finds the result in
/// the window before.
#[tokio::test]
async fn callers_that_do_not_wait_get_the_result_of_the_window_before_beside_each_other() {
    for elsewhere in [false, true] {
        let world = world();
        assert_eq!(send(&world).await.unwrap(), "receipt 1.1");
        world.clock.advance(HOUR);
        let other = world.other_process();
        let second = if elsewhere { &other } else { &world };
        let gate = Gate::new();
        world.store.next(Operation::Read, Fault::Late(gate.clone()));
        let reject = |world: &World| call(world).on_conflict(OnConflict::Reject);
        let first = reject(&world).run(|| async { world.effect(1) });
        let beside = async {
            eventually("the check", async || world.store.requests(Operation::Read) == 2).await;
            let beside = reject(second).run(|| async { second.effect(1) }).await;
            gate.open();
            beside
        };
        let (first, beside) = tokio::join!(first, beside);
        assert_eq!(beside.unwrap(), "receipt 1.1", "elsewhere: {elsewhere}");
        assert_eq!(first.unwrap(), "receipt 1.1", "elsewhere: {elsewhere}");
        assert_eq!(world.ledger.count(), 1);
    }
}

/// A claim of the window before that arrives after the body has begun in this one belongs to nobody:
/// its caller had gone.
#[tokio::test]
async fn a_caller_that_does_not_wait_does_not_look_back_beside_a_body_that_has_begun() {
    for elsewhere in [false, true] {
        let (world, gate) = (world(), Gate::new());
        let before = world.engine.record(OPERATION, ("ada", window(HOUR))).hash().unwrap();
        world.clock.advance(HOUR);
        let mut runs = Box::pin(call(&world).run(|| async {
            gate.wait().await;
            world.effect(1)
        }));
        assert!(poll_once(&mut runs).is_pending());
        let mut late = Claim::new(before, Token::from_bits(9), OPERATION.into());
        late.lease = MILLI;
        assert!(matches!(world.memory.claim(late).await, Ok(ClaimOutcome::Granted(_))));
        world.clock.advance(MILLI * 2);
        let other = world.other_process();
        let beside = if elsewhere { &other } else { &world };
        let reject = call(beside).on_conflict(OnConflict::Reject);
        let refused = reject.run(|| async { beside.effect(1) }).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InProgress, "elsewhere: {elsewhere}");
        gate.open();
        assert_eq!((runs.await.unwrap().as_str(), world.ledger.count()), ("receipt 1.1", 1));
    }
}

#[tokio::test]
async fn a_caller_that_does_not_wait_is_refused_beside_a_body_of_its_window() {
    let (world, gate) = (world(), Gate::new());
    let runs = call(&world).run(|| async {
        gate.wait().await;
        world.effect(1)
    });
    let beside = async {
        eventually("the claim", async || world.store.requests(Operation::Checkpoint) == 1).await;
        let reject = call(&world).on_conflict(OnConflict::Reject);
        let beside = reject.run(|| async { world.effect(1) }).await;
        gate.open();
        beside
    };
    let (first, beside) = tokio::join!(runs, beside);
    assert_eq!(beside.unwrap_err().kind(), ErrorKind::InProgress);
    assert_eq!((first.unwrap().as_str(), world.ledger.count()), ("receipt 1.1", 1));
}
