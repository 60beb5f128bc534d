//! Code of the user that panics: bodies, results, hooks, stores.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt as _;
use idempotency::store::Reason;
use idempotency::{Error, ErrorKind, OnCrash, State};
use serde::{Deserialize, Serialize};

use crate::faults::{Fault, Gate};
use crate::world::{LEASE, World, poll_once};

async fn is_in_doubt(world: &World, reason: Reason) {
    world.record_is(1, |record| record.is_some_and(|record| record.state == State::InDoubt)).await;
    assert_eq!(world.record(1).await.unwrap().reason, Some(reason));
    assert_eq!(world.charge(1).await.unwrap_err().kind(), ErrorKind::InDoubt);
}

async fn nothing_is_held(world: &World) {
    let drained = world.while_time_passes(world.engine.shutdown(Duration::from_secs(60))).await;
    assert_eq!(drained.abandoned, 0);
}

/// A server that catches panics keeps the future, or drops it when nothing unwinds any more.
#[tokio::test]
async fn a_panic_that_the_caller_catches_is_an_unknown_outcome_at_once() {
    let world = World::new();
    let mut call = Box::pin(world.call(1).run(|| async {
        world.effect(1)?;
        tokio::task::yield_now().await;
        panic!("the body breaks");
        #[expect(unreachable_code, reason = "it gives the result its type")]
        Ok::<(), Error>(())
    }));
    assert!(AssertUnwindSafe(&mut call).catch_unwind().await.is_err());
    is_in_doubt(&world, Reason::Panicked).await;
    nothing_is_held(&world).await;
    drop(call);
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn a_panic_before_the_first_await_of_the_body_is_an_unknown_outcome() {
    let world = World::new();
    let call = world.call(1).run(|| {
        world.ledger.charge("charge 1");
        assert_ne!(world.ledger.count(), 1, "the body breaks");
        async { Ok::<_, Error>(()) }
    });
    assert!(AssertUnwindSafe(call).catch_unwind().await.is_err());
    is_in_doubt(&world, Reason::Panicked).await;
}

#[tokio::test]
async fn a_body_that_is_dropped_by_another_panic_was_dropped() {
    let world = World::new();
    let mut call = Box::pin(world.call(1).run(std::future::pending::<Result<String, Error>>));
    assert!(poll_once(&mut call).is_pending());
    let other = async move {
        let _dropped_by_the_panic = call;
        panic!("somebody else breaks");
    };
    assert!(AssertUnwindSafe(other).catch_unwind().await.is_err());
    is_in_doubt(&world, Reason::Dropped).await;
}

#[derive(Debug, Deserialize)]
struct Breaks;

impl Serialize for Breaks {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        panic!("the result breaks")
    }
}

#[tokio::test]
async fn a_result_that_panics_when_it_is_encoded_is_an_unknown_outcome() {
    let world = World::new();
    let call = world.call(1).run(|| async {
        world.effect(1)?;
        Ok::<_, Error>(Breaks)
    });
    assert!(AssertUnwindSafe(call).catch_unwind().await.is_err());
    is_in_doubt(&world, Reason::Panicked).await;
    nothing_is_held(&world).await;
}

#[tokio::test]
async fn a_store_that_panics_at_the_commit_leaves_the_record_in_doubt() {
    let world = World::new();
    world.store.next("complete", Fault::Panic);
    assert!(AssertUnwindSafe(world.charge(1)).catch_unwind().await.is_err());
    is_in_doubt(&world, Reason::NotStored).await;
    nothing_is_held(&world).await;
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn a_hook_that_panics_keeps_no_lease() {
    let world = World::with(|builder| builder.on_duplicate(|_| panic!("the hook breaks")));
    let (there, gate) = (world.other_process(), Gate::new());
    world.store.always("renew", Some(Fault::LostRequest));
    let stalled = AssertUnwindSafe(world.call(1).on_crash(OnCrash::Retry).run(|| async {
        gate.wait().await;
        world.effect(1)
    }));
    let taker = async {
        world.record_is(1, |record| record.is_some()).await;
        world.clock.advance(LEASE + Duration::from_millis(1));
        let taken = there.call(1).on_crash(OnCrash::Retry).run(|| async { there.effect(1) }).await;
        gate.open();
        taken
    };
    let (stalled, winner) = tokio::join!(stalled.catch_unwind(), taker);
    assert!(stalled.is_err());
    nothing_is_held(&world).await;
    assert_eq!(there.charge(1).await.unwrap(), winner.unwrap(), "the winner keeps its result");
}
