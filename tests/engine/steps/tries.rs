//! Tries of a step within one attempt, and the time that they have.

use idempotency::store::Operation;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use idempotency::clock::Clock as _;
use idempotency::record::State;
use idempotency::step::StepRetry;
use idempotency::{Context, Error, ErrorKind, OnCrash};

use super::hang;
use crate::world::{World, eventually, poll_once};

const PAUSE: Duration = Duration::from_secs(2);

/// More than all tries of a call take here.
const LIMIT: Duration = Duration::from_secs(16);

#[derive(Debug, PartialEq)]
enum Refused {
    Busy(u32),
    Other(ErrorKind),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Other(error.kind())
    }
}

/// A provider that is busy for some tries.
struct Provider<'a> {
    world: &'a World,
    asked: AtomicU32,
    busy: u32,
}

impl<'a> Provider<'a> {
    fn new(world: &'a World, busy: u32) -> Self {
        Self { world, asked: AtomicU32::new(0), busy }
    }

    async fn ask(&self) -> Result<u32, Refused> {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        assert!(asked <= 5, "no step here is tried more often");
        self.world.ledger.charge(&format!("asked at {:?}", self.world.clock.monotonic()));
        tokio::task::yield_now().await;
        if asked <= self.busy { Err(Refused::Busy(asked)) } else { Ok(asked) }
    }
}

#[tokio::test]
async fn a_step_is_tried_again_with_growing_pauses_until_it_succeeds() {
    let world = World::new();
    let provider = Provider::new(&world, 2);
    let start = world.clock_now();
    let mut call = Box::pin(world.fulfil().run(async || {
        let policy = StepRetry::tries(5).first_pause(PAUSE);
        Context::current().step("charge", || provider.ask()).retry(policy).await
    }));
    let mut asked_until = async |count: usize| {
        eventually("the tries", async || {
            let _ = poll_once(&mut call);
            world.ledger.count() == count
        })
        .await;
        for _ in 0..20 {
            assert!(poll_once(&mut call).is_pending(), "it pauses");
        }
        assert_eq!(world.ledger.count(), count);
    };
    asked_until(1).await;
    world.clock.advance(PAUSE.saturating_sub(Duration::from_millis(1)));
    asked_until(1).await;
    world.clock.advance(Duration::from_millis(1));
    asked_until(2).await;
    world.clock.advance(PAUSE * 2);
    assert_eq!(call.await.unwrap(), 3);
    let at = [start, start + PAUSE, start + PAUSE * 3].map(|at| format!("asked at {at:?}"));
    assert_eq!(world.ledger.charges(), at);
    assert_eq!(world.store.requests(Operation::Checkpoint), 1, "only the result is recorded");
}

#[tokio::test]
async fn the_error_of_the_last_try_is_the_steps() {
    let world = World::new();
    let provider = Provider::new(&world, u32::MAX);
    let call = world.fulfil().run(async || {
        Context::current().step("charge", || provider.ask()).retry(StepRetry::tries(3)).await
    });
    assert_eq!(world.while_time_passes(call).await.unwrap_err(), Refused::Busy(3));
    assert_eq!(world.ledger.count(), 3);
    assert!(world.record(1).await.is_none());
}

#[tokio::test]
async fn a_step_that_runs_at_most_once_is_tried_again_after_errors() {
    let world = World::new();
    let provider = Provider::new(&world, 1);
    let call = world.fulfil().run(async || {
        Context::current()
            .step("charge", || provider.ask())
            .at_most_once()
            .retry(StepRetry::tries(3))
            .await
    });
    assert_eq!(world.while_time_passes(call).await.unwrap(), 2);
}

/// A step that hangs, with a timeout, and the error that it gives.
async fn time_out(world: &World, at_most_once: bool) -> Error {
    let call = world.fulfil().run(async || {
        let charge = async || {
            world.act("charge").await?;
            hang::<Result<String, Error>>().await
        };
        let step = Context::current().step("charge", charge).timeout(PAUSE);
        if at_most_once { step.at_most_once().await } else { step.await }
    });
    let start = world.clock_now();
    let error = world.while_at_most(LIMIT, call).await.unwrap_err();
    assert!(world.clock_now().saturating_sub(start) >= PAUSE);
    assert!(error.to_string().contains("longer than 2s"), "{error}");
    error
}

#[tokio::test]
async fn a_step_that_takes_too_long_has_an_unknown_outcome_and_runs_again_in_the_next_attempt() {
    let world = World::new();
    assert_eq!(time_out(&world, false).await.kind(), ErrorKind::StepInterrupted);
    assert_eq!(
        world.record(1).await.unwrap().state,
        State::InProgress,
        "the record is not released"
    );
    assert_eq!(
        world.fulfil().run(async || world.step("charge").await).await.unwrap(),
        "charge done"
    );
    assert_eq!(world.ledger.charges(), ["charge", "charge"]);
}

#[tokio::test]
async fn a_step_that_takes_too_long_never_runs_again_if_it_runs_at_most_once() {
    let world = World::new();
    assert_eq!(time_out(&world, true).await.kind(), ErrorKind::StepInterrupted);
    let again = world.fulfil().run(async || world.step("charge").await).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::StepInterrupted);
    assert_eq!(world.ledger.charges(), ["charge"]);
}

#[tokio::test]
async fn under_hold_a_step_that_takes_too_long_is_in_doubt() {
    let world = World::new();
    let call = world.call(1).on_crash(OnCrash::Hold).run(async || {
        Context::current().step("charge", hang::<Result<(), Refused>>).timeout(PAUSE).await
    });
    assert!(world.while_at_most(LIMIT, call).await.is_err());
    assert_eq!(world.record(1).await.unwrap().state, State::InDoubt);
}

#[tokio::test]
async fn a_try_that_says_that_nothing_happened_does_not_speak_for_one_that_took_too_long() {
    let world = World::new();
    let call = world.call(1).on_crash(OnCrash::Hold).run(async || {
        let charge = async || {
            world.ledger.charge("charge");
            if world.ledger.count() == 1 {
                hang::<()>().await;
            }
            Err::<(), _>(Refused::Busy(2))
        };
        let step = Context::current().step("charge", charge).timeout(PAUSE);
        step.retry(StepRetry::tries(2)).await
    });
    assert_eq!(world.while_at_most(LIMIT, call).await.unwrap_err(), Refused::Busy(2));
    assert_eq!(world.record(1).await.unwrap().state, State::InDoubt);
    assert_eq!(world.ledger.charges(), ["charge", "charge"]);
}

#[tokio::test]
async fn after_the_claim_was_lost_no_further_try_begins() {
    let world = World::new();
    let call = world.fulfil().run(async || {
        let context = Context::current();
        let charge = async || {
            world.ledger.charge("charge");
            Err::<(), _>(Refused::Busy(1))
        };
        let policy = StepRetry::tries(2).first_pause(PAUSE);
        let mut charge = Box::pin(context.step("charge", charge).retry(policy).into_future());
        assert!(poll_once(&mut charge).is_pending(), "it pauses");
        world.is_taken_over().await;
        assert_eq!(world.step("reserve").await.unwrap_err().kind(), ErrorKind::Superseded);
        world.clock.advance(PAUSE);
        charge.await
    });
    assert_eq!(call.await.unwrap_err(), Refused::Other(ErrorKind::Superseded));
    assert_eq!(world.ledger.charges(), ["charge", "reserve"]);
}

#[tokio::test]
async fn each_try_has_the_whole_time() {
    let world = World::new();
    let tries = AtomicU32::new(0);
    let call = |at_most_once: bool| {
        let (world, tries) = (&world, &tries);
        world.fulfil().run(async move || {
            let charge = || async {
                if tries.fetch_add(1, Ordering::Relaxed) < 2 {
                    hang::<()>().await;
                }
                Ok::<_, Refused>("charged".to_owned())
            };
            let step =
                Context::current().step("charge", charge).timeout(PAUSE).retry(StepRetry::tries(3));
            if at_most_once { step.at_most_once().await } else { step.await }
        })
    };
    // A try that took too long may have had its effect.
    let once = world.while_at_most(LIMIT, call(true)).await;
    assert_eq!(once.unwrap_err(), Refused::Other(ErrorKind::StepInterrupted));
    assert_eq!(tries.swap(0, Ordering::Relaxed), 1);
    world.engine.record(crate::world::OPERATION, 1).forget().await.unwrap();
    assert_eq!(world.while_at_most(LIMIT, call(false)).await.unwrap(), "charged");
    assert_eq!(tries.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn a_result_that_is_there_counts_although_the_time_is_over() {
    let world = World::new();
    let call = world.fulfil().run(async || {
        let charge = async || {
            world.clock.advance(PAUSE * 2);
            world.ledger.charge("charge");
            Ok::<_, Error>(())
        };
        Context::current().step("charge", charge).timeout(PAUSE).await
    });
    call.await.unwrap();
}
