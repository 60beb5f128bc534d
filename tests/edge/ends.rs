//! What each end of a body leaves for the next caller.

use std::time::Duration;

use idempotency::edge::{EdgeOutcome, EdgeResult, End};
use idempotency::record::State;
use idempotency::{Error, ErrorKind, OnCrash};

use crate::mail::Mail as _;
use crate::world::{DAY, World};

const POLICIES: [OnCrash; 3] = [OnCrash::Hold, OnCrash::Retry, OnCrash::Resume];

#[tokio::test]
async fn a_result_is_replayed_byte_for_byte_and_so_is_a_failure() -> Result<(), Error> {
    for (first, state) in [
        (EdgeResult::completed(&b"\0\xff not JSON"[..]), State::Completed),
        (EdgeResult::failed(&b""[..]), State::Failed),
    ] {
        let world = World::new();
        let outcome = world.mail().run(async |_| ("own", first.clone().into())).await;
        assert!(matches!(outcome, EdgeOutcome::Executed("own")), "{outcome:?}");
        assert_eq!(world.mail_record().await?.map(|record| record.state), Some(state));
        let outcome = world.mail().run(async |_| ("again", world.send().1)).await;
        let EdgeOutcome::Replayed { result, own: None } = outcome else { panic!("{outcome:?}") };
        assert_eq!((result, world.ledger.count()), (first, 0));
    }
    Ok(())
}

#[tokio::test]
async fn a_released_call_runs_again_under_every_policy() -> Result<(), Error> {
    for policy in POLICIES {
        let world = World::new();
        let call = || world.mail().on_crash(policy).count_attempts();
        let outcome = call().run(async |_| ((), End::Released)).await;
        assert!(matches!(outcome, EdgeOutcome::Executed(())), "{outcome:?}");
        let outcome = call().run(async |_| world.send()).await;
        assert!(matches!(outcome, EdgeOutcome::Executed(1)), "{outcome:?}");
        assert_eq!(world.mail_record().await?.map(|record| record.attempts), Some(2));
    }
    Ok(())
}

#[tokio::test]
async fn a_held_call_does_not_run_again_under_any_policy() -> Result<(), Error> {
    for policy in POLICIES {
        let world = World::new();
        let call = || world.mail().on_crash(policy);
        let outcome = call().run(async |_| (world.ledger.happen(), End::Held)).await;
        assert!(matches!(outcome, EdgeOutcome::Executed(1)), "{outcome:?}");
        assert_eq!(world.mail_record().await?.map(|record| record.state), Some(State::InDoubt));
        let outcome = call().run(async |_| world.send()).await;
        assert_eq!(outcome.error().map(Error::kind), Some(ErrorKind::InDoubt), "{outcome:?}");
        assert_eq!(world.ledger.count(), 1);
    }
    Ok(())
}

#[tokio::test]
async fn after_an_unknown_outcome_the_policy_decides() -> Result<(), Error> {
    for (policy, effects) in [(OnCrash::Hold, 1), (OnCrash::Retry, 2), (OnCrash::Resume, 2)] {
        let world = World::new();
        let call = || world.mail().on_crash(policy);
        let outcome = call().run(async |_| (world.ledger.happen(), End::Unknown)).await;
        assert!(matches!(outcome, EdgeOutcome::Executed(1)), "{outcome:?}");
        let outcome = call().run(async |_| world.send()).await;
        let is_refused = outcome.error().is_some_and(|error| error.kind() == ErrorKind::InDoubt);
        assert_eq!((is_refused, world.ledger.count()), (effects == 1, effects), "{outcome:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_retention_of_its_own_is_brought_into_the_bounds_of_the_engine() -> Result<(), Error> {
    for (ttl, expected) in [(DAY / 2, DAY / 2), (DAY * 10_000, DAY * 400)] {
        let world = World::new();
        let result = EdgeResult::completed("sent").with_ttl(ttl);
        let outcome = world.mail().run(async |_| ((), result.into())).await;
        assert!(matches!(outcome, EdgeOutcome::Executed(())), "{outcome:?}");
        let record = world.mail_record().await?.expect("it was sent");
        let kept = record.expires.saturating_duration_since(record.created);
        assert_eq!(kept, expected);
    }
    Ok(())
}

/// As that of a call is.
#[tokio::test]
async fn a_retention_of_its_own_is_rounded_up_to_whole_milliseconds() -> Result<(), Error> {
    for (micros, expected) in [(1_500, 2), (2_000, 2), (2_001, 3), (1, 1)] {
        let world = World::new();
        let ttl = Duration::from_micros(micros);
        let result = EdgeResult::completed("sent").with_ttl(ttl);
        let outcome = world.mail().run(async |_| ((), result.into())).await;
        assert!(matches!(outcome, EdgeOutcome::Executed(())), "{outcome:?}");
        let record = world.mail_record().await?.expect("it was sent");
        let kept = record.expires.saturating_duration_since(record.created);
        assert_eq!(kept, Duration::from_millis(expected), "{ttl:?}");
    }
    Ok(())
}

#[tokio::test]
async fn an_operator_answers_in_the_encoding_of_the_edge() -> Result<(), Error> {
    let world = World::new();
    let outcome = world.mail().run(async |_| ((), End::Held)).await;
    assert!(matches!(outcome, EdgeOutcome::Executed(())), "{outcome:?}");
    let record = world.mail().record();
    let view = record.inspect().await?.expect("it is in doubt");
    let rejected = idempotency::edge::resolution(Err("there is no such answer"));
    let error = record.resolve(&view, rejected).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    record.resolve(&view, EdgeResult::completed(&b"\xff"[..]).into()).await?;
    let outcome = world.mail().run(async |_| world.send()).await;
    let EdgeOutcome::Replayed { result, own: None } = outcome else { panic!("{outcome:?}") };
    assert_eq!((&result.bytes()[..], world.ledger.count()), (&b"\xff"[..], 0));
    Ok(())
}
