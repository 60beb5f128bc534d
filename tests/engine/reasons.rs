//! Why an outcome is unknown: what is logged is what stands on the record.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt as _;
use idempotency::record::{Resolution, State};
use idempotency::store::{Only, Operation, Reason, Scan};
use idempotency::{Error, ErrorAction, ErrorKind, OnCrash, Verdict};

use crate::faults::Fault;
use crate::warnings::Warnings;
use crate::world::{LEASE, OPERATION, World, eventually, poll_once};

const REASONS: [Reason; 5] =
    [Reason::Dropped, Reason::Panicked, Reason::LeaseLost, Reason::ShutDown, Reason::Crashed];

/// A body that had its effect and does not come to an end.
async fn hanging(
    world: &World,
    on_crash: OnCrash,
) -> impl Future<Output = Result<String, Error>> + Unpin + '_ {
    let mut call = Box::pin(world.call(1).on_crash(on_crash).run(|| async {
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

/// The one reason that was logged since `warnings` listens is the one on the record, once all is
/// done.
async fn is_logged_and_recorded(world: &World, warnings: &Warnings, reason: Reason) {
    world.while_time_passes(world.engine.shutdown(Duration::from_secs(3_600))).await;
    assert_eq!(world.record(1).await.unwrap().reason, Some(reason));
    let logged = REASONS.into_iter().filter(|reason| warnings.mention(&reason.to_string()));
    assert_eq!(logged.collect::<Vec<_>>(), [reason]);
}

const POLICIES: [OnCrash; 3] = [OnCrash::Hold, OnCrash::Retry, OnCrash::Resume];

#[tokio::test]
async fn a_dropped_body_is_logged_as_it_is_recorded() {
    for policy in POLICIES {
        let (world, warnings) = (World::new(), Warnings::listen());
        drop(hanging(&world, policy).await);
        is_logged_and_recorded(&world, &warnings, Reason::Dropped).await;
    }
}

#[tokio::test]
async fn a_panicking_body_is_logged_as_it_is_recorded() {
    for policy in POLICIES {
        let (world, warnings) = (World::new(), Warnings::listen());
        let call = world.call(1).on_crash(policy).run(|| async {
            assert!(world.effect(1).is_err(), "the body breaks");
            Ok::<_, Error>(())
        });
        assert!(AssertUnwindSafe(call).catch_unwind().await.is_err());
        is_logged_and_recorded(&world, &warnings, Reason::Panicked).await;
    }
}

#[tokio::test]
async fn a_body_that_a_shutdown_gave_up_is_logged_as_it_is_recorded() {
    for policy in POLICIES {
        let (world, warnings) = (World::new(), Warnings::listen());
        let hanging = hanging(&world, policy).await;
        let drained = world.while_time_passes(world.engine.shutdown(Duration::from_secs(1))).await;
        assert_eq!(drained.abandoned, 1);
        // The process ends, and with it the body.
        drop(hanging);
        is_logged_and_recorded(&world, &warnings, Reason::ShutDown).await;
    }
}

#[tokio::test]
async fn a_body_that_lost_its_lease_is_logged_as_it_is_recorded_also_if_somebody_saw_it_first() {
    for is_seen in [false, true] {
        let (world, warnings) = (World::new(), Warnings::listen());
        world.store.always(Operation::Renew, Some(Fault::LostRequest));
        let hanging = hanging(&world, OnCrash::Hold).await;
        world.clock.advance(LEASE + Duration::from_millis(1));
        if is_seen {
            let refused = world.other_process().charge(1).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::InDoubt);
            assert_eq!(
                world.record(1).await.unwrap().reason,
                Some(Reason::Crashed),
                "all that others can see"
            );
        }
        drop(hanging);
        is_logged_and_recorded(&world, &warnings, Reason::LeaseLost).await;
    }
}

/// The keys that a list of these records has.
async fn listed(world: &World, only: Only) -> usize {
    let mut scan = Scan::default();
    scan.only = only;
    let mut records = world.engine.records(scan);
    let mut count = 0;
    while let Some(record) = records.next().await {
        record.unwrap();
        count += 1;
    }
    count
}

/// It says that nothing happened, and speaks for itself alone.
#[tokio::test]
async fn a_call_that_took_a_record_over_and_did_nothing_leaves_it_as_a_crash_would() {
    let world = World::new();
    drop(hanging(&world, OnCrash::Retry).await);
    let dropped = Some(Reason::Dropped);
    world.record_is(1, |record| record.is_some_and(|record| record.reason == dropped)).await;
    let fails = world.call(1).on_crash(OnCrash::Retry).on_error(ErrorAction::Release);
    fails.run(async || Err::<String, _>(anyhow::anyhow!("no answer"))).await.unwrap_err();
    let record = world.record(1).await.unwrap();
    assert_eq!((record.state, record.reason), (State::InProgress, Some(Reason::Crashed)));
    assert_eq!(listed(&world, Only::Orphaned).await, 1);
}

#[tokio::test]
async fn a_doubt_that_was_taken_over_for_nothing_waits_for_the_next_call_and_can_be_answered() {
    let world = World::new();
    drop(hanging(&world, OnCrash::Retry).await);
    let dropped = Some(Reason::Dropped);
    world.record_is(1, |record| record.is_some_and(|record| record.reason == dropped)).await;
    let ask = |settle| {
        let call = world.call(1).settle(settle);
        let call = call.on_crash_verify(async |_| Ok::<_, Error>(Verdict::Unknown));
        Box::pin(call.run(|| async { world.effect(1) }))
    };
    assert_eq!(ask(Duration::ZERO).await.unwrap_err().kind(), ErrorKind::InDoubt);
    let handle = world.engine.record(OPERATION, 1);
    let in_doubt = handle.inspect().await.unwrap().unwrap();
    assert_eq!((in_doubt.state, in_doubt.reason), (State::InDoubt, Some(Reason::Unverified)));
    assert_eq!(listed(&world, Only::InDoubt).await, 1);

    world.clock.advance(LEASE);
    let mut leaves = ask(LEASE);
    eventually("the takeover", async || {
        assert!(poll_once(&mut leaves).is_pending());
        world.record(1).await.is_some_and(|record| record.attempts == 3)
    })
    .await;
    drop(leaves);
    world.record_is(1, |record| record.is_some_and(|record| record.attempts == 2)).await;
    let left = handle.inspect().await.unwrap().unwrap();
    assert_eq!((left.state, left.reason), (State::InProgress, Some(Reason::Crashed)));
    assert_eq!((listed(&world, Only::InDoubt).await, listed(&world, Only::Orphaned).await), (0, 1));
    let answer = || Resolution::completed("receipt".to_owned());
    let refused = handle.resolve(&in_doubt, answer()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Superseded);
    handle.resolve(&left, answer()).await.unwrap();
    assert_eq!(world.charge(1).await.unwrap(), "receipt");
}
