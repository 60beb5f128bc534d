//! Results that the process has seen are replayed without asking the store, and no longer than they
//! are true.

use idempotency::store::Operation;
use std::time::Duration;

use idempotency::testing::{Fault, Gate};
use idempotency::{Call, Error, ErrorKind, OnError, Report, with_report};

use crate::world::{DAY, OPERATION, World, eventually};

const TTL: Duration = Duration::from_secs(5);
const MILLI: Duration = Duration::from_millis(1);

fn world() -> World {
    World::with(|builder| builder.near_cache(1_000_000).near_cache_ttl(TTL))
}

async fn observed(world: &World, call: Call) -> (Result<String, Error>, Report) {
    let (result, report) = with_report(call.run(|| async { world.effect(1) })).await;
    (result, report.expect("the call reports"))
}

/// The call is answered, and by whom.
async fn is_near(world: &World, receipt: &str) -> bool {
    let before = world.store.requests(Operation::Claim);
    let (result, report) = observed(world, world.call(1)).await;
    assert_eq!((result.unwrap().as_str(), report.replayed, report.attempt), (receipt, true, 1));
    let asked = world.store.requests(Operation::Claim) > before;
    assert_eq!(report.near_cached, !asked, "the report says what happened");
    report.near_cached
}

#[tokio::test]
async fn an_own_result_is_replayed_without_asking_the_store() {
    let world = world();
    let receipt = world.charge(1).await.unwrap();
    assert!(is_near(&world, &receipt).await);
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn a_result_of_another_process_is_asked_for_once() {
    let world = world();
    let receipt = world.other_process().charge(1).await.unwrap();
    assert!(!is_near(&world, &receipt).await);
    assert!(is_near(&world, &receipt).await);
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn without_a_near_cache_every_call_asks() {
    let world = World::new();
    let receipt = world.charge(1).await.unwrap();
    assert!(!is_near(&world, &receipt).await);
    assert!(!is_near(&world, &receipt).await);
}

#[tokio::test]
async fn no_result_is_replayed_after_its_record_has_expired() {
    let world = World::with(|builder| builder.near_cache(1_000_000).near_cache_ttl(2 * DAY));
    let receipt = world.charge(1).await.unwrap();
    world.clock.advance(DAY.saturating_sub(MILLI));
    assert!(is_near(&world, &receipt).await);
    world.clock.advance(MILLI);
    let (result, report) = observed(&world, world.call(1)).await;
    assert_eq!((result.unwrap().as_str(), report.near_cached), ("receipt 1.2", false));
}

#[tokio::test]
async fn a_result_that_was_asked_for_late_expires_with_its_record_too() {
    let world = World::with(|builder| builder.near_cache(1_000_000).near_cache_ttl(2 * DAY));
    let receipt = world.other_process().charge(1).await.unwrap();
    world.clock.advance(DAY / 2);
    assert!(!is_near(&world, &receipt).await);
    assert!(is_near(&world, &receipt).await);
    world.clock.advance(DAY / 2);
    assert_eq!(world.charge(1).await.unwrap(), "receipt 1.2");
}

#[tokio::test]
async fn the_store_is_asked_again_after_the_time_limit() {
    let world = world();
    let receipt = world.charge(1).await.unwrap();
    world.clock.advance(TTL.saturating_sub(MILLI));
    assert!(is_near(&world, &receipt).await);
    world.clock.advance(MILLI);
    assert!(!is_near(&world, &receipt).await);
    assert!(is_near(&world, &receipt).await);
}

#[tokio::test]
async fn a_record_that_another_process_forgot_is_replayed_for_no_longer_than_the_time_limit() {
    let world = world();
    let receipt = world.charge(1).await.unwrap();
    world.other_process().engine.record(OPERATION, 1).forget().await.unwrap();
    assert!(is_near(&world, &receipt).await);
    world.clock.advance(TTL);
    assert_eq!(world.charge(1).await.unwrap(), "receipt 1.2");
}

#[tokio::test]
async fn a_record_that_this_engine_forgot_is_replayed_no_more() {
    let world = world();
    world.charge(1).await.unwrap();
    world.engine.record(OPERATION, 1).forget().await.unwrap();
    assert_eq!(world.charge(1).await.unwrap(), "receipt 1.2");
}

/// The store has answered a claim, and its record is removed before the answer arrives.
#[tokio::test]
async fn an_answer_that_was_on_its_way_while_its_record_was_forgotten_is_not_kept() {
    let world = world();
    let receipt = world.other_process().charge(1).await.unwrap();
    let gate = Gate::new();
    world.store.next(Operation::Claim, Fault::LateAnswer(gate.clone()));
    let reader = async {
        let (result, report) = observed(&world, world.call(1)).await;
        assert_eq!(
            (result.unwrap(), report.near_cached),
            (receipt, false),
            "it was there when it was asked for"
        );
    };
    let operator = async {
        eventually("the claim", async || world.store.requests(Operation::Claim) == 1).await;
        world.engine.record(OPERATION, 1).forget().await.unwrap();
        gate.open();
    };
    tokio::join!(reader, operator);
    assert_eq!(world.charge(1).await.unwrap(), "receipt 1.2");
}

#[tokio::test]
async fn a_forget_without_an_answer_counts_too() {
    let world = world();
    world.charge(1).await.unwrap();
    world.store.always(Operation::Remove, Some(Fault::LostAnswer));
    let forget = world.engine.record(OPERATION, 1);
    let error = world.while_time_passes(forget.forget()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotStored);
    assert_eq!(world.charge(1).await.unwrap(), "receipt 1.2");
}

#[tokio::test]
async fn another_fingerprint_is_refused() {
    let world = world();
    observed(&world, world.call(1).fingerprint("10 EUR")).await.0.unwrap();
    let before = world.store.requests(Operation::Claim);
    let (result, report) = observed(&world, world.call(1).fingerprint("10 EUR")).await;
    assert_eq!((result.unwrap().as_str(), report.near_cached), ("receipt 1.1", true));
    let (result, report) = observed(&world, world.call(1).fingerprint("20 EUR")).await;
    assert_eq!((result.unwrap_err().kind(), report.replayed), (ErrorKind::Mismatch, false));
    assert_eq!(world.store.requests(Operation::Claim), before);
}

#[tokio::test]
async fn another_version_is_refused() {
    let world = world();
    world.charge(1).await.unwrap();
    let (result, _) = observed(&world, world.call(1).version(2)).await;
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Decode);
}

#[tokio::test]
async fn stored_errors_are_not_kept() {
    let world = world();
    let fail = || world.call(1).on_error(OnError::Store).run(|| async { Err::<u32, _>(Declined) });
    assert_eq!(fail().await.unwrap_err(), Declined);
    let before = world.store.requests(Operation::Claim);
    assert_eq!(fail().await.unwrap_err(), Declined);
    assert_eq!(world.store.requests(Operation::Claim), before + 1);
}

#[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct Declined;

impl From<Error> for Declined {
    fn from(error: Error) -> Self {
        panic!("the engine is fine: {error}")
    }
}

/// Of a hundred results, it holds what fits.
#[tokio::test]
async fn it_takes_no_more_than_its_share_of_memory() {
    const SIZE: usize = 10_000;
    let world = World::with(|builder| builder.near_cache(20 * SIZE as u64));
    let large = |key: u64| world.call(key).run(|| async { Ok::<_, Error>("x".repeat(SIZE)) });
    for key in 0..100 {
        large(key).await.unwrap();
    }
    // What is too much is taken away soon, not at once.
    eventually("the rest to be taken away", async || {
        let mut near = 0;
        for key in 0..100 {
            let (result, report) = with_report(large(key)).await;
            assert_eq!(result.unwrap().len(), SIZE);
            near += usize::from(report.expect("the call reports").near_cached);
        }
        near < 20
    })
    .await;
}

#[tokio::test]
async fn a_closing_engine_replays_nothing() {
    let world = world();
    world.charge(1).await.unwrap();
    world.engine.shutdown(Duration::ZERO).await;
    assert_eq!(world.charge(1).await.unwrap_err().kind(), ErrorKind::ShuttingDown);
}

#[test]
fn a_time_limit_of_nothing_is_an_error_of_the_configuration() {
    let world = World::try_with(|builder| builder.near_cache(1_000).near_cache_ttl(Duration::ZERO));
    let error = world.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("`near_cache_ttl`"), "{error}");
}

#[tokio::test]
async fn a_corrected_answer_counts_at_once_here_and_soon_elsewhere() {
    use idempotency::ErrorAction;
    use idempotency::record::Resolution;
    let world = world();
    let there =
        world.other_process_with(|builder| builder.near_cache(1_000_000).near_cache_ttl(TTL));
    let held = world
        .call(1)
        .on_error(ErrorAction::Hold)
        .run(|| async { Err::<String, _>(anyhow::anyhow!("no answer")) });
    held.await.unwrap_err();
    let record = world.engine.record(OPERATION, 1_u64);
    for answer in ["first", "second"] {
        let view = record.inspect().await.unwrap().unwrap();
        record.resolve(&view, Resolution::completed(answer)).await.unwrap();
        assert_eq!(world.charge(1).await.unwrap(), answer, "it is not what was kept");
        let elsewhere = there.charge(1).await.unwrap();
        assert_eq!(elsewhere, "first", "it was kept there, or is the first");
    }
    world.clock.advance(TTL);
    assert_eq!(there.charge(1).await.unwrap(), "second");
    assert_eq!(world.ledger.count(), 0);
}
