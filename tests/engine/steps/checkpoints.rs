//! Checkpoints whose answer is lost, late or a refusal, and their size.

use std::collections::BTreeMap;
use std::time::Duration;

use idempotency::record::State;
use idempotency::step::StepRetry;
use idempotency::store::{
    Checkpoint, Claim, CrashPolicy, Operation, Release, Store as _, StoreErrorKind, Token,
};
use idempotency::{Builder, Context, Error, ErrorKind};
use tokio::sync::Notify;

use super::hang;
use crate::faults::{Fault, Gate};
use crate::world::{LEASE, OPERATION, World, eventually, in_time, poll_once};

/// Gives up before a lease is renewed for the first time.
pub fn impatient() -> World {
    World::with(|builder| builder.commit_timeout(Duration::from_secs(1)))
}

#[tokio::test]
async fn a_checkpoint_whose_answer_is_lost_is_sent_again_with_its_number() {
    for fault in [Fault::LostAnswer, Fault::LostRequest] {
        let world = World::new();
        world.store.next(Operation::Checkpoint, fault.clone());
        world.store.next(Operation::Checkpoint, fault);
        let call = world.fulfil().run(async || {
            world.step("reserve").await?;
            world.step("ship").await
        });
        assert_eq!(world.while_time_passes(call).await.unwrap(), "ship done");
        assert_eq!(world.store.requests(Operation::Checkpoint), 4);
        assert_eq!(world.ledger.charges(), ["reserve", "ship"]);
    }
}

#[tokio::test]
async fn steps_that_finish_while_an_answer_is_missing_wait_for_it() {
    let world = World::new();
    let gate = Gate::new();
    world.store.next(Operation::Checkpoint, Fault::LateAnswer(gate.clone()));
    let mut call = Box::pin(world.fulfil().run(async || {
        let (one, other) = tokio::join!(world.step("one"), world.step("other"));
        Ok::<_, Error>((one?, other?))
    }));
    eventually("both effects", async || {
        assert!(poll_once(&mut call).is_pending());
        world.ledger.count() == 2 && world.checkpoints().await == 1
    })
    .await;
    for _ in 0..20 {
        assert!(poll_once(&mut call).is_pending());
    }
    assert_eq!(world.store.requests(Operation::Checkpoint), 1, "one at a time");
    gate.open();
    call.await.unwrap();
    assert_eq!(world.store.requests(Operation::Checkpoint), 2);
}

#[tokio::test]
async fn a_step_whose_record_is_not_confirmed_in_time_is_not_stored() {
    let world = impatient();
    world.store.always(Operation::Checkpoint, Some(Fault::LostRequest));
    let start = world.clock_now();
    let call = world.fulfil().run(async || {
        let error = world.step("reserve").await.unwrap_err();
        assert_eq!(
            (error.kind(), error.step(), error.store()),
            (ErrorKind::NotStored, Some("reserve"), Some("faulty"))
        );
        assert!(error.is_retryable());
        Err::<(), _>(error)
    });
    assert_eq!(world.while_time_passes(call).await.unwrap_err().kind(), ErrorKind::NotStored);
    let took = world.clock_now().saturating_sub(start);
    assert!(took >= Duration::from_millis(900) && took < Duration::from_secs(3), "{took:?}");
    assert_eq!(
        world.record(1).await.unwrap().state,
        State::InProgress,
        "the step ran, so the record stays"
    );
    world.store.always(Operation::Checkpoint, None);
    assert_eq!(
        world.fulfil().run(async || world.step("reserve").await).await.unwrap(),
        "reserve done"
    );
    assert_eq!(world.ledger.charges(), ["reserve", "reserve"]);
}

/// The store is back when the body ends, or when its caller leaves.
#[tokio::test]
async fn a_result_that_was_given_up_is_on_the_record_before_it_is_left_to_others() {
    for is_dropped in [false, true] {
        let world = impatient();
        world.store.always(Operation::Checkpoint, Some(Fault::LostRequest));
        let mut call = Box::pin(world.fulfil().run(async || {
            let error = world.step("reserve").await.unwrap_err();
            world.store.always(Operation::Checkpoint, None);
            if is_dropped { hang().await } else { Err::<String, _>(error) }
        }));
        if is_dropped {
            let is_back = async || {
                assert!(poll_once(&mut call).is_pending());
                world.store.requests(Operation::Checkpoint) > 0 && world.clock_now() > LEASE / 5
            };
            world.while_time_passes(eventually("the end of the patience", is_back)).await;
            drop(call);
        } else {
            let error = world.while_time_passes(call).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotStored);
        }
        let next = world.fulfil().run(async || world.step("reserve").await);
        assert_eq!(world.while_time_passes(next).await.unwrap(), "reserve done");
        assert_eq!(world.ledger.charges(), ["reserve"], "dropped: {is_dropped}");
    }
}

/// It waits for the checkpoint of the other one, which the store does not answer in time.
#[tokio::test]
async fn the_result_of_a_step_that_had_no_turn_is_on_the_next_checkpoint() {
    for runs_another in [true, false] {
        let world = impatient();
        world.store.always(Operation::Checkpoint, Some(Fault::LostRequest));
        let call = world.fulfil().run(async || {
            let (one, other) = tokio::join!(world.step("one"), world.step("other"));
            assert!(one.is_err() && other.is_err(), "neither is known to be stored");
            world.store.always(Operation::Checkpoint, None);
            if runs_another {
                world.step("third").await?;
            }
            other
        });
        let error = world.while_time_passes(call).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotStored);
        let before = world.ledger.count();
        let next = world.fulfil().run(async || {
            for name in ["one", "other"] {
                world.step(name).await?;
            }
            if runs_another { world.step("third").await } else { Ok(String::new()) }
        });
        world.while_time_passes(next).await.unwrap();
        assert_eq!(world.ledger.count(), before, "each is replayed: {:?}", world.ledger.charges());
    }
}

/// It needs more room than there is beside the others, so that the later step is refused and does not
/// run: also not in an attempt that has the room.
#[tokio::test]
async fn a_step_for_which_results_that_were_given_up_leave_no_room_does_not_run() {
    let limited = |builder: Builder, limit| {
        builder.commit_timeout(Duration::from_secs(1)).max_result_size(limit)
    };
    let world = World::with(|builder| limited(builder, 300));
    let large = async |name: &str| {
        let act = async || world.act(name).await.map(|done| done.repeat(15));
        Context::current().step(name, act).await
    };
    world.store.always(Operation::Checkpoint, Some(Fault::LostRequest));
    let call = world.fulfil().run(async || {
        let (one, other) = tokio::join!(large("one"), large("other"));
        assert!(one.is_err() && other.is_err(), "neither is known to be stored");
        world.store.always(Operation::Checkpoint, None);
        let third = world.step("third").await.unwrap_err();
        assert_eq!(third.kind(), ErrorKind::TooLarge, "{third}");
        other
    });
    world.while_time_passes(call).await.unwrap_err();
    assert_eq!(world.ledger.count(), 2, "{:?}", world.ledger.charges());

    // One of the two was cut, as it would have been in its turn: both are on the record.
    let roomy = world.other_process_with(|builder| limited(builder, 10_000));
    let next = roomy.fulfil().run(async || {
        let mut kinds = Vec::new();
        for name in ["one", "other"] {
            kinds.push(roomy.step(name).await.map_err(|error| error.kind()).err());
        }
        kinds.sort_unstable_by_key(Option::is_some);
        assert_eq!(kinds, [None, Some(ErrorKind::TooLarge)]);
        roomy.step("third").await
    });
    assert_eq!(roomy.while_time_passes(next).await.unwrap(), "third done");
    assert_eq!(world.ledger.count(), 3, "{:?}", world.ledger.charges());
}

#[tokio::test]
async fn a_result_that_reached_the_store_unconfirmed_is_replayed() {
    let world = impatient();
    world.store.always(Operation::Checkpoint, Some(Fault::LostAnswer));
    let call = world.fulfil().run(async || world.step("reserve").await);
    assert_eq!(world.while_time_passes(call).await.unwrap_err().kind(), ErrorKind::NotStored);
    world.store.always(Operation::Checkpoint, None);
    assert_eq!(
        world.fulfil().run(async || world.step("reserve").await).await.unwrap(),
        "reserve done"
    );
    assert_eq!(world.ledger.charges(), ["reserve"]);
}

#[tokio::test]
async fn nothing_further_runs_while_an_answer_is_missing_and_nothing_is_lost_when_it_comes() {
    let world = impatient();
    let attempt = |crash: bool| {
        let world = &world;
        world.fulfil().run(async move || {
            if crash {
                world.store.always(Operation::Checkpoint, Some(Fault::LostAnswer));
                assert_eq!(world.step("reserve").await.unwrap_err().kind(), ErrorKind::NotStored);
                let error = world.step("charge").await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::StoreUnavailable);
                world.store.always(Operation::Checkpoint, None);
                world.step("ship").await?;
                return Err(error);
            }
            for step in ["reserve", "charge", "ship"] {
                world.step(step).await?;
            }
            Ok(())
        })
    };
    assert!(world.while_time_passes(attempt(true)).await.is_err());
    assert_eq!(world.ledger.charges(), ["reserve", "ship"]);
    attempt(false).await.unwrap();
    assert_eq!(world.ledger.charges(), ["reserve", "ship", "charge"]);
}

#[tokio::test]
async fn a_step_that_ends_after_the_record_of_another_one_was_given_up_records_both() {
    for fault in [Fault::LostRequest, Fault::LostAnswer] {
        let world = impatient();
        let given_up = Notify::new();
        let failing = world.fulfil().run(async || {
            let context = Context::current();
            let reserve = async {
                world.store.always(Operation::Checkpoint, Some(fault));
                let error = world.step("reserve").await.unwrap_err();
                world.store.always(Operation::Checkpoint, None);
                given_up.notify_one();
                error
            };
            let charge = context.step("charge", async || {
                given_up.notified().await;
                world.act("charge").await
            });
            let (error, charged) = tokio::join!(reserve, charge);
            assert_eq!(error.kind(), ErrorKind::NotStored);
            assert_eq!(charged.unwrap(), "charge done");
            Err::<String, _>(error)
        });
        assert!(world.while_time_passes(failing).await.is_err());
        let again = world.fulfil().run(async || {
            world.step("reserve").await?;
            world.step("charge").await
        });
        assert_eq!(again.await.unwrap(), "charge done");
        assert_eq!(world.ledger.charges(), ["reserve", "charge"]);
    }
}

impl World {
    /// Another caller takes over behind this one's back.
    pub(super) async fn is_taken_over(&self) {
        let record = self.record(1).await.unwrap();
        self.memory.release(Release::new(record.key, record.owner)).await.unwrap();
        let mut claim = Claim::new(record.key, Token::from_bits(7), OPERATION.into());
        claim.policy = CrashPolicy::Resume;
        self.memory.claim(claim).await.unwrap();
    }
}

#[tokio::test]
async fn after_the_claim_was_lost_nothing_further_runs() {
    let world = World::new();
    let call = world.fulfil().run(async || {
        world.step("reserve").await?;
        world.is_taken_over().await;
        let late = world.step("charge").await.unwrap_err();
        assert_eq!((late.kind(), late.step()), (ErrorKind::Superseded, Some("charge")));
        assert!(!late.is_retryable() && !late.to_string().contains("retry"), "{late}");
        let never = world.step("ship").await.unwrap_err();
        assert_eq!(never.kind(), ErrorKind::Superseded);
        Err::<(), _>(never)
    });
    assert_eq!(call.await.unwrap_err().kind(), ErrorKind::Superseded);
    assert_eq!(world.ledger.charges(), ["reserve", "charge"]);
    let record = world.record(1).await.unwrap();
    assert_eq!(
        (record.owner, record.checkpoints),
        (Token::from_bits(7), 0),
        "the other's record is untouched"
    );
}

#[tokio::test]
async fn a_lease_that_may_be_over_starts_no_step_and_no_further_try() {
    let world = World::new();
    world.store.always(Operation::Renew, Some(Fault::LostRequest));
    let call = world.fulfil().run(async || {
        let charge = || async {
            world.ledger.charge("charge");
            world.clock.advance(LEASE);
            Err::<(), Error>(
                Context::current().step("nested", hang::<Result<(), Error>>).await.unwrap_err(),
            )
        };
        let policy = StepRetry::tries(3).first_pause(Duration::ZERO);
        let error = Context::current().step("charge", charge).retry(policy).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Superseded);
        world.step("ship").await
    });
    assert_eq!(call.await.unwrap_err().kind(), ErrorKind::Superseded);
    assert_eq!(world.ledger.charges(), ["charge"]);
}

#[tokio::test]
async fn a_step_after_the_end_of_the_body_runs_nothing() {
    let world = World::new();
    let kept = std::sync::Mutex::new(None);
    let call = world.fulfil().run(async || {
        *kept.lock().unwrap() = Some(Context::current());
        Ok::<_, Error>(())
    });
    call.await.unwrap();
    let context = kept.lock().unwrap().take().unwrap();
    let error = context.step("late", || world.act("late")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Superseded);
    assert_eq!(world.ledger.count(), 0);
}

#[tokio::test]
async fn a_result_that_does_not_fit_is_too_large_and_the_step_never_runs_again() {
    let world = World::with(|builder| builder.max_result_size(300));
    let attempt = || {
        world.fulfil().run(async || {
            world.step("reserve").await?;
            let large = async || {
                world.ledger.charge("charge");
                Ok::<_, Error>("x".repeat(300))
            };
            Context::current().step("charge", large).await
        })
    };
    for _ in 0..2 {
        let error = attempt().await.unwrap_err();
        assert_eq!((error.kind(), error.step()), (ErrorKind::TooLarge, Some("charge")));
    }
    assert_eq!(world.ledger.charges(), ["reserve", "charge"]);
}

#[tokio::test]
async fn a_result_that_cannot_be_encoded_is_an_error_and_the_step_never_runs_again() {
    let world = World::new();
    for _ in 0..2 {
        let call = world.fulfil().run(async || {
            let charge = async || {
                world.ledger.charge("charge");
                Ok::<_, Error>(BTreeMap::from([((1, 2), 3)]))
            };
            Context::current().step("charge", charge).await?;
            Ok::<_, Error>(())
        });
        let error = call.await.unwrap_err();
        assert_eq!((error.kind(), error.step()), (ErrorKind::Encode, Some("charge")));
    }
    assert_eq!(world.ledger.charges(), ["charge"]);
}

#[tokio::test]
async fn a_step_for_whose_record_there_is_no_room_does_not_run() {
    let world = World::with(|builder| builder.max_result_size(300));
    let name = "n".repeat(80);
    let world = &world;
    let call = world.fulfil().run(async || {
        let context = Context::current();
        let step = |index| {
            context.step_at(&name, index, move || world.act(format!("{index}"))).into_future()
        };
        // Room is kept for those that run.
        let results = futures::future::join_all((0..3).map(step)).await;
        let refused = |result: &Result<String, Error>| {
            result
                .as_ref()
                .err()
                .map(|error| (error.kind(), error.to_string().contains("did not run")))
        };
        assert_eq!(
            results.iter().map(refused).collect::<Vec<_>>(),
            [None, None, Some((ErrorKind::TooLarge, true))]
        );
        Ok::<_, Error>(())
    });
    call.await.unwrap();
    assert_eq!(world.ledger.charges(), ["0", "1"]);
}

#[tokio::test]
async fn a_large_result_does_not_take_the_room_of_a_step_that_runs_beside_it() {
    let world = World::with(|builder| builder.max_result_size(300));
    for _ in 0..2 {
        let (small_runs, large_has_ended) = (Notify::new(), Notify::new());
        let call = world.fulfil().run(async || {
            let context = Context::current();
            let large = async {
                let large = context.step("a", async || {
                    small_runs.notified().await;
                    world.ledger.charge("large");
                    // It fits as long as it is alone.
                    Ok::<_, Error>("x".repeat(220))
                });
                let large = large.await;
                large_has_ended.notify_one();
                large
            };
            let small = context.step("b", async || {
                small_runs.notify_one();
                large_has_ended.notified().await;
                world.act("small").await
            });
            let (large, small) = tokio::join!(large, small);
            assert_eq!(small.unwrap(), "small done");
            large
        });
        assert_eq!(call.await.unwrap_err().kind(), ErrorKind::TooLarge);
    }
    assert_eq!(world.ledger.charges(), ["large", "small"]);
}

#[tokio::test]
async fn a_store_that_refuses_checkpoints_leaves_the_record_to_its_policy() {
    let world = World::new();
    world.store.always(Operation::Checkpoint, Some(Fault::Refused(StoreErrorKind::Full)));
    let call = world.fulfil().run(async || world.step("reserve").await);
    assert_eq!(call.await.unwrap_err().kind(), ErrorKind::NotStored);
    assert_eq!(world.record(1).await.unwrap().state, State::InProgress);
}

#[tokio::test]
async fn a_checkpoint_of_another_version_runs_nothing_and_stays() {
    let world = World::new();
    let hash = world.engine.record(OPERATION, 1).hash().unwrap();
    let mut claim = Claim::new(hash, Token::from_bits(7), OPERATION.into());
    claim.policy = CrashPolicy::Resume;
    world.memory.claim(claim).await.unwrap();
    let later = Checkpoint::new(hash, Token::from_bits(7), 0, r#"{"version":2}"#.into());
    world.memory.checkpoint(later).await.unwrap();
    world.clock.advance(LEASE * 2);
    for _ in 0..2 {
        let error = world.fulfil().run(async || world.step("reserve").await).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Decode);
        assert!(error.to_string().contains("version 2"), "{error}");
        world
            .record_is(1, |record| record.is_some_and(idempotency::store::Record::is_orphaned))
            .await;
    }
    assert_eq!(world.ledger.count(), 0);
    assert_eq!(world.record(1).await.unwrap().body, r#"{"version":2}"#);
}

/// A step in a `select!`, whose body goes on with another one and comes back to it later.
#[tokio::test]
async fn a_step_that_nobody_polls_while_it_is_recorded_keeps_no_other_one_for_ever() {
    let (world, gate) = (impatient(), Gate::new());
    world.store.next(Operation::Checkpoint, Fault::LateAnswer(gate.clone()));
    let call = world.fulfil().run(async || {
        let context = Context::current();
        let mut first = Box::pin(context.step("first", || world.act("first")).into_future());
        eventually("the first checkpoint", async || {
            let _ = poll_once(&mut first);
            world.store.requests(Operation::Checkpoint) == 1
        })
        .await;
        let second = context.step("second", || world.act("second")).await.unwrap_err();
        gate.open();
        assert_eq!(first.await?, "first done");
        Err::<(), _>(second)
    });
    let error = tokio::time::timeout(Duration::from_secs(20), world.while_time_passes(call))
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!((error.kind(), error.step()), (ErrorKind::NotStored, Some("second")));
    // It is not taken for one that did not happen.
    assert_eq!(world.record(1).await.unwrap().state, State::InProgress);
    assert_eq!(world.ledger.charges(), ["first", "second"]);
}

/// A time limit around a step that has run, in a body that goes on.
#[tokio::test]
async fn no_step_runs_while_the_answer_about_a_dropped_one_is_missing() {
    let world = impatient();
    world.store.always(Operation::Checkpoint, Some(Fault::LostAnswer));
    let call = world.fulfil().run(async || {
        let context = Context::current();
        {
            let mut dropped =
                Box::pin(context.step("reserve", || world.act("reserve")).into_future());
            eventually("the checkpoint", async || {
                assert!(poll_once(&mut dropped).is_pending());
                world.store.requests(Operation::Checkpoint) > 0
            })
            .await;
        }
        let error = world.step("charge").await.unwrap_err();
        assert_eq!((error.kind(), error.step()), (ErrorKind::StoreUnavailable, Some("charge")));
        assert_eq!(world.ledger.charges(), ["reserve"]);
        world.store.always(Operation::Checkpoint, None);
        world.step("ship").await
    });
    assert_eq!(world.while_time_passes(call).await.unwrap(), "ship done");
    assert_eq!(world.ledger.charges(), ["reserve", "ship"]);
}

#[tokio::test]
async fn a_step_waits_for_the_answer_about_a_dropped_one_and_runs_then() {
    for once in [false, true] {
        let (world, gate) = (World::new(), Gate::new());
        world.store.next(Operation::Checkpoint, Fault::LateAnswer(gate.clone()));
        let mut call = Box::pin(world.fulfil().run(async || {
            let context = Context::current();
            {
                let step = context.step("reserve", || world.act("reserve"));
                let step = if once { step.at_most_once() } else { step };
                let mut dropped = Box::pin(step.into_future());
                eventually("the checkpoint", async || {
                    assert!(poll_once(&mut dropped).is_pending());
                    world.store.requests(Operation::Checkpoint) == 1
                })
                .await;
            }
            world.step("ship").await
        }));
        eventually("the checkpoint", async || {
            assert!(poll_once(&mut call).is_pending());
            world.store.requests(Operation::Checkpoint) == 1
        })
        .await;
        for _ in 0..20 {
            assert!(poll_once(&mut call).is_pending());
        }
        assert!(!world.ledger.charges().contains(&"ship".to_owned()));
        gate.open();
        assert_eq!(in_time("the next step", call).await.unwrap(), "ship done");
    }
}
