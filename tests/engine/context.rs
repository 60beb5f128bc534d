//! What a body can know about its call.

use idempotency::store::Operation;
use std::pin::Pin;
use std::sync::Arc;

use idempotency::clock::Clock as _;
use idempotency::record::State;
use idempotency::{
    Context, Error, ErrorKind, InCurrentCall as _, OnConflict, OnCrash, with_report,
};

use crate::faults::{Fault, Gate};
use crate::world::{DAY, LEASE, OPERATION, World, eventually, poll_once};

#[tokio::test]
async fn a_body_that_calls_itself_with_its_own_key_is_refused() {
    let world = World::new();
    let call = world.call(1).run(|| async {
        let again =
            || world.call(1).on_conflict(OnConflict::Reject).run(|| async { world.effect(1) });
        assert_eq!(again().await.unwrap_err().kind(), ErrorKind::Reentrant);
        // From a task that took the scope along, too.
        let spawned =
            world.call(1).on_conflict(OnConflict::Reject).run(|| async { Ok::<_, Error>(()) });
        let spawned = tokio::spawn(spawned.in_current_call()).await.unwrap();
        assert_eq!(spawned.unwrap_err().kind(), ErrorKind::Reentrant);
        // Another key is another call, and there the outer key is still running.
        world
            .call(2)
            .run(|| async {
                assert_eq!(again().await.unwrap_err().kind(), ErrorKind::Reentrant);
                world.effect(2)
            })
            .await?;
        world.effect(1)
    });
    call.await.unwrap();
    assert_eq!(world.ledger.charges(), ["charge 2", "charge 1"]);
}

#[tokio::test]
async fn attempts_and_fences_grow_and_derived_keys_stay() {
    let world = World::new();
    let attempt = async |hang: bool| {
        let mut seen = None;
        {
            let mut call = Box::pin(world.call(1).on_crash(OnCrash::Retry).run(|| async {
                let context = Context::current();
                let fence = context.fence().await?;
                assert_eq!(context.fence().await?, fence, "one fence for one claim");
                seen = Some((
                    context.attempt(),
                    fence,
                    context.derive_key("provider"),
                    context.derive_key("mail"),
                ));
                world.ledger.charge("attempt");
                if hang {
                    std::future::pending::<()>().await;
                }
                Ok::<_, Error>(())
            }));
            let count = world.ledger.count();
            eventually("the attempt", async || {
                let _ = poll_once(&mut call);
                world.ledger.count() > count
            })
            .await;
        }
        seen.unwrap()
    };
    let first = attempt(true).await;
    let second = attempt(true).await;
    assert_eq!((first.0, second.0), (1, 2));
    assert!(second.1 > first.1, "{} must be larger than {}", second.1, first.1);
    assert_eq!((&first.2, &first.3), (&second.2, &second.3));
    assert_ne!(first.2, first.3);
    assert!(first.2.len() <= 64);
}

#[tokio::test]
async fn a_fence_of_a_claim_that_was_lost_is_superseded() {
    let world = World::new();
    let call = world.call(1).run(|| async {
        let record = world.record(1).await.unwrap();
        let release = idempotency::store::Release::new(record.key, record.owner);
        idempotency::store::Store::release(&world.memory, release).await.unwrap();
        assert_eq!(Context::current().fence().await.unwrap_err().kind(), ErrorKind::Superseded);
        Ok::<_, Error>(())
    });
    call.await.unwrap();
}

#[tokio::test]
async fn a_fence_is_asked_again_when_its_answer_was_lost() {
    let world = World::new();
    world.store.next(Operation::Fence, Fault::LostAnswer);
    let call = world.call(1).run(|| async { Context::current().fence().await });
    assert!(world.while_time_passes(call).await.is_ok());
    assert_eq!(world.store.requests(Operation::Fence), 2);
}

#[tokio::test]
async fn a_fence_that_the_store_does_not_tell_is_not_said_to_be_of_a_body_that_did_not_run() {
    use idempotency::store::StoreErrorKind;
    for (kind, told) in [
        (StoreErrorKind::Unavailable, ErrorKind::NotStored),
        (StoreErrorKind::Refused, ErrorKind::NotStored),
        (StoreErrorKind::Full, ErrorKind::NotStored),
        (StoreErrorKind::Corrupt, ErrorKind::Decode),
        (StoreErrorKind::Config, ErrorKind::Config),
    ] {
        let world = World::new();
        world.store.always(Operation::Fence, Some(Fault::Refused(kind)));
        let call = world.call(1).run(|| async {
            world.effect(1)?;
            Context::current().fence().await
        });
        let error = world.while_time_passes(call).await.unwrap_err();
        // Whoever retries what can be retried would run the body once more.
        assert_eq!((error.kind(), error.is_retryable()), (told, false));
        let text = error.to_string();
        assert!(text.contains("fence") && !text.contains("did not run"), "{text}");
    }
}

#[tokio::test]
async fn there_is_no_context_outside_of_a_body_and_in_tasks_that_did_not_take_it() {
    assert!(Context::try_current().is_none());
    let world = World::new();
    let call = world.call(1).run(|| async {
        let bare = tokio::spawn(async { Context::try_current().is_none() });
        let scoped = tokio::spawn(async { Context::current().key() }.in_current_call());
        assert!(bare.await.unwrap());
        assert_eq!(scoped.await.unwrap(), Context::current().key());
        assert_eq!(Context::current().operation(), OPERATION);
        Ok::<_, Error>(())
    });
    call.await.unwrap();
    assert!(Context::try_current().is_none());
}

#[tokio::test]
async fn attempts_that_released_count_when_asked_to() {
    let world = World::new();
    for expected in [1, 2, 3] {
        let call = world.call(1).count_attempts().run(|| async {
            assert_eq!(Context::current().attempt(), expected);
            Err::<(), _>(anyhow::anyhow!("busy"))
        });
        call.await.unwrap_err();
    }
}

#[tokio::test]
async fn an_attempt_counts_whose_claim_was_repeated_and_whose_release_an_outage_delayed() {
    let world = World::new();
    world.store.next(Operation::Claim, Fault::LostAnswer);
    let call = world.call(1).count_attempts().run(|| async {
        world.store.always(Operation::Release, Some(Fault::LostRequest));
        Err::<(), _>(anyhow::anyhow!("busy"))
    });
    world.while_time_passes(call).await.unwrap_err();
    world.while_time_passes(world.clock.sleep(LEASE * 2)).await;
    world.store.always(Operation::Release, None);
    world
        .while_time_passes(
            world
                .record_is(1, |record| record.is_none_or(|record| record.state == State::Released)),
        )
        .await;
    let record = world.record(1).await.expect("it has counted one");
    assert_eq!((record.state, record.attempts), (State::Released, 1));
}

/// Two attempts that were released and counted, and a claim after them that `give_back` gives back
/// unused.
async fn counts_on(give_back: impl AsyncFnOnce(&World)) {
    let world = World::with(|builder| builder.claim_timeout(LEASE * 2));
    let fails = async || {
        let call = world.call(1).count_attempts().run(|| async {
            let attempt = Context::current().attempt();
            Err::<(), _>(anyhow::anyhow!("attempt {attempt}"))
        });
        call.await.unwrap_err().to_string()
    };
    assert_eq!((fails().await.as_str(), fails().await.as_str()), ("attempt 1", "attempt 2"));
    give_back(&world).await;
    assert_eq!(world.ledger.count(), 0);
    world.record_is(1, |record| record.is_some_and(|record| record.state == State::Released)).await;
    assert_eq!(world.record(1).await.unwrap().attempts, 2, "the one that was given back is none");
    let there = world.other_process();
    let call = there
        .call(1)
        .count_attempts()
        .run(|| async { Ok::<_, Error>(Context::current().attempt()) });
    assert_eq!(call.await.unwrap(), 3);
}

#[tokio::test]
async fn a_claim_that_is_dropped_before_its_body_counts_no_attempt_and_forgets_none() {
    counts_on(async |world| {
        let gate = Gate::new();
        world.store.next(Operation::Claim, Fault::LateAnswer(gate.clone()));
        let mut call = Box::pin(world.charge(1));
        assert!(poll_once(&mut call).is_pending());
        drop(call);
        gate.open();
    })
    .await;
}

#[tokio::test]
async fn a_claim_that_was_granted_too_late_counts_no_attempt_and_forgets_none() {
    counts_on(async |world| {
        for _ in 0..2 {
            world.store.next(Operation::Claim, Fault::Slow(world.clock.clone(), LEASE));
        }
        let late = world.while_time_passes(world.charge(1)).await;
        assert_eq!(late.unwrap_err().kind(), ErrorKind::StoreUnavailable);
    })
    .await;
}

#[tokio::test]
async fn a_claim_whose_answer_was_lost_counts_no_attempt_and_forgets_none() {
    counts_on(async |world| {
        world.store.always(Operation::Claim, Some(Fault::LostAnswer));
        let lost = world.while_time_passes(world.charge(1)).await;
        assert_eq!(lost.unwrap_err().kind(), ErrorKind::StoreUnavailable);
        world.store.always(Operation::Claim, None);
    })
    .await;
}

#[tokio::test]
async fn a_claim_that_a_shutdown_takes_away_counts_no_attempt_and_forgets_none() {
    counts_on(async |world| {
        let gate = Gate::new();
        world.store.next(Operation::Claim, Fault::LateAnswer(gate.clone()));
        let mut call = Box::pin(world.charge(1));
        assert!(poll_once(&mut call).is_pending());
        let mut shutdown = Box::pin(world.engine.shutdown(LEASE));
        assert!(poll_once(&mut shutdown).is_pending());
        gate.open();
        let (result, drained) = tokio::join!(call, shutdown);
        assert_eq!((result.unwrap_err().kind(), drained.abandoned), (ErrorKind::ShuttingDown, 0));
    })
    .await;
}

#[tokio::test]
async fn a_task_that_outlives_its_body_may_make_the_same_call() {
    let (world, gate) = (World::new(), Gate::new());
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let call = world.call(1).run(|| async {
        let again = world.engine.call(OPERATION, 1_u64).ttl(DAY);
        let gate = gate.clone();
        let task = async move {
            gate.wait().await;
            again.run(|| async { Ok::<_, Error>("again".to_owned()) }).await
        };
        sender.send(tokio::spawn(task.in_current_call())).unwrap();
        world.effect(1)
    });
    let first = call.await.unwrap();
    gate.open();
    assert_eq!(receiver.await.unwrap().await.unwrap().unwrap(), first);
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn a_body_of_a_disabled_operation_knows_its_own_call() {
    let world = World::new();
    world.engine.disable("payments.refund");
    let refund = || {
        world.engine.call("payments.refund", 7).ttl(DAY).run(|| async {
            let context = Context::current();
            assert_eq!((context.operation(), context.attempt()), ("payments.refund", 0));
            assert!(!context.lease_lost());
            assert!(poll_once(&mut Box::pin(context.lease_ended())).is_pending());
            assert_eq!(context.fence().await.unwrap_err().kind(), ErrorKind::Unsupported);
            Ok::<_, Error>(context.derive_key("provider"))
        })
    };
    let disabled = world.call(1).run(|| async { refund().await }).await.unwrap();
    world.engine.enable("payments.refund");
    let enabled = world.engine.call("payments.refund", 7).ttl(DAY);
    let enabled =
        enabled.run(|| async { Ok::<_, Error>(Context::current().derive_key("provider")) }).await;
    assert_eq!(disabled, enabled.unwrap(), "the provider recognises the call");
}

#[tokio::test]
async fn calls_that_the_body_of_a_disabled_operation_makes_are_not_reported() {
    let world = World::new();
    world.engine.disable("payments.refund");
    let refund =
        world.engine.call("payments.refund", 7).ttl(DAY).run(|| async { world.charge(1).await });
    let (result, report) = with_report(refund).await;
    result.unwrap();
    let report = report.unwrap();
    assert!(report.bypassed);
    assert_eq!(&*report.operation, "payments.refund");
}

#[tokio::test]
async fn an_answer_that_is_there_is_taken_although_its_time_is_over() {
    for _ in 0..20 {
        let (world, gate) = (World::new(), Gate::new());
        world.store.next(Operation::Fence, Fault::LateAnswer(gate.clone()));
        let call = world.call(1).run(|| async {
            let context = Context::current();
            let mut fence = Box::pin(context.fence());
            assert!(poll_once(&mut fence).is_pending());
            world.clock.advance(LEASE / 5);
            gate.open();
            fence.await
        });
        call.await.unwrap();
        assert_eq!(world.store.requests(Operation::Fence), 1);
    }
}

/// A job that starts the next one, and takes its scope along, as in a worker that runs for months.
async fn job(world: Arc<World>, number: u64, last: u64) -> Result<(), Error> {
    let next = world.clone();
    let call = world.engine.call("jobs", number).ttl(DAY).run(async || {
        if number == last {
            next.ledger.charge("the last one");
        } else {
            tokio::spawn(boxed(next, number + 1, last).in_current_call());
        }
        Ok(())
    });
    call.await
}

fn boxed(world: Arc<World>, number: u64, last: u64) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move { job(world, number, last).await.unwrap() })
}

#[tokio::test]
async fn jobs_that_start_one_another_do_not_pile_up() {
    let world = Arc::new(World::new());
    boxed(world.clone(), 0, 20_000).await;
    eventually("the last one", async || world.ledger.count() == 1).await;
}
