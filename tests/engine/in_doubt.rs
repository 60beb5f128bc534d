//! What `InDoubt` tells: the operation, its age, its attempts, why, and the ways out. One test for
//! each reason, as the engine produces it.

use std::time::Duration;

use idempotency::record::{Resolution, State};
use idempotency::store::{Claim, ClaimOutcome, CrashPolicy, Operation, Reason, Store as _, Token};
use idempotency::{Error, ErrorAction, ErrorKind, OnCrash, Verdict};

use crate::faults::Fault;
use crate::world::{DAY, LEASE, OPERATION, World, eventually, poll_once};

/// Lets time pass, and looks at what the next caller and an operator are told about attempt 1.
/// `words` say why.
async fn assert_told(world: &World, reason: Reason, words: &str) {
    let effects = world.ledger.count();
    let seen = world.record(1).await.unwrap();
    let age = seen.read_at.saturating_duration_since(seen.created);
    world.clock.advance((DAY + Duration::from_secs(2 * 3600 + 59)).saturating_sub(age));

    let error = world.charge(1).await.unwrap_err();
    assert_eq!((error.kind(), error.operation()), (ErrorKind::InDoubt, Some(OPERATION)));
    assert!(!error.is_retryable(), "nobody asks by itself");
    let (text, hash) = (error.to_string(), world.engine.record(OPERATION, 1).hash().unwrap());
    assert!(text.starts_with(&format!("{OPERATION} [{hash}]: ")), "{text}");
    let why = format!("it is not known whether it finished: {words}; ");
    let ways_out = ["record(…).resolve(…)", "`completed`", "`failed`", "`not_executed`"];
    for part in [&why, "attempt 1,", "first claimed 1d 2h ago"].into_iter().chain(ways_out) {
        assert!(text.contains(part), "{part} is missing: {text}");
    }

    let record = world.engine.record(OPERATION, 1);
    let view = record.inspect().await.unwrap().unwrap();
    assert_eq!((view.state, view.reason, view.attempts), (State::InDoubt, Some(reason), 1));
    assert_eq!(world.ledger.count(), effects, "nobody ran the body to find that out");
    record.resolve(&view, Resolution::completed("found")).await.unwrap();
    assert_eq!(world.charge(1).await.unwrap(), "found", "the way out is one");
}

/// Starts a body that has its effect and then hangs.
async fn hanging(world: &World) -> std::pin::Pin<Box<impl Future<Output = Result<String, Error>>>> {
    let mut call = Box::pin(world.call(1).run(|| async {
        world.effect(1)?;
        std::future::pending().await
    }));
    eventually("the effect", async || {
        assert!(poll_once(&mut call).is_pending());
        world.ledger.count() == 1
    })
    .await;
    call
}

async fn is_parked(world: &World) {
    world.record_is(1, |record| record.is_some_and(|record| record.state == State::InDoubt)).await;
}

#[tokio::test]
async fn a_process_that_died_is_told() {
    let world = World::new();
    let hash = world.engine.record(OPERATION, 1).hash().unwrap();
    let mut claim = Claim::new(hash, Token::from_bits(7), OPERATION.into());
    claim.lease = LEASE;
    assert!(matches!(world.memory.claim(claim).await, Ok(ClaimOutcome::Granted(_))));
    assert_told(
        &world,
        Reason::Crashed,
        "its process died, hung or lost the store, and its lease expired",
    )
    .await;
}

#[tokio::test]
async fn a_dropped_future_is_told() {
    let world = World::new();
    drop(hanging(&world).await);
    is_parked(&world).await;
    assert_told(&world, Reason::Dropped, "its future was dropped while the body ran").await;
}

#[tokio::test]
async fn a_panic_is_told() {
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
    is_parked(&world).await;
    assert_told(&world, Reason::Panicked, "the body panicked").await;
}

#[tokio::test]
async fn a_lost_lease_is_told() {
    let world = World::new();
    world.store.always(Operation::Renew, Some(Fault::LostRequest));
    let call = hanging(&world).await;
    world.clock.advance(LEASE);
    drop(call);
    is_parked(&world).await;
    assert_told(&world, Reason::LeaseLost, "it lost its lease while the body ran").await;
}

#[tokio::test]
async fn a_held_error_is_told() {
    let world = World::new();
    let call = world.call(1).on_error(ErrorAction::Hold).run(|| async {
        world.effect(1)?;
        Err::<String, _>(anyhow::anyhow!("the provider did not answer"))
    });
    call.await.unwrap_err();
    assert_told(&world, Reason::Error, "the body returned an error that may hide an effect").await;
}

#[tokio::test]
async fn a_result_that_could_not_be_stored_is_told() {
    let world = World::with(|builder| builder.background_commit(Duration::from_secs(20)));
    world.store.always(Operation::Complete, Some(Fault::LostRequest));
    assert_eq!(
        world.while_time_passes(world.charge(1)).await.unwrap_err().kind(),
        ErrorKind::NotStored
    );
    world.while_time_passes(is_parked(&world)).await;
    assert_told(&world, Reason::NotStored, "the body finished, and its result could not be stored")
        .await;
}

#[tokio::test]
async fn a_shutdown_is_told() {
    let world = World::new();
    let _hanging = hanging(&world).await;
    let drained = world.while_time_passes(world.engine.shutdown(Duration::from_secs(1))).await;
    assert_eq!(drained.abandoned, 1);
    let there = world.other_process();
    assert_told(&there, Reason::ShutDown, "the engine was shut down while the body ran").await;
}

#[tokio::test]
async fn a_question_without_an_answer_is_told_and_who_asks_again() {
    let world = World::new();
    let hash = world.engine.record(OPERATION, 1).hash().unwrap();
    let mut claim = Claim::new(hash, Token::from_bits(7), OPERATION.into());
    (claim.lease, claim.policy) = (LEASE, CrashPolicy::Verify);
    assert!(matches!(world.memory.claim(claim).await, Ok(ClaimOutcome::Granted(_))));
    world.clock.advance(LEASE);

    let ask =
        || world.call(1).settle(Duration::ZERO).on_crash_verify(async |_| Ok(Verdict::Unknown));
    let error = ask().run(|| async { world.effect(1) }).await.unwrap_err();
    let text = error.to_string();
    let why = "it crashed, and the question whether it had happened was not answered";
    for part in [
        OPERATION,
        why,
        "attempt 2, first claimed 15s ago",
        "asks again, in 5s at the earliest",
        "resolve(…)",
    ] {
        assert!(text.contains(part), "{part} is missing: {text}");
    }
    assert_eq!(
        (error.kind(), error.retry_after()),
        (ErrorKind::InDoubt, Some(Duration::from_secs(5)))
    );
    let record = world.record(1).await.unwrap();
    assert_eq!((record.state, record.reason), (State::InDoubt, Some(Reason::Unverified)));

    let error =
        world.call(1).on_crash(OnCrash::Retry).run(|| async { world.effect(1) }).await.unwrap_err();
    let text = error.to_string();
    for part in
        [why, "attempt 2", "a call with `on_crash = verify` asks the outside world", "resolve(…)"]
    {
        assert!(text.contains(part), "{part} is missing: {text}");
    }
    assert!(!error.is_retryable(), "this caller cannot ask");
    assert_eq!(world.ledger.count(), 0);
}

#[tokio::test]
async fn an_answer_over_the_limit_is_refused_and_the_record_stays_in_doubt() {
    let world = World::with(|builder| builder.max_result_size(16));
    drop(hanging(&world).await);
    is_parked(&world).await;
    let record = world.engine.record(OPERATION, 1);
    let view = record.inspect().await.unwrap().unwrap();
    // With its quotation marks.
    let (fits, is_over) = ("x".repeat(14), "x".repeat(15));
    for resolution in [Resolution::completed(&is_over), Resolution::failed(&is_over)] {
        let error = record.resolve(&view, resolution).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        let told = "the answer is larger than the limit, and nothing has changed";
        assert!(error.to_string().contains(told), "{error}");
        assert!(error.to_string().contains("it takes 17 bytes and the limit is 16"), "{error}");
    }
    assert_eq!(record.inspect().await.unwrap().unwrap().state, State::InDoubt);
    assert_eq!(world.charge(1).await.unwrap_err().kind(), ErrorKind::InDoubt);
    record.resolve(&view, Resolution::completed(&fits)).await.unwrap();
    assert_eq!((world.charge(1).await.unwrap(), world.ledger.count()), (fits, 1));
}
