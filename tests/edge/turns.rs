//! Bodies that wait for their turn, and what they say if it does not come.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::{FutureExt as _, poll};
use idempotency::clock::Clock as _;
use idempotency::edge::{Attempt, EdgeCall, EdgeOutcome, End, NotBegun, Turn};
use idempotency::key::{Key, window};
use idempotency::record::State;
use idempotency::store::Operation;
use idempotency::testing::{Fault, Gate};
use idempotency::{Context, Error, ErrorKind, OnCrash, Verdict};
use tokio::sync::Notify;

use crate::mail::{Mail as _, mail};
use crate::world::{DAY, World, eventually, in_time, without_renewals};

#[tokio::test]
async fn a_shutdown_releases_the_claim_of_a_body_that_waits() -> Result<(), Error> {
    let world = World::new();
    let waits = async |turn: Turn| {
        let waiting = turn.wait();
        waiting.claim_ended().await;
        ((), End::NotBegun(waiting.leave()))
    };
    let other = mail(&world.other_process().engine);
    let stopped = async {
        eventually("the claim", async || {
            world.mail_record().await.is_ok_and(|found| found.is_some())
        })
        .await;
        assert_eq!(world.engine.shutdown(Duration::ZERO).await.abandoned, 0);
    };
    let (outcome, ()) = tokio::join!(world.mail().run(waits), stopped);
    let EdgeOutcome::Refused { error, own: None } = outcome else { panic!("{outcome:?}") };
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable);
    assert!(error.is_retryable(), "{error}");
    let outcome = other.run(async |_| world.send()).await;
    assert!(matches!(outcome, EdgeOutcome::Executed(1)), "{outcome:?}");
    assert_eq!(world.mail_record().await?.map(|record| record.attempts), Some(1));
    Ok(())
}

#[tokio::test]
async fn a_shutdown_gives_up_a_body_whose_turn_has_come() -> Result<(), Error> {
    let world = World::new();
    let stopped = Notify::new();
    let begins = async |turn: Turn| {
        turn.wait().begin().expect("no caller has taken the claim");
        stopped.notified().await;
        world.send()
    };
    let stop = async {
        eventually("the claim", async || {
            world.mail_record().await.is_ok_and(|found| found.is_some())
        })
        .await;
        assert_eq!(world.engine.shutdown(Duration::ZERO).await.abandoned, 1);
        assert_eq!(world.mail_record().await?.map(|record| record.state), Some(State::InDoubt));
        stopped.notify_one();
        Ok::<_, Error>(())
    };
    let (outcome, stop) = tokio::join!(world.mail().run(begins), stop);
    stop?;
    assert!(matches!(outcome, EdgeOutcome::Executed(1)), "{outcome:?}");
    Ok(())
}

#[tokio::test]
async fn a_turn_does_not_come_after_the_claim_has_ended() {
    let world = World::new();
    world.store.always(Operation::Renew, Some(Fault::LostRequest));
    let late = async |turn: Turn| {
        let waiting = turn.wait();
        world.clock.advance(crate::world::LEASE * 2);
        match waiting.begin() {
            Ok(()) => world.send(),
            Err(not_begun) => (0, End::NotBegun(not_begun)),
        }
    };
    let outcome = world.mail().run(late).await;
    assert!(matches!(outcome, EdgeOutcome::Refused { own: None, .. }), "{outcome:?}");
    assert_eq!(world.ledger.count(), 0);
}

#[tokio::test]
async fn a_body_that_has_not_begun_leaves_the_attempts_before_it() -> Result<(), Error> {
    let world = World::new();
    let call = || world.mail().on_crash(OnCrash::Retry);
    let outcome = call().run(async |_| ((), End::Unknown)).await;
    assert!(matches!(outcome, EdgeOutcome::Executed(())), "{outcome:?}");
    let outcome = call().run(async |turn| ((), End::NotBegun(turn.wait().leave()))).await;
    assert!(matches!(outcome, EdgeOutcome::Refused { own: None, .. }), "{outcome:?}");
    let attempt = call().run(async |turn| (turn.attempt().context().attempt(), world.send().1));
    let outcome = attempt.await;
    assert!(matches!(outcome, EdgeOutcome::Executed(2)), "{outcome:?}");
    Ok(())
}

#[tokio::test]
async fn a_body_that_has_come_to_a_step_has_begun() -> Result<(), Error> {
    let world = World::new();
    let contradicts = async |turn: Turn| {
        let waiting = turn.wait();
        let step = Context::current().step("send", || async { Ok::<_, Error>(world.send().0) });
        assert_eq!(step.await.ok(), Some(1));
        ((), End::NotBegun(waiting.leave()))
    };
    let outcome = world.mail().run(contradicts).await;
    assert!(matches!(outcome, EdgeOutcome::Executed(())), "{outcome:?}");
    let outcome = world.mail().run(async |_| world.send()).await;
    assert_eq!(outcome.error().map(Error::kind), Some(ErrorKind::InDoubt), "{outcome:?}");
    assert_eq!(world.ledger.count(), 1);
    Ok(())
}

#[tokio::test]
async fn the_word_of_another_attempt_is_not_taken() -> Result<(), Error> {
    let world = World::new();
    let mut taken: Option<NotBegun> = None;
    let inner = EdgeCall::new(&world.engine, "mail", Key::of("8"), DAY);
    let outcome = world
        .mail()
        .run(async |_| {
            let outcome = inner
                .run(async |turn| {
                    taken = Some(turn.wait().leave());
                    ((), End::Released)
                })
                .await;
            assert!(matches!(outcome, EdgeOutcome::Executed(())), "{outcome:?}");
            world.ledger.happen();
            ((), End::NotBegun(taken.take().expect("the inner body ran")))
        })
        .await;
    assert!(matches!(outcome, EdgeOutcome::Executed(())), "{outcome:?}");
    assert_eq!(world.mail_record().await?.map(|record| record.state), Some(State::InDoubt));
    Ok(())
}

#[tokio::test]
async fn the_store_s_time_does_not_lag_by_what_came_before_the_body() {
    const LONG: Duration = Duration::from_secs(9);
    let world = World::new();
    let now = || Some(world.clock.now());

    // Things settle before the question, and the answer takes its time.
    let ask = async |_: Attempt| Verdict::Unknown;
    let first = world.mail().on_crash_verify(ask).run(async |_| ((), End::Unknown));
    assert!(matches!(first.await, EdgeOutcome::Executed(())));
    let ask = async |attempt: Attempt| {
        assert_eq!(attempt.store_time(), now());
        world.clock.advance(Duration::from_secs(1));
        Verdict::NotExecuted
    };
    let body = async |turn: Turn| {
        assert_eq!(turn.attempt().store_time(), now());
        world.send()
    };
    let mut call = Box::pin(world.mail().settle(LONG).on_crash_verify(ask).run(body));
    assert!(poll!(&mut call).is_pending(), "things settle");
    world.clock.advance(LONG);
    assert!(matches!(call.await, EdgeOutcome::Executed(1)));

    // The window before is looked at.
    world.store.next(Operation::Read, Fault::Slow(world.clock.clone(), LONG));
    let key = Key::of(&("8", window(DAY / 24)));
    let mut call = Box::pin(EdgeCall::new(&world.engine, "mail", key, DAY).run(body));
    assert!(poll!(&mut call).is_pending(), "it looks");
    world.clock.advance(LONG);
    assert!(matches!(call.await, EdgeOutcome::Executed(2)));
}

/// Its wait ended with the body, which never said that its turn had come.
#[tokio::test]
async fn a_shutdown_does_not_release_a_claim_whose_body_has_ended() -> Result<(), Error> {
    for is_left_behind in [false, true] {
        ends_without_its_turn(is_left_behind).await?;
    }
    Ok(())
}

/// The body waits and does not begin, or leaves its turn to something that waits after its end.
async fn ends_without_its_turn(is_left_behind: bool) -> Result<(), Error> {
    let (world, gate) = (World::new(), Gate::new());
    world.store.next(Operation::Park, Fault::Late(gate.clone()));
    let left_behind = std::sync::Mutex::new(None);
    let never_begins = async |turn: Turn| {
        if is_left_behind {
            *left_behind.lock().unwrap() = Some(turn);
        } else {
            drop(turn.wait());
        }
        (world.ledger.happen(), End::Held)
    };
    let stopped = async {
        eventually("the end", async || world.store.requests(Operation::Park) == 1).await;
        let _waiting = left_behind.lock().unwrap().take().map(Turn::wait);
        assert_eq!(world.engine.shutdown(Duration::ZERO).await.abandoned, 1);
        gate.open();
    };
    // Time passes for both: the end may be between two tries when the shutdown is over.
    let both = async { tokio::join!(world.mail().run(never_begins), stopped) };
    let (outcome, ()) = without_renewals(&world, both).await;
    assert!(matches!(outcome, EdgeOutcome::Executed(1)), "{outcome:?}");
    assert_eq!(world.mail_record().await?.map(|record| record.state), Some(State::InDoubt));
    Ok(())
}

#[tokio::test]
async fn a_body_that_waits_after_a_step_has_begun_for_a_shutdown_too() -> Result<(), Error> {
    for waits_first in [false, true] {
        waits_around_a_step(waits_first).await?;
    }
    Ok(())
}

async fn waits_around_a_step(waits_first: bool) -> Result<(), Error> {
    let world = World::new();
    let waits = async |turn: Turn| {
        let charge = || async {
            let charge = async || Ok::<_, Error>(world.ledger.happen());
            Context::current().step("charge", charge).await.expect("the store works");
        };
        let waiting = if waits_first {
            let waiting = turn.wait();
            charge().await;
            waiting
        } else {
            charge().await;
            turn.wait()
        };
        waiting.claim_ended().await;
        ((), End::NotBegun(waiting.leave()))
    };
    let stopped = async {
        eventually("the step", async || world.ledger.count() == 1).await;
        assert_eq!(world.engine.shutdown(Duration::ZERO).await.abandoned, 1);
    };
    let (_, ()) = tokio::join!(world.mail().run(waits), stopped);
    assert_eq!(world.mail_record().await?.map(|record| record.state), Some(State::InDoubt));
    Ok(())
}

/// A task that the body has left behind has the turn; the claim ended with the body.
#[tokio::test]
async fn a_turn_does_not_come_after_the_body_has_ended() -> Result<(), Error> {
    let world = World::new();
    let left_behind = std::sync::Mutex::new(None);
    let gives_up = async |turn: Turn| {
        *left_behind.lock().unwrap() = Some(turn.wait());
        ((), End::Released)
    };
    let outcome = world.mail().run(gives_up).await;
    assert!(matches!(outcome, EdgeOutcome::Executed(())), "{outcome:?}");
    let outcome = world.mail().run(async |_| world.send()).await;
    assert!(matches!(outcome, EdgeOutcome::Executed(1)), "{outcome:?}");
    let waiting = left_behind.lock().unwrap().take().expect("the body ran");
    in_time("the end of the claim", waiting.claim_ended()).await;
    assert!(waiting.begin().is_err(), "another call has had the effect");
    Ok(())
}

#[tokio::test]
async fn a_turn_does_not_come_after_the_call_was_dropped() -> Result<(), Error> {
    let world = World::new();
    let left_behind = std::sync::Mutex::new(None);
    let hangs = async |turn: Turn| {
        *left_behind.lock().unwrap() = Some(turn.wait());
        std::future::pending::<((), End)>().await
    };
    let mut dropped = Box::pin(world.mail().on_crash(OnCrash::Retry).run(hangs));
    eventually("the body", async || {
        assert!(poll!(&mut dropped).is_pending());
        left_behind.lock().unwrap().is_some()
    })
    .await;
    drop(dropped);
    let waiting = left_behind.lock().unwrap().take().expect("the body ran");
    let next = world.mail().on_crash(OnCrash::Retry).run(async |_| world.send());
    let outcome = world.while_time_passes(next).await;
    assert!(matches!(outcome, EdgeOutcome::Executed(1)), "{outcome:?}");
    in_time("the end of the claim", waiting.claim_ended()).await;
    assert!(waiting.begin().is_err(), "another call has had the effect");
    Ok(())
}

/// Like a body that has not started: the next owner could run beside it.
#[tokio::test]
async fn a_turn_does_not_come_late_in_the_lease() {
    for (elapsed, comes) in [(7, true), (9, false)] {
        let world = World::new();
        world.store.always(Operation::Renew, Some(Fault::LostRequest));
        let late = async |turn: Turn| {
            let waiting = turn.wait();
            world.clock.advance(crate::world::LEASE * elapsed / 10);
            match waiting.begin() {
                Ok(()) => world.send(),
                Err(not_begun) => (0, End::NotBegun(not_begun)),
            }
        };
        let outcome = world.mail().run(late).await;
        assert_eq!(world.ledger.count(), usize::from(comes), "{outcome:?}");
    }
}

/// Its caller hangs up while it waits: nothing has happened.
#[tokio::test]
async fn a_call_that_is_dropped_before_its_turn_is_released() -> Result<(), Error> {
    let world = World::new();
    let waits = async |turn: Turn| {
        let waiting = turn.wait();
        waiting.claim_ended().await;
        ((), End::NotBegun(waiting.leave()))
    };
    let mut dropped = Box::pin(world.mail().run(waits));
    eventually("the claim", async || {
        assert!(poll!(&mut dropped).is_pending());
        world.mail_record().await.is_ok_and(|found| found.is_some())
    })
    .await;
    drop(dropped);
    let attempt =
        world.mail().run(async |turn| (turn.attempt().context().attempt(), world.send().1));
    let outcome = world.while_time_passes(attempt).await;
    assert!(matches!(outcome, EdgeOutcome::Executed(1)), "{outcome:?}");
    assert_eq!(world.ledger.count(), 1);
    Ok(())
}

/// What a panic means is not known, whatever the body had said before it.
#[tokio::test]
async fn a_body_that_panics_while_it_waits_is_in_doubt() -> Result<(), Error> {
    let world = World::new();
    let panics = async |turn: Turn| {
        let _waiting = turn.wait();
        panic!("the body breaks");
        #[expect(unreachable_code, reason = "it gives the result its type")]
        ((), End::Unknown)
    };
    let call = AssertUnwindSafe(world.mail().run(panics)).catch_unwind();
    assert!(call.await.is_err());
    let is_in_doubt = async || {
        let record = world.mail_record().await;
        record.is_ok_and(|record| record.is_some_and(|record| record.state == State::InDoubt))
    };
    eventually("the doubt", is_in_doubt).await;
    Ok(())
}

/// The release of a shutdown is on its way when the caller hangs up.
#[tokio::test]
async fn a_call_that_is_dropped_after_a_shutdown_has_released_it_is_in_no_doubt()
-> Result<(), Error> {
    let (world, gate) = (World::new(), Gate::new());
    let waits = async |turn: Turn| {
        let _waiting = turn.wait();
        std::future::pending::<((), End)>().await
    };
    let mut dropped = Box::pin(world.mail().run(waits));
    eventually("the claim", async || {
        assert!(poll!(&mut dropped).is_pending());
        world.mail_record().await.is_ok_and(|found| found.is_some())
    })
    .await;
    world.store.next(Operation::Release, Fault::Late(gate.clone()));
    let mut shutdown = Box::pin(world.engine.shutdown(Duration::ZERO));
    eventually("the release", async || {
        assert!(poll!(&mut shutdown).is_pending());
        world.store.requests(Operation::Release) == 1
    })
    .await;
    drop(dropped);
    let drained = world.while_time_passes(shutdown).await;
    assert_eq!(drained.abandoned, 0);
    gate.open();
    assert_eq!(world.store.requests(Operation::Park), 0, "nothing is in doubt");
    Ok(())
}
