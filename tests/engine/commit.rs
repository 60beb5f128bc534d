//! Storing a result when the store fails, and when somebody else was faster.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use idempotency::clock::Clock as _;
use idempotency::key::Fingerprint;
use idempotency::record::State;
use idempotency::store::{
    Claim, ClaimOutcome, Commit, Operation, Reason, Release, Remove, Store as _, StoreErrorKind,
    Token, WriteOutcome,
};
use idempotency::{Builder, Error, ErrorKind, Idempotency, OnConflict, OnCrash, with_report};
use idempotency_test_support::deadline::within;

use crate::faults::{Fault, FaultyStore, Gate};
use crate::world::{DAY, LEASE, OPERATION, World, eventually, without_renewals};

#[tokio::test]
async fn a_commit_whose_answer_was_lost_is_repeated_and_is_the_same_commit() {
    let world = World::new();
    world.store.next(Operation::Complete, Fault::LostAnswer);
    let first = world.while_time_passes(world.charge(1)).await.unwrap();
    assert_eq!(world.store.requests(Operation::Complete), 2);
    assert_eq!(world.charge(1).await.unwrap(), first);
    assert_eq!(world.ledger.count(), 1);
}

/// The first try is believed lost, and arrives when the record has been removed, while the lease of
/// its owner would still run.
#[tokio::test]
async fn a_commit_that_arrives_again_does_not_bring_back_what_was_forgotten() {
    let (world, gate) = (World::new(), Gate::new());
    world.store.next(Operation::Complete, Fault::Late(gate.clone()));
    world.while_time_passes(world.charge(1)).await.unwrap();
    assert_eq!(world.store.requests(Operation::Complete), 2);
    world.engine.record(OPERATION, 1).forget().await.unwrap();
    gate.open();
    eventually("the late commit", async || gate.is_passed()).await;
    assert!(world.record(1).await.is_none());
    assert_eq!(world.charge(1).await.unwrap(), "receipt 1.2");
}

#[tokio::test]
async fn a_commit_that_fails_for_a_while_is_repeated_until_it_is_stored() {
    let world = World::new();
    for _ in 0..5 {
        world.store.next(Operation::Complete, Fault::LostRequest);
    }
    let first = world.while_time_passes(world.charge(1)).await.unwrap();
    assert_eq!(world.record(1).await.unwrap().state, State::Completed);
    assert_eq!(world.charge(1).await.unwrap(), first);
}

#[tokio::test]
async fn a_result_that_cannot_be_stored_in_time_is_not_stored_and_the_background_goes_on() {
    let world = World::new();
    world.store.always(Operation::Complete, Some(Fault::LostRequest));
    let error = world.while_time_passes(world.charge(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotStored);
    let end = world.clock_now() + LEASE * 3;
    world.while_time_passes(world.time_is(end)).await;
    let record = world.record(1).await.unwrap();
    assert!(record.is_running(), "its lease is renewed as long as storing goes on: {record:?}");
    world.store.always(Operation::Complete, None);
    let stored =
        world.record_is(1, |record| record.is_some_and(|record| record.state == State::Completed));
    world.while_time_passes(stored).await;
    assert_eq!(
        world.charge(1).await.unwrap(),
        "receipt 1.1",
        "the result that the caller never saw"
    );
    assert_eq!(world.ledger.count(), 1);
    // With that the owner is done: it neither holds the record nor gives it up.
    let shutdown = world.engine.shutdown(Duration::from_secs(60));
    assert_eq!(world.while_time_passes(shutdown).await.abandoned, 0);
    let further = [Operation::Park, Operation::Abandon, Operation::Release]
        .map(|request| world.store.requests(request));
    assert_eq!(further, [0, 0, 0]);
}

#[tokio::test]
async fn a_result_that_can_never_be_stored_leaves_the_record_in_doubt() {
    let world = World::with(|builder| builder.background_commit(Duration::from_secs(20)));
    world.store.always(Operation::Complete, Some(Fault::LostRequest));
    let error = world.while_time_passes(world.charge(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotStored);
    let parked =
        world.record_is(1, |record| record.is_some_and(|record| record.state == State::InDoubt));
    world.while_time_passes(parked).await;
    assert_eq!(world.record(1).await.unwrap().reason, Some(Reason::NotStored));
    assert_eq!(world.charge(1).await.unwrap_err().kind(), ErrorKind::InDoubt);
    assert_eq!(world.ledger.count(), 1);
}

/// A full disk, a right that was taken away: somebody sees it, and mends it.
#[tokio::test]
async fn a_result_that_the_store_refuses_to_take_is_stored_when_it_takes_it() {
    for kind in [
        StoreErrorKind::Full,
        StoreErrorKind::Config,
        StoreErrorKind::Corrupt,
        StoreErrorKind::Refused,
    ] {
        for policy in [OnCrash::Hold, OnCrash::Retry] {
            let world = World::new();
            world.store.always(Operation::Complete, Some(Fault::Refused(kind)));
            let call = || world.call(1).on_crash(policy).run(|| async { world.effect(1) });
            assert_eq!(
                world.while_time_passes(call()).await.unwrap_err().kind(),
                ErrorKind::NotStored
            );
            world.while_time_passes(world.clock.sleep(LEASE)).await;
            world.store.always(Operation::Complete, None);
            let stored = world.record_is(1, |record| {
                record.is_some_and(|record| record.state == State::Completed)
            });
            world.while_time_passes(stored).await;
            assert_eq!(call().await.unwrap(), "receipt 1.1", "{kind:?} {policy:?}");
            assert_eq!(world.ledger.count(), 1, "{kind:?} {policy:?}");
        }
    }
}

/// A store whose answers take 5 ms each, and what is behind that.
fn distant(configure: impl FnOnce(Builder) -> Builder) -> (World, FaultyStore) {
    let behind = World::new();
    let store = idempotency::testing::FaultyStore::new(behind.store.clone());
    for operation in [Operation::Complete, Operation::Read] {
        store.always(operation, Some(Fault::Slow(behind.clock.clone(), Duration::from_millis(5))));
    }
    let builder = Idempotency::builder(store)
        .clock(behind.clock.clone())
        .commit_timeout(Duration::from_secs(1));
    let engine = configure(builder).build().unwrap();
    let store = behind.store.clone();
    (World { engine, ..behind }, store)
}

#[tokio::test]
async fn without_time_in_the_background_a_result_is_tried_once_more() {
    let (world, store) = distant(|builder| builder.background_commit(Duration::ZERO));
    store.always(Operation::Complete, Some(Fault::Refused(StoreErrorKind::Refused)));
    let call = world.call(1).run(|| async { world.effect(1) });
    assert_eq!(without_renewals(&world, call).await.unwrap_err().kind(), ErrorKind::NotStored);
    store.always(Operation::Complete, None);
    let stored =
        world.record_is(1, |record| record.is_some_and(|record| record.state == State::Completed));
    without_renewals(&world, stored).await;
}

#[tokio::test]
async fn the_last_try_has_time_and_the_error_names_the_reason() {
    let (world, store) = distant(|builder| builder);
    store.always(Operation::Read, Some(Fault::Refused(StoreErrorKind::Refused)));
    let error =
        without_renewals(&world, world.engine.record(OPERATION, 1).inspect()).await.unwrap_err();
    let reasons = format!("{:#}", anyhow::Error::new(error));
    assert!(reasons.contains("refused"), "{reasons}");
}

#[tokio::test]
async fn a_caller_that_is_dropped_while_its_result_is_stored_loses_nothing() {
    let world = World::new();
    let gate = Gate::new();
    world.store.next(Operation::Complete, Fault::Late(gate.clone()));
    {
        let mut call = Box::pin(world.charge(1));
        eventually("the commit to be sent", async || {
            assert!(crate::world::poll_once(&mut call).is_pending());
            world.store.requests(Operation::Complete) == 1
        })
        .await;
    }
    gate.open();
    world
        .record_is(1, |record| record.is_some_and(|record| record.state == State::Completed))
        .await;
    assert_eq!(world.charge(1).await.unwrap(), "receipt 1.1");
    assert_eq!(world.ledger.count(), 1);
}

type Seen = Arc<Mutex<Vec<(String, Option<String>)>>>;

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn with_hook(seen: &Seen) -> World {
    let seen = seen.clone();
    World::with(|builder| {
        builder.on_duplicate(move |duplicate| {
            let winner = duplicate.winner.as_deref().map(text);
            seen.lock().unwrap().push((text(&duplicate.result), winner));
        })
    })
}

/// An owner that stalls for longer than its lease, while renewals fail, and another one that takes
/// over and finishes.
#[tokio::test]
async fn an_owner_that_was_overtaken_returns_the_winner_s_result_and_reports_its_own() {
    let seen = Seen::default();
    let (here, gate) = (with_hook(&seen), Gate::new());
    let there = here.other_process();
    here.store.always(Operation::Renew, Some(Fault::LostRequest));
    let stalled = with_report(here.call(1).on_crash(OnCrash::Retry).run(|| async {
        let result = here.effect(1);
        gate.wait().await;
        result
    }));
    let taker = async {
        here.record_is(1, |record| record.is_some()).await;
        here.clock.advance(LEASE + Duration::from_millis(1));
        let result = there.call(1).on_crash(OnCrash::Retry).run(|| async { there.effect(1) }).await;
        gate.open();
        result
    };
    let ((stalled, report), winner) = tokio::join!(stalled, taker);
    let (stalled, winner) = (stalled.unwrap(), winner.unwrap());
    assert_eq!((&*stalled, &*winner), ("receipt 1.2", "receipt 1.2"));
    let report = report.unwrap();
    assert!(report.replayed);
    assert_eq!(report.attempt, 2, "the attempt that gave the answer");
    assert_eq!(
        *seen.lock().unwrap(),
        [("\"receipt 1.1\"".to_owned(), Some("\"receipt 1.2\"".to_owned()))]
    );
    assert_eq!(here.engine.duplicates(), 1);
    assert_eq!(here.ledger.count(), 2, "under retry the effect can happen twice");
}

#[tokio::test]
async fn an_owner_that_was_overtaken_waits_for_the_winner_that_still_runs() {
    let (here, gate, finish) = (World::new(), Gate::new(), Gate::new());
    let there = here.other_process();
    here.store.always(Operation::Renew, Some(Fault::LostRequest));
    let stalled = here.call(1).on_crash(OnCrash::Retry).run(|| async {
        gate.wait().await;
        here.effect(1)
    });
    let taker = async {
        here.record_is(1, |record| record.is_some()).await;
        here.clock.advance(LEASE + Duration::from_millis(1));
        let call = there.call(1).on_crash(OnCrash::Retry).run(|| async {
            gate.open();
            finish.wait().await;
            Ok::<_, Error>("winner".to_owned())
        });
        call.await
    };
    let end = async {
        eventually("the stalled owner to wait", async || here.store.requests(Operation::Watch) > 0)
            .await;
        finish.open();
    };
    let (stalled, winner, ()) = tokio::join!(stalled, taker, end);
    assert_eq!((stalled.unwrap(), winner.unwrap()), ("winner".to_owned(), "winner".to_owned()));
}

/// What a call has waited before its body is not there once more after it.
#[tokio::test]
async fn an_owner_that_was_overtaken_waits_no_longer_than_what_is_left_of_its_patience() {
    let (here, begun, gate, finish) = (World::new(), Gate::new(), Gate::new(), Gate::new());
    let there = here.other_process();
    here.store.always(Operation::Renew, Some(Fault::LostRequest));
    let key = here.engine.record(OPERATION, 1).hash().unwrap();
    let first = Token::from_bits(1);
    let mut claim = Claim::new(key, first, OPERATION.into());
    (claim.lease, claim.ttl, claim.linger) = (LEASE, DAY, DAY);
    assert!(matches!(here.memory.claim(claim).await.unwrap(), ClaimOutcome::Granted(_)));
    let patient = here
        .call(1)
        .on_crash(OnCrash::Retry)
        .on_conflict(OnConflict::Wait(Duration::from_secs(10)));
    let stalled = async {
        let call = patient.run(|| async {
            begun.open();
            gate.wait().await;
            here.effect(1)
        });
        let result = within("the end of its patience", call).await;
        finish.open();
        result
    };
    let taker = async {
        eventually("it to wait for the first", async || here.store.requests(Operation::Watch) > 0)
            .await;
        here.clock.advance(Duration::from_secs(6));
        here.memory.release(Release::new(key, first)).await.unwrap();
        begun.wait().await;
        here.clock.advance(LEASE + Duration::from_millis(1));
        let call = there.call(1).on_crash(OnCrash::Retry).run(|| async {
            gate.open();
            finish.wait().await;
            Ok::<_, Error>("winner".to_owned())
        });
        call.await
    };
    let time = async {
        begun.wait().await;
        let before = here.store.requests(Operation::Watch);
        eventually("it to wait for the winner", async || {
            here.store.requests(Operation::Watch) > before
        })
        .await;
        here.clock.advance(Duration::from_secs(5));
    };
    let (stalled, winner, ()) = tokio::join!(stalled, taker, time);
    let stalled = stalled.expect("it waits no longer").unwrap_err();
    assert_eq!(stalled.kind(), ErrorKind::Superseded);
    assert!(
        stalled.is_retryable() && stalled.to_string().contains("that caller's result"),
        "{stalled}"
    );
    assert_eq!(winner.unwrap(), "winner");
}

/// The body ran, and whoever makes the call again runs it again.
#[track_caller]
fn is_not_to_be_repeated(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::Superseded);
    assert!(!error.is_retryable(), "{error}");
    let text = error.to_string();
    assert!(text.contains("the body ran here") && !text.contains("retry"), "{text}");
}

#[tokio::test]
async fn an_owner_whose_record_was_taken_away_gets_superseded_and_brings_nothing_back() {
    let seen = Seen::default();
    let (world, gate) = (with_hook(&seen), Gate::new());
    let call = world.call(1).run(|| async {
        gate.wait().await;
        world.effect(1)
    });
    let remover = async {
        world.record_is(1, |record| record.is_some()).await;
        let record = world.record(1).await.unwrap();
        let mut remove = Remove::new(record.key, record.owner);
        remove.force = true;
        world.memory.remove(remove).await.unwrap();
        gate.open();
    };
    let (result, ()) = tokio::join!(call, remover);
    is_not_to_be_repeated(&result.unwrap_err());
    assert_eq!(*seen.lock().unwrap(), [("\"receipt 1.1\"".to_owned(), None)]);
    assert!(world.record(1).await.is_none_or(|record| record.state == State::Tombstone));
}

#[tokio::test]
async fn a_record_that_vanished_under_its_living_owner_is_written_anew() {
    let (world, gate) = (World::new(), Gate::new());
    let call = world.call(1).run(|| async {
        gate.wait().await;
        world.effect(1)
    });
    let loser = async {
        world.record_is(1, |record| record.is_some()).await;
        let record = world.record(1).await.unwrap();
        // What an eviction or a failover does: the record goes, and no tombstone tells.
        let release = Release::new(record.key, record.owner);
        world.memory.release(release).await.unwrap();
        gate.open();
    };
    let (result, ()) = tokio::join!(call, loser);
    assert_eq!(result.unwrap(), "receipt 1.1");
    assert_eq!(world.charge(1).await.unwrap(), "receipt 1.1");
    assert_eq!(world.ledger.count(), 1);
}

/// The commit that writes it again is believed lost, and arrives when another one has done that, and
/// what it wrote has expired.
#[tokio::test]
async fn a_record_that_vanished_is_not_written_again_after_its_retention() {
    let (world, gate, late) = (World::new(), Gate::new(), Gate::new());
    let ttl = LEASE / 2;
    let first = Gate::new();
    first.open();
    let call = world.call(1).ttl(ttl).run(|| async {
        gate.wait().await;
        world.effect(1)
    });
    let loser = async {
        world.record_is(1, |record| record.is_some()).await;
        let record = world.record(1).await.unwrap();
        world.memory.release(Release::new(record.key, record.owner)).await.unwrap();
        // The first finds no record, and the second one may write it.
        world.store.next(Operation::Complete, Fault::LateAnswer(first));
        world.store.next(Operation::Complete, Fault::Late(late.clone()));
        gate.open();
    };
    let both = async { tokio::join!(call, loser) };
    assert_eq!(world.while_time_passes(both).await.0.unwrap(), "receipt 1.1");
    assert_eq!(world.store.requests(Operation::Complete), 3);
    world.clock.advance(ttl);
    assert!(world.record(1).await.is_none());
    late.open();
    eventually("the late commit", async || late.is_passed()).await;
    assert!(world.record(1).await.is_none());
}

#[tokio::test]
async fn a_record_that_vanished_when_the_lease_was_over_is_not_written_anew() {
    let (world, gate) = (World::new(), Gate::new());
    world.store.always(Operation::Renew, Some(Fault::LostRequest));
    let call = world.call(1).run(|| async {
        gate.wait().await;
        world.effect(1)
    });
    let loser = async {
        world.record_is(1, |record| record.is_some()).await;
        world.clock.advance(LEASE);
        // Somebody may have taken the call over, and may have given it back since.
        let record = world.record(1).await.unwrap();
        world.memory.release(Release::new(record.key, record.owner)).await.unwrap();
        gate.open();
    };
    let (result, ()) = tokio::join!(call, loser);
    is_not_to_be_repeated(&result.unwrap_err());
    assert!(world.record(1).await.is_none());
    assert_eq!(world.engine.duplicates(), 1);
}

#[tokio::test]
async fn an_owner_whose_key_is_used_for_another_request_does_not_return_its_result() {
    let (world, gate) = (World::new(), Gate::new());
    let call = world.call(1).fingerprint("EUR 100").run(|| async {
        gate.wait().await;
        world.effect(1)
    });
    let operator = async {
        world.record_is(1, |record| record.is_some()).await;
        let record = world.record(1).await.unwrap();
        world.memory.release(Release::new(record.key, record.owner)).await.unwrap();
        let other = world.other_process();
        let other = other
            .call(1)
            .fingerprint("EUR 200")
            .run(|| async { Ok::<_, Error>("another".to_owned()) });
        assert_eq!(other.await.unwrap(), "another");
        gate.open();
    };
    let (result, ()) = tokio::join!(call, operator);
    is_not_to_be_repeated(&result.unwrap_err());
    assert_eq!(world.engine.duplicates(), 1);
}

#[tokio::test]
async fn an_owner_whose_key_is_used_for_another_request_does_not_wait_for_its_result() {
    let (world, gate) = (World::new(), Gate::new());
    let call = world.call(1).fingerprint("EUR 100").run(|| async {
        gate.wait().await;
        world.effect(1)
    });
    let operator = async {
        world.record_is(1, |record| record.is_some()).await;
        let record = world.record(1).await.unwrap();
        world.memory.release(Release::new(record.key, record.owner)).await.unwrap();
        let mut another = Claim::new(record.key, Token::from_bits(7), OPERATION.into());
        another.fingerprint = Some(Fingerprint::of("EUR 200").unwrap());
        assert!(matches!(world.memory.claim(another).await, Ok(ClaimOutcome::Granted(_))));
        gate.open();
    };
    let ((result, report), ()) = tokio::join!(world.while_time_passes(with_report(call)), operator);
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Superseded);
    assert!(!report.unwrap().waited);
    assert_eq!(world.engine.duplicates(), 1);
}

#[tokio::test]
async fn an_own_commit_that_is_found_as_lost_is_still_the_own_result() {
    // Applied twice by a store that answers the second one with "lost", as a statement on a stale
    // snapshot does.
    let (world, gate) = (World::new(), Gate::new());
    let call = world.call(1).run(|| async {
        gate.wait().await;
        world.effect(1)
    });
    let other = async {
        world.record_is(1, |record| record.is_some()).await;
        let record = world.record(1).await.unwrap();
        let commit = Commit::new(record.key, record.owner, "\"receipt 1.1\"".into(), DAY);
        assert_eq!(world.memory.complete(commit).await.unwrap(), WriteOutcome::Applied);
        gate.open();
    };
    let (result, ()) = tokio::join!(call, other);
    assert_eq!(result.unwrap(), "receipt 1.1");
    assert_eq!(world.engine.duplicates(), 0);
}

/// `max_run` bounds bodies. A result that is in hand is stored for as long as `background_commit`
/// says.
#[tokio::test]
async fn the_lease_of_a_result_that_is_being_stored_is_renewed_also_past_the_longest_run() {
    let world = World::with(|builder| builder.max_run(LEASE * 2));
    world.store.always(Operation::Complete, Some(Fault::Refused(StoreErrorKind::Full)));
    let call = world.call(1).on_crash(OnCrash::Retry).run(|| async { world.effect(1) });
    assert_eq!(call.await.unwrap_err().kind(), ErrorKind::NotStored);
    let other = world.other_process_with(|builder| builder.on_conflict(OnConflict::Reject));
    let later = async {
        let until = world.clock_now() + LEASE * 6;
        world.time_is(until).await;
        other.call(1).on_crash(OnCrash::Retry).run(|| async { other.effect(1) }).await
    };
    assert_eq!(world.while_time_passes(later).await.unwrap_err().kind(), ErrorKind::InProgress);
    world.store.always(Operation::Complete, None);
    world
        .while_time_passes(
            world.record_is(1, |record| record.is_some_and(|record| record.state.is_answer())),
        )
        .await;
    assert_eq!(other.charge(1).await.unwrap(), "receipt 1.1");
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn a_call_whose_result_is_not_stored_reports_its_attempt() {
    let world = World::new();
    world.store.always(Operation::Complete, Some(Fault::Refused(StoreErrorKind::Full)));
    let (result, report) = with_report(world.charge(1)).await;
    assert_eq!(result.unwrap_err().kind(), ErrorKind::NotStored);
    assert_eq!(report.unwrap().attempt, 1);
}
