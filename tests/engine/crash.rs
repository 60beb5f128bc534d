//! Bodies that started and did not end: dropped, panicked, killed.

use std::time::Duration;

use idempotency::clock::{Clock as _, Timestamp};
use idempotency::record::State;
use idempotency::store::{
    Claim, ClaimOutcome, Operation, Reason, Store as _, StoreErrorKind, Token,
};
use idempotency::{Builder, Error, ErrorAction, ErrorKind, OnConflict, OnCrash};

use crate::faults::{Fault, Gate};
use crate::world::{DAY, LEASE, OPERATION, World, eventually, poll_once, without_renewals};

/// Starts a body that has its effect and then hangs, and drops it there.
async fn drop_in_the_body(world: &World, on_crash: OnCrash) {
    let mut call = Box::pin(world.call(1).on_crash(on_crash).run(|| async {
        world.effect(1)?;
        std::future::pending::<Result<String, Error>>().await
    }));
    eventually("the effect", async || {
        assert!(poll_once(&mut call).is_pending());
        world.ledger.count() == 1
    })
    .await;
    drop(call);
}

#[tokio::test]
async fn under_hold_a_call_after_a_dropped_body_is_in_doubt_and_never_runs() {
    let world = World::new();
    drop_in_the_body(&world, OnCrash::Hold).await;
    for _ in 0..2 {
        let error = world.charge(1).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InDoubt);
        assert!(!error.is_retryable());
        assert!(error.to_string().contains("its future was dropped"), "{error}");
    }
    let record = world.record(1).await.unwrap();
    assert_eq!((record.state, record.reason), (State::InDoubt, Some(Reason::Dropped)));
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn under_retry_the_next_call_runs_at_once_after_a_dropped_body() {
    let world = World::new();
    drop_in_the_body(&world, OnCrash::Retry).await;
    let before = world.clock_now();
    let result = world.call(1).on_crash(OnCrash::Retry).run(|| async { world.effect(1) }).await;
    assert_eq!(result.unwrap(), "receipt 1.2");
    assert_eq!(world.clock_now(), before, "nobody waited for the lease");
    assert_eq!(world.record(1).await.unwrap().attempts, 2);
}

#[tokio::test]
async fn the_stricter_policy_of_caller_and_record_wins() {
    let world = World::new();
    drop_in_the_body(&world, OnCrash::Retry).await;
    assert_eq!(
        world.charge(1).await.unwrap_err().kind(),
        ErrorKind::InDoubt,
        "a caller that holds"
    );
    let world = World::new();
    drop_in_the_body(&world, OnCrash::Hold).await;
    let retried = world.call(1).on_crash(OnCrash::Retry).run(|| async { world.effect(1) }).await;
    assert_eq!(retried.unwrap_err().kind(), ErrorKind::InDoubt, "a record that holds");
}

#[tokio::test]
async fn a_panic_is_an_unknown_outcome_and_reaches_the_caller() {
    let world = World::new();
    let (engine, ledger) = (world.engine.clone(), world.ledger.clone());
    let task = tokio::spawn(async move {
        let call = engine.call(OPERATION, 1_u64).ttl(DAY).run(|| async {
            ledger.charge("charge 1");
            tokio::task::yield_now().await;
            panic!("the body breaks")
        });
        let _: Result<String, Error> = call.await;
    });
    assert!(task.await.unwrap_err().is_panic());
    let error = world.charge(1).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InDoubt);
    assert!(error.to_string().contains("panicked"), "{error}");
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn a_call_that_is_dropped_while_it_claims_leaves_nothing() {
    let world = World::new();
    let gate = Gate::new();
    world.store.next(Operation::Claim, Fault::LateAnswer(gate.clone()));
    let mut call = Box::pin(world.charge(1));
    eventually("the claim to be applied", async || {
        assert!(poll_once(&mut call).is_pending());
        world.record(1).await.is_some()
    })
    .await;
    drop(call);
    gate.open();
    world.record_is(1, |record| record.is_none()).await;
    assert_eq!(world.charge(1).await.unwrap(), "receipt 1.1");
}

#[tokio::test]
async fn a_claim_that_arrives_after_its_caller_is_gone_is_released() {
    let world = World::new();
    let gate = Gate::new();
    world.store.next(Operation::Claim, Fault::Late(gate.clone()));
    let mut call = Box::pin(world.charge(1));
    assert!(poll_once(&mut call).is_pending());
    drop(call);
    gate.open();
    eventually("the release", async || world.store.requests(Operation::Release) == 1).await;
    world.record_is(1, |record| record.is_none()).await;
    assert_eq!(world.ledger.count(), 0);
}

/// One connection is slow, or a commit waits for its standby: the releases went another way, and
/// found nothing.
#[tokio::test]
async fn a_claim_that_arrives_minutes_after_it_was_given_up_is_released() {
    for late in [1, 30, 250] {
        let world = World::new();
        world.store.always(Operation::Claim, Some(Fault::LostRequest));
        let refused = without_renewals(&world, world.charge(1)).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::StoreUnavailable);
        without_renewals(&world, world.clock.sleep(Duration::from_secs(late))).await;
        let claim = world.store.sent_claims().pop().unwrap();
        let _ = world.memory.claim(claim).await.unwrap();
        let given_up = world.clock_now();
        without_renewals(&world, world.record_is(1, |record| record.is_none())).await;
        let took = world.clock_now().saturating_sub(given_up);
        assert!(
            took < Duration::from_secs(late + 15),
            "as long again as it was late, not {took:?}"
        );
        // A shutdown does not wait for more of them.
        let before = world.clock_now();
        assert_eq!(world.engine.shutdown(DAY).await.abandoned, 0);
        assert!(world.clock_now() < before + DAY);
    }
}

#[tokio::test]
async fn a_call_that_is_dropped_while_it_waits_changes_nothing() {
    let world = World::new();
    let there = world.other_process();
    let gate = Gate::new();
    let owner = world.call(1).run(|| async {
        gate.wait().await;
        world.effect(1)
    });
    let waiter = async {
        world.record_is(1, |record| record.is_some()).await;
        let mut waiter = Box::pin(there.charge(1));
        eventually("the waiter to wait", async || {
            assert!(poll_once(&mut waiter).is_pending());
            there.store.requests(Operation::Watch) > 0
        })
        .await;
        drop(waiter);
        gate.open();
    };
    let (owner, ()) = tokio::join!(owner, waiter);
    assert_eq!(owner.unwrap(), "receipt 1.1");
    assert_eq!(there.store.requests(Operation::Release), 0);
}

/// An owner whose process is gone: it claimed, and is never heard of again.
async fn dead_owner(world: &World, on_crash: OnCrash) -> Token {
    let hash = world.engine.record(OPERATION, 1).hash().unwrap();
    let mut claim = Claim::new(hash, Token::from_bits(7), OPERATION.into());
    claim.lease = LEASE;
    claim.policy = match on_crash {
        OnCrash::Retry => idempotency::store::CrashPolicy::Retry,
        _ => idempotency::store::CrashPolicy::Hold,
    };
    assert!(matches!(world.memory.claim(claim).await, Ok(ClaimOutcome::Granted(_))));
    Token::from_bits(7)
}

#[tokio::test]
async fn a_key_whose_owner_died_is_blocked_no_longer_than_its_lease() {
    let world = World::new();
    dead_owner(&world, OnCrash::Retry).await;
    let call = world.call(1).on_crash(OnCrash::Retry).run(|| async { world.effect(1) });
    let before = world.clock_now();
    assert_eq!(world.while_time_passes(call).await.unwrap(), "receipt 1.1");
    let blocked = world.clock_now().saturating_sub(before);
    assert!(
        blocked >= LEASE && blocked < LEASE + Duration::from_secs(5),
        "blocked for {blocked:?}"
    );
    assert_eq!(world.record(1).await.unwrap().attempts, 2);
}

#[tokio::test]
async fn under_hold_the_record_of_a_dead_owner_is_in_doubt_when_its_lease_is_over() {
    let world = World::new();
    dead_owner(&world, OnCrash::Hold).await;
    let early =
        world.call(1).on_conflict(OnConflict::Reject).run(|| async { world.effect(1) }).await;
    assert_eq!(early.unwrap_err().kind(), ErrorKind::InProgress);
    world.clock.advance(LEASE + Duration::from_millis(1));
    let late = world.charge(1).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::InDoubt);
    assert_eq!(world.record(1).await.unwrap().reason, Some(Reason::Crashed));
    // The fact outlives the operation's ttl.
    world.clock.advance(DAY * 20);
    assert_eq!(world.charge(1).await.unwrap_err().kind(), ErrorKind::InDoubt);
    assert_eq!(world.ledger.count(), 0);
}

#[tokio::test]
async fn a_claim_granted_after_80_percent_of_its_lease_starts_no_body_and_is_released() {
    let world = World::with(|builder| builder.claim_timeout(LEASE * 2));
    let gate = Gate::new();
    world.store.next(Operation::Claim, Fault::LateAnswer(gate.clone()));
    let mut call = Box::pin(world.charge(1));
    assert!(poll_once(&mut call).is_pending());
    world.clock.advance(LEASE / 5 * 4 + Duration::from_millis(1));
    gate.open();
    let result = call.await;
    // One late answer is forgiven: the call claims anew, in time.
    assert_eq!(result.unwrap(), "receipt 1.1");
    assert_eq!(world.store.requests(Operation::Claim), 2);
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn a_claim_whose_answer_was_lost_is_recognised_by_its_token() {
    let world = World::new();
    world.store.next(Operation::Claim, Fault::LostAnswer);
    let result = world.while_time_passes(world.charge(1)).await;
    assert_eq!(result.unwrap(), "receipt 1.1");
    let record = world.record(1).await.unwrap();
    assert_eq!((record.attempts, world.store.requests(Operation::Claim)), (1, 2));
}

#[tokio::test]
async fn a_store_that_does_not_answer_never_runs_the_body_and_leaves_no_claim_behind() {
    for fault in [Fault::LostRequest, Fault::LostAnswer] {
        let world = World::new();
        world.store.always(Operation::Claim, Some(fault));
        let error = world.while_time_passes(world.charge(1)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StoreUnavailable);
        assert!(error.is_retryable());
        assert_eq!(error.store(), Some("faulty"));
        world.record_is(1, |record| record.is_none()).await;
        assert_eq!(world.ledger.count(), 0);
        world.store.always(Operation::Claim, None);
        assert_eq!(world.charge(1).await.unwrap(), "receipt 1.1");
    }
}

#[tokio::test]
async fn a_claim_that_hangs_is_given_up_and_released_when_it_is_answered() {
    let world = World::new();
    let gate = Gate::new();
    world.store.next(Operation::Claim, Fault::LateAnswer(gate.clone()));
    let error = world.while_time_passes(world.charge(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable);
    assert!(world.record(1).await.is_some(), "it was applied");
    gate.open();
    world.record_is(1, |record| record.is_none()).await;
    assert_eq!(world.ledger.count(), 0);
}

/// What was sent to a server that stands still for longer than a lease, or whose network is away,
/// is applied all the same.
#[tokio::test]
async fn claims_that_an_outage_longer_than_a_lease_left_behind_are_released_after_it() {
    const CALLS: u64 = 5;
    let world = World::new();
    let passes = async |for_long: Duration| {
        let end = world.clock_now() + for_long;
        while world.clock_now() < end {
            tokio::time::sleep(Duration::from_millis(1)).await;
            world.clock.advance(Duration::from_millis(100));
        }
    };
    world.store.always(Operation::Claim, Some(Fault::LostAnswer));
    world.store.always(Operation::Release, Some(Fault::LostRequest));
    let calls = futures::future::join_all((0..CALLS).map(|key| world.charge(key)));
    let (refused, ()) = tokio::join!(calls, passes(LEASE * 4));
    assert!(
        refused.iter().all(|call| call
            .as_ref()
            .is_err_and(|error| error.kind() == ErrorKind::StoreUnavailable))
    );
    let before = world.store.requests(Operation::Release);
    passes(LEASE).await;
    let during = world.store.requests(Operation::Release) - before;
    assert!(during <= 20, "one asks for all, about once a second: {during}");
    let goes_on =
        eventually("another release", async || world.store.requests(Operation::Release) > before);
    world.while_time_passes(goes_on).await;
    for key in 0..CALLS {
        assert!(
            world.record(key).await.is_some_and(|record| record.is_orphaned()),
            "nobody renews it"
        );
    }
    world.store.always(Operation::Claim, None);
    world.store.always(Operation::Release, None);
    // The server goes on, with what was sent before: some of it comes after the first release.
    passes(Duration::from_secs(1)).await;
    let late = world.store.sent_claims().remove(0);
    let _ = world.memory.claim(late).await.unwrap();
    for key in 0..CALLS {
        world.while_time_passes(world.record_is(key, |record| record.is_none())).await;
    }
    assert_eq!(world.ledger.count(), 0);
    assert_eq!(world.charge(1).await.unwrap(), "receipt 1.1");
}

#[tokio::test]
async fn a_release_that_an_outage_keeps_from_the_store_is_sent_after_it() {
    let world = World::new();
    world.store.always(Operation::Release, Some(Fault::LostRequest));
    let call = world.call(1).run(|| async { Err::<(), _>(anyhow::anyhow!("busy")) });
    world.while_time_passes(call).await.unwrap_err();
    world.while_time_passes(world.clock.sleep(LEASE * 2)).await;
    assert!(world.record(1).await.unwrap().is_orphaned());
    world.store.always(Operation::Release, None);
    world.while_time_passes(world.record_is(1, |record| record.is_none())).await;
    assert_eq!(world.charge(1).await.unwrap(), "receipt 1.1");
}

/// What an outage leaves of claims: none has an owner who lives, and their releases are owed.
async fn leave_owed_releases(world: &World, keys: std::ops::Range<u64>) {
    world.store.always(Operation::Claim, Some(Fault::LostAnswer));
    world.store.always(Operation::Release, Some(Fault::LostRequest));
    let calls = futures::future::join_all(keys.clone().map(|key| world.charge(key)));
    let refused = without_renewals(world, calls).await;
    assert!(
        refused.iter().all(|call| call
            .as_ref()
            .is_err_and(|error| error.kind() == ErrorKind::StoreUnavailable))
    );
    without_renewals(world, world.clock.sleep(LEASE * 2)).await;
    world.store.always(Operation::Claim, None);
    for key in keys {
        assert!(
            world.record(key).await.is_some_and(|record| record.is_orphaned()),
            "nobody renews it"
        );
    }
}

#[tokio::test]
async fn an_owed_release_that_goes_on_failing_costs_the_others_nothing() {
    for fault in [Fault::Late(Gate::new()), Fault::Refused(StoreErrorKind::Refused), Fault::Panic] {
        let world = World::with(|builder| builder.background_commit(LEASE * 8));
        leave_owed_releases(&world, 0..5).await;
        let locked: Vec<_> =
            (0..4).map(|key| world.engine.record(OPERATION, key).hash().unwrap()).collect();
        for key in &locked {
            world.store.always_at(Operation::Release, *key, Some(fault.clone()));
        }
        world.store.always(Operation::Release, None);
        let since = world.clock_now();
        without_renewals(&world, world.record_is(4, |record| record.is_none())).await;
        let took = world.clock_now().saturating_sub(since);
        // Each of the four has had its try of five seconds before it, and the pauses grow to one
        // second.
        assert!(took < LEASE * 6, "{fault:?}: {took:?}");
        world.store.always_at(Operation::Release, locked[0], None);
        without_renewals(&world, world.record_is(0, |record| record.is_none())).await;
        // What has failed for the whole time is given up, and then nothing is asked any more.
        without_renewals(&world, world.clock.sleep(LEASE * 10)).await;
        let asked = world.store.requests(Operation::Release);
        without_renewals(&world, world.clock.sleep(LEASE)).await;
        assert_eq!(world.store.requests(Operation::Release), asked, "{fault:?}");
        for key in 1..4 {
            assert!(world.record(key).await.is_some_and(|record| record.is_orphaned()));
        }
        // And the next outage finds somebody who is at it.
        leave_owed_releases(&world, 5..7).await;
        world.store.always(Operation::Release, None);
        without_renewals(&world, world.record_is(6, |record| record.is_none())).await;
    }
}

/// As one whose request belongs to a runtime that nobody drives any more.
#[tokio::test]
async fn a_claim_whose_answer_nobody_will_hear_is_released_when_its_caller_is_gone() {
    let world = World::new();
    let gate = Gate::new();
    world.store.next(Operation::Claim, Fault::LateAnswer(gate.clone()));
    let mut call = Box::pin(world.charge(1));
    assert!(poll_once(&mut call).is_pending());
    assert!(world.record(1).await.is_some(), "it was applied");
    drop(call);
    world.while_time_passes(world.record_is(1, |record| record.is_none())).await;
    assert!(!gate.is_passed());
    assert_eq!(world.charge(1).await.unwrap(), "receipt 1.1");
}

#[tokio::test]
async fn a_detached_body_goes_on_when_its_caller_is_gone() {
    use idempotency::__private::{Key, Site, call_on, outcome, run_detached};
    static SITE: Site = Site::new(OPERATION, file!(), line!());
    let world = World::new();
    let (gate, started) = (Gate::new(), Gate::new());
    let body = {
        let (gate, started, ledger) = (gate.clone(), started.clone(), world.ledger.clone());
        move || async move {
            started.open();
            gate.wait().await;
            ledger.charge("detached");
            Ok::<_, Error>("detached".to_owned())
        }
    };
    let call = call_on(&SITE, &world.engine, Key::of(&1_u64)).ttl(DAY);
    let mut call = Box::pin(run_detached(call, outcome(), body));
    tokio::select! {
        biased;
        _ = &mut call => panic!("the body waits"),
        () = started.wait() => {}
    }
    drop(call);
    gate.open();
    world
        .record_is(1, |record| record.is_some_and(|record| record.state == State::Completed))
        .await;
    assert_eq!(world.charge(1).await.unwrap(), "detached");
    assert_eq!(world.ledger.charges(), ["detached"]);
}

/// The first try is believed lost, and arrives when everything is over.
#[tokio::test]
async fn a_claim_that_arrives_again_after_its_release_is_released_again() {
    let world = World::new();
    world.store.next(Operation::Claim, Fault::LostRequest);
    let call = world.call(1).run(|| async { Err::<(), _>(anyhow::anyhow!("busy")) });
    world.while_time_passes(call).await.unwrap_err();
    assert!(world.record(1).await.is_none());
    let late = world.store.sent_claims().remove(0);
    assert!(matches!(world.memory.claim(late).await, Ok(ClaimOutcome::Granted(_))));
    world.while_time_passes(world.record_is(1, |record| record.is_none())).await;
    assert_eq!(world.charge(1).await.unwrap(), "receipt 1.1");
}

/// The same of a call that has stored its result, whose record is gone by then.
#[tokio::test]
async fn a_claim_that_arrives_again_after_its_result_is_gone_is_released_again() {
    for expires in [true, false] {
        let world = World::new();
        world.store.next(Operation::Claim, Fault::LostRequest);
        let ttl = Duration::from_secs(if expires { 1 } else { 3600 });
        let call = world.call(1).ttl(ttl).run(|| async { world.effect(1) });
        world.while_time_passes(call).await.unwrap();
        if expires {
            world.clock.advance(ttl);
        } else {
            world.engine.record(OPERATION, 1).forget().await.unwrap();
        }
        assert!(world.record(1).await.is_none());
        let late = world.store.sent_claims().remove(0);
        assert!(matches!(world.memory.claim(late).await, Ok(ClaimOutcome::Granted(_))));
        world.while_time_passes(world.record_is(1, |record| record.is_none())).await;
        assert_eq!(world.charge(1).await.unwrap(), "receipt 1.2");
    }
}

/// The same of a claim whose second try was granted too late to start a body, and whose caller is
/// gone while it is released.
#[tokio::test]
async fn a_claim_that_arrives_again_after_its_caller_went_during_its_release_is_released_again() {
    let world = World::new();
    let (granted, released) = (Gate::new(), Gate::new());
    world.store.next(Operation::Claim, Fault::LostRequest);
    world.store.next(Operation::Claim, Fault::LateAnswer(granted.clone()));
    world.store.next(Operation::Release, Fault::Late(released.clone()));
    let mut call = Box::pin(world.charge(1));
    eventually("the second try", async || {
        assert!(poll_once(&mut call).is_pending());
        world.clock.advance(Duration::from_millis(10));
        world.record(1).await.is_some()
    })
    .await;
    granted.open();
    world.clock.advance(LEASE);
    eventually("the release", async || {
        assert!(poll_once(&mut call).is_pending());
        world.store.requests(Operation::Release) == 1
    })
    .await;
    drop(call);
    released.open();
    world.record_is(1, |record| record.is_none()).await;
    let late = world.store.sent_claims().remove(0);
    assert!(matches!(world.memory.claim(late).await, Ok(ClaimOutcome::Granted(_))));
    world.while_time_passes(world.record_is(1, |record| record.is_none())).await;
    assert_eq!(world.charge(1).await.unwrap(), "receipt 1.1");
}

/// The same of a call that was refused because of another one, which is over by then.
#[tokio::test]
async fn a_claim_that_arrives_when_the_call_that_it_has_met_is_over_is_released() {
    let (world, gate) = (World::new(), Gate::new());
    let other = world.other_process();
    let running = other.call(1).run(|| async {
        gate.wait().await;
        Err::<(), _>(anyhow::anyhow!("busy"))
    });
    let meeting = async {
        world.record_is(1, |record| record.is_some()).await;
        world.store.next(Operation::Claim, Fault::LostRequest);
        let call = world.call(1).on_conflict(OnConflict::Reject).run(|| async { world.effect(1) });
        assert_eq!(world.while_time_passes(call).await.unwrap_err().kind(), ErrorKind::InProgress);
        gate.open();
    };
    let (running, ()) = tokio::join!(running, meeting);
    running.unwrap_err();
    world.record_is(1, |record| record.is_none()).await;
    let late = world.store.sent_claims().remove(0);
    assert!(matches!(world.memory.claim(late).await, Ok(ClaimOutcome::Granted(_))));
    world.while_time_passes(world.record_is(1, |record| record.is_none())).await;
    assert_eq!(world.charge(1).await.unwrap(), "receipt 1.1");
}

#[tokio::test(flavor = "current_thread")]
async fn a_body_whose_task_runs_after_80_percent_of_the_lease_never_starts() {
    use idempotency::__private::{Key, Site, call_on, outcome, run_detached};
    static SITE: Site = Site::new(OPERATION, file!(), line!());
    let world = World::new();
    let ledger = world.ledger.clone();
    let call = call_on(&SITE, &world.engine, Key::of(&1_u64)).ttl(DAY);
    let mut call = Box::pin(run_detached(call, outcome(), move || async move {
        ledger.charge("detached");
        Ok::<_, Error>(())
    }));
    assert!(poll_once(&mut call).is_pending(), "granted, and its task has not run yet");
    world.clock.advance(LEASE / 5 * 4 + Duration::from_millis(1));
    assert_eq!(call.await.unwrap_err().kind(), ErrorKind::StoreUnavailable);
    world.record_is(1, |record| record.is_none()).await;
    assert_eq!(world.ledger.count(), 0);
}

#[tokio::test]
async fn an_unfinished_call_is_remembered_for_the_longer_of_ttl_and_30_days_or_as_configured() {
    type Configure = fn(Builder) -> Builder;
    let configured: [(Configure, Duration, Duration); 3] = [
        (|builder| builder, DAY, DAY * 30),
        (|builder| builder, DAY * 50, DAY * 50),
        (|builder| builder.in_doubt_retention(DAY * 3), DAY * 2, DAY * 3),
    ];
    for (configure, ttl, remembered) in configured {
        let world = World::with(configure);
        let charge = || world.call(1).ttl(ttl).on_error(ErrorAction::Hold);
        let held = charge().run(|| async {
            world.effect(1)?;
            Err::<String, _>(anyhow::anyhow!("the provider did not answer"))
        });
        held.await.unwrap_err();
        world.clock.advance(remembered);
        assert_eq!(world.charge(1).await.unwrap_err().kind(), ErrorKind::InDoubt);
        world.clock.advance(LEASE);
        assert_eq!(world.charge(1).await.unwrap(), "receipt 1.2");
    }
}

#[tokio::test]
async fn a_takeover_that_starts_no_body_keeps_what_the_earlier_owner_left() {
    let world = World::new();
    dead_owner(&world, OnCrash::Retry).await;
    world.clock.advance(LEASE + Duration::from_millis(1));
    let gate = Gate::new();
    world.store.next(Operation::Claim, Fault::LateAnswer(gate.clone()));
    let mut taker =
        Box::pin(world.call(1).on_crash(OnCrash::Retry).run(|| async { world.effect(1) }));
    assert!(poll_once(&mut taker).is_pending());
    drop(taker);
    gate.open();
    world
        .record_is(1, |record| {
            record.is_some_and(|record| record.lease_until == Timestamp::default())
        })
        .await;
    // Nobody knows whether the dead owner had its effect: a caller that holds must not run.
    assert_eq!(world.charge(1).await.unwrap_err().kind(), ErrorKind::InDoubt);
    assert_eq!((world.ledger.count(), world.record(1).await.unwrap().attempts), (0, 1));
}

#[tokio::test]
async fn a_claim_whose_answer_is_lost_after_its_caller_is_gone_is_released() {
    let world = World::new();
    world.store.always(Operation::Claim, Some(Fault::LostAnswer));
    let mut call = Box::pin(world.charge(1));
    assert!(poll_once(&mut call).is_pending());
    assert!(world.record(1).await.is_some());
    drop(call);
    world.while_time_passes(world.record_is(1, |record| record.is_none())).await;
    assert_eq!(world.ledger.count(), 0);
}

#[tokio::test]
async fn a_refusal_does_not_tell_what_became_of_the_try_before_it() {
    let world = World::new();
    world.store.next(Operation::Claim, Fault::LostAnswer);
    world.store.next(Operation::Claim, Fault::Refused(StoreErrorKind::Full));
    let error = world.while_time_passes(world.charge(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable);
    world.record_is(1, |record| record.is_none()).await;
}
