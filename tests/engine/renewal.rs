//! Leases that are renewed, and leases that are lost.

use std::time::Duration;

use idempotency::clock::Clock as _;
use idempotency::store::{ClaimOutcome, Operation, Release, Remove, Store as _, Token};
use idempotency::{Builder, Context, Error, ErrorKind, Idempotency, OnConflict, OnCrash};

use crate::faults::{Fault, Gate};
use crate::world::{DAY, LEASE, OPERATION, World, eventually, poll_once};

/// Lets `duration` pass in steps, each followed by the renewals that it makes due.
async fn pass_with_renewals(world: &World, duration: Duration) {
    let step = LEASE / 3;
    let mut passed = Duration::ZERO;
    while passed < duration {
        world.clock.advance(step);
        passed += step;
        world
            .record_is(1, |record| {
                record.is_some_and(|record| {
                    record.lease_until.saturating_duration_since(record.read_at) > LEASE * 9 / 10
                })
            })
            .await;
    }
}

#[tokio::test]
async fn a_body_of_three_leases_runs_once() {
    let (world, gate) = (World::new(), Gate::new());
    let there = world.other_process();
    let long = world.call(1).run(|| async {
        gate.wait().await;
        world.effect(1)
    });
    let time = async {
        world.record_is(1, |record| record.is_some()).await;
        pass_with_renewals(&world, LEASE * 3).await;
        let rejected =
            there.call(1).on_conflict(OnConflict::Reject).run(|| async { there.effect(1) }).await;
        assert_eq!(rejected.unwrap_err().kind(), ErrorKind::InProgress);
        gate.open();
    };
    let (long, ()) = tokio::join!(long, time);
    assert_eq!(long.unwrap(), "receipt 1.1");
    assert_eq!(there.charge(1).await.unwrap(), "receipt 1.1");
    assert_eq!(world.ledger.count(), 1);
}

/// A call under which the record vanishes after three leases. Its result is kept for `ttl`.
async fn record_vanishes_after_three_leases(world: &World, ttl: Duration) -> Result<String, Error> {
    let gate = Gate::new();
    let call = world.call(1).ttl(ttl).run(|| async {
        gate.wait().await;
        world.effect(1)
    });
    let loser = async {
        world.record_is(1, |record| record.is_some()).await;
        pass_with_renewals(world, LEASE * 3).await;
        let record = world.record(1).await.unwrap();
        world.memory.release(Release::new(record.key, record.owner)).await.unwrap();
        gate.open();
    };
    tokio::join!(call, loser).0
}

#[tokio::test]
async fn a_record_that_vanished_under_a_renewed_lease_is_written_anew() {
    let world = World::new();
    assert_eq!(record_vanishes_after_three_leases(&world, DAY).await.unwrap(), "receipt 1.1");
    assert_eq!(world.charge(1).await.unwrap(), "receipt 1.1");
}

#[tokio::test]
async fn a_record_that_vanished_is_not_written_anew_when_its_result_could_have_expired() {
    let world = World::new();
    let lost = record_vanishes_after_three_leases(&world, LEASE * 2).await;
    assert_eq!(lost.unwrap_err().kind(), ErrorKind::Superseded);
    assert!(world.record(1).await.is_none());
}

/// The test's runtime has one thread, and the body blocks it.
#[tokio::test(flavor = "current_thread")]
async fn a_body_that_blocks_its_executor_keeps_its_lease() {
    let world = World::new();
    let long = world.call(1).run(|| async {
        for _ in 0..9 {
            let renewals = world.store.requests(Operation::Renew);
            world.clock.advance(LEASE / 3);
            let deadline = std::time::Instant::now() + Duration::from_secs(20);
            while world.store.requests(Operation::Renew) == renewals {
                assert!(
                    std::time::Instant::now() < deadline,
                    "no renewal while the executor is blocked"
                );
                std::thread::yield_now();
            }
        }
        assert!(!Context::current().lease_lost());
        world.effect(1)
    });
    assert_eq!(long.await.unwrap(), "receipt 1.1");
    assert_eq!(world.record(1).await.unwrap().attempts, 1);
}

#[tokio::test]
async fn a_body_learns_that_its_lease_is_over() {
    let world = World::new();
    world.store.always(Operation::Renew, Some(Fault::LostRequest));
    let call = world.call(1).run(|| async {
        let context = Context::current();
        assert!(!context.lease_lost());
        world.clock.advance(LEASE / 2);
        assert!(!context.lease_lost());
        let mut ended = Box::pin(context.lease_ended());
        assert!(poll_once(&mut ended).is_pending());
        world.clock.advance(LEASE / 2 + Duration::from_millis(1));
        ended.await;
        assert!(context.lease_lost());
        Ok::<_, Error>(())
    });
    // Nobody took the call over: the result is still stored.
    call.await.unwrap();
}

#[tokio::test]
async fn a_body_that_hangs_loses_its_lease_after_max_run() {
    let world = World::with(|builder| builder.max_run(LEASE * 2));
    let there = world.other_process();
    let mut hanging = Box::pin(world.call(1).on_crash(OnCrash::Retry).run(|| async {
        world.effect(1)?;
        std::future::pending::<Result<String, Error>>().await
    }));
    eventually("the effect", async || {
        assert!(poll_once(&mut hanging).is_pending());
        world.ledger.count() == 1
    })
    .await;
    pass_with_renewals(&world, LEASE).await;
    world.clock.advance(LEASE);
    let renewals = world.store.requests(Operation::Renew);
    let taken = there.call(1).on_crash(OnCrash::Retry).run(|| async { there.effect(1) });
    assert_eq!(there.while_time_passes(taken).await.unwrap(), "receipt 1.2");
    assert!(world.store.requests(Operation::Renew) <= renewals + 1);
    drop(hanging);
    assert_eq!(
        there.charge(1).await.unwrap(),
        "receipt 1.2",
        "the drop takes nothing away from the new owner"
    );
}

#[tokio::test]
async fn renewals_of_many_calls_are_sent_together() {
    let (world, gate) = (World::new(), Gate::new());
    let calls = (0..100).map(|key| {
        let (gate, world) = (&gate, &world);
        world.call(key).run(move || async move {
            gate.wait().await;
            world.effect(key)
        })
    });
    let time = async {
        world.record_is(99, |record| record.is_some()).await;
        world.clock.advance(LEASE / 3);
        world
            .record_is(99, |record| {
                record.unwrap().lease_until > world.clock.now() + LEASE * 9 / 10
            })
            .await;
        world
            .record_is(0, |record| record.unwrap().lease_until > world.clock.now() + LEASE * 9 / 10)
            .await;
        gate.open();
    };
    let (answers, ()) = tokio::join!(futures::future::join_all(calls), time);
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(world.store.requests(Operation::Renew), 1);
}

#[tokio::test]
async fn a_finished_call_is_renewed_no_more() {
    let world = World::new();
    world.charge(1).await.unwrap();
    world.clock.advance(LEASE);
    let (gate, engine) = (Gate::new(), world.engine.clone());
    // A second call makes the thread look again.
    let call = engine.call(OPERATION, 2).ttl(DAY).run(|| async {
        gate.wait().await;
        Ok::<_, Error>(())
    });
    let time = async {
        let hash = world.engine.record(OPERATION, 2).hash().unwrap();
        eventually("the second claim", async || {
            idempotency::store::Store::read(&world.memory, hash).await.unwrap().is_some()
        })
        .await;
        world.clock.advance(LEASE / 3);
        eventually("a renewal", async || world.store.requests(Operation::Renew) == 1).await;
        gate.open();
    };
    let (call, ()) = tokio::join!(call, time);
    call.unwrap();
}

/// With the machine's clock, and a lease that is short enough to wait for: two thirds of it are
/// left for a renewal that comes late on a busy machine.
#[tokio::test]
async fn leases_are_renewed_on_the_machine_s_clock_too() {
    let store = idempotency::store::MemoryStore::new();
    let lease = Duration::from_secs(9);
    let engine = || Idempotency::builder(store.clone()).lease(lease).build().unwrap();
    let (here, there) = (engine(), engine());
    let ledger = crate::ledger::Ledger::new();
    let hash = here.record(OPERATION, 1).hash().unwrap();
    let record = async || store.read(hash).await.unwrap().expect("the claim is there");
    let long = here.call(OPERATION, 1).ttl(DAY).on_crash(OnCrash::Retry).run(|| async {
        ledger.charge("long");
        let first = record().await.lease_until;
        eventually("the first lease to end", async || record().await.read_at > first).await;
        Ok::<_, Error>("long".to_owned())
    });
    let other = async {
        eventually("the first effect", async || ledger.count() == 1).await;
        there
            .call(OPERATION, 1)
            .ttl(DAY)
            .on_crash(OnCrash::Retry)
            .run(|| async {
                ledger.charge("other");
                Ok::<_, Error>("other".to_owned())
            })
            .await
    };
    let (long, other) = tokio::join!(long, other);
    assert_eq!((long.unwrap(), other.unwrap()), ("long".to_owned(), "long".to_owned()));
    assert_eq!(ledger.charges(), ["long"]);
}

#[tokio::test(flavor = "current_thread")]
async fn a_body_whose_claim_was_lost_before_it_started_never_starts() {
    use idempotency::__private::{Key, Site, call_on, outcome, run_detached};
    static SITE: Site = Site::new(OPERATION, file!(), line!());
    let world = World::new();
    let ledger = world.ledger.clone();
    let call =
        call_on(&SITE, &world.engine, Key::of(&1_u64)).ttl(DAY).on_conflict(OnConflict::Reject);
    let mut call = Box::pin(run_detached(call, outcome(), move || async move {
        ledger.charge("detached");
        Ok::<_, Error>(())
    }));
    assert!(poll_once(&mut call).is_pending(), "granted, and its task has not run yet");
    // A store that forgets gave the claim to another owner, and the next renewal tells.
    let mut claim = world.store.sent_claims().remove(0);
    world.memory.release(Release::new(claim.key, claim.token)).await.unwrap();
    claim.token = Token::from_bits(7);
    assert!(matches!(world.memory.claim(claim).await, Ok(ClaimOutcome::Granted(_))));
    // The second renewal is sent when the answer to the first is known.
    let mut other = Box::pin(world.call(2).run(std::future::pending::<Result<String, Error>>));
    assert!(poll_once(&mut other).is_pending());
    for renewals in [1, 2] {
        world.clock.advance(LEASE / 3);
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while world.store.requests(Operation::Renew) < renewals {
            assert!(std::time::Instant::now() < deadline, "no renewal");
            std::thread::yield_now();
        }
    }
    assert_eq!(call.await.unwrap_err().kind(), ErrorKind::StoreUnavailable);
    assert_eq!(world.ledger.count(), 0);
}

#[tokio::test]
async fn renewals_go_on_after_the_store_s_client_panicked() {
    let (world, gate) = (World::new(), Gate::new());
    world.store.next(Operation::Renew, Fault::Panic);
    let long = world.call(1).run(|| async {
        gate.wait().await;
        assert!(!Context::current().lease_lost());
        world.effect(1)
    });
    let time = async {
        world.record_is(1, |record| record.is_some()).await;
        world.clock.advance(LEASE / 3);
        eventually("the panic", async || world.store.requests(Operation::Renew) == 1).await;
        let renewed = world.record_is(1, |record| {
            record.is_some_and(|record| {
                record.lease_until.saturating_duration_since(record.read_at) > LEASE * 9 / 10
            })
        });
        world.while_time_passes(renewed).await;
        gate.open();
    };
    let (long, ()) = tokio::join!(long, time);
    assert_eq!(long.unwrap(), "receipt 1.1");
}

#[tokio::test]
async fn a_store_that_leaves_renewals_unanswered_is_asked_again_later() {
    let (world, gate) = (World::new(), Gate::new());
    world.store.leave_renewals_unanswered();
    let long = world.call(1).run(|| async {
        gate.wait().await;
        world.effect(1)
    });
    let time = async {
        world.record_is(1, |record| record.is_some()).await;
        world.clock.advance(LEASE / 3);
        eventually("a renewal", async || world.store.requests(Operation::Renew) > 0).await;
        world.clock.wait_for_sleepers(1).await;
        assert_eq!(
            world.store.requests(Operation::Renew),
            1,
            "the clock stands still, and nobody asks again"
        );
        world.clock.advance(LEASE / 9);
        eventually("the next try", async || world.store.requests(Operation::Renew) == 2).await;
        gate.open();
    };
    let (long, ()) = tokio::join!(long, time);
    long.unwrap();
}

#[tokio::test]
async fn a_short_lease_does_not_cost_the_long_ones_their_renewals() {
    let (world, gate) = (World::new(), Gate::new());
    // Slower than the short lease allows, and fast enough for the long one.
    let slow = Fault::Slow(world.clock.clone(), Duration::from_millis(200));
    world.store.always(Operation::Renew, Some(slow));
    let short = world.call(2).lease(Duration::from_millis(300)).run(|| async {
        gate.wait().await;
        Ok::<_, Error>(())
    });
    let long = world.call(1).run(|| async {
        gate.wait().await;
        assert!(!Context::current().lease_lost());
        world.effect(1)
    });
    let time = async {
        world.record_is(1, |record| record.is_some()).await;
        let end = world.clock_now() + LEASE * 2;
        world.while_time_passes(world.time_is(end)).await;
        gate.open();
    };
    let (short, long, ()) = tokio::join!(short, long, time);
    short.unwrap();
    long.unwrap();
}

#[tokio::test]
async fn a_call_that_was_given_up_is_renewed_no_more() {
    let (world, gate) = (World::new(), Gate::new());
    world.store.always(Operation::Abandon, Some(Fault::Late(gate.clone())));
    let hang = || std::future::pending::<Result<String, Error>>();
    let mut dropped = Box::pin(world.call(1).on_crash(OnCrash::Retry).run(hang));
    let mut other = Box::pin(world.call(2).run(hang));
    assert!(poll_once(&mut dropped).is_pending());
    assert!(poll_once(&mut other).is_pending());
    drop(dropped);
    eventually("the abandonment", async || world.store.requests(Operation::Abandon) == 1).await;
    world.clock.advance(LEASE / 3);
    eventually("the other's renewal", async || {
        world
            .record(2)
            .await
            .is_some_and(|record| record.lease_until > world.clock.now() + LEASE * 9 / 10)
    })
    .await;
    let record = world.record(1).await.unwrap();
    assert_eq!(record.lease_until.saturating_duration_since(record.read_at), LEASE / 3 * 2);
    gate.open();
}

#[tokio::test]
async fn no_two_owners_believe_in_their_leases_at_once() {
    // The store counts whole milliseconds, this process counts finer.
    for offset in [Duration::ZERO, Duration::from_micros(900)] {
        let world = World::new();
        let there = world.other_process();
        world.store.always(Operation::Renew, Some(Fault::LostRequest));
        world.clock.advance(offset);
        let call = world.call(1).on_crash(OnCrash::Retry).run(|| async {
            let context = Context::current();
            world
                .clock
                .advance(LEASE.saturating_sub(Duration::from_millis(2)).saturating_sub(offset));
            assert!(!context.lease_lost());
            world.clock.advance(Duration::from_millis(2));
            let taken = there.call(1).on_crash(OnCrash::Retry).on_conflict(OnConflict::Reject);
            let taken = taken.run(|| async {
                assert!(context.lease_lost(), "{offset:?}");
                there.effect(1)
            });
            tokio::spawn(async {}).await.unwrap();
            taken.await
        });
        assert_eq!(call.await.unwrap(), "receipt 1.1");
    }
}

#[tokio::test]
async fn a_lease_counts_from_when_it_was_asked_for_and_not_from_the_answer() {
    let (world, gate) = (World::new(), Gate::new());
    world.store.always(Operation::Renew, Some(Fault::LostRequest));
    world.store.next(Operation::Claim, Fault::LateAnswer(gate.clone()));
    let mut call = Box::pin(world.call(1).run(|| async {
        let context = Context::current();
        assert!(!context.lease_lost());
        world.clock.advance(LEASE / 3);
        assert!(context.lease_lost());
        Ok::<_, Error>(())
    }));
    eventually("the claim to be applied", async || {
        assert!(poll_once(&mut call).is_pending());
        world.record(1).await.is_some()
    })
    .await;
    world.clock.advance(LEASE / 3 * 2);
    gate.open();
    call.await.unwrap();
}

#[tokio::test]
async fn a_renewed_lease_counts_from_when_the_renewal_was_sent() {
    let (world, gate) = (World::new(), Gate::new());
    let late = LEASE / 15 * 4;
    world.store.next(Operation::Renew, Fault::LateAnswer(gate.clone()));
    let call = world.call(1).run(|| async {
        let context = Context::current();
        world.clock.advance(LEASE / 3);
        eventually("the renewal", async || world.store.requests(Operation::Renew) == 1).await;
        world.store.always(Operation::Renew, Some(Fault::LostRequest));
        world.clock.advance(late);
        gate.open();
        eventually("the answer", async || gate.is_passed()).await;
        // The next renewal is sent when the answer to the first is known.
        world.clock.advance(LEASE / 15);
        eventually("the next renewal", async || world.store.requests(Operation::Renew) == 2).await;
        world.clock.advance(LEASE / 3);
        assert!(!context.lease_lost());
        world.clock.advance(LEASE / 3);
        assert!(context.lease_lost(), "a lease after the renewal was sent");
        Ok::<_, Error>(())
    });
    call.await.unwrap();
}

/// It is told on the thread that renews leases where the caller of the late body is gone.
#[tokio::test]
async fn a_hook_that_takes_its_time_keeps_no_lease_from_being_renewed() {
    let (told, is_told) = std::sync::mpsc::channel();
    let (go_on, goes_on) = std::sync::mpsc::channel::<()>();
    let goes_on = std::sync::Mutex::new(goes_on);
    let world = World::with(|builder| {
        builder.on_duplicate(move |_| {
            told.send(()).unwrap();
            let _ = goes_on.lock().unwrap().recv();
        })
    });
    let (commit, finish) = (Gate::new(), Gate::new());
    world.store.next(Operation::Complete, Fault::Late(commit.clone()));
    let mut late = Box::pin(world.charge(2));
    eventually("the commit", async || {
        let _ = poll_once(&mut late);
        world.store.requests(Operation::Complete) == 1
    })
    .await;
    drop(late);
    let record = world.record(2).await.unwrap();
    let mut remove = Remove::new(record.key, record.owner);
    remove.force = true;
    world.memory.remove(remove).await.unwrap();
    let long = world.call(1).run(|| async {
        finish.wait().await;
        world.effect(1)
    });
    let time = async {
        world.record_is(1, |record| record.is_some()).await;
        commit.open();
        eventually("the hook", async || is_told.try_recv().is_ok()).await;
        pass_with_renewals(&world, LEASE).await;
        drop(go_on);
        finish.open();
    };
    let (long, ()) = tokio::join!(long, time);
    assert_eq!(long.unwrap(), "receipt 1.2");
    assert_eq!(world.engine.duplicates(), 1);
}

/// Its body has ended, and its runtime stands still.
#[tokio::test]
async fn a_call_that_is_no_longer_polled_loses_its_lease_when_its_result_could_have_been_stored() {
    let bounds = |builder: Builder| {
        builder.commit_timeout(Duration::from_secs(2)).background_commit(LEASE * 2)
    };
    let world = World::with(bounds);
    world.store.always(Operation::Complete, Some(Fault::LostRequest));
    let mut stuck = Box::pin(world.call(1).on_crash(OnCrash::Retry).run(async || world.effect(1)));
    eventually("the commit", async || {
        assert!(poll_once(&mut stuck).is_pending());
        world.store.requests(Operation::Complete) == 1
    })
    .await;
    let next = world.other_process();
    let waits = OnConflict::Wait(LEASE * 8);
    let next = next.call(1).on_crash(OnCrash::Retry).on_conflict(waits);
    let next = next.run(async || world.effect(1));
    let limit = LEASE * 10;
    assert_eq!(world.while_at_most(limit, next).await.unwrap(), "receipt 1.2");
    drop(stuck);
}
