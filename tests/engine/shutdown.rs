//! Draining an engine.

use std::sync::{Arc, Barrier};
use std::time::Duration;

use idempotency::record::State;
use idempotency::store::{Operation, Reason, StoreErrorKind};
use idempotency::{
    Context, Error, ErrorAction, ErrorKind, InCurrentCall as _, OnCrash, with_report,
};
use tokio::task::JoinSet;

use crate::faults::{Fault, Gate};
use crate::world::{DAY, LEASE, OPERATION, World, eventually, poll_once};

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

async fn hang(
    world: &World,
    on_crash: OnCrash,
) -> impl Future<Output = Result<String, Error>> + Unpin + '_ {
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
    world.store.next(Operation::Park, Fault::Late(gate.clone()));
    let hanging = hang(&world, OnCrash::Hold).await;
    drop(hanging);
    let mut shutdown = Box::pin(world.engine.shutdown(LONG));
    eventually("the record to be parked", async || world.store.requests(Operation::Park) == 1)
        .await;
    assert!(poll_once(&mut shutdown).is_pending());
    gate.open();
    assert_eq!(shutdown.await.abandoned, 0);
    assert_eq!(world.record(1).await.unwrap().state, State::InDoubt);
}

/// Its lease is forgotten before that is written.
#[tokio::test]
async fn a_shutdown_waits_for_the_last_word_of_a_body_that_fails_beside_its_steps() {
    let (world, gate) = (World::new(), Gate::new());
    world.store.next(Operation::Park, Fault::Late(gate.clone()));
    let call = world.call(1).on_crash(OnCrash::Hold).run(|| async {
        Context::current().step("charge", || async { world.effect(1) }).await?;
        Err::<String, _>(anyhow::anyhow!("busy"))
    });
    let shutdown = async {
        eventually("the last word", async || world.store.requests(Operation::Park) == 1).await;
        let mut shutdown = Box::pin(world.engine.shutdown(LONG));
        assert!(poll_once(&mut shutdown).is_pending());
        gate.open();
        shutdown.await
    };
    let (failed, drained) = tokio::join!(call, shutdown);
    assert_eq!((failed.unwrap_err().to_string().as_str(), drained.abandoned), ("busy", 0));
    let record = world.record(1).await.unwrap();
    assert_eq!((record.state, record.reason), (State::InDoubt, Some(Reason::Error)));
}

#[tokio::test]
async fn a_claim_that_is_on_its_way_at_the_shutdown_starts_no_body() {
    let (world, gate) = (World::new(), Gate::new());
    world.store.next(Operation::Claim, Fault::LateAnswer(gate.clone()));
    let mut call = Box::pin(with_report(world.charge(1)));
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
            let mut call =
                Box::pin(world.call(key).run(std::future::pending::<Result<String, Error>>));
            assert!(poll_once(&mut call).is_pending());
            call
        })
        .collect();
    world.store.always(Operation::Park, Some(Fault::LostRequest));
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
        let (later, gate, ledger) =
            (world.engine.call(OPERATION, 2).ttl(DAY), gate.clone(), world.ledger.clone());
        let task = async move {
            gate.wait().await;
            later
                .run(|| async {
                    ledger.charge("left running");
                    Ok::<_, Error>(())
                })
                .await
        };
        sender.send(tokio::spawn(task.in_current_call())).unwrap();
        Ok::<_, Error>(())
    });
    call.await.unwrap();
    assert_eq!(world.engine.shutdown(LONG).await.abandoned, 0);
    gate.open();
    assert_eq!(
        left_running.await.unwrap().await.unwrap().unwrap_err().kind(),
        ErrorKind::ShuttingDown
    );
    assert_eq!(world.ledger.count(), 0);
}

/// Runs a body until `gate` is open, which then says that nothing happened.
async fn releases(world: &World, gate: &Gate) -> anyhow::Result<String> {
    let call = world.call(1).on_error(ErrorAction::Release).run(|| async {
        gate.wait().await;
        Err(anyhow::anyhow!("busy"))
    });
    call.await
}

#[tokio::test]
async fn a_follower_whose_leader_releases_during_the_shutdown_claims_nothing() {
    let (world, gate) = (World::new(), Gate::new());
    let rest = async {
        world.record_is(1, |record| record.is_some()).await;
        let mut follower = Box::pin(world.charge(1));
        assert!(poll_once(&mut follower).is_pending());
        let mut shutdown = Box::pin(world.engine.shutdown(LONG));
        assert!(poll_once(&mut shutdown).is_pending());
        gate.open();
        assert_eq!(shutdown.await.abandoned, 0);
        follower.await
    };
    let (leader, follower) = tokio::join!(releases(&world, &gate), rest);
    assert!(leader.is_err());
    assert_eq!(follower.unwrap_err().kind(), ErrorKind::ShuttingDown);
    assert_eq!(world.store.requests(Operation::Claim), 1);
    assert!(world.record(1).await.is_none());
    assert_eq!(world.ledger.count(), 0);
}

#[tokio::test]
async fn a_caller_that_waits_for_another_process_claims_nothing_after_the_shutdown() {
    let (world, gate) = (World::new(), Gate::new());
    let there = world.other_process();
    let rest = async {
        world.record_is(1, |record| record.is_some()).await;
        let mut waiter = Box::pin(world.charge(1));
        assert!(poll_once(&mut waiter).is_pending());
        assert_eq!(world.engine.shutdown(LONG).await.abandoned, 0);
        gate.open();
        world.while_time_passes(waiter).await
    };
    let (owner, waiter) = tokio::join!(releases(&there, &gate), rest);
    assert!(owner.is_err());
    assert_eq!(waiter.unwrap_err().kind(), ErrorKind::ShuttingDown);
    assert_eq!(world.store.requests(Operation::Claim), 1);
    assert_eq!(world.ledger.count(), 0);
}

#[tokio::test]
async fn callers_that_wait_still_get_the_answer_of_another_during_a_shutdown() {
    let (world, gate) = (World::new(), Gate::new());
    let there = world.other_process();
    let owner = there.call(1).run(|| async {
        gate.wait().await;
        there.effect(1)
    });
    let rest = async {
        world.record_is(1, |record| record.is_some()).await;
        let (mut waiter, mut follower) = (Box::pin(world.charge(1)), Box::pin(world.charge(1)));
        assert!(poll_once(&mut waiter).is_pending() && poll_once(&mut follower).is_pending());
        assert_eq!(world.engine.shutdown(LONG).await.abandoned, 0);
        gate.open();
        world.while_time_passes(async { tokio::join!(waiter, follower) }).await
    };
    let (owner, (waiter, follower)) = tokio::join!(owner, rest);
    let receipt = owner.unwrap();
    assert_eq!((waiter.unwrap(), follower.unwrap()), (receipt.clone(), receipt));
    assert_eq!((world.store.requests(Operation::Claim), world.ledger.count()), (1, 1));
}

#[tokio::test]
async fn a_claim_that_failed_is_not_sent_again_after_the_shutdown_began() {
    let faults = [Fault::Refused(StoreErrorKind::Refused), Fault::LostRequest, Fault::LostAnswer];
    for fault in faults {
        let world = World::new();
        world.store.next(Operation::Claim, fault.clone());
        let mut call = Box::pin(world.charge(1));
        assert!(poll_once(&mut call).is_pending());
        let mut shutdown = Box::pin(world.engine.shutdown(LONG));
        assert!(poll_once(&mut shutdown).is_pending(), "{fault:?}: the claim is on its way");
        let both = async { tokio::join!(call, shutdown) };
        let (result, drained) = world.while_time_passes(both).await;
        assert_eq!(result.unwrap_err().kind(), ErrorKind::ShuttingDown, "{fault:?}");
        assert_eq!(
            (drained.abandoned, world.store.requests(Operation::Claim)),
            (0, 1),
            "{fault:?}"
        );
        assert!(world.record(1).await.is_none(), "{fault:?}: given back");
        assert_eq!(world.ledger.count(), 0, "{fault:?}");
    }
}

#[tokio::test]
async fn a_claim_that_was_granted_too_late_is_not_sent_anew_after_the_shutdown_began() {
    let world = World::with(|builder| builder.claim_timeout(LEASE * 2));
    world.store.next(Operation::Claim, Fault::Slow(world.clock.clone(), LEASE));
    let mut call = Box::pin(world.charge(1));
    assert!(poll_once(&mut call).is_pending());
    let mut shutdown = Box::pin(world.engine.shutdown(LONG));
    assert!(poll_once(&mut shutdown).is_pending());
    let both = async { tokio::join!(call, shutdown) };
    let (result, drained) = world.while_time_passes(both).await;
    assert_eq!(result.unwrap_err().kind(), ErrorKind::ShuttingDown);
    assert_eq!((drained.abandoned, world.store.requests(Operation::Claim)), (0, 1));
    assert!(world.record(1).await.is_none());
}

#[tokio::test]
async fn a_body_that_was_given_up_makes_no_further_calls() {
    let (world, gate) = (World::new(), Gate::new());
    let body = world.call(1).run(|| async {
        gate.wait().await;
        world.charge(2).await
    });
    let rest = async {
        world.record_is(1, |record| record.is_some()).await;
        let drained = world.while_time_passes(world.engine.shutdown(Duration::from_secs(1))).await;
        assert_eq!(drained.abandoned, 1);
        gate.open();
    };
    let (body, ()) = tokio::join!(body, rest);
    assert_eq!(body.unwrap_err().kind(), ErrorKind::ShuttingDown);
    assert_eq!((world.store.requests(Operation::Claim), world.ledger.count()), (1, 0));
}

#[tokio::test(flavor = "current_thread")]
async fn a_claim_whose_body_had_not_begun_is_given_back_by_the_shutdown() {
    use idempotency::__private::{Key, Site, call_on, outcome, run_detached};
    static SITE: Site = Site::new("shutdown.given_back", file!(), line!());
    let world = World::new();
    let ledger = world.ledger.clone();
    let call = call_on(&SITE, &world.engine, Key::of(&1_u64)).ttl(DAY);
    let body = move || async move {
        ledger.charge("detached");
        Ok::<_, Error>(())
    };
    let mut call = Box::pin(run_detached(call, outcome(), body));
    assert!(poll_once(&mut call).is_pending(), "granted, and its task has not run yet");
    let mut shutdown = Box::pin(world.engine.shutdown(Duration::ZERO));
    let drained = loop {
        if let std::task::Poll::Ready(drained) = poll_once(&mut shutdown) {
            break drained;
        }
        std::thread::yield_now();
        world.clock.advance(Duration::from_millis(1));
    };
    assert_eq!(drained.abandoned, 0, "nothing had begun");
    let hash = world.engine.record("shutdown.given_back", 1_u64).hash().unwrap();
    let record = idempotency::store::Store::read(&world.memory, hash).await.unwrap();
    assert!(record.is_none(), "{record:?}: nothing is in doubt");
    assert_eq!(call.await.unwrap_err().kind(), ErrorKind::ShuttingDown);
    assert_eq!(world.ledger.count(), 0);
}

#[tokio::test]
async fn a_disabled_operation_takes_no_new_calls_after_the_shutdown_either() {
    let world = World::new();
    world.engine.disable(OPERATION);
    world.engine.shutdown(LONG).await;
    assert_eq!(world.charge(1).await.unwrap_err().kind(), ErrorKind::ShuttingDown);
    assert_eq!(world.ledger.count(), 0);
}

#[tokio::test]
async fn a_shutdown_waits_for_bodies_that_run_unprotected_and_counts_those_that_go_on() {
    for (timeout, abandoned) in [(LONG, 0), (Duration::from_secs(1), 1)] {
        let (world, gate) = (World::new(), Gate::new());
        world.engine.disable(OPERATION);
        let body = async || {
            gate.wait().await;
            world.effect(1)
        };
        let mut running = Box::pin(world.call(1).run(body));
        assert!(poll_once(&mut running).is_pending());
        let mut shutdown = Box::pin(world.engine.shutdown(timeout));
        assert!(poll_once(&mut shutdown).is_pending());
        let drained = if abandoned == 0 {
            gate.open();
            running.await.unwrap();
            shutdown.await
        } else {
            let drained = world.while_time_passes(shutdown).await;
            gate.open();
            running.await.unwrap();
            drained
        };
        assert_eq!((drained.abandoned, world.ledger.count()), (abandoned, 1));
    }
}

#[tokio::test]
async fn calls_that_an_unprotected_body_makes_still_work_while_the_shutdown_waits_for_it() {
    let (world, gate) = (World::new(), Gate::new());
    world.engine.disable("outer");
    let outer = world.engine.call("outer", 1).ttl(DAY).run(async || {
        gate.wait().await;
        world.charge(1).await
    });
    let mut outer = Box::pin(outer);
    assert!(poll_once(&mut outer).is_pending());
    let mut shutdown = Box::pin(world.engine.shutdown(LONG));
    assert!(poll_once(&mut shutdown).is_pending());
    gate.open();
    assert_eq!(outer.await.unwrap(), "receipt 1.1");
    assert_eq!(shutdown.await.abandoned, 0);
}

/// A task that it has spawned still has its scope.
#[tokio::test]
async fn an_unprotected_body_that_is_over_lets_no_calls_through_a_shutdown() {
    let (world, gate, other_gate) = (World::new(), Gate::new(), Gate::new());
    world.engine.disable("outer");
    let spawned = std::sync::Mutex::new(None);
    let outer = world.engine.call("outer", 1).ttl(DAY).run(async || {
        let (engine, gate) = (world.engine.clone(), gate.clone());
        let late = async move {
            gate.wait().await;
            engine.call(OPERATION, 1).ttl(DAY).run(async || Ok::<_, Error>(())).await
        };
        *spawned.lock().unwrap() = Some(tokio::spawn(late.in_current_call()));
        Ok::<_, Error>(())
    });
    outer.await.unwrap();
    let other = world.engine.call("outer", 2).ttl(DAY).run(async || {
        other_gate.wait().await;
        Ok::<_, Error>(())
    });
    let mut other = Box::pin(other);
    assert!(poll_once(&mut other).is_pending());
    let mut shutdown = Box::pin(world.engine.shutdown(LONG));
    assert!(poll_once(&mut shutdown).is_pending());
    gate.open();
    let late = spawned.lock().unwrap().take().expect("it was spawned");
    assert_eq!(late.await.unwrap().unwrap_err().kind(), ErrorKind::ShuttingDown);
    other_gate.open();
    other.await.unwrap();
    shutdown.await;
}

#[tokio::test]
async fn an_engine_that_is_shut_down_twice_stays_closed() {
    let (world, gate) = (World::new(), Gate::new());
    let body = world.call(1).run(|| async {
        gate.wait().await;
        world.charge(2).await
    });
    let rest = async {
        world.record_is(1, |record| record.is_some()).await;
        let first = world.while_time_passes(world.engine.shutdown(Duration::from_secs(1))).await;
        assert_eq!((first.abandoned, world.engine.shutdown(LONG).await.abandoned), (1, 0));
        gate.open();
    };
    let (body, ()) = tokio::join!(body, rest);
    assert_eq!(body.unwrap_err().kind(), ErrorKind::ShuttingDown);
}

/// Each shutdown is on a thread of its own, as those of two parts of a service that share the engine
/// are. A shutdown that finds a claim that the other one has taken away knows nothing about it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_claim_is_released_by_two_shutdowns_at_once() {
    const BODIES: usize = 200;
    const ROUNDS: usize = 5;
    for _ in 0..ROUNDS {
        let world = Arc::new(World::new());
        let mut bodies = JoinSet::new();
        for key in 0..BODIES as u64 {
            let there = world.clone();
            bodies.spawn(world.call(key).run(async move || {
                there.effect(key)?;
                std::future::pending::<Result<String, Error>>().await
            }));
        }
        eventually("the effects", async || world.ledger.count() == BODIES).await;
        let at_once = Arc::new(Barrier::new(2));
        let shut_down = || {
            let (engine, at_once) = (world.engine.clone(), at_once.clone());
            let runtime = tokio::runtime::Handle::current();
            let shut_down = move || {
                at_once.wait();
                runtime.block_on(engine.shutdown(Duration::ZERO)).abandoned
            };
            tokio::task::spawn_blocking(shut_down)
        };
        let (one, other) = (shut_down(), shut_down());
        let abandoned = one.await.unwrap() + other.await.unwrap();
        for key in 0..BODIES as u64 {
            let record = world.record(key).await.map(|record| (record.state, record.reason));
            assert_eq!(record, Some((State::InDoubt, Some(Reason::ShutDown))), "of {key}");
        }
        assert_eq!(abandoned, BODIES, "each is counted once");
    }
}
