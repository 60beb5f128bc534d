//! Draining an engine.

use std::time::Duration;

use idempotency::store::Reason;
use idempotency::{Error, ErrorKind, InCurrentScope as _, OnCrash, State, observe};

use crate::faults::{Fault, Gate};
use crate::world::{DAY, OPERATION, World, eventually, poll_once};

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

async fn hang(world: &World, on_crash: OnCrash) -> impl Future<Output = Result<String, Error>> + Unpin + '_ {
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

#[tokio::test]
async fn a_claim_that_is_on_its_way_at_the_shutdown_starts_no_body() {
    let (world, gate) = (World::new(), Gate::new());
    world.store.next("claim", Fault::LateAnswer(gate.clone()));
    let mut call = Box::pin(observe(world.charge(1)));
    eventually("the claim to be applied", async || {
        assert!(poll_once(&mut call).is_pending());
        world.record(1).await.is_some()
    })
    .await;
    let mut shutdown = Box::pin(world.engine.shutdown(LONG));
    assert!(poll_once(&mut shutdown).is_pending(), "the claim may yet be granted");
    gate.open();
    let (result, report) = call.await;
    assert_eq!(result.unwrap_err().kind(), ErrorKind::ShuttingDown);
    assert!(report.is_some_and(|report| !report.replayed));
    assert_eq!(shutdown.await.abandoned, 0);
    assert!(world.record(1).await.is_none());
    assert_eq!(world.ledger.count(), 0);
}

#[tokio::test(flavor = "current_thread")]
async fn a_body_whose_claim_was_given_up_before_it_started_never_starts() {
    use idempotency::__private::{Key, Site, call_on, outcome, run_detached};
    static SITE: Site = Site::new("shutdown.detached", file!(), line!());
    let world = World::new();
    let ledger = world.ledger.clone();
    let call = call_on(&SITE, &world.engine, Key::of(&1_u64)).ttl(DAY).on_crash(OnCrash::Retry);
    let body = move || async move {
        ledger.charge("detached");
        Ok::<_, Error>(())
    };
    let mut call = Box::pin(run_detached(call, outcome(), body));
    assert!(poll_once(&mut call).is_pending(), "granted, and its task has not run yet");
    let mut shutdown = Box::pin(world.engine.shutdown(Duration::ZERO));
    while poll_once(&mut shutdown).is_pending() {
        std::thread::yield_now();
        world.clock.advance(Duration::from_millis(1));
    }
    assert_eq!(call.await.unwrap_err().kind(), ErrorKind::ShuttingDown);
    assert_eq!(world.ledger.count(), 0);
}

#[tokio::test]
async fn a_shutdown_on_a_store_that_does_not_answer_ends_all_the_same() {
    let world = World::new();
    let hanging: Vec<_> = (0..50)
        .map(|key| {
            let mut call = Box::pin(world.call(key).run(std::future::pending::<Result<String, Error>>));
            assert!(poll_once(&mut call).is_pending());
            call
        })
        .collect();
    world.store.always("park", Some(Fault::LostRequest));
    let before = world.clock_now();
    let drained = world.while_time_passes(world.engine.shutdown(Duration::from_secs(1))).await;
    assert_eq!(drained.abandoned, hanging.len());
    let took = world.clock_now().saturating_sub(before);
    assert!(took < Duration::from_secs(10), "took {took:?}");
}

#[tokio::test]
async fn what_a_finished_body_left_running_makes_no_new_calls_during_the_shutdown() {
    let (world, gate) = (World::new(), Gate::new());
    let (sender, left_running) = tokio::sync::oneshot::channel();
    let call = world.call(1).run(|| async {
        let (later, gate, ledger) = (world.engine.call(OPERATION, 2).ttl(DAY), gate.clone(), world.ledger.clone());
        let task = async move {
            gate.wait().await;
            later
                .run(|| async {
                    ledger.charge("left running");
                    Ok::<_, Error>(())
                })
                .await
        };
        sender.send(tokio::spawn(task.in_current_scope())).unwrap();
        Ok::<_, Error>(())
    });
    call.await.unwrap();
    assert_eq!(world.engine.shutdown(LONG).await.abandoned, 0);
    gate.open();
    assert_eq!(left_running.await.unwrap().await.unwrap().unwrap_err().kind(), ErrorKind::ShuttingDown);
    assert_eq!(world.ledger.count(), 0);
}
