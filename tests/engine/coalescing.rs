//! Callers of one call in one process share one claim.

use idempotency::store::Operation;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures::future::join_all;
use idempotency::record::Resolution;
use idempotency::{Context, Error, ErrorKind, OnConflict, OnCrash, Verdict, with_report};

use crate::faults::{Fault, Gate};
use crate::world::{DAY, LEASE, OPERATION, World, eventually, in_time, poll_once};

#[tokio::test]
async fn sixty_four_callers_cost_one_claim_and_one_effect() {
    let (world, gate) = (World::new(), Gate::new());
    let callers = (0..64).map(|_| {
        with_report(world.call(1).run(|| async {
            gate.wait().await;
            world.effect(1)
        }))
    });
    let open = async {
        world.record_is(1, |record| record.is_some()).await;
        gate.open();
    };
    let (answers, ()) = tokio::join!(join_all(callers), open);
    let joined = answers.iter().filter(|(_, report)| report.as_ref().unwrap().joined).count();
    assert!(answers.iter().all(|(result, _)| result.as_ref().unwrap() == "receipt 1.1"));
    assert_eq!((joined, world.store.requests(Operation::Claim), world.ledger.count()), (63, 1, 1));
}

#[tokio::test]
async fn a_leader_that_goes_before_the_body_leaves_its_place_to_a_follower() {
    let (world, gate) = (World::new(), Gate::new());
    world.store.next(Operation::Claim, Fault::Late(gate.clone()));
    let mut leader = Box::pin(world.charge(1));
    assert!(poll_once(&mut leader).is_pending());
    let mut follower = Box::pin(world.charge(1));
    assert!(poll_once(&mut follower).is_pending());
    drop(leader);
    // The follower's own claim meets no gate.
    assert_eq!(follower.await.unwrap(), "receipt 1.1");
    gate.open();
    eventually("the late claim to be settled", async || {
        world.store.requests(Operation::Claim) == 2
    })
    .await;
    assert_eq!(world.charge(1).await.unwrap(), "receipt 1.1");
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn a_leader_that_goes_in_the_body_sends_its_followers_to_the_store() {
    let world = World::new();
    let mut leader = Box::pin(world.call(1).run(|| async {
        world.effect(1)?;
        std::future::pending::<Result<String, Error>>().await
    }));
    eventually("the effect", async || {
        assert!(poll_once(&mut leader).is_pending());
        world.ledger.count() == 1
    })
    .await;
    let mut followers: Vec<_> = (0..8).map(|_| Box::pin(world.charge(1))).collect();
    for follower in &mut followers {
        assert!(poll_once(follower).is_pending());
    }
    drop(leader);
    for answer in join_all(followers).await {
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::InDoubt);
    }
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn a_leader_that_is_out_of_time_takes_nobody_along() {
    let (world, gate) = (World::new(), Gate::new());
    let elsewhere = world.other_process();
    let owner = elsewhere.call(1).run(|| async {
        gate.wait().await;
        elsewhere.effect(1)
    });
    let here = async {
        world.record_is(1, |record| record.is_some()).await;
        let hasty = world.call(1).on_conflict(OnConflict::Wait(Duration::from_millis(100)));
        let mut hasty = Box::pin(hasty.run(|| async { world.effect(1) }));
        assert!(poll_once(&mut hasty).is_pending());
        let mut patient = Box::pin(world.charge(1));
        assert!(poll_once(&mut patient).is_pending());
        eventually("the leader to wait", async || {
            assert!(poll_once(&mut hasty).is_pending());
            world.store.requests(Operation::Watch) > 0
        })
        .await;
        world.clock.advance(Duration::from_millis(101));
        assert_eq!(hasty.await.unwrap_err().kind(), ErrorKind::InProgress);
        gate.open();
        patient.await
    };
    let (owner, patient) = tokio::join!(owner, here);
    assert_eq!(owner.unwrap(), patient.unwrap());
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn after_a_leader_s_released_error_the_next_follower_runs() {
    let (world, gate) = (World::new(), Gate::new());
    let attempts = Arc::new(AtomicUsize::new(0));
    let callers = (0..3).map(|_| {
        world.call(1).run(|| async {
            gate.wait().await;
            if attempts.fetch_add(1, Ordering::SeqCst) == 0 {
                return Err(anyhow::anyhow!("busy"));
            }
            Ok(world.effect(1)?)
        })
    });
    let open = async {
        world.record_is(1, |record| record.is_some()).await;
        gate.open();
    };
    let (answers, ()) = tokio::join!(join_all(callers), open);
    let (failed, succeeded): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_err);
    assert_eq!((failed.len(), succeeded.len()), (1, 2));
    assert_eq!((attempts.load(Ordering::SeqCst), world.ledger.count()), (2, 1));
}

#[tokio::test(flavor = "current_thread")]
async fn followers_take_the_lead_in_the_order_in_which_they_came() {
    let (world, order) = (Arc::new(World::new()), Arc::new(std::sync::Mutex::new(Vec::new())));
    let callers = (0..12).map(|number| {
        let (world, order) = (world.clone(), order.clone());
        tokio::spawn(async move {
            let call = world.call(1).run(|| async {
                order.lock().unwrap().push(number);
                // All others come, or come back, before this one gives its place away.
                tokio::task::yield_now().await;
                Err::<String, _>(anyhow::anyhow!("nothing happened"))
            });
            call.await.unwrap_err();
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    assert_eq!(*order.lock().unwrap(), (0..12).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_follower_that_refuses_to_wait_is_told_at_once() {
    let (world, gate) = (World::new(), Gate::new());
    let leader = world.call(1).run(|| async {
        gate.wait().await;
        world.effect(1)
    });
    let follower = async {
        world.record_is(1, |record| record.is_some()).await;
        let call = world.call(1).on_conflict(OnConflict::Reject).run(|| async { world.effect(1) });
        let before = world.clock_now();
        assert_eq!(call.await.unwrap_err().kind(), ErrorKind::InProgress);
        assert_eq!(world.clock_now(), before);
        gate.open();
    };
    let (leader, ()) = tokio::join!(leader, follower);
    leader.unwrap();
    assert_eq!((world.store.requests(Operation::Claim), world.ledger.count()), (1, 1));
}

#[tokio::test]
async fn a_follower_that_refuses_to_wait_still_gets_a_replay_that_is_on_its_way() {
    let (world, gate) = (World::new(), Gate::new());
    world.charge(1).await.unwrap();
    world.store.next(Operation::Claim, Fault::LateAnswer(gate.clone()));
    let mut leader = Box::pin(world.charge(1));
    assert!(poll_once(&mut leader).is_pending());
    let call = world.call(1).on_conflict(OnConflict::Reject);
    let mut follower = Box::pin(call.run(|| async { world.effect(1) }));
    assert!(poll_once(&mut follower).is_pending());
    gate.open();
    let (leader, follower) = tokio::join!(leader, follower);
    assert_eq!((leader.unwrap(), follower.unwrap()), ("receipt 1.1".into(), "receipt 1.1".into()));
}

#[tokio::test]
async fn a_follower_that_refuses_to_wait_is_refused_while_its_leader_waits_for_another_process() {
    let (world, gate) = (World::new(), Gate::new());
    let there = world.other_process();
    let mut runs = Box::pin(there.call(1).run(|| async {
        gate.wait().await;
        there.effect(1)
    }));
    assert!(poll_once(&mut runs).is_pending());
    let mut leader = Box::pin(world.charge(1));
    assert!(poll_once(&mut leader).is_pending());
    let follower = world.call(1).on_conflict(OnConflict::Reject).run(|| async { world.effect(1) });
    let refused = in_time("the refusal", follower).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InProgress);
    assert_eq!(world.store.requests(Operation::Claim), 1, "the leader has asked for both");
    gate.open();
    assert_eq!(runs.await.unwrap(), "receipt 1.1");
    assert_eq!(leader.await.unwrap(), "receipt 1.1");
}

#[tokio::test]
async fn callers_with_another_fingerprint_do_not_share() {
    let (world, gate) = (World::new(), Gate::new());
    let leader = world.call(1).fingerprint("EUR 100").run(|| async {
        gate.wait().await;
        world.effect(1)
    });
    let other = async {
        world.record_is(1, |record| record.is_some()).await;
        let call = world.call(1).fingerprint("EUR 101").on_conflict(OnConflict::Reject);
        let call = call.run(|| async { world.effect(1) });
        assert_eq!(call.await.unwrap_err().kind(), ErrorKind::Mismatch);
        gate.open();
    };
    let (leader, ()) = tokio::join!(leader, other);
    leader.unwrap();
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn a_leader_whose_lease_is_too_short_for_the_store_takes_nobody_along() {
    let world = World::new();
    let gates = [Gate::new(), Gate::new()];
    for gate in &gates {
        world.store.next(Operation::Claim, Fault::LateAnswer(gate.clone()));
    }
    let short = world.call(1).lease(Duration::from_secs(1));
    let mut short = Box::pin(short.run(|| async { world.effect(1) }));
    assert!(poll_once(&mut short).is_pending());
    let mut follower = Box::pin(world.charge(1));
    assert!(poll_once(&mut follower).is_pending());
    for (sent, gate) in gates.iter().enumerate() {
        eventually("the claim", async || {
            assert!(poll_once(&mut short).is_pending());
            world.store.requests(Operation::Claim) == sent + 1
        })
        .await;
        world.clock.advance(Duration::from_millis(900));
        gate.open();
    }
    assert_eq!(short.await.unwrap_err().kind(), ErrorKind::StoreUnavailable);
    assert_eq!(follower.await.unwrap(), "receipt 1.1");
}

/// Each leader has a lease that is too short for the store, so none of them has an answer.
#[tokio::test]
async fn a_follower_that_refuses_to_wait_follows_all_its_leaders_for_no_longer_than_one_claim() {
    const CLAIM: Duration = Duration::from_secs(3);
    let world = World::with(|builder| builder.claim_timeout(CLAIM));
    let slow = Fault::Slow(world.clock.clone(), Duration::from_millis(900));
    world.store.always(Operation::Claim, Some(slow));
    let mut leaders: Vec<_> = (0..3)
        .map(|_| {
            let short = world.call(1).lease(Duration::from_secs(1));
            Box::pin(short.run(|| async { world.effect(1) }))
        })
        .collect();
    for leader in &mut leaders {
        assert!(poll_once(leader).is_pending());
    }
    let before = world.clock_now();
    let follower = world.call(1).on_conflict(OnConflict::Reject).run(|| async { world.effect(1) });
    let follower = async {
        let result = follower.await;
        (result, world.clock_now().saturating_sub(before))
    };
    let all = async { tokio::join!(follower, join_all(leaders)) };
    let ((result, took), _) = world.while_time_passes(all).await;
    assert_eq!(result.unwrap_err().kind(), ErrorKind::InProgress);
    assert!(took <= CLAIM + Duration::from_millis(20), "it took {took:?}");
    assert_eq!(world.ledger.count(), 0);
}

#[tokio::test]
async fn a_leader_that_is_out_of_time_while_the_store_is_slow_takes_nobody_along() {
    let (world, gate) = (World::new(), Gate::new());
    let elsewhere = world.other_process();
    let owner = elsewhere.call(1).run(|| async {
        gate.wait().await;
        elsewhere.effect(1)
    });
    let here = async {
        world.record_is(1, |record| record.is_some()).await;
        world.store.next(Operation::Watch, Fault::Late(Gate::new()));
        let hasty = world.call(1).on_conflict(OnConflict::Wait(Duration::from_millis(100)));
        let mut hasty = Box::pin(hasty.run(|| async { world.effect(1) }));
        let mut patient = Box::pin(world.charge(1));
        eventually("the leader to wait", async || {
            assert!(poll_once(&mut hasty).is_pending());
            world.store.requests(Operation::Watch) == 1
        })
        .await;
        assert!(poll_once(&mut patient).is_pending());
        world.clock.advance(Duration::from_millis(101));
        assert_eq!(hasty.await.unwrap_err().kind(), ErrorKind::InProgress);
        gate.open();
        patient.await
    };
    let (owner, patient) = tokio::join!(owner, here);
    assert_eq!(owner.unwrap(), patient.unwrap());
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn a_follower_waits_no_longer_than_its_own_patience() {
    let world = World::new();
    let mut leader = Box::pin(world.call(1).run(std::future::pending::<Result<String, Error>>));
    assert!(poll_once(&mut leader).is_pending());
    let call = world.call(1).on_conflict(OnConflict::Wait(Duration::from_secs(1)));
    let mut follower = Box::pin(call.run(|| async { world.effect(1) }));
    assert!(poll_once(&mut follower).is_pending());
    world.clock.advance(Duration::from_millis(999));
    assert!(poll_once(&mut follower).is_pending());
    world.clock.advance(Duration::from_millis(1));
    assert!(
        matches!(poll_once(&mut follower), Poll::Ready(Err(error)) if error.kind() == ErrorKind::InProgress)
    );
    assert_eq!(world.store.requests(Operation::Claim), 1);
}

#[tokio::test]
async fn followers_share_that_the_store_does_not_answer() {
    let world = World::new();
    world.store.always(Operation::Claim, Some(Fault::LostRequest));
    let before = world.clock_now();
    let answers = world.while_time_passes(join_all((0..8).map(|_| world.charge(1)))).await;
    assert!(
        answers.into_iter().all(|answer| answer.unwrap_err().kind() == ErrorKind::StoreUnavailable)
    );
    let took = world.clock_now().saturating_sub(before);
    assert!(took < Duration::from_secs(10), "one claim_timeout for all of them, not {took:?}");
}

#[tokio::test]
async fn followers_of_a_leader_that_is_gone_ask_when_the_store_knows_of_it() {
    let (world, gate) = (World::new(), Gate::new());
    world.store.next(Operation::Park, Fault::Late(gate.clone()));
    let mut leader = Box::pin(world.call(1).run(std::future::pending::<Result<String, Error>>));
    assert!(poll_once(&mut leader).is_pending());
    let call = world.call(1).on_conflict(OnConflict::Wait(Duration::from_secs(1)));
    let mut follower = Box::pin(call.run(|| async { world.effect(1) }));
    assert!(poll_once(&mut follower).is_pending());
    drop(leader);
    eventually("the parking", async || world.store.requests(Operation::Park) == 1).await;
    assert!(poll_once(&mut follower).is_pending());
    assert_eq!(world.store.requests(Operation::Claim), 1);
    gate.open();
    assert_eq!(follower.await.unwrap_err().kind(), ErrorKind::InDoubt);
}

/// A body that has had its effect and hangs, polled by its caller no more.
async fn hanging(
    world: &World,
    on_crash: OnCrash,
) -> impl Future<Output = Result<String, Error>> + Unpin {
    let mut hanging = Box::pin(world.call(1).on_crash(on_crash).run(|| async {
        world.effect(1)?;
        std::future::pending::<Result<String, Error>>().await
    }));
    eventually("the effect", async || {
        assert!(poll_once(&mut hanging).is_pending());
        world.ledger.count() == 1
    })
    .await;
    hanging
}

#[tokio::test]
async fn callers_behind_a_body_that_hangs_ask_the_store_when_its_lease_is_over() {
    for on_crash in [OnCrash::Hold, OnCrash::Retry] {
        let world = World::new();
        world.store.always(Operation::Renew, Some(Fault::LostRequest));
        let _hanging = hanging(&world, on_crash).await;
        let call = || world.call(1).on_crash(on_crash).run(|| async { world.effect(1) });
        let mut follower = Box::pin(call());
        assert!(poll_once(&mut follower).is_pending());
        assert_eq!(
            world.store.requests(Operation::Claim),
            1,
            "it waits for the body in this process"
        );
        world.clock.advance(LEASE);
        let waited = world.while_time_passes(follower).await;
        let later = world.while_time_passes(call()).await;
        let hasty = world.call(1).on_crash(on_crash).on_conflict(OnConflict::Reject);
        let at_once = world.while_time_passes(hasty.run(|| async { world.effect(1) })).await;
        for answer in [waited, later, at_once] {
            match (on_crash, answer) {
                (OnCrash::Retry, answer) => assert_eq!(answer.unwrap(), "receipt 1.2"),
                (_, answer) => assert_eq!(answer.unwrap_err().kind(), ErrorKind::InDoubt),
            }
        }
    }
}

#[tokio::test]
async fn callers_behind_a_body_that_hangs_get_what_was_decided_elsewhere() {
    let here = World::new();
    let there = here.other_process();
    here.store.always(Operation::Renew, Some(Fault::LostRequest));
    let _hanging = hanging(&here, OnCrash::Hold).await;
    here.clock.advance(LEASE * 2);
    let record = there.engine.record(OPERATION, 1);
    let view = record.inspect().await.unwrap().unwrap();
    record.resolve(&view, Resolution::completed("found")).await.unwrap();
    for _ in 0..2 {
        let (answer, report) = with_report(here.while_time_passes(here.charge(1))).await;
        assert_eq!(answer.unwrap(), "found");
        assert!(report.unwrap().replayed);
    }
}

#[tokio::test]
async fn a_detached_body_that_hangs_for_longer_than_max_run_blocks_no_caller_of_its_process() {
    use idempotency::__private::{Key, Site, call_on, outcome, run_detached};
    static SITE: Site = Site::new(OPERATION, file!(), line!());
    let world = World::with(|builder| builder.max_run(LEASE / 2));
    let call = call_on(&SITE, &world.engine, Key::of(&1_u64)).ttl(DAY).on_crash(OnCrash::Retry);
    let ledger = world.ledger.clone();
    let hanging = tokio::spawn(run_detached(call, outcome(), move || async move {
        ledger.charge("charge 1");
        std::future::pending::<Result<String, Error>>().await
    }));
    eventually("the effect", async || world.ledger.count() == 1).await;
    let next = world.call(1).on_crash(OnCrash::Retry).run(|| async { world.effect(1) });
    assert_eq!(world.while_time_passes(next).await.unwrap(), "receipt 1.2");
    hanging.abort();
    assert_eq!(world.charge(1).await.unwrap(), "receipt 1.2");
}

#[tokio::test]
async fn a_question_that_hangs_blocks_no_caller_of_its_process() {
    let world = World::new();
    let owner = hanging(&world, OnCrash::Retry).await;
    drop(owner);
    world.record_is(1, |record| record.is_some_and(|record| record.reason.is_some())).await;
    // A caller with a question is stricter than the record.
    world.store.always(Operation::Renew, Some(Fault::LostRequest));
    let (asked, world) = (AtomicUsize::new(0), &world);
    let ask = |hangs: bool| {
        let asked = &asked;
        let call = world.call(1).settle(Duration::ZERO).on_crash_verify(async move |_: Context| {
            asked.fetch_add(1, Ordering::SeqCst);
            if hangs {
                std::future::pending::<()>().await;
            }
            Ok::<_, Error>(Verdict::Completed("found".to_owned()))
        });
        call.run(async || world.effect(1))
    };
    let mut hung = Box::pin(ask(true));
    eventually("the question", async || {
        assert!(poll_once(&mut hung).is_pending());
        asked.load(Ordering::SeqCst) == 1
    })
    .await;
    let mut follower = Box::pin(ask(false));
    assert!(poll_once(&mut follower).is_pending());
    world.clock.advance(LEASE);
    assert_eq!(world.while_time_passes(follower).await.unwrap(), "found");
    assert_eq!(world.while_time_passes(ask(false)).await.unwrap(), "found");
    assert_eq!((asked.load(Ordering::SeqCst), world.ledger.count()), (2, 1));
}

#[tokio::test]
async fn a_leader_that_was_left_takes_no_seat_away_from_the_next_one() {
    let (world, gate, next) = (World::new(), Gate::new(), Gate::new());
    world.store.always(Operation::Renew, Some(Fault::LostRequest));
    let mut late = Box::pin(world.call(1).on_crash(OnCrash::Retry).run(|| async {
        gate.wait().await;
        Err::<String, _>(anyhow::anyhow!("nothing happened"))
    }));
    assert!(poll_once(&mut late).is_pending());
    world.record_is(1, |record| record.is_some()).await;
    world.clock.advance(LEASE * 2);
    let call = || {
        world.call(1).on_crash(OnCrash::Retry).run(|| async {
            next.wait().await;
            world.effect(1)
        })
    };
    let mut second = Box::pin(call());
    eventually("the takeover", async || {
        assert!(poll_once(&mut second).is_pending());
        world.record(1).await.is_some_and(|record| record.attempts == 2)
    })
    .await;
    gate.open();
    world.while_time_passes(&mut late).await.unwrap_err();
    let mut third = Box::pin(with_report(call()));
    assert!(poll_once(&mut third).is_pending());
    next.open();
    let (second, (third, report)) = tokio::join!(second, third);
    assert_eq!(
        (second.unwrap(), third.unwrap()),
        ("receipt 1.1".to_owned(), "receipt 1.1".to_owned())
    );
    assert!(report.unwrap().joined, "it shares the seat of the second one");
    assert_eq!(world.store.requests(Operation::Claim), 2);
}
