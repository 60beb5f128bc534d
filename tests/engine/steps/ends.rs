//! What becomes of recorded steps when the body ends in an error.

use std::time::Duration;

use idempotency::record::State;
use idempotency::step::StepRetry;
use idempotency::store::{Operation, Reason};
use idempotency::{Context, Error, ErrorAction, ErrorKind, OnCrash};

use super::hang;
use crate::faults::{Fault, Gate};
use crate::world::{World, eventually, in_time, poll_once};

#[derive(Debug)]
struct NoTruck;

impl From<Error> for NoTruck {
    fn from(error: Error) -> Self {
        panic!("{error}")
    }
}

#[tokio::test]
async fn a_failed_step_leaves_earlier_ones_done_and_runs_again_in_the_next_call() {
    let world = World::new();
    let attempt = |trucks: bool| {
        let world = &world;
        world.fulfil().run(async move || {
            world.step("reserve").await?;
            let ship = async move || {
                world.ledger.charge("ask for a truck");
                if trucks { Ok("shipped") } else { Err(NoTruck) }
            };
            Context::current().step("ship", async || ship().await.map(str::to_owned)).await
        })
    };
    for attempts in 1..=2 {
        assert!(matches!(attempt(false).await, Err(NoTruck)));
        let record = world.record(1).await.unwrap();
        assert_eq!((record.state, record.attempts), (State::InProgress, attempts));
        assert!(record.is_orphaned(), "the next caller waits for nobody");
    }
    assert_eq!(attempt(true).await.unwrap(), "shipped");
    assert_eq!(
        world.ledger.charges(),
        ["reserve", "ask for a truck", "ask for a truck", "ask for a truck"]
    );
}

#[tokio::test]
async fn an_error_before_any_step_is_recorded_leaves_nothing() {
    let world = World::new();
    let call = world.fulfil().run(async || {
        let ship = Context::current().step("ship", async || Err::<(), _>(NoTruck));
        ship.await
    });
    assert!(matches!(call.await, Err(NoTruck)));
    assert!(world.record(1).await.is_none());
    assert_eq!(world.store.requests(Operation::Checkpoint), 0);
}

#[tokio::test]
async fn under_hold_an_error_after_a_recorded_step_is_in_doubt() {
    let world = World::new();
    let call = world.call(1).run(async || {
        world.step("reserve").await?;
        Err::<(), _>(NoTruck)
    });
    assert!(matches!(call.await, Err(NoTruck)));
    let record = world.record(1).await.unwrap();
    assert_eq!((record.state, record.reason), (State::InDoubt, Some(Reason::Error)));
    assert_eq!(world.charge(1).await.unwrap_err().kind(), ErrorKind::InDoubt);
}

#[tokio::test]
async fn an_error_after_a_step_was_dropped_in_its_middle_is_not_taken_for_nothing_happened() {
    for (on_crash, state) in [(OnCrash::Resume, State::InProgress), (OnCrash::Hold, State::InDoubt)]
    {
        let world = World::new();
        let call = world.call(1).on_crash(on_crash).run(async || {
            let context = Context::current();
            let charge = async || {
                world.ledger.charge("charge");
                hang::<Result<(), Error>>().await
            };
            let mut step = Box::pin(context.step("charge", charge).into_future());
            eventually("the effect", async || {
                poll_once(&mut step).is_pending() && world.ledger.count() == 1
            })
            .await;
            drop(step);
            Err::<(), _>(NoTruck)
        });
        assert!(call.await.is_err());
        assert_eq!(world.record(1).await.unwrap().state, state);
    }
}

#[tokio::test]
async fn an_error_after_a_step_was_dropped_between_two_tries_leaves_nothing() {
    let world = World::new();
    let call = world.call(1).run(async || {
        let ship = async || {
            world.ledger.charge("ask for a truck");
            Err::<(), _>(NoTruck)
        };
        let ship = Context::current().step("ship", ship).retry(StepRetry::tries(2));
        let mut ship = Box::pin(ship.into_future());
        assert!(poll_once(&mut ship).is_pending(), "it pauses");
        drop(ship);
        Err::<(), _>(NoTruck)
    });
    assert!(call.await.is_err());
    assert_eq!(world.ledger.charges(), ["ask for a truck"]);
    assert!(world.record(1).await.is_none(), "the try said that nothing happened");
}

#[tokio::test]
async fn a_held_error_keeps_the_steps_in_doubt() {
    let world = World::new();
    let call = world.fulfil().on_error(ErrorAction::Hold).run(async || {
        world.step("reserve").await?;
        Err::<(), _>(NoTruck)
    });
    assert!(call.await.is_err());
    let record = world.record(1).await.unwrap();
    assert_eq!((record.state, record.checkpoints), (State::InDoubt, 1));
}

/// For long enough that it would happen, if anything did it.
async fn nothing_ends_the_claim(world: &World, mut meanwhile: impl AsyncFnMut()) {
    for _ in 0..50 {
        meanwhile().await;
        assert_eq!(
            [Operation::Abandon, Operation::Park, Operation::Release]
                .map(|end| world.store.requests(end)),
            [0; 3]
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_step_whose_caller_is_gone_is_recorded_before_the_next_attempt_begins() {
    let world = World::new();
    let gate = Gate::new();
    world.store.next(Operation::Checkpoint, Fault::Late(gate.clone()));
    {
        let mut call = Box::pin(world.fulfil().run(async || world.step("reserve").await));
        eventually("the checkpoint", async || {
            assert!(poll_once(&mut call).is_pending());
            world.store.requests(Operation::Checkpoint) == 1
        })
        .await;
    }
    let mut next = Box::pin(world.fulfil().run(async || world.step("reserve").await));
    nothing_ends_the_claim(&world, async || assert!(poll_once(&mut next).is_pending())).await;
    gate.open();
    assert_eq!(in_time("the next attempt", next).await.unwrap(), "reserve done");
    assert_eq!(world.ledger.charges(), ["reserve"]);
}

/// A body that returns an error while the checkpoint of a step is under way which it has dropped.
async fn fail_with_a_step_on_its_way(world: &World, policy: ErrorAction) {
    let gate = Gate::new();
    world.store.next(Operation::Checkpoint, Fault::Late(gate.clone()));
    let mut failing = Box::pin(world.fulfil().on_error(policy).run(async || {
        let reserve = async {
            world.step("reserve").await.unwrap();
        };
        let leave =
            eventually("the checkpoint", async || world.store.requests(Operation::Checkpoint) == 1);
        tokio::select! {
            () = reserve => {}
            () = leave => {}
        }
        Err::<String, _>(NoTruck)
    }));
    eventually("the checkpoint", async || {
        assert!(poll_once(&mut failing).is_pending());
        world.store.requests(Operation::Checkpoint) == 1
    })
    .await;
    nothing_ends_the_claim(world, async || assert!(poll_once(&mut failing).is_pending())).await;
    gate.open();
    assert!(in_time("the end of the body", failing).await.is_err());
    assert_eq!(world.record(1).await.unwrap().checkpoints, 1);
}

#[tokio::test]
async fn an_error_of_the_body_waits_for_a_step_that_is_on_its_way_to_the_record() {
    let world = World::new();
    fail_with_a_step_on_its_way(&world, ErrorAction::Release).await;
    assert_eq!(
        world.fulfil().run(async || world.step("reserve").await).await.unwrap(),
        "reserve done"
    );
    assert_eq!(world.ledger.charges(), ["reserve"]);
}

#[tokio::test]
async fn a_held_error_waits_for_a_step_that_is_on_its_way_to_the_record() {
    let world = World::new();
    fail_with_a_step_on_its_way(&world, ErrorAction::Hold).await;
    assert_eq!(world.record(1).await.unwrap().state, State::InDoubt);
    assert_eq!(world.ledger.charges(), ["reserve"]);
}
