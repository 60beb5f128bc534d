//! Steps that run at most once.

use std::time::Duration;

use idempotency::record::{Resolution, State};
use idempotency::step::StepRetry;
use idempotency::store::{Operation, Record};
use idempotency::{Context, Error, ErrorKind};
use tokio::sync::Notify;

use super::checkpoints::impatient;
use super::hang;
use crate::faults::{Fault, Gate};
use crate::world::{LEASE, OPERATION, World, eventually, in_time, poll_once};

impl World {
    pub(super) async fn charge_once(&self) -> Result<String, Error> {
        Context::current().step("charge", || self.act("charge")).at_most_once().await
    }
}

/// Dies after the effect and before its record.
async fn die_in_the_step(world: &World) {
    let died = world.fulfil().run(async || {
        let charge = async || {
            world.act("charge").await?;
            hang::<Result<String, Error>>().await
        };
        Context::current().step("charge", charge).at_most_once().await
    });
    world.crash_after(1, 1, died).await;
}

#[tokio::test]
async fn the_start_is_recorded_before_the_step_runs_and_the_result_after_it() {
    let world = World::new();
    let call = world.fulfil().run(async || {
        let charge = async || {
            assert_eq!(world.checkpoints().await, 1);
            world.act("charge").await
        };
        let charged = Context::current().step("charge", charge).at_most_once().await?;
        assert_eq!(world.checkpoints().await, 2);
        Ok::<_, Error>(charged)
    });
    assert_eq!(call.await.unwrap(), "charge done");
}

#[tokio::test]
async fn a_step_that_was_interrupted_never_runs_again() {
    let world = World::new();
    die_in_the_step(&world).await;
    for _ in 0..2 {
        let error = world.fulfil().run(async || world.charge_once().await).await.unwrap_err();
        assert_eq!((error.kind(), error.step()), (ErrorKind::StepInterrupted, Some("charge")));
        assert!(!error.is_retryable());
    }
    // Nor under code that asks for less.
    let error = world.fulfil().run(async || world.step("charge").await).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StepInterrupted);
    assert_eq!(world.ledger.charges(), ["charge"]);
}

#[tokio::test]
async fn an_operator_ends_a_call_whose_step_was_interrupted() {
    let world = World::new();
    die_in_the_step(&world).await;
    let interrupted = world.fulfil().run(async || world.charge_once().await).await.unwrap_err();
    assert_eq!(interrupted.kind(), ErrorKind::StepInterrupted);
    let record = world.engine.record(OPERATION, 1_u64);
    let view = record.inspect().await.unwrap().unwrap();
    record.resolve(&view, Resolution::completed("from the provider's books")).await.unwrap();
    let call = world.fulfil().run(async || world.charge_once().await);
    assert_eq!(call.await.unwrap(), "from the provider's books");
    assert_eq!(world.ledger.charges(), ["charge"]);
}

#[tokio::test]
async fn a_body_that_finds_out_what_happened_can_go_on() {
    let world = World::new();
    die_in_the_step(&world).await;
    let call = world.fulfil().run(async || {
        let charged = match world.charge_once().await {
            Err(error) if error.kind() == ErrorKind::StepInterrupted => {
                Context::current()
                    .step("look up the charge", async || {
                        Ok::<_, Error>(world.ledger.charges().join(","))
                    })
                    .await?
            }
            other => other?,
        };
        Ok::<_, Error>(charged)
    });
    assert_eq!(call.await.unwrap(), "charge");
    assert_eq!(world.record(1).await.unwrap().state, State::Completed);
}

#[tokio::test]
async fn a_finished_one_is_replayed() {
    let world = World::new();
    let attempt = |crash: bool| {
        let world = &world;
        world.fulfil().run(async move || {
            let charged = world.charge_once().await?;
            if crash {
                hang::<()>().await;
            }
            Ok::<_, Error>(charged)
        })
    };
    world.crash_after(1, 2, attempt(true)).await;
    assert_eq!(attempt(false).await.unwrap(), "charge done");
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn an_error_takes_the_note_of_the_start_back() {
    let world = World::new();
    let failed = world.fulfil().run(async || {
        world.step("reserve").await?;
        Context::current().step("charge", async || Err::<String, _>(Declined)).at_most_once().await
    });
    assert!(failed.await.is_err());
    assert_eq!(world.record(1).await.unwrap().state, State::InProgress);
    let again = world.fulfil().run(async || {
        world.step("reserve").await?;
        world.charge_once().await
    });
    assert_eq!(again.await.unwrap(), "charge done");
    assert_eq!(world.ledger.charges(), ["reserve", "charge"]);
}

#[derive(Debug)]
struct Declined;

impl From<Error> for Declined {
    fn from(error: Error) -> Self {
        panic!("{error}")
    }
}

#[tokio::test]
async fn a_step_that_has_begun_stays_so_when_another_one_is_recorded_beside_it() {
    let world = World::new();
    let has_charged = Notify::new();
    let died = world.fulfil().run(async || {
        let charge = async || {
            world.act("charge").await?;
            has_charged.notify_one();
            hang::<Result<String, Error>>().await
        };
        let context = Context::current();
        let charge = context.step("charge", charge).at_most_once();
        let reserve = async {
            has_charged.notified().await;
            world.step("reserve").await
        };
        let (charged, _) = tokio::join!(charge, reserve);
        charged
    });
    world.crash_after(2, 2, died).await;
    let error = world.fulfil().run(async || world.charge_once().await).await.unwrap_err();
    assert_eq!((error.kind(), error.step()), (ErrorKind::StepInterrupted, Some("charge")));
    assert_eq!(world.ledger.charges(), ["charge", "reserve"]);
}

#[tokio::test]
async fn a_step_that_has_failed_is_not_begun_for_the_steps_that_are_recorded_after_it() {
    let world = World::new();
    let died = world.fulfil().run(async || {
        let context = Context::current();
        let declined =
            context.step("charge", async || Err::<String, _>(Declined)).at_most_once().await;
        assert!(declined.is_err());
        world.step("reserve").await.unwrap();
        hang::<Result<String, Error>>().await
    });
    world.crash_after(1, 3, died).await;
    let again = world.fulfil().run(async || {
        world.step("reserve").await?;
        world.charge_once().await
    });
    assert_eq!(again.await.unwrap(), "charge done");
    assert_eq!(world.ledger.charges(), ["reserve", "charge"]);
}

/// Nothing else is recorded after it.
#[tokio::test]
async fn a_step_that_has_failed_is_forgotten_as_begun_before_the_body_goes_on() {
    let world = World::new();
    let died = world.fulfil().run(async || {
        let declined = async || Err::<String, _>(Declined);
        let charge = Context::current().step("charge", declined).at_most_once();
        assert!(charge.await.is_err());
        hang::<Result<String, Error>>().await
    });
    world.crash_after(0, 2, died).await;
    let again = world.fulfil().run(async || world.charge_once().await);
    assert_eq!(again.await.unwrap(), "charge done");
}

#[tokio::test]
async fn a_start_that_the_store_does_not_confirm_runs_nothing() {
    let world = impatient();
    world.store.always(Operation::Checkpoint, Some(Fault::LostRequest));
    let call = world.fulfil().run(async || {
        let error = world.charge_once().await.unwrap_err();
        assert_eq!((error.kind(), error.step()), (ErrorKind::StoreUnavailable, Some("charge")));
        assert!(error.to_string().contains("the step did not run"), "{error}");
        // Another step does not run either while that answer is missing.
        assert_eq!(world.step("ship").await.unwrap_err().kind(), ErrorKind::StoreUnavailable);
        world.store.always(Operation::Checkpoint, None);
        world.step("note").await
    });
    assert_eq!(world.while_time_passes(call).await.unwrap(), "note done");
    assert_eq!(world.ledger.charges(), ["note"]);
}

#[tokio::test]
async fn a_start_whose_answer_came_too_late_is_left_out_of_the_next_checkpoint() {
    let world = impatient();
    world.store.always(Operation::Checkpoint, Some(Fault::LostAnswer));
    let call = world.fulfil().run(async || {
        assert_eq!(world.charge_once().await.unwrap_err().kind(), ErrorKind::StoreUnavailable);
        world.store.always(Operation::Checkpoint, None);
        world.step("note").await.unwrap();
        Err::<String, _>(Declined)
    });
    assert!(world.while_time_passes(call).await.is_err());
    // It was known in the end that the step had not run.
    let again = world.fulfil().run(async || {
        world.step("note").await?;
        world.charge_once().await
    });
    assert_eq!(again.await.unwrap(), "charge done");
}

#[tokio::test]
async fn a_step_whose_start_is_confirmed_after_the_lease_does_not_run() {
    let world = World::new();
    world.store.always(Operation::Renew, Some(Fault::LostRequest));
    let gate = Gate::new();
    world.store.next(Operation::Checkpoint, Fault::LateAnswer(gate.clone()));
    let mut call = Box::pin(world.fulfil().run(async || world.charge_once().await));
    eventually("the start", async || {
        assert!(poll_once(&mut call).is_pending());
        world.store.requests(Operation::Checkpoint) == 1
    })
    .await;
    world.clock.advance(LEASE);
    gate.open();
    assert_eq!(call.await.unwrap_err().kind(), ErrorKind::Superseded);
    assert_eq!(world.ledger.count(), 0);
}

#[tokio::test]
async fn a_step_whose_start_waits_for_another_record_does_not_run_once_the_claim_is_lost() {
    let world = World::new();
    world.store.always(Operation::Renew, Some(Fault::LostRequest));
    let gate = Gate::new();
    world.store.next(Operation::Checkpoint, Fault::Late(gate.clone()));
    let call = world.fulfil().run(async || {
        let mut reserve = Box::pin(world.step("reserve"));
        eventually("the record of the first step", async || {
            assert!(poll_once(&mut reserve).is_pending());
            world.store.requests(Operation::Checkpoint) == 1
        })
        .await;
        let mut charge = Box::pin(world.charge_once());
        assert!(poll_once(&mut charge).is_pending(), "it waits for the first one");
        world.clock.advance(LEASE);
        gate.open();
        reserve.await?;
        charge.await
    });
    assert_eq!(call.await.unwrap_err().kind(), ErrorKind::Superseded);
    assert_eq!(world.ledger.charges(), ["reserve"]);
    // It is not marked as started either.
    let again = world.fulfil().run(async || {
        world.step("reserve").await?;
        world.charge_once().await
    });
    assert_eq!(again.await.unwrap(), "charge done");
    assert_eq!(world.ledger.charges(), ["reserve", "charge"]);
}

#[tokio::test]
async fn a_step_that_comes_after_the_lease_does_not_run_and_is_not_marked_as_started() {
    let world = World::new();
    world.store.always(Operation::Renew, Some(Fault::LostRequest));
    let call = world.fulfil().run(async || {
        world.clock.advance(LEASE);
        world.charge_once().await
    });
    assert_eq!(call.await.unwrap_err().kind(), ErrorKind::Superseded);
    assert_eq!(world.store.requests(Operation::Checkpoint), 0);
    let again = world.fulfil().run(async || world.charge_once().await);
    assert_eq!(again.await.unwrap(), "charge done");
    assert_eq!(world.ledger.charges(), ["charge"]);
}

#[tokio::test]
async fn a_step_that_is_dropped_before_its_start_is_confirmed_runs_in_the_next_attempt() {
    let world = World::new();
    let gate = Gate::new();
    world.store.next(Operation::Checkpoint, Fault::Late(gate.clone()));
    {
        let mut call = Box::pin(world.fulfil().run(async || world.charge_once().await));
        eventually("the checkpoint", async || {
            assert!(poll_once(&mut call).is_pending());
            world.store.requests(Operation::Checkpoint) == 1
        })
        .await;
    }
    let mut next = Box::pin(world.fulfil().run(async || world.charge_once().await));
    assert!(poll_once(&mut next).is_pending());
    gate.open();
    assert_eq!(in_time("the next attempt", next).await.unwrap(), "charge done");
    assert_eq!(world.ledger.charges(), ["charge"]);
}

#[tokio::test]
async fn a_step_that_is_dropped_between_two_tries_runs_in_the_next_attempt() {
    let world = World::new();
    {
        let declined = || async { Err::<String, _>(Declined) };
        let mut call = Box::pin(world.fulfil().run(async || {
            let charge = Context::current().step("charge", declined).retry(StepRetry::tries(2));
            charge.at_most_once().await
        }));
        eventually("the start", async || {
            assert!(poll_once(&mut call).is_pending());
            world.checkpoints().await == 1
        })
        .await;
        assert!(poll_once(&mut call).is_pending(), "it pauses");
    }
    let next = world.fulfil().run(async || world.charge_once().await);
    assert_eq!(in_time("the next attempt", next).await.unwrap(), "charge done");
    assert_eq!(world.ledger.charges(), ["charge"]);
}

#[tokio::test]
async fn a_start_whose_answer_is_missing_is_taken_back_before_the_record_is_left() {
    let world = impatient();
    let call = world.fulfil().run(async || {
        world.step("reserve").await?;
        world.store.always(Operation::Checkpoint, Some(Fault::LostAnswer));
        let charged = world.charge_once().await;
        world.store.always(Operation::Checkpoint, None);
        charged
    });
    let error = world.while_time_passes(call).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable);
    let again = world.fulfil().run(async || {
        world.step("reserve").await?;
        world.charge_once().await
    });
    assert_eq!(again.await.unwrap(), "charge done");
    assert_eq!(world.ledger.charges(), ["reserve", "charge"]);
}

/// Its start is confirmed, and nothing has begun when the process takes the claim away.
#[tokio::test]
async fn a_step_that_pauses_between_two_tries_when_the_service_stops_runs_in_the_next_process() {
    let world = std::sync::Arc::new(World::new());
    let running = tokio::spawn({
        let world = world.clone();
        async move {
            let call = world.fulfil().run(async || {
                let declined = || async { Err::<String, _>(Declined) };
                let charge = Context::current().step("charge", declined).retry(StepRetry::tries(2));
                charge.at_most_once().await
            });
            call.await
        }
    });
    eventually("the start", async || world.checkpoints().await == 1).await;
    world.clock.wait_for_sleepers(1).await;
    assert_eq!(world.engine.shutdown(Duration::ZERO).await.abandoned, 1);
    running.abort();
    let there = world.other_process();
    let next = there.fulfil().run(async || there.charge_once().await);
    assert_eq!(in_time("the next process", next).await.unwrap(), "charge done");
    assert_eq!(world.ledger.charges(), ["charge"]);
}

/// Dies in the second of two steps, which runs at most once.
async fn die_after_a_step(world: &World) {
    let died = world.fulfil().run(async || {
        world.step("reserve").await?;
        let charge = async || {
            world.act("charge").await?;
            hang::<Result<String, Error>>().await
        };
        Context::current().step("charge", charge).at_most_once().await
    });
    world.crash_after(2, 2, died).await;
}

#[tokio::test]
async fn an_operator_cannot_say_that_nothing_happened_of_a_call_with_a_finished_step() {
    let world = World::new();
    die_after_a_step(&world).await;
    let fulfil = || {
        world.fulfil().run(async || {
            world.step("reserve").await?;
            world.charge_once().await
        })
    };
    assert_eq!(fulfil().await.unwrap_err().kind(), ErrorKind::StepInterrupted);
    let record = world.engine.record(OPERATION, 1_u64);
    let view = record.inspect().await.unwrap().unwrap();
    let refused = record.resolve(&view, Resolution::not_executed()).await.unwrap_err();
    assert_eq!((refused.kind(), refused.is_retryable()), (ErrorKind::Config, false));
    let text = refused.to_string();
    let says = ["`reserve`", "nothing has changed", "`completed`", "`failed`", "`forget`"];
    assert!(says.iter().all(|part| text.contains(part)), "{text}");
    assert_eq!(record.inspect().await.unwrap().unwrap().revision, view.revision);
    assert_eq!(fulfil().await.unwrap_err().kind(), ErrorKind::StepInterrupted);
    let view = record.inspect().await.unwrap().unwrap();
    record.resolve(&view, Resolution::completed("from the provider's books")).await.unwrap();
    assert_eq!(fulfil().await.unwrap(), "from the provider's books");
    assert_eq!(world.ledger.charges(), ["reserve", "charge"]);
}

#[tokio::test]
async fn an_operator_says_that_a_step_without_a_result_did_not_happen_and_it_runs() {
    let world = World::new();
    die_in_the_step(&world).await;
    world.record_is(1, |record| record.is_some_and(Record::is_orphaned)).await;
    let record = world.engine.record(OPERATION, 1_u64);
    let view = record.inspect().await.unwrap().unwrap();
    record.resolve(&view, Resolution::not_executed()).await.unwrap();
    let next = world.fulfil().run(async || world.charge_once().await);
    assert_eq!(next.await.unwrap(), "charge done");
    assert_eq!(world.ledger.charges(), ["charge", "charge"], "the operator was wrong");
}

/// A first attempt that broke off before it had come to a step.
async fn breaks_off(world: &World) {
    let mut first = Box::pin(world.fulfil().run(async || hang::<Result<String, Error>>().await));
    assert!(poll_once(&mut first).is_pending());
    drop(first);
    world.record_is(1, |record| record.is_some_and(|record| !record.is_running())).await;
}

#[tokio::test]
async fn an_error_takes_the_note_of_the_start_back_also_where_the_record_stays() {
    let world = World::new();
    breaks_off(&world).await;
    let second = world.fulfil().run(async || {
        let declined = || async { Err::<String, _>(Declined) };
        let charge = Context::current().step("charge", declined).retry(StepRetry::tries(2));
        let mut charge = Box::pin(charge.at_most_once().into_future());
        eventually("the first try", async || {
            assert!(poll_once(&mut charge).is_pending());
            world.clock.sleepers() > 0 && world.checkpoints().await == 1
        })
        .await;
        drop(charge);
        Err::<String, _>(Declined)
    });
    assert!(second.await.is_err());
    let third = world.fulfil().run(async || world.charge_once().await);
    assert_eq!(third.await.unwrap(), "charge done");
    assert_eq!(world.ledger.charges(), ["charge"]);
}

#[tokio::test]
async fn a_start_without_an_answer_is_taken_back_by_an_error_where_the_record_stays() {
    let world = impatient();
    breaks_off(&world).await;
    world.store.always(Operation::Checkpoint, Some(Fault::LostAnswer));
    let second = world.fulfil().run(async || {
        assert_eq!(world.charge_once().await.unwrap_err().kind(), ErrorKind::StoreUnavailable);
        world.store.always(Operation::Checkpoint, None);
        Err::<String, _>(Declined)
    });
    assert!(world.while_time_passes(second).await.is_err());
    let third = world.fulfil().run(async || world.charge_once().await);
    assert_eq!(third.await.unwrap(), "charge done");
    assert_eq!(world.ledger.charges(), ["charge"]);
}
