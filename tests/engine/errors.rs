//! What becomes of an `Err` of the body, and of results that cannot be kept.

use std::sync::Arc;
use std::time::Duration;

use idempotency::record::State;
use idempotency::store::{Operation, StoreErrorKind};
use idempotency::{Error, ErrorAction, ErrorKind, OnCrash, OnError};
use serde::{Deserialize, Serialize};

use crate::faults::{Fault, Gate};
use crate::world::{DAY, LEASE, OPERATION, World, eventually, without_renewals};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum PayError {
    Declined {
        code: u16,
    },
    ProviderTimeout,
    Busy,
    #[serde(skip)]
    Guard(ErrorKindOnly),
}

#[derive(Debug, PartialEq)]
struct ErrorKindOnly(ErrorKind);

impl From<Error> for PayError {
    fn from(error: Error) -> Self {
        Self::Guard(ErrorKindOnly(error.kind()))
    }
}

fn fails(world: &World, error: PayError) -> Result<String, PayError> {
    world.ledger.charge("attempt");
    Err(error)
}

#[tokio::test]
async fn by_default_an_error_releases_the_claim() {
    let world = World::new();
    for _ in 0..2 {
        let result = world.call(1).run(|| async { fails(&world, PayError::Busy) }).await;
        assert_eq!(result, Err(PayError::Busy));
        assert!(world.record(1).await.is_none());
    }
    assert_eq!(world.ledger.count(), 2);
    assert_eq!(world.charge(1).await.unwrap(), "receipt 1.3");
}

#[tokio::test]
async fn a_stored_error_replays_as_the_same_typed_error() {
    let world = World::new();
    for _ in 0..2 {
        let call = world
            .call(1)
            .on_error(OnError::Store)
            .run(|| async { fails(&world, PayError::Declined { code: 51 }) });
        assert_eq!(call.await, Err(PayError::Declined { code: 51 }));
    }
    assert_eq!(world.ledger.count(), 1);
    assert_eq!(world.record(1).await.unwrap().state, State::Failed);
}

#[tokio::test]
async fn a_held_error_leaves_the_call_in_doubt() {
    let world = World::new();
    let call = world
        .call(1)
        .on_error(ErrorAction::Hold)
        .run(|| async { fails(&world, PayError::ProviderTimeout) });
    assert_eq!(call.await, Err(PayError::ProviderTimeout));
    let error = world.charge(1).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InDoubt);
    assert!(error.to_string().contains("an error that may hide an effect"), "{error}");
    assert_eq!(world.ledger.count(), 1);
}

/// The store takes nothing.
fn is_away(world: &World, is_away: bool) {
    for operation in [
        Operation::Park,
        Operation::Renew,
        Operation::Claim,
        Operation::Read,
        Operation::Watch,
        Operation::Release,
        Operation::Abandon,
        Operation::Complete,
    ] {
        world.store.always(operation, is_away.then_some(Fault::LostRequest));
    }
}

#[tokio::test]
async fn a_held_error_is_held_also_after_an_outage_whatever_the_policy() {
    for policy in [OnCrash::Retry, OnCrash::Resume, OnCrash::Hold] {
        let world = World::new();
        let pay = || world.call(1).on_crash(policy).on_error(ErrorAction::Hold);
        let call = pay().run(|| async {
            is_away(&world, true);
            fails(&world, PayError::ProviderTimeout)
        });
        assert_eq!(
            without_renewals(&world, call).await,
            Err(PayError::ProviderTimeout),
            "{policy:?}"
        );
        assert!(
            world.record(1).await.unwrap().state == State::InProgress,
            "it could not be held in time"
        );
        is_away(&world, false);
        let held = world
            .record_is(1, |record| record.is_some_and(|record| record.state == State::InDoubt));
        without_renewals(&world, held).await;
        let again = without_renewals(&world, pay().run(|| async { world.effect(1) })).await;
        assert_eq!(again.unwrap_err().kind(), ErrorKind::InDoubt, "{policy:?}");
        assert_eq!(world.ledger.count(), 1, "{policy:?}");
    }
}

#[tokio::test]
async fn a_shutdown_holds_what_an_error_has_held() {
    let world = World::new();
    let gate = Gate::new();
    world.store.next(Operation::Park, Fault::Late(gate.clone()));
    let call = world.call(1).on_crash(OnCrash::Retry).on_error(ErrorAction::Hold);
    let call = call.run(|| async { fails(&world, PayError::ProviderTimeout) });
    let shutdown = async {
        eventually("the hold", async || world.store.requests(Operation::Park) == 1).await;
        assert_eq!(world.engine.shutdown(Duration::from_secs(1)).await.abandoned, 1);
        let there = world.other_process();
        let again = there.call(1).on_crash(OnCrash::Retry).run(|| async { there.effect(1) }).await;
        assert_eq!(again.unwrap_err().kind(), ErrorKind::InDoubt);
        gate.open();
    };
    let (error, ()) = without_renewals(&world, async { tokio::join!(call, shutdown) }).await;
    assert_eq!(error, Err(PayError::ProviderTimeout));
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn an_owner_that_was_overtaken_and_fails_returns_the_answer_and_reports_its_own_end() {
    for unstored in [ErrorAction::Hold, ErrorAction::Release] {
        let (here, gate) = (World::new(), Gate::new());
        let there = here.other_process();
        here.store.always(Operation::Renew, Some(Fault::LostRequest));
        let owner = here.call(1).on_crash(OnCrash::Retry).on_error(unstored).run(|| async {
            here.ledger.charge("the first");
            gate.wait().await;
            Err::<String, _>(PayError::ProviderTimeout)
        });
        let winner = async {
            here.record_is(1, |record| record.is_some()).await;
            here.clock.advance(LEASE + Duration::from_millis(1));
            let result =
                there.call(1).on_crash(OnCrash::Retry).run(|| async { there.effect(1) }).await;
            gate.open();
            result.unwrap()
        };
        let (owner, winner) = tokio::join!(owner, winner);
        assert_eq!(owner, Ok(winner), "{unstored:?}");
        assert_eq!(here.engine.duplicates(), 1, "{unstored:?}");
    }
}

#[tokio::test]
async fn a_function_over_the_error_decides_for_each() {
    let policy = |error: &PayError| match error {
        PayError::Declined { .. } => OnError::Store,
        PayError::ProviderTimeout => OnError::Hold,
        _ => OnError::Release,
    };
    for (error, again, attempts) in [
        (|| PayError::Declined { code: 5 }, PayError::Declined { code: 5 }, 1),
        (|| PayError::ProviderTimeout, PayError::Guard(ErrorKindOnly(ErrorKind::InDoubt)), 1),
        (|| PayError::Busy, PayError::Busy, 2),
    ] as [(fn() -> PayError, PayError, usize); 3]
    {
        let world = World::new();
        let call =
            async || world.call(1).on_error(policy).run(|| async { fails(&world, error()) }).await;
        assert_eq!(call().await, Err(error()));
        assert_eq!(call().await, Err(again));
        assert_eq!(world.ledger.count(), attempts);
    }
}

#[tokio::test]
async fn a_policy_that_stores_nothing_takes_any_error_type() {
    let world = World::new();
    let policy = |error: &anyhow::Error| {
        if error.is::<std::io::Error>() { ErrorAction::Hold } else { ErrorAction::Release }
    };
    let call = world
        .call(1)
        .on_error(policy)
        .run(|| async { Err::<u8, _>(std::io::Error::other("cut").into()) });
    assert!(call.await.unwrap_err().is::<std::io::Error>());
    let again = world
        .call(1)
        .on_error(policy)
        .run(|| async { Ok::<u8, anyhow::Error>(1) })
        .await
        .unwrap_err();
    let error = Error::find(again.as_ref()).expect("ours is found inside");
    assert_eq!(error.kind(), ErrorKind::InDoubt);
}

/// The error of a call without a `ttl`, which has no cause.
async fn refused(world: &World) -> Error {
    world.engine.call(OPERATION, 1).run(|| async { world.effect(1) }).await.unwrap_err()
}

#[derive(Debug, thiserror::Error)]
enum Transparent {
    #[error(transparent)]
    Idempotency(#[from] Error),
    #[error(transparent)]
    Inner(Box<Transparent>),
}

#[derive(Debug, thiserror::Error)]
#[error("the payment failed")]
struct Opaque(#[from] Error);

#[tokio::test]
async fn an_error_is_found_in_every_wrapper_and_is_never_its_own_cause() {
    let world = World::new();
    let without_cause = refused(&world).await;
    world.store.next(Operation::Claim, Fault::Refused(StoreErrorKind::Full));
    let with_cause = world.charge(1).await.unwrap_err();
    for (error, causes) in [(without_cause, 0), (with_cause, 1)] {
        let kind = error.kind();
        let transparent = || Transparent::from(error.clone());
        let wrappers: [anyhow::Error; 6] = [
            error.clone().into(),
            transparent().into(),
            Transparent::Inner(Box::new(transparent())).into(),
            Opaque(error.clone()).into(),
            std::io::Error::other(Arc::new(transparent())).into(),
            anyhow::Error::new(transparent()).context("the order failed"),
        ];
        for wrapper in wrappers {
            assert_eq!(Error::find(wrapper.as_ref()).map(Error::kind), Some(kind), "{wrapper:?}");
            let texts: Vec<_> = wrapper.chain().map(ToString::to_string).collect();
            let own = texts.iter().filter(|text| text.starts_with(OPERATION)).count();
            assert!(own <= 1, "{texts:?}");
        }
        assert_eq!(anyhow::Error::new(error).chain().count(), 1 + causes);
    }
}

#[tokio::test]
async fn a_search_that_panics_leaves_the_chains_of_others_alone() {
    #[derive(Debug)]
    struct Asked;

    impl std::fmt::Display for Asked {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("asked")
        }
    }

    impl std::error::Error for Asked {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            panic!("it names no cause")
        }
    }
    let world = World::new();
    let error = refused(&world).await;
    std::panic::catch_unwind(|| Error::find(&Asked).is_some()).unwrap_err();
    assert!(std::error::Error::source(&error).is_none());
}

#[tokio::test]
async fn a_stored_error_that_the_call_does_not_store_is_decode_and_never_a_rerun() {
    let world = World::new();
    let call =
        world.call(1).on_error(OnError::Store).run(|| async { fails(&world, PayError::Busy) });
    call.await.unwrap_err();
    assert_eq!(world.charge(1).await.unwrap_err().kind(), ErrorKind::Decode);
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn a_result_over_the_limit_leaves_a_marker_and_never_runs_again() {
    let world = World::with(|builder| builder.max_result_size(10));
    for _ in 0..2 {
        let call = world.call(1).run(|| async {
            world.effect(1)?;
            Ok::<_, Error>("x".repeat(20))
        });
        let error = call.await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        assert!(!error.is_retryable());
    }
    assert_eq!(world.ledger.count(), 1);
    let record = world.record(1).await.unwrap();
    assert_eq!((record.state, record.body.len()), (State::Completed, 0));
}

#[derive(Debug, Deserialize)]
struct Unserializable;

impl Serialize for Unserializable {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("it refuses"))
    }
}

#[tokio::test]
async fn a_result_that_cannot_be_encoded_leaves_a_marker_and_never_runs_again() {
    let world = World::new();
    for _ in 0..2 {
        let call = world.call(1).run(|| async {
            world.effect(1)?;
            Ok::<_, Error>(Unserializable)
        });
        assert_eq!(call.await.unwrap_err().kind(), ErrorKind::Encode);
    }
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn errors_show_operation_and_short_hash_and_never_the_key() {
    let world = World::new();
    let secret = "card-4242424242424242";
    let hash = world.engine.record("payments.charge", secret).hash().unwrap();
    let charge = async |amount: u32| {
        let call = world.engine.call("payments.charge", secret).ttl(DAY).fingerprint(&amount);
        call.run(|| async { Ok::<_, Error>(amount) }).await
    };
    charge(1).await.unwrap();
    let error = charge(2).await.unwrap_err();
    assert_eq!(error.operation(), Some("payments.charge"));
    assert_eq!(error.key(), Some(&hash.to_hex()[..12]));
    for text in [error.to_string(), format!("{error:?}")] {
        assert!(!text.contains("4242") && text.contains(&hash.to_hex()[..12]), "{text}");
    }
}

#[tokio::test]
async fn what_a_person_logs_shows_neither_keys_nor_results() {
    use idempotency::record::Resolution;
    use idempotency::store::{
        Checkpoint, Commit, Park, Reason, Resolve, ResolveAnswer, Store as _, Token,
    };
    let logged = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = logged.clone();
    let world = World::with(|builder| {
        builder.on_duplicate(move |duplicate| {
            log.lock().unwrap().push(format!("{duplicate:?} {duplicate:#?}"));
        })
    });
    let secret = "card-4242";
    let call = || world.engine.call(OPERATION, secret).scope(secret).fingerprint(secret).ttl(DAY);
    // Overtaken by an operator, so that there is a duplicate.
    let key = world.engine.record(OPERATION, secret).scope(secret).hash().unwrap();
    let result = call().run(|| async {
        let record = world.memory.read(key).await.unwrap().unwrap();
        world.memory.park(Park::own(key, record.owner, Reason::Crashed)).await.unwrap();
        let body = bytes::Bytes::from(format!("{secret:?}"));
        let answer = ResolveAnswer::Finished { state: State::Completed, body, schema: 0, ttl: DAY };
        world
            .memory
            .resolve(Resolve::new(key, record.owner, Token::from_bits(7), answer))
            .await
            .unwrap();
        Ok::<_, Error>(secret.to_owned())
    });
    assert_eq!(result.await.unwrap(), secret);
    let body = || bytes::Bytes::from_static(secret.as_bytes());
    let finished =
        ResolveAnswer::Finished { state: State::Completed, body: body(), schema: 0, ttl: DAY };
    let mut texts = logged.lock().unwrap().clone();
    assert_eq!(texts.len(), 1);
    texts.extend([
        format!("{:?}", call()),
        format!("{:?}", idempotency::key::Key::of(secret)),
        format!("{:?}", world.engine.record(OPERATION, secret)),
        format!("{:?}", world.memory.read(key).await.unwrap().unwrap()),
        format!("{:?}", world.memory.watch(key).await.unwrap()),
        format!("{:?}", Commit::new(key, Token::from_bits(7), body(), DAY)),
        format!("{:?}", Checkpoint::new(key, Token::from_bits(7), 0, body())),
        format!("{:?}", Resolve::new(key, Token::from_bits(7), Token::from_bits(8), finished)),
        format!("{:?}", Resolution::completed(secret)),
    ]);
    let as_numbers = format!("{:?}", secret.as_bytes()).trim_matches(['[', ']']).to_owned();
    for text in texts {
        assert!(!text.contains("4242") && !text.contains(&as_numbers), "{text}");
    }
}
