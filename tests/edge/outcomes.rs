//! What an edge learns of its call.

use std::sync::Arc;
use std::time::Duration;

use futures::poll;
use idempotency::clock::Clock as _;
use idempotency::edge::{EdgeCall, EdgeOutcome, EdgeResult, End};
use idempotency::key::{Key, window};
use idempotency::record::State;
use idempotency::store::{
    Claim, ClaimOutcome, CrashPolicy, Operation, Store as _, StoreErrorKind, Token,
};
use idempotency::testing::{Fault, Gate};
use idempotency::{Error, ErrorKind, OnConflict, OnCrash, Verdict};
use tokio::sync::{Notify, oneshot};

use crate::mail::{Mail as _, mail};
use crate::world::{DAY, LEASE, World, eventually, without_renewals};

#[tokio::test]
async fn a_result_that_cannot_be_stored_in_time_is_stored_late() -> Result<(), Error> {
    let world = World::new();
    world.store.always(Operation::Complete, Some(Fault::LostRequest));
    let outcome = without_renewals(&world, world.mail().run(async |_| world.send())).await;
    assert!(outcome.is_stored_late() && !outcome.may_fail_open(), "{outcome:?}");
    assert!(matches!(outcome, EdgeOutcome::Refused { own: Some(1), .. }), "{outcome:?}");

    world.store.always(Operation::Complete, None);
    let stored = eventually("the record", async || {
        let record = world.mail_record().await.ok().flatten();
        record.is_some_and(|record| record.state == State::Completed)
    });
    without_renewals(&world, stored).await;
    let outcome = world.mail().run(async |_| world.send()).await;
    assert!(matches!(outcome, EdgeOutcome::Replayed { own: None, .. }), "{outcome:?}");
    assert_eq!(world.ledger.count(), 1);
    Ok(())
}

#[tokio::test]
async fn a_result_that_is_too_large_is_lost_for_every_later_caller() {
    let world = World::with(|builder| builder.max_result_size(2));
    let large = async |_| (world.ledger.happen(), EdgeResult::completed("large").into());
    let outcome = world.mail().run(large).await;
    let EdgeOutcome::Refused { error, own: Some(1) } = outcome else { panic!("{outcome:?}") };
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    let outcome = world.mail().run(large).await;
    let EdgeOutcome::Lost { error, own: None } = outcome else { panic!("{outcome:?}") };
    assert_eq!((error.kind(), world.ledger.count()), (ErrorKind::TooLarge, 1));
}

#[tokio::test]
async fn an_owner_that_was_overtaken_learns_the_result_and_keeps_its_own_value() {
    let world = World::new();
    world.store.always(Operation::Renew, Some(Fault::LostRequest));
    let other = mail(&world.other_process().engine).on_crash(OnCrash::Retry);
    let overtaken = async |_| {
        world.clock.advance(LEASE * 2);
        let outcome = other.run(async |_| ("other", EdgeResult::completed("other").into())).await;
        assert!(matches!(outcome, EdgeOutcome::Executed("other")), "{outcome:?}");
        world.send()
    };
    let outcome = world.mail().on_crash(OnCrash::Retry).run(overtaken).await;
    let EdgeOutcome::Replayed { result, own: Some(1) } = outcome else { panic!("{outcome:?}") };
    assert_eq!(result, EdgeResult::completed("other"));
}

#[tokio::test]
async fn only_a_store_that_failed_before_anything_was_known_may_be_left_out() {
    let world = World::new();
    world.store.always(Operation::Claim, Some(Fault::Refused(StoreErrorKind::Refused)));
    let outcome = without_renewals(&world, world.mail().run(async |_| world.send())).await;
    assert!(outcome.may_fail_open(), "{outcome:?}");
    world.store.always(Operation::Claim, None);

    // A caller that knows of another one.
    let (started, end) = (Notify::new(), Notify::new());
    let busy = world.mail().run(async |_| {
        started.notify_one();
        end.notified().await;
        world.send()
    });
    let waits = async {
        started.notified().await;
        let waits = world.mail().on_conflict(OnConflict::Reject);
        let outcome = waits.run(async |_| world.send()).await;
        assert_eq!(outcome.error().map(Error::kind), Some(ErrorKind::InProgress), "{outcome:?}");
        assert!(!outcome.may_fail_open(), "{outcome:?}");
        end.notify_one();
    };
    let (outcome, ()) = tokio::join!(busy, waits);
    assert!(!outcome.may_fail_open(), "{outcome:?}");
    assert_eq!(world.ledger.count(), 1);
}

const HOUR: Duration = Duration::from_secs(3600);

/// A call whose key has a window of an hour.
fn hourly(world: &World) -> EdgeCall {
    let key = Key::of(&("7", window(HOUR)));
    EdgeCall::new(&world.engine, "mail", key, DAY).on_crash(OnCrash::Retry)
}

/// A process that has died with a claim of the window of now, before it looked at the one before.
async fn has_died_while_it_looked(world: &World) -> Result<(), Error> {
    let mut claim = Claim::new(hourly(world).record().hash()?, Token::from_bits(1), "mail".into());
    (claim.policy, claim.lease) = (CrashPolicy::Retry, LEASE);
    assert!(matches!(world.memory.claim(claim).await?, ClaimOutcome::Granted(_)));
    world.clock.advance(LEASE);
    Ok(())
}

/// The store refuses what is asked of it now, and `knows` tells whether it has reported another
/// call before.
async fn is_refused(world: &World, knows: bool) {
    let outcome = without_renewals(world, hourly(world).run(async |_| world.send())).await;
    let refused = Some(ErrorKind::StoreUnavailable);
    assert_eq!(outcome.error().map(Error::kind), refused, "{outcome:?}");
    assert_eq!(outcome.may_fail_open(), !knows, "{outcome:?}");
}

fn refused() -> Fault {
    Fault::Refused(StoreErrorKind::Refused)
}

#[tokio::test]
async fn a_store_that_has_reported_the_record_of_the_window_before_may_not_be_left_out()
-> Result<(), Error> {
    let world = World::new();
    let before = hourly(&world).record().hash()?;
    let outcome = hourly(&world).run(async |_| world.send()).await;
    assert!(matches!(outcome, EdgeOutcome::Executed(1)), "{outcome:?}");
    world.clock.advance(HOUR);
    world.store.always_at(Operation::Claim, before, Some(refused()));
    is_refused(&world, true).await;
    assert_eq!(world.ledger.count(), 1);
    Ok(())
}

/// It follows a caller that only checks, and looks at the window before by itself.
#[tokio::test]
async fn a_follower_that_does_not_wait_knows_of_the_record_of_the_window_before()
-> Result<(), Error> {
    let (world, gate) = (World::new(), Gate::new());
    let before = hourly(&world).record().hash()?;
    let outcome = hourly(&world).run(async |_| world.send()).await;
    assert!(matches!(outcome, EdgeOutcome::Executed(1)), "{outcome:?}");
    world.clock.advance(HOUR);
    world.store.next(Operation::Read, Fault::Late(gate.clone()));
    let mut leader = Box::pin(hourly(&world).run(async |_| world.send()));
    assert!(poll!(&mut leader).is_pending(), "it checks");
    world.store.always_at(Operation::Claim, before, Some(refused()));
    let follower = hourly(&world).on_conflict(OnConflict::Reject).run(async |_| world.send());
    let outcome = without_renewals(&world, follower).await;
    assert_eq!(outcome.error().map(Error::kind), Some(ErrorKind::StoreUnavailable), "{outcome:?}");
    assert!(!outcome.may_fail_open(), "{outcome:?}");
    assert_eq!(world.ledger.count(), 1);
    Ok(())
}

#[tokio::test]
async fn a_store_that_fails_while_a_call_looks_at_its_windows_may_be_left_out_if_it_was_the_first()
-> Result<(), Error> {
    for operation in [Operation::Read, Operation::Checkpoint] {
        for has_died in [false, true] {
            let world = World::new();
            if has_died {
                has_died_while_it_looked(&world).await?;
            }
            world.store.always(operation, Some(refused()));
            is_refused(&world, has_died).await;
            assert_eq!(world.ledger.count(), 0);
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_record_that_a_call_has_met_and_given_up_in_the_window_before_is_not_forgotten()
-> Result<(), Error> {
    for operation in [Operation::Claim, Operation::Read, Operation::Checkpoint] {
        let world = World::new();
        has_died_while_it_looked(&world).await?;
        world.clock.advance(HOUR);
        // The claims of both windows, and the one look of the first round.
        let first_round = match operation {
            Operation::Claim => 2,
            Operation::Read => 1,
            _ => 0,
        };
        for _ in 0..first_round {
            world.store.next(operation, Fault::Slow(world.clock.clone(), Duration::ZERO));
        }
        world.store.always(operation, Some(refused()));
        is_refused(&world, true).await;
        assert!(world.store.requests(operation) > first_round, "{operation}");
        assert_eq!(world.ledger.count(), 0);
    }
    Ok(())
}

/// The caller itself has met only one that asks. That one knew more.
#[tokio::test]
async fn who_follows_a_caller_that_knows_of_another_one_knows_it_too() {
    let (world, started) = (World::new(), Notify::new());
    let there = world.other_process();
    let mut running = Box::pin(mail(&there.engine).run(async |_| {
        started.notify_one();
        std::future::pending::<((), End)>().await
    }));
    tokio::select! {
        outcome = &mut running => panic!("{outcome:?}"),
        () = started.notified() => {}
    }
    let send = || Box::pin(world.mail().run(async |_| world.send()));
    let (mut first, mut second) = (send(), send());
    eventually("the first to wait for the other process", async || {
        assert!(poll!(&mut first).is_pending());
        world.store.requests(Operation::Watch) > 0
    })
    .await;
    assert!(poll!(&mut second).is_pending(), "it follows the first");
    drop(first);
    let gate = Gate::new();
    world.store.next(Operation::Claim, Fault::Late(gate.clone()));
    eventually("the second to ask", async || {
        assert!(poll!(&mut second).is_pending());
        world.store.requests(Operation::Claim) == 2
    })
    .await;
    let mut third = send();
    assert!(poll!(&mut third).is_pending(), "it follows the second");
    world.store.always(Operation::Claim, Some(refused()));
    drop(second);
    let outcome = without_renewals(&world, third).await;
    assert_eq!(outcome.error().map(Error::kind), Some(ErrorKind::StoreUnavailable), "{outcome:?}");
    assert!(!outcome.may_fail_open(), "{outcome:?}");
    gate.open();
}

#[tokio::test]
async fn a_body_without_protection_is_named_and_leaves_no_record() -> Result<(), Error> {
    let world = World::new();
    world.engine.disable("mail");
    for number in 1..3 {
        let outcome = world.mail().run(async |turn| {
            assert!(!turn.attempt().is_protected());
            // There is no claim that could end meanwhile.
            turn.wait().begin().expect("its turn has come");
            world.send()
        });
        let outcome = outcome.await;
        assert!(matches!(outcome, EdgeOutcome::Unprotected(value) if value == number));
    }
    world.engine.enable("mail");
    let unprotected = world.mail().run_unprotected(async || world.send().0)?;
    assert_eq!(unprotected.await, 3);
    assert!(world.mail_record().await?.is_none());

    assert_eq!(world.engine.shutdown(Duration::ZERO).await.abandoned, 0);
    let refused = world.mail().run_unprotected(async || world.send().0);
    assert_eq!(refused.err().map(|error| error.kind()), Some(ErrorKind::ShuttingDown));
    Ok(())
}

#[tokio::test]
async fn bytes_of_another_version_are_not_taken_for_a_result() {
    let world = World::new();
    let outcome = world.mail().version(1).run(async |_| world.send()).await;
    assert!(matches!(outcome, EdgeOutcome::Executed(1)), "{outcome:?}");
    let outcome = world.mail().version(2).run(async |_| world.send()).await;
    assert_eq!(outcome.error().map(Error::kind), Some(ErrorKind::Decode), "{outcome:?}");
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn a_detached_body_goes_on_without_its_caller_and_its_outcome_is_reported() {
    let world = World::new();
    let (started, end) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (report, reported) = oneshot::channel();
    let body = {
        let (started, end, ledger) = (started.clone(), end.clone(), world.ledger.clone());
        async move |_| {
            started.notify_one();
            end.notified().await;
            (ledger.happen(), EdgeResult::completed("sent").into())
        }
    };
    let settled = |outcome: &EdgeOutcome<usize>| {
        let _ = report.send(matches!(outcome, EdgeOutcome::Executed(1)));
    };
    let mut running = Box::pin(world.mail().run_detached(body, settled));
    tokio::select! {
        outcome = &mut running => panic!("{outcome:?}"),
        () = started.notified() => drop(running),
    }
    end.notify_one();
    assert_eq!(reported.await, Ok(true));
    let replay = world.mail().run_detached(async |_| (0, End::Released), |_| unreachable!());
    let replay = replay.await;
    assert!(matches!(replay, EdgeOutcome::Replayed { own: None, .. }), "{replay:?}");
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn a_verification_decides_about_an_earlier_attempt() -> Result<(), Error> {
    enum Answer {
        Sent,
        NotSent,
        NotKnown,
    }
    for detached in [true, false] {
        for (answer, effects, error) in [
            (Answer::Sent, 1, None),
            (Answer::NotSent, 2, None),
            (Answer::NotKnown, 1, Some(ErrorKind::InDoubt)),
        ] {
            let world = World::new();
            let call = || world.mail().settle(Duration::ZERO);
            let ask = async |_| Verdict::Unknown;
            let first = call().on_crash_verify(ask).run(async |_| {
                world.ledger.happen();
                ((), End::Unknown)
            });
            assert!(matches!(first.await, EdgeOutcome::Executed(())));
            let ask = async move |attempt: idempotency::edge::Attempt| {
                assert!(attempt.is_verification());
                match answer {
                    Answer::Sent => Verdict::Completed(EdgeResult::completed("from the books")),
                    Answer::NotSent => Verdict::NotExecuted,
                    Answer::NotKnown => Verdict::Unknown,
                }
            };
            let ledger = world.ledger.clone();
            let body = async move |_| {
                ledger.happen();
                ((), EdgeResult::completed("sent").into())
            };
            let call = call().on_crash_verify(ask);
            let outcome =
                if detached { call.run_detached(body, |_| ()).await } else { call.run(body).await };
            assert_eq!(outcome.error().map(Error::kind), error, "{outcome:?}");
            assert_eq!(world.ledger.count(), effects, "{outcome:?}");
            let expected = match (error, effects) {
                (Some(_), _) => State::InDoubt,
                (None, _) => State::Completed,
            };
            assert_eq!(world.mail_record().await?.map(|record| record.state), Some(expected));
        }
    }
    Ok(())
}

/// A repetition within the window is one, however short the retention of the result itself is.
#[tokio::test]
async fn a_result_is_kept_for_the_window_of_its_key() -> Result<(), Error> {
    for ttl in [Duration::from_secs(60), HOUR] {
        let world = World::new();
        let now = world.clock.now().as_millis();
        world.clock.advance(HOUR.saturating_sub(Duration::from_micros(now % 3_600_000 * 1000 + 1)));
        let result = EdgeResult::failed("no such address").with_ttl(ttl);
        let outcome = hourly(&world).run(async |_| (world.ledger.happen(), result.into())).await;
        assert!(matches!(outcome, EdgeOutcome::Executed(1)), "{outcome:?}");
        world.clock.advance(HOUR.saturating_sub(Duration::from_nanos(1)));
        let outcome = hourly(&world).run(async |_| world.send()).await;
        assert!(matches!(outcome, EdgeOutcome::Replayed { .. }), "{ttl:?}: {outcome:?}");
        assert_eq!(world.ledger.count(), 1);
    }
    Ok(())
}
