//! Errors that are stored as the result of a call: those of the body are, and those with which the
//! engine cut it short are not.

use std::time::Duration;

use idempotency::record::State;
use idempotency::store::{Operation, Reason};
use idempotency::{Context, Error, InCurrentCall as _, OnCrash, OnError};
use serde::{Deserialize, Serialize};

use super::checkpoints::impatient;
use crate::faults::{Fault, Gate};
use crate::world::{LEASE, World, eventually, in_time};

/// An error that can be stored whatever it says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Failed {
    Declined,
    Refused(String),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Refused(format!("{:?}", error.kind()))
    }
}

fn refused(kind: &str) -> Result<String, Failed> {
    Err(Failed::Refused(kind.to_owned()))
}

/// Reserves and charges, with `between` in between.
async fn fulfil(world: &World, between: impl AsyncFnOnce()) -> Result<String, Failed> {
    let call = world.fulfil().on_error(OnError::Store).run(async || {
        world.step("reserve").await?;
        between().await;
        Ok(world.step("charge").await?)
    });
    call.await
}

/// Reserves, whatever becomes of it, and is declined.
async fn reserve_and_be_declined(world: &World) -> Result<String, Failed> {
    let call = world.fulfil().on_error(OnError::Store).run(async || {
        let _ = world.step("reserve").await;
        world.store.always(Operation::Checkpoint, None);
        Err::<String, _>(Failed::Declined)
    });
    world.while_time_passes(call).await
}

async fn state(world: &World) -> State {
    world.record(1).await.unwrap().state
}

#[tokio::test]
async fn the_refusal_of_a_step_after_a_shutdown_is_not_the_result_of_the_call() {
    let (world, gate) = (std::sync::Arc::new(World::new()), Gate::new());
    let running = tokio::spawn({
        let (world, gate) = (world.clone(), gate.clone());
        async move { fulfil(&world, async || gate.wait().await).await }
    });
    eventually("the first step", async || world.checkpoints().await == 1).await;
    assert_eq!(world.engine.shutdown(Duration::ZERO).await.abandoned, 1);
    gate.open();
    assert_eq!(in_time("the end", running).await.unwrap(), refused("Superseded"));
    let there = world.other_process();
    assert_eq!(fulfil(&there, async || {}).await.unwrap(), "charge done");
    assert_eq!(world.ledger.charges(), ["reserve", "charge"]);
}

#[tokio::test]
async fn the_refusal_of_a_step_after_the_lease_is_not_the_result_of_the_call() {
    let world = World::new();
    world.store.always(Operation::Renew, Some(Fault::LostRequest));
    let late = fulfil(&world, async || world.clock.advance(LEASE)).await;
    assert_eq!(late, refused("Superseded"));
    assert_eq!(fulfil(&world.other_process(), async || {}).await.unwrap(), "charge done");
    assert_eq!(world.ledger.charges(), ["reserve", "charge"]);
}

#[tokio::test]
async fn the_missing_answer_about_a_step_is_not_the_result_of_the_call() {
    let world = impatient();
    world.store.always(Operation::Checkpoint, Some(Fault::LostRequest));
    let call = fulfil(&world, async || {});
    assert_eq!(world.while_time_passes(call).await, refused("NotStored"));
    world.store.always(Operation::Checkpoint, None);
    assert_eq!(fulfil(&world, async || {}).await.unwrap(), "charge done");
    // The record of the first one was lost with its request.
    assert_eq!(world.ledger.charges(), ["reserve", "reserve", "charge"]);
}

#[tokio::test]
async fn a_step_that_did_not_run_for_want_of_an_answer_is_not_the_result_of_the_call() {
    let world = impatient();
    let charge = async |fault: Option<Fault>| {
        let call = world.fulfil().on_error(OnError::Store).run(async || {
            world.step("reserve").await?;
            world.store.always(Operation::Checkpoint, fault);
            Ok(world.charge_once().await?)
        });
        world.while_time_passes(call).await
    };
    assert_eq!(charge(Some(Fault::LostRequest)).await, refused("StoreUnavailable"));
    world.store.always(Operation::Checkpoint, None);
    assert_eq!(charge(None).await.unwrap(), "charge done");
    assert_eq!(world.ledger.charges(), ["reserve", "charge"]);
}

#[tokio::test]
async fn under_hold_the_refusal_of_a_step_is_in_doubt() {
    let world = World::new();
    world.store.always(Operation::Renew, Some(Fault::LostRequest));
    let call = world.call(1).on_crash(OnCrash::Hold).on_error(OnError::Store).run(async || {
        world.step("reserve").await?;
        world.clock.advance(LEASE);
        Ok::<_, Failed>(world.step("charge").await?)
    });
    assert_eq!(call.await, refused("Superseded"));
    let record = world.record(1).await.unwrap();
    assert_eq!((record.state, record.reason), (State::InDoubt, Some(Reason::Error)));
}

/// It cannot be told from one that follows from the missing record, and the next attempt comes to
/// it again.
#[tokio::test]
async fn an_error_of_a_body_that_passed_over_a_missing_answer_is_stored_by_the_next_attempt() {
    let world = impatient();
    world.store.always(Operation::Checkpoint, Some(Fault::LostRequest));
    assert_eq!(reserve_and_be_declined(&world).await, Err(Failed::Declined));
    assert_eq!(state(&world).await, State::InProgress);
    assert_eq!(reserve_and_be_declined(&world).await, Err(Failed::Declined));
    assert_eq!(state(&world).await, State::Failed);
    assert_eq!(world.ledger.charges(), ["reserve"], "its result was in hand, and is replayed");
}

#[tokio::test]
async fn a_result_of_a_body_that_passed_over_a_missing_answer_is_stored() {
    let world = impatient();
    world.store.always(Operation::Checkpoint, Some(Fault::LostRequest));
    let call = world.fulfil().on_error(OnError::Store).run(async || {
        world.step("reserve").await.unwrap_err();
        Ok::<_, Failed>("done without".to_owned())
    });
    assert_eq!(world.while_time_passes(call).await.unwrap(), "done without");
    assert_eq!(state(&world).await, State::Completed);
}

#[tokio::test]
async fn an_error_after_recorded_steps_is_stored() {
    let world = World::new();
    assert_eq!(reserve_and_be_declined(&world).await, Err(Failed::Declined));
    assert_eq!(state(&world).await, State::Failed);
    assert_eq!(reserve_and_be_declined(&world).await, Err(Failed::Declined));
    assert_eq!(world.ledger.charges(), ["reserve"]);
}

/// The body cannot have heard of it.
#[tokio::test]
async fn the_refusal_of_a_step_after_the_end_of_the_body_does_not_unmake_its_error() {
    let (world, gate, ended) = (std::sync::Arc::new(World::new()), Gate::new(), Gate::new());
    let tasks = std::sync::Mutex::new(tokio::task::JoinSet::new());
    world.store.next(Operation::Complete, Fault::Late(gate.clone()));
    let call = world.fulfil().on_error(OnError::Store).run(async || {
        let (there, gate, ended) = (world.clone(), gate.clone(), ended.clone());
        let late = async move {
            ended.wait().await;
            let refused = there.step("charge").await;
            gate.open();
            refused
        };
        tasks.lock().unwrap().spawn(late.in_current_call());
        Err::<String, _>(Failed::Declined)
    });
    let end = async {
        eventually("the end", async || world.store.requests(Operation::Complete) == 1).await;
        ended.open();
    };
    assert_eq!(
        in_time("the end", async { tokio::join!(call, end).0 }).await,
        Err(Failed::Declined)
    );
    let late = in_time("the step", tasks.into_inner().unwrap().join_all()).await;
    assert!(late.iter().all(Result::is_err), "{late:?}");
    assert_eq!(state(&world).await, State::Failed);
}

/// The body did not come to the steps that an earlier attempt has recorded.
#[tokio::test]
async fn a_body_that_was_refused_a_recorded_step_gets_that_refusal() {
    let world = World::new();
    let died = world.fulfil().run(async || {
        world.step("reserve").await?;
        world.step("charge").await?;
        super::hang::<Result<String, Error>>().await
    });
    world.crash_after(2, 2, died).await;
    world.store.always(Operation::Renew, Some(Fault::LostRequest));
    let late = fulfil(&world, async || world.clock.advance(LEASE)).await;
    assert_eq!(late, refused("Superseded"));
    assert_eq!(fulfil(&world, async || {}).await.unwrap(), "charge done");
    assert_eq!(world.ledger.charges(), ["reserve", "charge"]);
}

#[tokio::test]
async fn an_error_after_a_step_whose_result_is_too_large_is_stored() {
    let world = World::with(|builder| builder.max_result_size(300));
    let call = world.fulfil().on_error(OnError::Store).run(async || {
        let large = async || Ok::<_, Failed>("x".repeat(300));
        Context::current().step("large", large).await
    });
    assert_eq!(call.await, refused("TooLarge"));
    assert_eq!(state(&world).await, State::Failed);
}
