//! Steps in tasks of their own: a claim ends by what was begun, not by what has reported.

use std::sync::Arc;
use std::time::Duration;

use idempotency::record::State;
use idempotency::store::{Operation, Reason};
use idempotency::{Context, Error, ErrorAction, ErrorKind, InCurrentCall as _, OnCrash};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};

use super::hang;
use crate::faults::{Fault, Gate};
use crate::world::{OPERATION, World, eventually, in_time, poll_once};

const RUNS: u64 = 100;

#[derive(Debug)]
struct Declined;

impl From<Error> for Declined {
    fn from(_: Error) -> Self {
        Self
    }
}

type Task = JoinHandle<Result<(), Error>>;

/// A step in a task of its own, which says when its body begins and has its effect when it is told
/// to.
struct Charge {
    begins: Arc<Notify>,
    may_charge: Gate,
}

impl Charge {
    fn new() -> Self {
        Self { begins: Arc::new(Notify::new()), may_charge: Gate::new() }
    }

    async fn spawn(&self, world: &Arc<World>) -> Task {
        let (world, begins, may_charge) =
            (world.clone(), self.begins.clone(), self.may_charge.clone());
        let task = async move {
            let step = Context::current().step("charge", async || {
                begins.notify_one();
                may_charge.wait().await;
                world.ledger.charge("charge");
                Ok::<_, Error>(())
            });
            step.await
        };
        let task = tokio::spawn(task.in_current_call());
        self.begins.notified().await;
        task
    }
}

fn world() -> Arc<World> {
    Arc::new(World::new())
}

/// What the next call with the key gets.
async fn next(world: &World, key: u64) -> Result<String, ErrorKind> {
    let call = world.call(key).run(async || {
        let charge = async || world.effect(key);
        Context::current().step("charge", charge).await
    });
    call.await.map_err(|error| error.kind())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_while_a_step_runs_in_a_task_is_in_doubt_and_the_effect_happens_once() {
    for key in 0..RUNS {
        let (world, charge) = (world(), Charge::new());
        let tasks = tokio::sync::Mutex::new(None);
        let call = world.call(key).run(async || {
            *tasks.lock().await = Some(charge.spawn(&world).await);
            Err::<String, _>(Declined)
        });
        assert!(matches!(call.await, Err(Declined)));
        let record = world.record(key).await.unwrap();
        assert_eq!((record.state, record.reason), (State::InDoubt, Some(Reason::Error)));
        assert_eq!(next(&world, key).await, Err(ErrorKind::InDoubt));
        charge.may_charge.open();
        let late = tasks.into_inner().unwrap().await.unwrap();
        assert_eq!(late.unwrap_err().kind(), ErrorKind::Superseded, "its result belongs to nobody");
        assert_eq!(next(&world, key).await, Err(ErrorKind::InDoubt));
        assert_eq!(world.ledger.count(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_that_takes_a_join_set_with_steps_along_is_in_doubt() {
    for key in 0..RUNS {
        let world = world();
        let call = world.call(key).run(async || {
            let mut steps = JoinSet::new();
            let there = world.clone();
            let step = async move {
                let step = Context::current().step("charge", async || {
                    there.ledger.charge("charge");
                    hang::<Result<(), Error>>().await
                });
                step.await
            };
            steps.spawn(step.in_current_call());
            eventually("the effect", async || world.ledger.count() == 1).await;
            Err::<String, _>(Declined)
        });
        assert!(matches!(call.await, Err(Declined)));
        assert_eq!(next(&world, key).await, Err(ErrorKind::InDoubt));
        assert_eq!(world.ledger.count(), 1);
    }
}

/// The begin of a step and the end of the body meet at every distance. One of the two comes first:
/// if it is the step, its call is in doubt, else the step is refused and the next call runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_that_meets_the_end_of_the_body_runs_in_one_attempt() {
    let (mut in_doubt, mut refused) = (0, 0);
    for key in 0..RUNS * 4 {
        let world = world();
        let tasks = tokio::sync::Mutex::new(None);
        let call = world.call(key).run(async || {
            let there = world.clone();
            let step = async move {
                let charge = async || there.effect(key);
                Context::current().step("charge", charge).await
            };
            *tasks.lock().await = Some(tokio::spawn(step.in_current_call()));
            for _ in 0..key % 8 {
                tokio::task::yield_now().await;
            }
            Err::<String, _>(Declined)
        });
        assert!(matches!(call.await, Err(Declined)));
        let next = next(&world, key).await;
        let late = tasks.into_inner().unwrap().await.unwrap();
        assert_eq!(world.ledger.count(), 1, "{next:?} after {late:?}");
        match next {
            Err(ErrorKind::InDoubt) => in_doubt += 1,
            Ok(_) => {
                assert_eq!(late.unwrap_err().kind(), ErrorKind::Superseded);
                refused += 1;
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    println!("{in_doubt} in doubt, {refused} refused");
}

#[tokio::test]
async fn a_step_that_comes_after_the_end_of_the_body_is_refused_before_its_effect() {
    for returns in [Ok("done".to_owned()), Err(())] {
        let (world, body_ended) = (world(), Gate::new());
        let tasks = tokio::sync::Mutex::new(None);
        let call = world.call(1).run(async || {
            let (world, body_ended) = (world.clone(), body_ended.clone());
            let late = async move {
                body_ended.wait().await;
                world.step("charge").await
            };
            *tasks.lock().await = Some(tokio::spawn(late.in_current_call()));
            returns.clone().map_err(|()| Declined)
        });
        assert_eq!(call.await.is_ok(), returns.is_ok());
        assert_eq!(
            world.record(1).await.is_some(),
            returns.is_ok(),
            "an error before any step leaves nothing"
        );
        body_ended.open();
        let error = tasks.into_inner().unwrap().await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Superseded);
        assert_eq!(world.ledger.count(), 0);
    }
}

#[tokio::test]
async fn a_step_that_waits_between_two_tries_when_the_body_ends_is_not_tried_again() {
    let (world, failed) = (world(), Arc::new(Notify::new()));
    let tasks = tokio::sync::Mutex::new(None);
    let call = world.call(1).run(async || {
        let (there, failing) = (world.clone(), failed.clone());
        let step = async move {
            let step = Context::current().step("charge", || {
                there.ledger.charge("try");
                failing.notify_one();
                async { Err::<(), _>(Declined) }
            });
            step.retry(idempotency::step::StepRetry::tries(2)).await
        };
        *tasks.lock().await = Some(tokio::spawn(step.in_current_call()));
        failed.notified().await;
        // The pause is over when the clock is moved.
        world.clock.wait_for_sleepers(1).await;
        Err::<(), _>(Declined)
    });
    assert!(call.await.is_err());
    assert!(
        world.record(1).await.is_none(),
        "the try said that nothing happened, and there is no other one"
    );
    let task = tasks.into_inner().unwrap();
    while !task.is_finished() {
        world.clock.advance(Duration::from_secs(1));
        tokio::task::yield_now().await;
    }
    assert!(task.await.unwrap().is_err());
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn under_resume_an_error_while_a_step_runs_in_a_task_leaves_the_call_to_the_next_at_once() {
    let (world, charge) = (world(), Charge::new());
    let tasks = tokio::sync::Mutex::new(None);
    let call = world.fulfil().run(async || {
        *tasks.lock().await = Some(charge.spawn(&world).await);
        Err::<String, _>(Declined)
    });
    assert!(call.await.is_err());
    let record = world.record(1).await.unwrap();
    assert_eq!(record.state, State::InProgress);
    assert!(record.is_orphaned(), "nobody waits for a lease");
    // Nobody has taken over: what it has to say is kept for who does.
    charge.may_charge.open();
    tasks.into_inner().unwrap().await.unwrap().unwrap();
    let resumed = world.fulfil().run(async || {
        let again = async || world.act("charge").await.map(drop);
        Context::current().step("charge", again).await
    });
    resumed.await.unwrap();
    assert_eq!(world.ledger.charges(), ["charge"]);
}

#[tokio::test]
async fn a_step_in_a_task_that_was_taken_over_from_records_nothing() {
    let (world, charge) = (world(), Charge::new());
    let tasks = tokio::sync::Mutex::new(None);
    let call = world.fulfil().run(async || {
        *tasks.lock().await = Some(charge.spawn(&world).await);
        Err::<String, _>(Declined)
    });
    assert!(call.await.is_err());
    let resumed = world.fulfil().run(async || world.step("charge").await);
    assert_eq!(
        resumed.await.unwrap(),
        "charge done",
        "a step that was cut off runs again under resume"
    );
    charge.may_charge.open();
    let late = tasks.into_inner().unwrap().await.unwrap();
    assert_eq!(late.unwrap_err().kind(), ErrorKind::Superseded);
    assert_eq!(world.record(1).await.unwrap().state, State::Completed);
}

#[tokio::test]
async fn a_step_that_runs_at_most_once_in_a_task_is_interrupted_for_the_next_call() {
    let (world, begins) = (world(), Arc::new(Notify::new()));
    let call = world.fulfil().run(async || {
        let (world, beginning) = (world.clone(), begins.clone());
        let step = async move {
            let step = Context::current().step("charge", async || {
                world.ledger.charge("charge");
                beginning.notify_one();
                hang::<Result<String, Error>>().await
            });
            step.at_most_once().await
        };
        tokio::spawn(step.in_current_call());
        begins.notified().await;
        Err::<String, _>(Declined)
    });
    assert!(call.await.is_err());
    let resumed = world.fulfil().run(async || {
        Context::current().step("charge", || world.act("charge")).at_most_once().await
    });
    assert_eq!(resumed.await.unwrap_err().kind(), ErrorKind::StepInterrupted);
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn a_start_that_waits_for_another_record_when_the_body_ends_is_not_marked() {
    let (world, gate, body_ends) = (world(), Gate::new(), Notify::new());
    world.store.next(Operation::Checkpoint, Fault::Late(gate.clone()));
    let tasks = std::sync::Mutex::new(JoinSet::new());
    let call = world.fulfil().run(async || {
        let there = world.clone();
        let mut reserve = Box::pin(async move { there.step("reserve").await }.in_current_call());
        eventually("the record of the first step", async || {
            assert!(poll_once(&mut reserve).is_pending());
            world.store.requests(Operation::Checkpoint) == 1
        })
        .await;
        let there = world.clone();
        let mut charge = Box::pin(async move { there.charge_once().await }.in_current_call());
        assert!(poll_once(&mut charge).is_pending(), "it waits for the first one");
        let mut tasks = tasks.lock().unwrap();
        tasks.spawn(reserve);
        tasks.spawn(charge);
        body_ends.notify_one();
        Err::<String, _>(Declined)
    });
    let open = async {
        body_ends.notified().await;
        gate.open();
    };
    assert!(in_time("the end", async { tokio::join!(call, open).0 }).await.is_err());
    tasks.into_inner().unwrap().join_all().await;
    assert_eq!(world.ledger.charges(), ["reserve"]);
    let resumed = world.fulfil().run(async || {
        world.step("reserve").await?;
        world.charge_once().await
    });
    assert_eq!(resumed.await.unwrap(), "charge done");
    assert_eq!(world.ledger.charges(), ["reserve", "charge"]);
}

/// A task that has used up its share of the executor gets no lock before its next turn.
#[tokio::test]
async fn an_error_waits_for_a_step_that_has_ended_and_whose_task_has_to_wait_for_its_turn() {
    for policy in [ErrorAction::Release, ErrorAction::Hold] {
        let (world, has_charged) = (world(), Arc::new(Notify::new()));
        let call = world.fulfil().on_error(policy).run(async || {
            let (there, charged) = (world.clone(), has_charged.clone());
            let step = async move {
                let charge = async || {
                    there.ledger.charge("charge");
                    while tokio::task::coop::has_budget_remaining() {
                        tokio::task::coop::consume_budget().await;
                    }
                    charged.notify_one();
                    Ok::<_, Error>("charge done".to_owned())
                };
                Context::current().step("charge", charge).await
            };
            tokio::spawn(step.in_current_call());
            has_charged.notified().await;
            Err::<String, _>(Declined)
        });
        assert!(in_time("the end of the call", call).await.is_err());
        let record = world.record(1).await.unwrap();
        assert_eq!(record.checkpoints, 1, "it is on the record before the claim ends");
        if policy == ErrorAction::Release {
            let resumed = world.fulfil().run(async || world.step("charge").await);
            assert_eq!(resumed.await.unwrap(), "charge done");
        }
        assert_eq!(world.ledger.charges(), ["charge"]);
    }
}

/// A result is the call's: what still runs belongs to nobody, and does not run again for this key.
#[tokio::test]
async fn a_result_while_a_step_runs_in_a_task_is_the_result() {
    let (world, charge) = (world(), Charge::new());
    let tasks = tokio::sync::Mutex::new(None);
    let call = world.call(1).run(async || {
        *tasks.lock().await = Some(charge.spawn(&world).await);
        Ok::<_, Error>("accepted".to_owned())
    });
    assert_eq!(call.await.unwrap(), "accepted");
    charge.may_charge.open();
    let late = tasks.into_inner().unwrap().await.unwrap();
    assert_eq!(late.unwrap_err().kind(), ErrorKind::Superseded);
    assert_eq!(next(&world, 1).await.unwrap(), "accepted");
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn a_held_error_while_a_step_runs_in_a_task_is_in_doubt() {
    let (world, charge) = (world(), Charge::new());
    let call = world.fulfil().on_error(ErrorAction::Hold).run(async || {
        charge.spawn(&world).await;
        Err::<String, _>(Declined)
    });
    assert!(call.await.is_err());
    assert_eq!(world.record(1).await.unwrap().state, State::InDoubt);
}

#[tokio::test]
async fn after_a_body_was_dropped_its_steps_in_tasks_begin_no_more() {
    for on_crash in [OnCrash::Hold, OnCrash::Resume] {
        let (world, body_ended) = (world(), Gate::new());
        let mut tasks = JoinSet::new();
        {
            let tasks = std::sync::Mutex::new(&mut tasks);
            let mut call = Box::pin(world.call(1).on_crash(on_crash).run(async || {
                let (world, body_ended) = (world.clone(), body_ended.clone());
                let late = async move {
                    body_ended.wait().await;
                    world.step("charge").await
                };
                tasks.lock().unwrap().spawn(late.in_current_call());
                hang::<Result<String, Error>>().await
            }));
            assert!(poll_once(&mut call).is_pending());
        }
        body_ended.open();
        let late = tasks.join_next().await.unwrap().unwrap();
        assert_eq!(late.unwrap_err().kind(), ErrorKind::Superseded);
        assert_eq!(world.ledger.count(), 0);
    }
}

#[tokio::test]
async fn a_shutdown_leaves_the_record_to_nobody_before_a_step_that_has_ended_is_on_it() {
    let (world, gate) = (world(), Gate::new());
    world.store.next(Operation::Checkpoint, Fault::Late(gate.clone()));
    let running = tokio::spawn({
        let world = world.clone();
        async move { world.fulfil().run(async || world.step("reserve").await).await }
    });
    eventually("the checkpoint", async || world.store.requests(Operation::Checkpoint) == 1).await;
    let drained = tokio::spawn({
        let engine = world.engine.clone();
        async move { engine.shutdown(Duration::ZERO).await }
    });
    for _ in 0..50 {
        assert_eq!(
            world.store.requests(Operation::Abandon),
            0,
            "the next attempt would run the step again"
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    gate.open();
    assert_eq!(in_time("the shutdown", drained).await.unwrap().abandoned, 1);
    let there = world.other_process();
    assert_eq!(
        there.fulfil().run(async || there.step("reserve").await).await.unwrap(),
        "reserve done"
    );
    assert_eq!(world.ledger.charges(), ["reserve"]);
    let _ = running.await;
}

/// A step whose future nobody polls any more, and nobody drops.
#[tokio::test]
async fn a_step_that_never_gets_on_does_not_keep_the_claim_for_ever() {
    let (world, gate) = (world(), Gate::new());
    world.store.next(Operation::Checkpoint, Fault::Late(gate.clone()));
    let forgotten = tokio::sync::Mutex::new(None);
    let call = world.call(1).run(async || {
        let there = world.clone();
        let mut step = Box::pin(async move { there.step("charge").await });
        eventually("the checkpoint", async || {
            assert!(poll_once(&mut step).is_pending());
            world.store.requests(Operation::Checkpoint) == 1
        })
        .await;
        *forgotten.lock().await = Some(step);
        Err::<String, _>(Declined)
    });
    assert!(world.while_time_passes(call).await.is_err());
    assert_eq!(world.record(1).await.unwrap().state, State::InDoubt);
    drop(forgotten);
    gate.open();
}

/// A guarded call is protected by its own record, in whatever task it runs: an error of the call
/// around it releases that one alone.
#[tokio::test]
async fn a_guarded_call_in_a_task_of_a_body_that_fails_has_its_effect_once() {
    let (world, charge) = (world(), Charge::new());
    let tasks = tokio::sync::Mutex::new(Vec::new());
    let attempt = || {
        world.call(1).run(async || {
            let (world, begins, may_charge) =
                (world.clone(), charge.begins.clone(), charge.may_charge.clone());
            let inner = async move {
                let inner =
                    world.engine.call(OPERATION, 2).ttl(crate::world::DAY).run(async || {
                        begins.notify_one();
                        may_charge.wait().await;
                        world.effect(2)
                    });
                inner.await
            };
            tasks.lock().await.push(tokio::spawn(inner.in_current_call()));
            Err::<String, _>(Declined)
        })
    };
    assert!(attempt().await.is_err());
    charge.begins.notified().await;
    assert!(world.record(1).await.is_none());
    assert!(attempt().await.is_err());
    charge.may_charge.open();
    for task in tasks.into_inner() {
        assert_eq!(task.await.unwrap().unwrap(), "receipt 2.1");
    }
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn a_body_that_does_not_wait_for_a_recorded_step_of_a_task_is_decode_until_it_waits() {
    let world = world();
    let fulfil = |waits: bool, dies: bool| {
        let world = world.clone();
        world.clone().fulfil().run(async move || {
            let there = world.clone();
            let task = tokio::spawn(async move { there.step("email").await }.in_current_call());
            if waits {
                task.await.unwrap()?;
            }
            if dies {
                hang::<()>().await;
            }
            Ok::<_, Error>(1)
        })
    };
    {
        let mut dying = Box::pin(fulfil(true, true));
        eventually("the step", async || {
            poll_once(&mut dying).is_pending() && world.checkpoints().await == 1
        })
        .await;
    }
    for _ in 0..2 {
        let error = fulfil(false, false).await.unwrap_err();
        assert_eq!((error.kind(), error.step()), (ErrorKind::Decode, Some("email")));
    }
    assert_eq!(fulfil(true, false).await.unwrap(), 1);
    assert_eq!(world.ledger.charges(), ["email"]);
}

/// The panic ends the task of the step, and nothing else.
#[tokio::test]
async fn an_error_after_a_step_whose_checkpoint_broke_off_is_in_doubt() {
    let (world, charge) = (world(), Charge::new());
    world.store.always(Operation::Checkpoint, Some(Fault::Panic));
    charge.may_charge.open();
    let call = world.call(1).run(async || match charge.spawn(&world).await.await {
        Err(panicked) if panicked.is_panic() => Err::<String, _>(Declined),
        ended => panic!("the store's client breaks: {ended:?}"),
    });
    assert!(matches!(call.await, Err(Declined)));
    assert_eq!(world.record(1).await.map(|record| record.state), Some(State::InDoubt));
    assert_eq!(next(&world, 1).await, Err(ErrorKind::InDoubt));
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn an_error_after_a_dropped_step_whose_checkpoint_broke_off_is_in_doubt() {
    let world = world();
    // The request is made again in the background, which the panic ends.
    world.store.next(Operation::Checkpoint, Fault::LostRequest);
    world.store.next(Operation::Checkpoint, Fault::Panic);
    let call = world.call(1).run(async || {
        let charge = async || world.effect(1);
        let mut step = Box::pin(Context::current().step("charge", charge).into_future());
        eventually("the checkpoint", async || {
            assert!(poll_once(&mut step).is_pending());
            world.store.requests(Operation::Checkpoint) == 1
        })
        .await;
        drop(step);
        Err::<String, _>(Declined)
    });
    assert!(matches!(world.while_time_passes(call).await, Err(Declined)));
    assert!(world.store.requests(Operation::Checkpoint) >= 2, "the background has sent it again");
    assert_eq!(world.record(1).await.map(|record| record.state), Some(State::InDoubt));
    assert_eq!(next(&world, 1).await, Err(ErrorKind::InDoubt));
    assert_eq!(world.ledger.count(), 1);
}
