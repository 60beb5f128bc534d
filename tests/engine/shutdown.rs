//! Draining an engine.

use std::time::Duration;

use idempotency::store::Reason;
use idempotency::{Error, ErrorKind, OnCrash, State};

use crate::faults::{Fault, Gate};
use crate::world::{World, eventually, poll_once};

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_shutdown_waits_for_running_bodies_and_refuses_new_calls() {
    let (world, gate) = (World::new(), Gate::new());
    let running = world.call(1).run(|| async {
        gate.wait().await;
        // What a running body calls belongs to its drain.
        world.charge(2).await?;
        world.effect(1)
    });
    let shutdown = async {
        world.record_is(1, |record| record.is_some()).await;
        let mut shutdown = Box::pin(world.engine.shutdown(LONG));
        assert!(poll_once(&mut shutdown).is_pending());
        assert_eq!(world.charge(3).await.unwrap_err().kind(), ErrorKind::ShuttingDown);
        gate.open();
        shutdown.await
    };
    let (running, drained) = tokio::join!(running, shutdown);
    running.unwrap();
    assert_eq!(drained.abandoned, 0);
    assert_eq!(world.ledger.charges(), ["charge 2", "charge 1"]);
}

async fn hang<'a>(world: &'a World, on_crash: OnCrash) -> impl Future<Output = Result<String, Error>> + Unpin + 'a {
    let mut hanging = Box::pin(world.call(1).on_crash(on_crash).run(|| async {
        world.effect(1)?;
        std::future::pending::<()>().await;
        Ok("never".to_owned())
    }));
    eventually("the effect", async || {
        assert!(poll_once(&mut hanging).is_pending());
        world.ledger.count() == 1
    })
    .await;
    hanging
}

#[tokio::test]
async fn a_body_that_outlasts_the_shutdown_is_in_doubt_under_hold() {
    let world = World::new();
    let _hanging = hang(&world, OnCrash::Hold).await;
    let drained = world.while_time_passes(world.engine.shutdown(Duration::from_secs(1))).await;
    assert_eq!(drained.abandoned, 1);
    let record = world.record(1).await.unwrap();
    assert_eq!((record.state, record.reason), (State::InDoubt, Some(Reason::ShutDown)));
}

#[tokio::test]
async fn a_body_that_outlasts_the_shutdown_is_left_to_the_next_process_under_retry() {
    let world = World::new();
    let _hanging = hang(&world, OnCrash::Retry).await;
    let drained = world.while_time_passes(world.engine.shutdown(Duration::from_secs(1))).await;
    assert_eq!(drained.abandoned, 1);
    let there = world.other_process();
    let taken = there.call(1).on_crash(OnCrash::Retry).run(|| async { there.effect(1) });
    assert_eq!(taken.await.unwrap(), "receipt 1.2");
}

#[tokio::test]
async fn a_shutdown_waits_for_what_dropped_calls_left_behind() {
    let (world, gate) = (World::new(), Gate::new());
    world.store.next("park", Fault::Late(gate.clone()));
    let hanging = hang(&world, OnCrash::Hold).await;
    drop(hanging);
    let mut shutdown = Box::pin(world.engine.shutdown(LONG));
    eventually("the record to be parked", async || world.store.requests("park") == 1).await;
    assert!(poll_once(&mut shutdown).is_pending());
    gate.open();
    assert_eq!(shutdown.await.abandoned, 0);
    assert_eq!(world.record(1).await.unwrap().state, State::InDoubt);
}
