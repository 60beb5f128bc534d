//! A result in the memory of this process is replayed without a claim, and nothing else is.

use std::time::Duration;

use idempotency::clock::Randomness;
use idempotency::record::State;
use idempotency::store::{MemoryStore, Reason};
use idempotency::testing::ManualClock;
use idempotency::{
    Call, Error, ErrorKind, Idempotency, OnConflict, OnCrash, OnError, Report, Verdict, with_report,
};
use serde::{Deserialize, Serialize};

use crate::world::{DAY, OPERATION, World};

const MILLI: Duration = Duration::from_millis(1);

/// Has no tokens: what needs a claim is [refused](ErrorKind::StoreUnavailable).
#[derive(Debug)]
struct Nothing;

impl Randomness for Nothing {
    fn fill(&self, _: &mut [u8]) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Other.into())
    }
}

/// An engine on the store of `world` itself, that cannot claim, and whose clock stands still.
fn without_claims(world: &World) -> Idempotency {
    Idempotency::builder(world.memory.clone())
        .clock(ManualClock::new())
        .randomness(Nothing)
        .build()
        .unwrap()
}

fn call(engine: &Idempotency) -> Call {
    engine.call(OPERATION, 1).ttl(DAY)
}

async fn charge(world: &World, call: Call) -> (Result<String, Error>, Report) {
    let (result, report) = with_report(call.run(|| async { world.effect(1) })).await;
    (result, report.expect("the call reports"))
}

#[tokio::test]
async fn a_result_takes_no_claim() {
    let world = World::new();
    let receipt = world.charge(1).await.unwrap();
    let (result, report) = charge(&world, call(&without_claims(&world))).await;
    assert_eq!(result.unwrap(), receipt);
    assert_eq!((report.replayed, report.near_cached, report.attempt), (true, false, 1));
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn a_result_of_another_request_is_a_mismatch() {
    let world = World::new();
    let first =
        world.call(1).fingerprint("EUR 100").run(|| async { world.effect(1) }).await.unwrap();
    let engine = without_claims(&world);
    let (same, _) = charge(&world, call(&engine).fingerprint("EUR 100")).await;
    assert_eq!(same.unwrap(), first);
    let (other, report) = charge(&world, call(&engine).fingerprint("EUR 101")).await;
    assert_eq!((other.unwrap_err().kind(), report.replayed), (ErrorKind::Mismatch, false));
}

#[tokio::test]
async fn a_result_of_another_version_is_not_decoded() {
    let world = World::new();
    world.charge(1).await.unwrap();
    let (result, _) = charge(&world, call(&without_claims(&world)).version(1)).await;
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Decode);
}

#[tokio::test]
async fn a_stored_error_takes_no_claim_either() {
    #[derive(Debug, Deserialize, PartialEq, Serialize)]
    enum Declined {
        Card,
        Refused,
    }

    impl From<Error> for Declined {
        fn from(_: Error) -> Self {
            Self::Refused
        }
    }

    let world = World::new();
    for engine in [world.engine.clone(), without_claims(&world)] {
        let declined = call(&engine)
            .on_error(OnError::Store)
            .run(|| async { Err::<(), _>(Declined::Card) })
            .await;
        assert_eq!(declined, Err(Declined::Card));
    }
}

#[tokio::test]
async fn a_result_ends_with_its_record_on_the_clock_of_the_store() {
    let world = World::new();
    let receipt = world.charge(1).await.unwrap();
    let engine = without_claims(&world);
    world.clock.advance(DAY.saturating_sub(MILLI));
    assert_eq!(charge(&world, call(&engine)).await.0.unwrap(), receipt);
    world.clock.advance(MILLI);
    assert_eq!(
        charge(&world, call(&engine)).await.0.unwrap_err().kind(),
        ErrorKind::StoreUnavailable
    );
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn a_result_that_was_forgotten_is_replayed_no_more() {
    let world = World::new();
    world.charge(1).await.unwrap();
    let engine = without_claims(&world);
    world.engine.record(OPERATION, 1).forget().await.unwrap();
    assert_eq!(
        charge(&world, call(&engine)).await.0.unwrap_err().kind(),
        ErrorKind::StoreUnavailable
    );
}

#[tokio::test]
async fn everything_but_a_result_takes_a_claim() {
    let world = World::new();
    let engine = without_claims(&world);
    let refused = || async { charge(&world, call(&engine)).await.0.unwrap_err().kind() };
    assert_eq!(refused().await, ErrorKind::StoreUnavailable, "there is no record");
    let charged = world.call(1).after_expiry(DAY).run(|| async {
        assert_eq!(refused().await, ErrorKind::StoreUnavailable, "it is in progress");
        world.effect(1)
    });
    charged.await.unwrap();
    world.clock.advance(DAY);
    assert_eq!(refused().await, ErrorKind::StoreUnavailable, "it is a tombstone");
    assert_eq!(world.ledger.count(), 1);
}

/// A test that has paused Tokio's clock leaves other threads no time: what a dropped call leaves is
/// there all the same.
#[tokio::test(start_paused = true)]
async fn what_a_dropped_call_leaves_is_there_at_once_when_time_is_paused() {
    let second = Duration::from_secs(1);
    let body = || async {
        tokio::time::sleep(10 * second).await;
        Ok::<_, Error>("paid".to_owned())
    };
    for policy in [OnCrash::Hold, OnCrash::Retry, OnCrash::Resume] {
        let engine = Idempotency::new(MemoryStore::new());
        for on_conflict in [OnConflict::Wait(30 * second), OnConflict::Reject] {
            let call =
                || engine.call(OPERATION, format!("{on_conflict:?}")).ttl(DAY).on_crash(policy);
            assert!(tokio::time::timeout(second, call().run(body)).await.is_err());
            let retried =
                call().on_conflict(on_conflict).run(body).await.map_err(|error| error.kind());
            let expected = if policy == OnCrash::Hold {
                Err(ErrorKind::InDoubt)
            } else {
                Ok("paid".to_owned())
            };
            assert_eq!(retried, expected, "{policy:?} {on_conflict:?}");
        }
    }
}

/// As above, for a call that is dropped before it has asked its question, while it asks, and for a
/// shutdown.
#[tokio::test(start_paused = true)]
async fn what_a_dropped_question_or_a_shutdown_leaves_is_there_at_once_when_time_is_paused() {
    let second = Duration::from_secs(1);
    let engine = Idempotency::new(MemoryStore::new());
    let asks = |settle, answers_after| {
        let question = move |_| async move {
            tokio::time::sleep(answers_after).await;
            Ok(Verdict::Completed("paid".to_owned()))
        };
        let call = engine.call(OPERATION, 1).ttl(DAY).settle(settle).on_crash_verify(question);
        call.run(std::future::pending::<Result<String, Error>>)
    };
    assert!(tokio::time::timeout(second, asks(second, second)).await.is_err(), "in the body");
    assert!(
        tokio::time::timeout(second, asks(10 * second, second)).await.is_err(),
        "before the question"
    );
    assert_eq!(asks(second, second).await.unwrap(), "paid");

    let mut call = Box::pin(
        engine.call(OPERATION, 2).ttl(DAY).run(std::future::pending::<Result<String, Error>>),
    );
    assert!(tokio::time::timeout(second, &mut call).await.is_err());
    assert_eq!(engine.shutdown(second).await.abandoned, 1);
    let view = engine.record(OPERATION, 2).inspect().await.unwrap().unwrap();
    assert_eq!((view.state, view.reason), (State::InDoubt, Some(Reason::ShutDown)));
}
