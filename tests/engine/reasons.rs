//! Why an outcome is unknown: what is logged is what stands on the record.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt as _;
use idempotency::store::{Operation, Reason};
use idempotency::{Error, ErrorKind, OnCrash};

use crate::faults::Fault;
use crate::warnings::Warnings;
use crate::world::{LEASE, World, eventually, poll_once};

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
