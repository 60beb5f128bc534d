//! A later attempt goes on where an earlier one ended.

use idempotency::record::State;
use idempotency::step::StepRetry;
use idempotency::store::Operation;
use idempotency::{Context, Error, ErrorKind, OnCrash};
use serde::{Deserialize, Serialize};

use super::hang;
use crate::faults::Fault;
use crate::world::{LEASE, World, eventually, poll_once};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Place {
    shelf: String,
    price: Option<f64>,
}

#[tokio::test]
async fn a_call_without_a_crash_runs_each_step_once_and_replays_its_result() {
    let world = World::new();
    let run = || {
        world
            .fulfil()
            .run(async || Ok::<_, Error>((world.step("reserve").await?, world.step("ship").await?)))
    };
    for _ in 0..2 {
        assert_eq!(run().await.unwrap(), ("reserve done".into(), "ship done".into()));
    }
    assert_eq!(world.ledger.charges(), ["reserve", "ship"]);
    assert_eq!(world.store.requests(Operation::Checkpoint), 2);
    assert_eq!(world.record(1).await.unwrap().state, State::Completed);
}

#[tokio::test]
async fn a_later_attempt_replays_what_finished_and_runs_the_first_unfinished_step() {
    let world = World::new();
    let attempt = |crash: bool| {
        let world = &world;
        world.fulfil().run(async move || {
            let context = Context::current();
            let place = context
                .step("reserve", async || {
                    world.ledger.charge("reserve");
                    Ok::<_, Error>(Place { shelf: "ä \"7\"".into(), price: Some(0.1) })
                })
                .await?;
            let charged = world.step("charge").await?;
            if crash {
                hang::<()>().await;
            }
            let shipped = world.step("ship").await?;
            Ok::<_, Error>((place, charged, shipped))
        })
    };
    world.crash_after(2, 2, attempt(true)).await;
    let (place, charged, shipped) = attempt(false).await.unwrap();
    assert_eq!(place, Place { shelf: "ä \"7\"".into(), price: Some(0.1) });
    assert_eq!((charged.as_str(), shipped.as_str()), ("charge done", "ship done"));
    assert_eq!(world.ledger.charges(), ["reserve", "charge", "ship"]);
    assert_eq!(world.record(1).await.unwrap().attempts, 2);
}

#[tokio::test]
async fn steps_of_many_attempts_add_up() {
    let world = World::new();
    let attempt = |crash_after: u64| {
        let world = &world;
        world.fulfil().run(async move || {
            for index in 0..4 {
                Context::current()
                    .step_at("item", index, || world.act(format!("item {index}")))
                    .await?;
                if index == crash_after {
                    hang::<()>().await;
                }
            }
            Ok::<_, Error>(())
        })
    };
    for crash in 0..3 {
        world.crash_after(crash + 1, crash + 1, attempt(crash as u64)).await;
    }
    attempt(u64::MAX).await.unwrap();
    assert_eq!(world.ledger.charges(), ["item 0", "item 1", "item 2", "item 3"]);
    assert_eq!(world.record(1).await.unwrap().attempts, 4);
}

#[tokio::test]
async fn a_crash_between_the_effect_of_a_step_and_its_checkpoint_runs_the_step_again() {
    let world = World::new();
    let attempt = |crash: bool| {
        let world = &world;
        world.fulfil().run(async move || {
            world.step("reserve").await?;
            let charge = async move || {
                let result = world.act("charge").await;
                if crash {
                    hang::<()>().await;
                }
                result
            };
            Context::current().step("charge", charge).await
        })
    };
    world.crash_after(2, 1, attempt(true)).await;
    assert_eq!(attempt(false).await.unwrap(), "charge done");
    assert_eq!(world.ledger.charges(), ["reserve", "charge", "charge"]);
}

#[tokio::test]
async fn another_process_resumes_when_the_lease_of_a_dead_one_is_over() {
    let world = World::new();
    let there = world.other_process();
    // The dead process cannot say that it is dead.
    world.store.always(Operation::Abandon, Some(Fault::LostRequest));
    let died = world.fulfil().run(async || {
        world.step("reserve").await?;
        hang::<Result<String, Error>>().await
    });
    world.crash_after(1, 1, died).await;
    let resumed = there.fulfil().run(async || {
        there.step("reserve").await?;
        there.step("ship").await
    });
    let before = world.clock_now();
    assert_eq!(there.while_time_passes(resumed).await.unwrap(), "ship done");
    assert!(world.clock_now().saturating_sub(before) >= LEASE);
    assert_eq!(world.ledger.charges(), ["reserve", "ship"]);
}

#[tokio::test]
async fn under_retry_steps_are_replayed_as_well() {
    let world = World::new();
    let call = || world.call(1).on_crash(OnCrash::Retry);
    let died = call().run(async || {
        world.step("reserve").await?;
        hang::<Result<String, Error>>().await
    });
    world.crash_after(1, 1, died).await;
    call().run(async || world.step("reserve").await).await.unwrap();
    assert_eq!(world.ledger.charges(), ["reserve"]);
}

#[tokio::test]
async fn under_hold_steps_run_and_a_crash_is_in_doubt() {
    let world = World::new();
    let died = world.call(1).run(async || {
        world.step("reserve").await?;
        hang::<Result<String, Error>>().await
    });
    world.crash_after(1, 1, died).await;
    let error = world.call(1).run(async || world.step("reserve").await).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InDoubt);
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn steps_that_run_at_the_same_time_do_not_lose_each_other() {
    const STEPS: u64 = 20;
    let world = World::new();
    let attempt = |crash: bool| {
        let world = &world;
        world.fulfil().run(async move || {
            let steps = (0..STEPS).map(|index| {
                let step = Context::current()
                    .step_at("item", index, move || world.act(format!("item {index}")));
                step.into_future()
            });
            let results = futures::future::join_all(steps).await;
            if crash {
                hang::<()>().await;
            }
            results.into_iter().collect::<Result<Vec<_>, Error>>()
        })
    };
    world.crash_after(20, 20, attempt(true)).await;
    let results = attempt(false).await.unwrap();
    assert_eq!(results[7], "item 7 done");
    assert_eq!(results.len(), 20);
    assert_eq!(world.ledger.count(), 20, "nothing ran twice");
}

/// A handler's service: its steps borrow from it.
struct Shelves(World);

impl Shelves {
    async fn act(&self, name: &str) -> Result<String, Error> {
        self.0.act(name).await
    }

    async fn fulfil(&self, name: &str) -> Result<(String, String, String), Error> {
        let body = || async {
            let context = Context::current();
            let (plain, blocks, closures) = tokio::join!(
                context.step("plain", || self.act(name)),
                context.step("block", || async { self.act(name).await }).at_most_once(),
                context.step("closure", async || self.act(name).await).retry(StepRetry::tries(2)),
            );
            Ok((plain?, blocks?, closures?))
        };
        self.0.fulfil().run(body).await
    }
}

#[tokio::test]
async fn steps_that_borrow_and_run_at_the_same_time_can_be_spawned() {
    let shelves = std::sync::Arc::new(Shelves(World::new()));
    let there = shelves.clone();
    let done = tokio::spawn(async move { there.fulfil("shelf").await }).await.unwrap().unwrap();
    assert_eq!(done.2, "shelf done");
    assert_eq!(shelves.0.ledger.count(), 3);
}

#[tokio::test]
async fn tokios_join_takes_steps_as_they_are() {
    let world = World::new();
    let call = world.fulfil().run(async || {
        let context = Context::current();
        let (reserved, asked) = tokio::join!(
            context.step("reserve", || world.act("reserve")),
            context.step("ask", async || Ok::<_, Error>(7)),
        );
        Ok::<_, Error>((reserved?, asked?))
    });
    assert_eq!(call.await.unwrap(), ("reserve done".into(), 7));
}

#[tokio::test]
async fn a_recorded_result_of_another_type_is_decode_and_runs_nothing() {
    let world = World::new();
    let died = world.fulfil().run(async || {
        world.step("reserve").await?;
        hang::<Result<u64, Error>>().await
    });
    world.crash_after(1, 1, died).await;
    for _ in 0..2 {
        let changed = world.fulfil().run(async || {
            let reserve = async || {
                world.ledger.charge("reserve anew");
                Ok::<_, Error>(7)
            };
            Context::current().step("reserve", reserve).await
        });
        let error = changed.await.unwrap_err();
        assert_eq!((error.kind(), error.step()), (ErrorKind::Decode, Some("reserve")));
        assert!(
            !format!("{error:?}").contains("reserve done"),
            "results are not for logs: {error:?}"
        );
    }
    assert_eq!(world.ledger.charges(), ["reserve"]);
    // Nothing is lost: the code that wrote it reads it.
    assert_eq!(
        world.fulfil().run(async || world.step("reserve").await).await.unwrap(),
        "reserve done"
    );
}

#[tokio::test]
async fn a_recorded_result_is_not_replayed_once_the_body_has_ended() {
    let world = World::new();
    let kept = std::sync::Mutex::new(None);
    let died = world.fulfil().run(async || {
        world.step("reserve").await?;
        hang::<Result<(), Error>>().await
    });
    world.crash_after(1, 1, died).await;
    {
        let mut dropped = Box::pin(world.fulfil().run(async || {
            *kept.lock().unwrap() = Some(Context::current());
            hang::<Result<(), Error>>().await
        }));
        eventually("the body", async || {
            assert!(poll_once(&mut dropped).is_pending());
            kept.lock().unwrap().is_some()
        })
        .await;
    }
    let context = kept.lock().unwrap().take().unwrap();
    let late = context.step_at("reserve", 0, || world.act("again")).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Superseded);
    assert_eq!(world.ledger.charges(), ["reserve"]);
}

#[tokio::test]
async fn a_step_that_is_polled_after_it_has_returned_panics_and_says_so() {
    let world = World::new();
    let call = world.fulfil().run(async || {
        let context = Context::current();
        for kind in [None, Some(ErrorKind::Config)] {
            let mut step = Box::pin(context.step("reserve", || world.act("reserve")).into_future());
            assert_eq!((&mut step).await.err().map(|error| error.kind()), kind);
            let again = std::panic::AssertUnwindSafe(|| poll_once(&mut step));
            let panic = std::panic::catch_unwind(again).unwrap_err();
            let said = panic.downcast_ref::<&str>();
            assert_eq!(said, Some(&"a step was polled after it had returned"));
        }
        Ok::<_, Error>(())
    });
    call.await.unwrap();
    assert_eq!(world.ledger.charges(), ["reserve"]);
}

#[tokio::test]
async fn steps_of_a_disabled_operation_run_and_record_nothing() {
    let world = World::new();
    world.engine.disable(crate::world::OPERATION);
    for _ in 0..2 {
        let call = world.fulfil().run(async || {
            Context::current().step("reserve", || world.act("reserve")).at_most_once().await
        });
        assert_eq!(call.await.unwrap(), "reserve done");
    }
    assert_eq!(world.ledger.count(), 2);
    assert_eq!(world.store.requests(Operation::Checkpoint), 0);
}
