//! `idempotency::testing` finds what is wrong with a service. Each service here is wrong in one
//! way, and each helper finds that which it is for.

use idempotency::store::Operation;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt as _;
use idempotency::testing::{assert_runs_once, crash_at_every_await, run_concurrently};
use idempotency::{Error, ErrorKind, OnCrash};

use crate::faults::Fault;
use crate::world::{OPERATION, World};

const HOUR: Duration = Duration::from_secs(3600);

impl World {
    /// Asks the bank: the effect is on the way there and back.
    async fn pay(&self, order: u64) -> Result<String, Error> {
        tokio::task::yield_now().await;
        let receipt = self.effect(order);
        tokio::task::yield_now().await;
        receipt
    }

    fn charges(&self, order: u64) -> usize {
        self.ledger.charges().iter().filter(|line| **line == format!("charge {order}")).count()
    }
}

/// What each helper says about a service, in the order of [`HELPERS`].
async fn judge(service: impl AsyncFn(&World, u64) -> Result<String, Error>) -> [bool; 5] {
    let world = World::new();
    let service = async |order| world.while_time_passes(service(&world, order)).await;

    let once = assert_runs_once(|| service(1), || world.charges(1));
    let retried = AssertUnwindSafe(once).catch_unwind().await.is_ok();

    let answers = run_concurrently(8, |_| service(2)).await;
    let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
    let at_once = answers.iter().all(|answer| *answer == answers[0]) && world.charges(2) == 1;

    let mut crashed = true;
    let points = crash_at_every_await(
        |point| service(100 + point as u64),
        async |point, _| {
            let order = 100 + point as u64;
            let _ = service(order).await;
            crashed &= world.charges(order) <= 1;
        },
    );
    assert!(points.await >= 2, "the way to the bank and back");

    world.store.always(Operation::Claim, Some(Fault::LostRequest));
    let _ = service(3).await;
    world.store.always(Operation::Claim, None);
    let store_failed = service(3).await.is_ok() && world.charges(3) == 1;

    service(4).await.unwrap();
    world.clock.advance(HOUR);
    let later = service(4).await.is_ok() && world.charges(4) == 1;
    [retried, at_once, crashed, store_failed, later]
}

const HELPERS: [&str; 5] =
    ["assert_runs_once", "run_concurrently", "crash_at_every_await", "FaultyStore", "ManualClock"];

fn found_by(judgement: [bool; 5]) -> Vec<&'static str> {
    HELPERS
        .into_iter()
        .zip(judgement)
        .filter(|(_, is_fine)| !is_fine)
        .map(|(helper, _)| helper)
        .collect()
}

#[tokio::test]
async fn a_service_that_is_guarded_passes_every_check() {
    let guarded = async |world: &World, order| world.call(order).run(|| world.pay(order)).await;
    assert!(found_by(judge(guarded).await).is_empty());
}

#[tokio::test]
async fn a_service_without_a_guard_is_found_by_every_check() {
    let bare = async |world: &World, order| world.pay(order).await;
    assert_eq!(found_by(judge(bare).await), HELPERS);
}

#[tokio::test]
async fn a_service_that_looks_before_it_pays_is_found_by_calls_at_once() {
    let looks = async |world: &World, order| match world.charges(order) {
        0 => world.pay(order).await.map(|_| "paid".to_owned()),
        _ => Ok("paid".to_owned()),
    };
    assert_eq!(found_by(judge(looks).await), ["run_concurrently"]);
}

#[tokio::test]
async fn a_service_that_runs_again_after_a_crash_is_found_by_crashes() {
    let retries = async |world: &World, order| {
        world.call(order).on_crash(OnCrash::Retry).run(|| world.pay(order)).await
    };
    assert_eq!(found_by(judge(retries).await), ["crash_at_every_await"]);
}

#[tokio::test]
async fn a_service_that_pays_without_its_store_is_found_by_a_store_that_fails() {
    let fails_open =
        async |world: &World, order| match world.call(order).run(|| world.pay(order)).await {
            Err(error) if error.kind() == ErrorKind::StoreUnavailable => world.pay(order).await,
            answer => answer,
        };
    assert_eq!(found_by(judge(fails_open).await), ["FaultyStore"]);
}

#[tokio::test]
async fn a_service_that_forgets_too_early_is_found_by_a_clock() {
    let call = |world: &World, order| world.engine.call(OPERATION, order).ttl(HOUR / 2);
    let forgets =
        async |world: &World, order: u64| call(world, order).run(|| world.pay(order)).await;
    assert_eq!(found_by(judge(forgets).await), ["ManualClock"]);
}

#[tokio::test]
#[should_panic(expected = "returned another result")]
async fn a_retry_with_another_answer_is_reported() {
    let world = World::new();
    let pay = async || {
        if world.charges(1) == 0 { world.pay(1).await } else { Ok("paid before".to_owned()) }
    };
    assert_runs_once(pay, || world.charges(1)).await;
}

#[tokio::test]
#[should_panic(expected = "failed: \"paid already\"")]
async fn a_retry_that_fails_is_reported() {
    let world = World::new();
    let pay = async || match world.charges(1) {
        0 => Ok(world.pay(1).await),
        _ => Err("paid already"),
    };
    let pay = async || pay().await.map(|receipt| receipt.map_err(|error| error.kind()));
    assert_runs_once(pay, || world.charges(1)).await.unwrap();
}

#[tokio::test]
#[should_panic(expected = "had 0 effects")]
async fn a_counter_that_counts_nothing_is_reported() {
    let world = World::new();
    let pay = async || world.pay(1).await.map(drop);
    assert_runs_once(pay, || 0).await;
}
