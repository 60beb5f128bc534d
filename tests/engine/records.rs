//! Looking at records, answering for them, forgetting them.

use std::time::Duration;

use idempotency::key::KeyHash;
use idempotency::record::{RecordHandle, RecordView, Resolution, State};
use idempotency::store::{
    Checkpoint, Claim, ClaimOutcome, CrashPolicy, Operation, Reason, Renewal, Store as _,
    StoreErrorKind, Token,
};
use idempotency::{Context, Error, ErrorAction, ErrorKind, OnCrash, OnError};
use serde::{Deserialize, Serialize};

use crate::faults::{Fault, Gate};
use crate::world::{DAY, LEASE, OPERATION, World, eventually, poll_once};

impl World {
    fn handle(&self, key: u64) -> RecordHandle {
        self.engine.record(OPERATION, key)
    }
}

/// A call that ended in a held error: its record is in doubt.
async fn in_doubt(world: &World) {
    let call = world.call(1).on_error(ErrorAction::Hold).run(|| async {
        world.effect(1)?;
        Err::<String, _>(anyhow::anyhow!("the provider did not answer"))
    });
    call.await.unwrap_err();
}

#[tokio::test]
async fn a_record_shows_what_it_is_and_never_its_content() {
    let world = World::new();
    assert!(world.handle(1).inspect().await.unwrap().is_none());
    world.charge(1).await.unwrap();
    let view = world.handle(1).inspect().await.unwrap().unwrap();
    assert_eq!(
        (view.state, view.attempts, view.reason, &*view.operation),
        (State::Completed, 1, None, OPERATION)
    );
    assert_eq!(view.expires.saturating_duration_since(view.created), DAY);
    assert_eq!(view.size, "\"receipt 1.1\"".len());
    assert!(!format!("{view:?}").contains("receipt"));
    let by_hash = world.engine.record_by_hash(view.key).inspect().await.unwrap().unwrap();
    assert_eq!(by_hash.revision, view.revision);
    assert!(world.handle(1).scope("tenant-7").inspect().await.unwrap().is_none());
}

#[tokio::test]
async fn records_are_found_by_the_first_digits_of_their_hash() {
    let world = World::new();
    let hash = |text: &str| format!("{text:0<64}").parse::<KeyHash>().unwrap();
    let names = ["00000000", "abcdef00a", "abcdef00b", "abcdef00c", "abcdef00d", "abcdef01"];
    for (name, token) in names.into_iter().zip(1..) {
        let mut claim = Claim::new(hash(name), Token::from_bits(token), OPERATION.into());
        (claim.ttl, claim.lease) = (DAY, LEASE);
        assert!(matches!(world.memory.claim(claim).await, Ok(ClaimOutcome::Granted(_))));
    }
    let find = async |prefix: &str| world.engine.find(prefix).await;
    assert_eq!(
        find("abcdef00").await.unwrap(),
        names[1..4].iter().map(|name| hash(name)).collect::<Vec<_>>()
    );
    assert_eq!(find("ABCDEF00d").await.unwrap(), [hash("abcdef00d")]);
    assert_eq!(find("00000000").await.unwrap(), [hash("00000000")]);
    assert_eq!(find(&hash("abcdef01").to_hex()).await.unwrap(), [hash("abcdef01")]);
    assert!(find("abcdef02").await.unwrap().is_empty());
    for refused in ["abcdef0", "abcdef0g", &"a".repeat(65)] {
        assert_eq!(find(refused).await.unwrap_err().kind(), ErrorKind::InvalidKey);
    }
    world.store.always(Operation::Scan, Some(Fault::LostRequest));
    let error = world.while_time_passes(find("abcdef00")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable);
    assert!(error.to_string().contains("could not be listed"), "{error}");
}

#[tokio::test]
async fn an_operator_says_that_it_happened_and_every_caller_gets_the_answer() {
    let world = World::new();
    in_doubt(&world).await;
    let view = world.handle(1).inspect().await.unwrap().unwrap();
    assert_eq!(view.state, State::InDoubt);
    world
        .handle(1)
        .resolve(&view, Resolution::completed("from the provider's books"))
        .await
        .unwrap();
    assert_eq!(world.charge(1).await.unwrap(), "from the provider's books");
    assert_eq!(world.ledger.count(), 1);
    let again = world.handle(1).resolve(&view, Resolution::completed("another")).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Superseded);
    let text = again.to_string();
    assert!(
        text.contains("differs from the one that was seen") && text.ends_with("inspect it again"),
        "{text}"
    );
    assert!(!text.contains("body"), "no body ran: {text}");
    assert_eq!(world.charge(1).await.unwrap(), "from the provider's books");
}

#[tokio::test]
async fn an_operator_says_that_nothing_happened_and_the_next_call_runs() {
    let world = World::new();
    in_doubt(&world).await;
    let view = world.handle(1).inspect().await.unwrap().unwrap();
    world.handle(1).resolve(&view, Resolution::not_executed()).await.unwrap();
    assert_eq!(world.charge(1).await.unwrap(), "receipt 1.2");
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Declined {
    Declined,
    #[serde(skip)]
    Guard,
}

impl From<Error> for Declined {
    fn from(_: Error) -> Self {
        Self::Guard
    }
}

#[tokio::test]
async fn an_operator_says_that_it_failed_and_every_caller_gets_the_error() {
    let world = World::new();
    in_doubt(&world).await;
    let view = world.handle(1).inspect().await.unwrap().unwrap();
    world.handle(1).resolve(&view, Resolution::failed(Declined::Declined)).await.unwrap();
    let call = world.call(1).on_error(OnError::Store).run(|| async {
        world.ledger.charge("again");
        Ok(())
    });
    assert_eq!(call.await, Err(Declined::Declined));
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn an_answer_whose_answer_was_lost_is_the_same_answer() {
    for resolution in [|| Resolution::completed("found"), || Resolution::not_executed()] {
        let world = World::new();
        in_doubt(&world).await;
        let view = world.handle(1).inspect().await.unwrap().unwrap();
        world.store.next(Operation::Resolve, Fault::LostAnswer);
        let handle = world.handle(1);
        world.while_time_passes(handle.resolve(&view, resolution())).await.unwrap();
    }
}

#[tokio::test]
async fn a_late_owner_neither_overwrites_an_operator_s_answer_nor_returns_another() {
    let (world, gate) = (World::new(), Gate::new());
    world.store.always(Operation::Renew, Some(Fault::LostRequest));
    let late = world.call(1).run(|| async {
        gate.wait().await;
        world.effect(1)
    });
    let operator = async {
        world.record_is(1, |record| record.is_some()).await;
        let early = world.handle(1).inspect().await.unwrap().unwrap();
        assert_eq!(early.state, State::InProgress);
        let refused =
            world.handle(1).resolve(&early, Resolution::not_executed()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InProgress);
        world.clock.advance(LEASE + Duration::from_millis(1));
        let view = world.handle(1).inspect().await.unwrap().unwrap();
        assert_eq!(
            view.state,
            State::InDoubt,
            "nobody has asked since the lease ended, and it is in doubt all the same"
        );
        world.handle(1).resolve(&view, Resolution::completed("operator")).await.unwrap();
        gate.open();
    };
    let (late, ()) = tokio::join!(late, operator);
    assert_eq!(late.unwrap(), "operator");
    assert_eq!(world.charge(1).await.unwrap(), "operator");
}

#[tokio::test]
async fn forgetting_is_for_records_that_do_not_run() {
    let (world, gate) = (World::new(), Gate::new());
    world.handle(1).forget().await.unwrap();
    let running = world.call(1).run(|| async {
        gate.wait().await;
        world.effect(1)
    });
    let operator = async {
        world.record_is(1, |record| record.is_some()).await;
        let error = world.handle(1).forget().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InProgress);
        assert!(error.retry_after().is_some());
        gate.open();
    };
    let (running, ()) = tokio::join!(running, operator);
    running.unwrap();
    world.handle(1).forget().await.unwrap();
    assert_eq!(world.charge(1).await.unwrap(), "receipt 1.2", "forgotten on request");
}

#[tokio::test]
async fn after_a_forced_removal_callers_wait_for_the_end_of_the_lease() {
    let (world, gate) = (World::new(), Gate::new());
    let running = world.call(1).run(|| async {
        gate.wait().await;
        world.effect(1)
    });
    let there = world.other_process();
    let operator = async {
        world.record_is(1, |record| record.is_some()).await;
        let record = world.record(1).await.unwrap();
        let mut remove = idempotency::store::Remove::new(record.key, record.owner);
        remove.force = true;
        idempotency::store::Store::remove(&world.memory, remove).await.unwrap();
        let error = there.charge(1).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InProgress);
        assert_eq!(error.retry_after(), Some(LEASE));
        let error = there.handle(1).forget().await.unwrap_err();
        assert_eq!(
            (error.kind(), error.retry_after()),
            (ErrorKind::InProgress, Some(LEASE)),
            "its owner runs"
        );
        gate.open();
    };
    let (running, ()) = tokio::join!(running, operator);
    assert_eq!(running.unwrap_err().kind(), ErrorKind::Superseded);
}

#[tokio::test]
async fn an_operator_s_answer_has_the_schema_version_of_the_call() {
    let world = World::new();
    let call = || world.call(1).version(3).on_error(ErrorAction::Hold);
    let held = call()
        .run(|| async { Err::<String, _>(anyhow::anyhow!("the provider did not answer")) })
        .await;
    held.unwrap_err();
    let view = world.handle(1).inspect().await.unwrap().unwrap();
    world.handle(1).resolve(&view, Resolution::completed("found")).await.unwrap();
    let replayed: anyhow::Result<String> = call().run(|| async { Ok(world.effect(1)?) }).await;
    assert_eq!(replayed.unwrap(), "found");
}

const POLICIES: [CrashPolicy; 4] =
    [CrashPolicy::Hold, CrashPolicy::Verify, CrashPolicy::Resume, CrashPolicy::Retry];

/// An owner whose process is gone: it claimed, and is never heard of again.
async fn dead_owner(world: &World, policy: CrashPolicy) {
    let mut claim =
        Claim::new(world.handle(1).hash().unwrap(), Token::from_bits(7), OPERATION.into());
    claim.lease = LEASE;
    claim.policy = policy;
    assert!(matches!(world.memory.claim(claim).await, Ok(ClaimOutcome::Granted(_))));
}

#[tokio::test]
async fn an_operator_answers_for_a_dead_owner_under_every_policy() {
    for policy in POLICIES {
        let world = World::new();
        dead_owner(&world, policy).await;
        let alive = world.handle(1).inspect().await.unwrap().unwrap();
        assert_eq!((alive.state, alive.reason), (State::InProgress, None), "{policy:?}");
        let refused =
            world.handle(1).resolve(&alive, Resolution::completed("operator")).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InProgress, "{policy:?}");

        world.clock.advance(LEASE);
        let view = world.handle(1).inspect().await.unwrap().unwrap();
        assert_eq!(
            view.reason,
            Some(Reason::Crashed),
            "{policy:?}: it can be told from one that lives"
        );
        world.handle(1).resolve(&view, Resolution::completed("operator")).await.unwrap();
        let retry = world.call(1).on_crash(OnCrash::Retry).run(|| async { world.effect(1) }).await;
        assert_eq!(retry.unwrap(), "operator", "{policy:?}");
        assert_eq!(world.ledger.count(), 0, "{policy:?}");
    }
}

#[tokio::test]
async fn an_answer_about_an_owner_that_was_taken_over_is_refused() {
    for policy in [CrashPolicy::Verify, CrashPolicy::Resume, CrashPolicy::Retry] {
        let world = World::new();
        dead_owner(&world, policy).await;
        world.clock.advance(LEASE);
        let view = world.handle(1).inspect().await.unwrap().unwrap();
        let mut claim = Claim::new(view.key, Token::from_bits(8), OPERATION.into());
        claim.policy = policy;
        assert!(matches!(world.memory.claim(claim).await, Ok(ClaimOutcome::Granted(_))));
        let refused = world.handle(1).resolve(&view, Resolution::not_executed()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Superseded, "{policy:?}");
        assert_eq!(
            world.record(1).await.unwrap().state,
            State::InProgress,
            "{policy:?}: the new owner runs"
        );
    }
}

/// What an operator would know if they looked again: the charge has happened.
#[tokio::test]
async fn an_answer_is_refused_where_the_same_owner_has_recorded_a_step_since() {
    let (world, gate) = (World::new(), Gate::new());
    let call = world.call(1).on_crash(OnCrash::Resume).run(|| async {
        gate.wait().await;
        Context::current().step("charge", || async { world.effect(1) }).await?;
        std::future::pending::<Result<String, Error>>().await
    });
    let mut call = Box::pin(call);
    let old = async {
        world.record_is(1, |record| record.is_some()).await;
        let old = world.handle(1).inspect().await.unwrap().unwrap();
        gate.open();
        world.record_is(1, |record| record.is_some_and(|record| !record.body.is_empty())).await;
        old
    };
    let old = tokio::select! {
        _ = &mut call => unreachable!("it never ends"),
        old = old => old,
    };
    drop(call);
    world
        .record_is(1, |record| record.is_some_and(|record| record.reason == Some(Reason::Dropped)))
        .await;
    let refused = world.handle(1).resolve(&old, Resolution::not_executed()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Superseded);
    let view = world.handle(1).inspect().await.unwrap().unwrap();
    assert_ne!(view.revision, old.revision);
    world.handle(1).resolve(&view, Resolution::completed("receipt 1.1")).await.unwrap();
    assert_eq!(world.charge(1).await.unwrap(), "receipt 1.1");
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn a_view_is_the_same_as_long_as_nothing_but_the_lease_changes() {
    let world = World::new();
    dead_owner(&world, CrashPolicy::Hold).await;
    let view = async || world.handle(1).inspect().await.unwrap().unwrap();
    let first = view().await;
    let record = world.record(1).await.unwrap();
    world.clock.advance(LEASE / 2);
    let renewed =
        world.memory.renew(vec![Renewal::new(record.key, record.owner, LEASE)]).await.unwrap();
    assert!(renewed[0].is_done());
    assert_eq!(first.revision, view().await.revision);
    world.clock.advance(LEASE);
    assert_ne!(first.revision, view().await.revision, "it is in doubt by now");
}

#[tokio::test]
async fn an_operator_answers_for_a_body_that_was_given_up() {
    let world = World::new();
    let call = world.call(1).on_crash(OnCrash::Resume);
    let mut call = Box::pin(call.run(|| async {
        world.effect(1)?;
        std::future::pending::<Result<String, Error>>().await
    }));
    eventually("the effect", async || {
        assert!(poll_once(&mut call).is_pending());
        world.ledger.count() == 1
    })
    .await;
    drop(call);
    world
        .record_is(1, |record| record.is_some_and(|record| record.reason == Some(Reason::Dropped)))
        .await;
    let view = world.handle(1).inspect().await.unwrap().unwrap();
    assert_eq!((view.state, view.reason), (State::InProgress, Some(Reason::Dropped)));
    world.handle(1).resolve(&view, Resolution::completed("operator")).await.unwrap();
    assert_eq!(world.charge(1).await.unwrap(), "operator");
}

#[tokio::test]
async fn an_operator_that_fails_in_the_middle_of_an_answer_leaves_the_record_in_doubt() {
    for policy in POLICIES {
        let world = World::new();
        dead_owner(&world, policy).await;
        world.clock.advance(LEASE);
        let view = world.handle(1).inspect().await.unwrap().unwrap();
        world.store.always(Operation::Resolve, Some(Fault::LostRequest));
        let resolve = world.handle(1);
        let failed =
            world.while_time_passes(resolve.resolve(&view, Resolution::completed("lost"))).await;
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::NotStored, "{policy:?}");
        world.store.always(Operation::Resolve, None);

        let doubt = world.handle(1).inspect().await.unwrap().unwrap();
        assert_eq!(
            (doubt.state, doubt.reason),
            (State::InDoubt, Some(Reason::Crashed)),
            "{policy:?}"
        );
        assert_eq!(world.charge(1).await.unwrap_err().kind(), ErrorKind::InDoubt, "{policy:?}");
        world.handle(1).resolve(&doubt, Resolution::completed("operator")).await.unwrap();
        assert_eq!(world.charge(1).await.unwrap(), "operator", "{policy:?}");
        assert_eq!(world.ledger.count(), 0, "{policy:?}");
    }
}

#[tokio::test]
async fn an_operator_whose_answer_was_refused_is_told_of_the_doubt_and_answers_again() {
    for policy in POLICIES {
        for fault in [Fault::Refused(StoreErrorKind::Full), Fault::LostRequest] {
            let world = World::new();
            dead_owner(&world, policy).await;
            world.clock.advance(LEASE);
            let view = world.handle(1).inspect().await.unwrap().unwrap();
            let resolve = world.handle(1);
            world.store.always(Operation::Resolve, Some(fault));
            let answer = resolve.resolve(&view, Resolution::completed("lost"));
            let text = world.while_time_passes(answer).await.unwrap_err().to_string();
            assert!(!text.contains("nothing has changed"), "{policy:?}: {text}");
            world.store.always(Operation::Resolve, None);
            assert_eq!(world.charge(1).await.unwrap_err().kind(), ErrorKind::InDoubt, "{policy:?}");

            resolve.resolve(&view, Resolution::completed("operator")).await.unwrap();
            assert_eq!(world.charge(1).await.unwrap(), "operator", "{policy:?}");
            let again = resolve.resolve(&view, Resolution::completed("another")).await;
            assert_eq!(again.unwrap_err().kind(), ErrorKind::Superseded, "{policy:?}");
        }
    }
}

#[tokio::test]
async fn an_operator_s_answer_is_kept_for_the_ttl_however_short_doubts_are_kept() {
    let world = World::with(|builder| builder.in_doubt_retention(DAY));
    let (ttl, call) = (DAY * 10, || world.call(1).ttl(DAY * 10));
    let held = call().on_error(ErrorAction::Hold).run(|| async {
        world.effect(1)?;
        Err::<String, _>(anyhow::anyhow!("the provider did not answer"))
    });
    held.await.unwrap_err();
    let view = world.handle(1).inspect().await.unwrap().unwrap();
    world.handle(1).resolve(&view, Resolution::completed("operator")).await.unwrap();
    let resolved = world.handle(1).inspect().await.unwrap().unwrap();
    world.clock.advance(ttl.saturating_sub(Duration::from_millis(1)));
    let late = call().run(|| async { world.effect(1) }).await;
    assert_eq!((late.unwrap().as_str(), world.ledger.count()), ("operator", 1));
    world.clock.advance(resolved.expires.saturating_duration_since(view.created));
    assert_eq!(
        call().run(|| async { world.effect(1) }).await.unwrap(),
        "receipt 1.2",
        "and not for ever"
    );
}

#[tokio::test]
async fn a_doubt_is_not_forgotten_before_a_result_would_be() {
    let world = World::with(|builder| builder.in_doubt_retention(Duration::from_millis(1)));
    in_doubt(&world).await;
    world.clock.advance(DAY);
    assert_eq!(world.charge(1).await.unwrap_err().kind(), ErrorKind::InDoubt);
    assert_eq!(world.ledger.count(), 1);
}

/// The record is in doubt, and an operator has answered with a number, which callers that read a
/// text cannot.
async fn answered_in_the_wrong_shape(world: &World) -> RecordView {
    in_doubt(world).await;
    let view = world.handle(1).inspect().await.unwrap().unwrap();
    world.handle(1).resolve(&view, Resolution::completed(7)).await.unwrap();
    assert_eq!(world.charge(1).await.unwrap_err().kind(), ErrorKind::Decode);
    let wrong = world.handle(1).inspect().await.unwrap().unwrap();
    assert_eq!((wrong.state, wrong.reason), (State::Completed, Some(Reason::Resolved)));
    wrong
}

#[tokio::test]
async fn an_answer_that_no_caller_can_read_is_corrected_without_forgetting_the_call() {
    let world = World::new();
    let wrong = answered_in_the_wrong_shape(&world).await;
    world.handle(1).resolve(&wrong, Resolution::completed("right")).await.unwrap();
    assert_eq!(world.charge(1).await.unwrap(), "right");
    let right = world.handle(1).inspect().await.unwrap().unwrap();
    assert_eq!(
        (right.state, right.reason, right.attempts),
        (State::Completed, Some(Reason::Resolved), 1)
    );
    assert!(
        right.fence > wrong.fence && right.revision != wrong.revision,
        "the correction is on the record"
    );
    let late = world.handle(1).resolve(&wrong, Resolution::completed("late")).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Superseded);
    assert_eq!(world.charge(1).await.unwrap(), "right");
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn an_answer_and_its_correction_are_of_the_version_of_the_call_that_left_the_record() {
    let world = World::new();
    let held = world.call(1).version(1).on_error(ErrorAction::Hold);
    held.run(|| async { Err::<String, _>(anyhow::anyhow!("no answer")) }).await.unwrap_err();
    let charge = |version| world.call(1).version(version).run(|| async { world.effect(1) });
    for answer in ["first", "corrected"] {
        let view = world.handle(1).inspect().await.unwrap().unwrap();
        world.handle(1).resolve(&view, Resolution::completed(answer)).await.unwrap();
        assert_eq!(charge(1).await.unwrap(), answer);
        assert_eq!(charge(2).await.unwrap_err().kind(), ErrorKind::Decode);
        let upgrade = |version, stored: &[u8]| {
            Some(format!("{version}: {}", String::from_utf8_lossy(stored)))
        };
        let upgraded =
            world.call(1).version(2).run_with_upgrade(upgrade, || async { world.effect(1) });
        assert_eq!(upgraded.await.unwrap(), format!("1: \"{answer}\""));
    }
    assert_eq!(world.ledger.count(), 0);
}

#[tokio::test]
async fn of_two_corrections_at_once_one_counts_and_the_other_is_told() {
    let world = World::new();
    let wrong = answered_in_the_wrong_shape(&world).await;
    let gate = Gate::new();
    world.store.next(Operation::Resolve, Fault::Late(gate.clone()));
    let (first, second) = (world.handle(1), world.handle(1));
    let mut first = Box::pin(first.resolve(&wrong, Resolution::completed("first")));
    assert!(poll_once(&mut first).is_pending());
    second.resolve(&wrong, Resolution::completed("second")).await.unwrap();
    gate.open();
    assert_eq!(first.await.unwrap_err().kind(), ErrorKind::Superseded);
    assert_eq!(world.charge(1).await.unwrap(), "second");
}

#[tokio::test]
async fn a_correction_does_not_say_that_nothing_happened() {
    let world = World::new();
    let wrong = answered_in_the_wrong_shape(&world).await;
    let refused = world.handle(1).resolve(&wrong, Resolution::not_executed()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Superseded);
    assert_eq!(world.charge(1).await.unwrap_err().kind(), ErrorKind::Decode);
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn no_result_of_an_owner_or_a_verdict_is_corrected() {
    let world = World::new();
    let receipt = world.charge(1).await.unwrap();
    let view = world.handle(1).inspect().await.unwrap().unwrap();
    let refused = world.handle(1).resolve(&view, Resolution::completed("other")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Superseded);
    assert_eq!(world.charge(1).await.unwrap(), receipt);

    let world = World::new();
    dead_owner(&world, CrashPolicy::Verify).await;
    world.clock.advance(LEASE);
    let call = world.call(1).settle(Duration::ZERO).on_crash_verify(async |_| {
        Ok::<_, Error>(idempotency::Verdict::Completed("verdict".to_owned()))
    });
    assert_eq!(call.run(|| async { world.effect(1) }).await.unwrap(), "verdict");
    let view = world.handle(1).inspect().await.unwrap().unwrap();
    let refused = world.handle(1).resolve(&view, Resolution::completed("other")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Superseded);
    assert_eq!(world.charge(1).await.unwrap(), "verdict");
    assert_eq!(world.ledger.count(), 0);
}

#[tokio::test]
async fn a_forgotten_tombstone_lets_the_next_call_run() {
    let world = World::new();
    let charge =
        async || world.call(1).after_expiry(DAY * 10).run(|| async { world.effect(1) }).await;
    charge().await.unwrap();
    world.clock.advance(DAY);
    assert_eq!(charge().await.unwrap_err().kind(), ErrorKind::Expired);
    assert_eq!(world.handle(1).inspect().await.unwrap().unwrap().state, State::Tombstone);
    world.handle(1).forget().await.unwrap();
    assert!(world.handle(1).inspect().await.unwrap().is_none());
    assert_eq!(charge().await.unwrap(), "receipt 1.2");
}

#[tokio::test]
async fn a_tombstone_takes_no_answer() {
    let world = World::new();
    let charge =
        async || world.call(1).after_expiry(DAY * 10).run(|| async { world.effect(1) }).await;
    charge().await.unwrap();
    world.clock.advance(DAY);
    let view = world.handle(1).inspect().await.unwrap().unwrap();
    for resolution in [Resolution::not_executed(), Resolution::completed("receipt 1.2")] {
        let error = world.handle(1).resolve(&view, resolution).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Superseded, "{error}");
    }
    assert_eq!(charge().await.unwrap_err().kind(), ErrorKind::Expired);
}

/// What an operator is told whose answer, or removal, the store applied without saying so, after
/// which another call ran.
async fn told_after_another_call(
    operation: Operation,
    send: impl AsyncFnOnce(&World, &RecordView) -> Result<(), Error>,
) {
    let world = World::new();
    let other = world.other_process();
    in_doubt(&world).await;
    let view = world.handle(1).inspect().await.unwrap().unwrap();
    world.store.next(operation, Fault::LostAnswer);
    let answered = send(&world, &view);
    let next = async {
        // Meanwhile time stands still, and nothing is sent again.
        world.record_is(1, |record| record.is_none()).await;
        world.clock.advance(Duration::from_millis(1));
        assert_eq!(other.charge(1).await.unwrap(), "receipt 1.2");
        world.while_time_passes(std::future::pending::<()>()).await;
    };
    let error = tokio::select! {
        answered = answered => answered.unwrap_err(),
        () = next => unreachable!("time passes for ever"),
    };
    assert_eq!((error.kind(), world.store.requests(operation)), (ErrorKind::Superseded, 2));
    assert!(!error.is_retryable(), "the record is another call's: {error}");
    let text = error.to_string();
    assert!(
        !text.contains("nothing has changed") && text.contains("not known whether it was applied"),
        "{text}"
    );
    // It says what to look at, and that tells.
    assert!(text.contains("`created`"), "{text}");
    let seen = world.handle(1).inspect().await.unwrap().unwrap();
    assert!(seen.created > view.created, "{:?} and {:?}", seen.created, view.created);
}

#[tokio::test]
async fn an_operator_whose_answer_was_lost_is_not_told_that_nothing_has_changed_when_another_call_ran()
 {
    told_after_another_call(Operation::Resolve, async |world, view| {
        world.handle(1).resolve(view, Resolution::not_executed()).await
    })
    .await;
    told_after_another_call(Operation::Remove, async |world, _| world.handle(1).forget().await)
        .await;
}

#[tokio::test]
async fn an_operator_whose_answer_was_lost_is_not_told_that_nothing_has_changed_when_another_call_runs()
 {
    for resolves in [true, false] {
        let (world, gate) = (World::new(), Gate::new());
        let other = world.other_process();
        in_doubt(&world).await;
        let view = world.handle(1).inspect().await.unwrap().unwrap();
        world
            .store
            .next(if resolves { Operation::Resolve } else { Operation::Remove }, Fault::LostAnswer);
        let handle = world.handle(1);
        let answered = async {
            if resolves {
                handle.resolve(&view, Resolution::not_executed()).await
            } else {
                handle.forget().await
            }
        };
        let next = async {
            world.record_is(1, |record| record.is_none()).await;
            let running = other.call(1).run(|| async {
                gate.wait().await;
                other.effect(1)
            });
            let _ = world.while_time_passes(running).await;
        };
        let error = tokio::select! {
            answered = answered => answered.unwrap_err(),
            () = next => unreachable!("the gate stays closed"),
        };
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Superseded, false));
        let text = error.to_string();
        assert!(
            text.contains("not known whether it was applied") && text.contains("`created`"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn an_operator_whose_answer_never_reached_the_store_for_certain_is_told_so() {
    for resolves in [true, false] {
        let world = World::new();
        in_doubt(&world).await;
        let view = world.handle(1).inspect().await.unwrap().unwrap();
        world.store.always(
            if resolves { Operation::Resolve } else { Operation::Remove },
            Some(Fault::LostAnswer),
        );
        let handle = world.handle(1);
        let answered = async {
            if resolves {
                handle.resolve(&view, Resolution::completed("found")).await
            } else {
                handle.forget().await
            }
        };
        let error = world.while_time_passes(answered).await.unwrap_err();
        // The same answer may be given again, with the same view. A removal has no view: its next try
        // may meet another record.
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::NotStored, resolves));
        let text = error.to_string();
        assert!(
            text.contains("not known whether it was applied") && !text.contains("body"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn who_forgets_again_as_long_as_that_is_advised_removes_no_record_of_a_later_call() {
    for is_late in [false, true] {
        let (world, gate) = (World::new(), Gate::new());
        let fault = if is_late { Fault::Late(gate.clone()) } else { Fault::LostAnswer };
        let other = world.other_process();
        in_doubt(&world).await;
        world.store.always(Operation::Remove, Some(fault));
        let handle = world.handle(1);
        let mut forgotten = {
            let mut first = Box::pin(handle.forget());
            eventually("the removal", async || {
                assert!(poll_once(&mut first).is_pending());
                world.store.requests(Operation::Remove) == 1
            })
            .await;
            // The record is removed by the first try, or by another operator before it arrives.
            other.handle(1).forget().await.unwrap();
            assert_eq!(other.charge(1).await.unwrap(), "receipt 1.2");
            gate.open();
            world.while_time_passes(first).await
        };
        world.store.always(Operation::Remove, None);
        while forgotten.as_ref().is_err_and(Error::is_retryable) {
            forgotten = handle.forget().await;
        }
        assert_eq!(other.charge(1).await.unwrap(), "receipt 1.2");
        assert!(forgotten.is_err(), "it is not known whether this one has removed it");
    }
}

#[tokio::test]
async fn an_answer_that_is_given_again_may_have_been_applied_the_first_time() {
    let world = World::new();
    in_doubt(&world).await;
    let handle = world.handle(1);
    let view = handle.inspect().await.unwrap().unwrap();
    world.store.always(Operation::Resolve, Some(Fault::LostAnswer));
    let first = handle.resolve(&view, Resolution::completed("found"));
    let first = world.while_time_passes(first).await.unwrap_err();
    assert_eq!((first.kind(), first.is_retryable()), (ErrorKind::NotStored, true));
    world.store.always(Operation::Resolve, None);
    let again = handle.resolve(&view, Resolution::completed("found")).await.unwrap_err();
    assert_eq!((again.kind(), again.is_retryable()), (ErrorKind::Superseded, false));
    let text = again.to_string();
    assert!(
        !text.contains("nothing has changed") && text.contains("may have changed it"),
        "{text}"
    );
    assert_eq!(world.charge(1).await.unwrap(), "found");
}

/// The step was not on the record when the answer was checked, and is when it is in doubt.
#[tokio::test]
async fn an_operator_cannot_say_that_nothing_happened_where_a_step_was_recorded_meanwhile() {
    let (world, gate) = (World::new(), Gate::new());
    dead_owner(&world, CrashPolicy::Resume).await;
    world.clock.advance(LEASE);
    let handle = world.handle(1);
    let view = handle.inspect().await.unwrap().unwrap();
    world.store.next(Operation::Park, Fault::Late(gate.clone()));
    let mut answer = Box::pin(handle.resolve(&view, Resolution::not_executed()));
    eventually("the mark", async || {
        assert!(poll_once(&mut answer).is_pending());
        world.store.requests(Operation::Park) == 1
    })
    .await;
    let steps = r#"{"version":1,"steps":[{"name":"charge","index":0,"outcome":{"finished":7}}]}"#;
    let checkpoint = Checkpoint::new(view.key, Token::from_bits(7), 0, steps.into());
    assert!(world.memory.checkpoint(checkpoint).await.unwrap().is_done());
    gate.open();
    let refused = answer.await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Config);
    assert!(refused.to_string().contains("the record is in doubt"), "{refused}");
    let view = handle.inspect().await.unwrap().unwrap();
    assert_eq!((view.state, view.checkpoints), (State::InDoubt, 1));
    handle.resolve(&view, Resolution::completed("found")).await.unwrap();
}

#[tokio::test]
async fn an_operator_cannot_say_that_nothing_happened_where_the_steps_cannot_be_read() {
    let world = World::new();
    dead_owner(&world, CrashPolicy::Resume).await;
    let handle = world.handle(1);
    let key = handle.hash().unwrap();
    let later = Checkpoint::new(key, Token::from_bits(7), 0, r#"{"version":2}"#.into());
    assert!(world.memory.checkpoint(later).await.unwrap().is_done());
    world.clock.advance(LEASE);
    let view = handle.inspect().await.unwrap().unwrap();
    let refused = handle.resolve(&view, Resolution::not_executed()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Config, "{refused}");
    assert!(refused.to_string().contains("nothing has changed"), "{refused}");
    assert_eq!(world.record(1).await.unwrap().state, State::InProgress);
}

/// The body ran long ago, and nobody looks at a record to learn that it did not.
#[tokio::test]
async fn a_store_that_shows_no_record_says_nothing_of_the_body() {
    let world = World::new();
    in_doubt(&world).await;
    let view = world.handle(1).inspect().await.unwrap().unwrap();
    world.store.always(Operation::Read, Some(Fault::LostRequest));
    let record = world.handle(1);
    let inspected = world.while_time_passes(record.inspect()).await.map(drop);
    let resolved =
        world.while_time_passes(record.resolve(&view, Resolution::completed("paid"))).await;
    let forgotten = world.while_time_passes(record.forget()).await;
    for answer in [inspected, resolved, forgotten] {
        let error = answer.unwrap_err();
        let text = error.to_string();
        assert_eq!(error.kind(), ErrorKind::StoreUnavailable);
        assert!(text.contains("the record could not be read") && !text.contains("body"), "{text}");
    }
    world.store.always(Operation::Read, None);
    assert_eq!(world.handle(1).inspect().await.unwrap().unwrap().state, State::InDoubt);
}
