//! The steps of a call as operators see them.

use bytes::Bytes;
use idempotency::record::{RecordView, State, StepOutcome};
use idempotency::store::{Checkpoint, Store as _};
use idempotency::{Context, Error};

use super::hang;
use crate::world::{OPERATION, World};

async fn view(world: &World) -> RecordView {
    world.engine.record(OPERATION, 1_u64).inspect().await.unwrap().expect("there is a record")
}

/// Name, index, outcome and size.
fn steps(view: &RecordView) -> Vec<(&str, u64, StepOutcome, usize)> {
    let steps = view.steps().expect("they can be read");
    steps.iter().map(|step| (&*step.name, step.index, step.outcome, step.size)).collect()
}

#[tokio::test]
async fn a_record_shows_how_far_its_body_came_and_no_results() {
    let world = World::new();
    let call = world.fulfil().run(async || {
        world.step("reserve").await?;
        for item in 0..2 {
            Context::current().step_at("item", item, || world.act("item")).await?;
        }
        let charge = async || {
            world.ledger.charge("charge");
            hang::<Result<String, Error>>().await
        };
        Context::current().step("charge", charge).at_most_once().await
    });
    world.crash_after(4, 4, call).await;
    let seen = view(&world).await;
    let size = "\"item done\"".len();
    assert_eq!(
        steps(&seen),
        [
            ("charge", 0, StepOutcome::Started, 0),
            ("item", 0, StepOutcome::Finished, size),
            ("item", 1, StepOutcome::Finished, size),
            ("reserve", 0, StepOutcome::Finished, "\"reserve done\"".len()),
        ]
    );
    assert_eq!(seen.checkpoints, 4);
    assert!(!format!("{seen:?}").contains("done"), "{seen:?}");
}

#[tokio::test]
async fn a_call_that_has_ended_shows_no_steps() {
    let world = World::new();
    world.fulfil().run(async || world.step("reserve").await).await.unwrap();
    let view = view(&world).await;
    assert_eq!((view.state, view.checkpoints), (State::Completed, 1));
    assert!(steps(&view).is_empty());
}

#[tokio::test]
async fn steps_of_an_unknown_form_are_not_shown() {
    let world = World::new();
    let call = world.fulfil().run(async || {
        world.ledger.charge("outside of steps");
        hang::<Result<(), Error>>().await
    });
    world.crash_after(1, 0, call).await;
    assert!(steps(&view(&world).await).is_empty(), "none are recorded");
    let owner = world.record(1).await.unwrap();
    for (number, body) in (0..).zip(["{\"version\":9,\"steps\":[]}", "{}", "\u{1}"]) {
        let body = Bytes::from_static(body.as_bytes());
        let checkpoint = Checkpoint::new(owner.key, owner.owner, number, body);
        assert!(world.memory.checkpoint(checkpoint).await.unwrap().is_done());
        assert_eq!(view(&world).await.steps(), None);
    }
}
