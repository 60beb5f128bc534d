//! Two callers of one call, in two processes: the second waits, or refuses to.

use std::time::Duration;

use idempotency::key::Fingerprint;
use idempotency::store::{
    Claim, ClaimOutcome, Commit, Operation, Release, Store as _, Token, WriteOutcome,
};
use idempotency::{ErrorKind, OnConflict, with_report};

use crate::faults::Gate;
use crate::world::{DAY, LEASE, OPERATION, World, eventually, poll_once};

#[tokio::test]
async fn a_caller_elsewhere_waits_and_gets_the_same_result() {
    let (here, gate) = (World::new(), Gate::new());
    let there = here.other_process();
    let first = here.call(1).run(|| async {
        gate.wait().await;
        here.effect(1)
    });
    let second = async {
        here.record_is(1, |record| record.is_some()).await;
        let (result, report) = with_report(there.charge(1)).await;
        let report = report.unwrap();
        assert!(report.replayed && report.waited);
        result
    };
    let open = async {
        eventually("the second caller to wait", async || {
            there.store.requests(Operation::Watch) > 0
        })
        .await;
        gate.open();
    };
    let (first, second, ()) = tokio::join!(first, second, open);
    assert_eq!(first.unwrap(), second.unwrap());
    assert_eq!(here.ledger.count(), 1);
}

#[tokio::test]
async fn a_caller_that_waits_does_not_get_the_result_of_another_request() {
    let world = World::new();
    let there = world.other_process();
    let mut first = Box::pin(
        world
            .call(1)
            .fingerprint("EUR 100")
            .run(std::future::pending::<Result<String, idempotency::Error>>),
    );
    eventually("the first caller to own", async || {
        assert!(poll_once(&mut first).is_pending());
        world.record(1).await.is_some()
    })
    .await;
    let second = there.call(1).fingerprint("EUR 100").run(|| async { there.effect(1) });
    let other = async {
        eventually("the second caller to wait", async || {
            there.store.requests(Operation::Watch) > 0
        })
        .await;
        // Before the second caller looks, the record is gone, and there is one of another request
        // in its place.
        let record = world.record(1).await.unwrap();
        world.memory.release(Release::new(record.key, record.owner)).await.unwrap();
        let mut claim = Claim::new(record.key, Token::from_bits(7), OPERATION.into());
        claim.fingerprint = Some(Fingerprint::of("EUR 200").unwrap());
        assert!(matches!(world.memory.claim(claim).await, Ok(ClaimOutcome::Granted(_))));
        let commit = Commit::new(record.key, Token::from_bits(7), "\"another\"".into(), DAY);
        assert_eq!(world.memory.complete(commit).await.unwrap(), WriteOutcome::Applied);
    };
    let (second, ()) = tokio::join!(second, other);
    assert_eq!(second.unwrap_err().kind(), ErrorKind::Mismatch);
    assert_eq!(world.ledger.count(), 0);
}

#[tokio::test]
async fn a_caller_that_refuses_to_wait_is_told_at_once_and_how_long_the_lease_runs() {
    let world = World::new();
    let there = world.other_process();
    let mut first =
        Box::pin(world.call(1).run(std::future::pending::<Result<String, idempotency::Error>>));
    eventually("the first caller to own", async || {
        assert!(poll_once(&mut first).is_pending());
        world.record(1).await.is_some()
    })
    .await;
    let second =
        there.call(1).on_conflict(OnConflict::Reject).run(|| async { there.effect(1) }).await;
    let error = second.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InProgress);
    assert_eq!(error.retry_after(), Some(LEASE));
    assert!(error.is_retryable());
    assert_eq!(world.ledger.count(), 0);
}

#[tokio::test]
async fn waiting_is_bounded() {
    let world = World::new();
    let there = world.other_process();
    let mut first =
        Box::pin(world.call(1).run(std::future::pending::<Result<String, idempotency::Error>>));
    eventually("the first caller to own", async || {
        assert!(poll_once(&mut first).is_pending());
        world.record(1).await.is_some()
    })
    .await;
    let patience = Duration::from_secs(3);
    let second =
        there.call(1).on_conflict(OnConflict::Wait(patience)).run(|| async { there.effect(1) });
    let started = world.clock_now();
    let error = there.while_time_passes(second).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InProgress);
    let waited = world.clock_now().saturating_sub(started);
    assert!(waited >= patience && waited < patience * 2, "waited {waited:?}");
    assert_eq!(world.ledger.count(), 0);
}

#[tokio::test]
async fn more_waiters_than_the_bound_are_refused_at_once() {
    let world = World::with(|builder| builder.max_waiters(1));
    let other = world.other_process();
    let mut owner =
        Box::pin(other.call(1).run(std::future::pending::<Result<String, idempotency::Error>>));
    eventually("the owner to own", async || {
        assert!(poll_once(&mut owner).is_pending());
        world.record(1).await.is_some()
    })
    .await;
    let mut waiter = Box::pin(world.charge(1));
    eventually("the first waiter to wait", async || {
        assert!(poll_once(&mut waiter).is_pending());
        world.store.requests(Operation::Watch) > 0
    })
    .await;
    let error = world.charge(1).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InProgress);
    drop(waiter);
    // The place is free again.
    let mut waiter = Box::pin(world.charge(1));
    let watches = world.store.requests(Operation::Watch);
    eventually("the next waiter to wait", async || {
        assert!(poll_once(&mut waiter).is_pending());
        world.store.requests(Operation::Watch) > watches
    })
    .await;
}

#[tokio::test]
async fn a_waiter_becomes_the_owner_when_the_claim_is_released() {
    let (here, gate) = (World::new(), Gate::new());
    let there = here.other_process();
    let first = here.call(1).run(|| async {
        gate.wait().await;
        Err::<String, _>(Busy)
    });
    let second = async {
        here.record_is(1, |record| record.is_some()).await;
        there.charge(1).await
    };
    let open = async {
        eventually("the second caller to wait", async || {
            there.store.requests(Operation::Watch) > 0
        })
        .await;
        gate.open();
    };
    let (first, second, ()) = tokio::join!(first, second, open);
    assert!(first.is_err());
    assert_eq!(second.unwrap(), "receipt 1.1");
    assert_eq!(here.ledger.count(), 1);
}

#[derive(Debug)]
struct Busy;

impl From<idempotency::Error> for Busy {
    fn from(error: idempotency::Error) -> Self {
        panic!("unexpected: {error}")
    }
}
