//! What a value becomes on its way through the record: the same for the owner as for everybody
//! else. Generated values of every shape are in the package `idempotency-values-tests`.

use std::panic::AssertUnwindSafe;

use futures::FutureExt as _;
use idempotency::record::{Resolution, State};
use idempotency::store::Reason;
use idempotency::{Error, ErrorAction, ErrorKind, OnError};
use serde::{Deserialize, Deserializer, Serialize};

use crate::world::{OPERATION, World};

/// A session is no part of a receipt, and is not stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Receipt {
    amount: f64,
    #[serde(skip)]
    session: Option<u32>,
}

#[tokio::test]
async fn the_owner_gets_what_was_stored() {
    let world = World::new();
    let amount = 49.99 * 1.19;
    let call =
        || world.call(1).run(|| async { Ok::<_, Error>(Receipt { amount, session: Some(7) }) });
    let stored = Receipt { amount, session: None };
    assert_eq!(call().await.unwrap(), stored);
    assert_eq!(call().await.unwrap(), stored);
    // Nothing is stored of an operation that is disabled.
    world.engine.disable(OPERATION);
    assert_eq!(call().await.unwrap().session, Some(7));
}

#[tokio::test]
async fn what_json_would_change_is_an_error_at_once_and_for_everybody_and_never_runs_again() {
    let world = World::new();
    let body = || async {
        world.effect(1)?;
        tokio::task::yield_now().await;
        Ok::<_, Error>(vec![Receipt { amount: f64::NAN, session: None }])
    };
    let (owner, follower) = tokio::join!(world.call(1).run(body), world.call(1).run(body));
    let elsewhere = world.other_process();
    for error in [owner, follower, world.call(1).run(body).await, elsewhere.call(1).run(body).await]
    {
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Encode);
    }
    assert_eq!(world.ledger.count(), 1);
    let record = world.record(1).await.unwrap();
    assert_eq!((record.state, record.reason), (State::Completed, Some(Reason::NotEncodable)));
}

#[tokio::test]
async fn the_error_names_the_place_and_nothing_of_the_value() {
    let world = World::new();
    let card = std::collections::BTreeMap::from([("4242".to_owned(), Some(None::<u8>))]);
    let error = world.call(1).run(|| async { Ok::<_, Error>((7, card)) }).await.unwrap_err();
    assert!(error.to_string().contains("`[1]{0}` is a `Some` of what becomes `null`"), "{error}");
    assert!(!format!("{error:?}").contains("4242"), "{error:?}");
}

/// Written as a text, read as a number.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct OneWay(String);

impl<'de> Deserialize<'de> for OneWay {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u32::deserialize(deserializer).map(|number| Self(number.to_string()))
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Failure {
    Own(OneWay),
    #[serde(skip)]
    Guard(ErrorKind),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Guard(error.kind())
    }
}

#[tokio::test]
async fn what_does_not_read_back_is_no_result_that_fails_later() {
    let world = World::new();
    for _ in 0..2 {
        let result = world.call(1).run(|| async { Ok::<_, Error>(OneWay(world.effect(1)?)) }).await;
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Encode);
        let failing = world.call(2).on_error(OnError::Store).run(|| async {
            world.ledger.charge("charge 2");
            Err::<(), _>(Failure::Own(OneWay("declined".into())))
        });
        assert_eq!(failing.await, Err(Failure::Guard(ErrorKind::Encode)));
    }
    assert_eq!(world.ledger.count(), 2);
}

#[tokio::test]
async fn a_panic_while_a_result_is_read_back_is_an_unknown_outcome() {
    #[derive(Debug, Serialize)]
    struct Panics;
    impl<'de> Deserialize<'de> for Panics {
        fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
            panic!("no number for this")
        }
    }
    let world = World::new();
    let call = world.call(1).run(|| async {
        world.effect(1)?;
        Ok::<_, Error>(Panics)
    });
    assert!(AssertUnwindSafe(call).catch_unwind().await.is_err());
    assert_eq!(world.charge(1).await.unwrap_err().kind(), ErrorKind::InDoubt);
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn an_operator_s_answer_that_json_would_change_is_refused_and_changes_nothing() {
    let world = World::new();
    let failing = world
        .call(1)
        .on_error(ErrorAction::Hold)
        .run(|| async { Err::<f64, _>(anyhow::anyhow!("cut off")) });
    failing.await.unwrap_err();
    let record = world.engine.record(OPERATION, 1);
    let view = record.inspect().await.unwrap().unwrap();
    assert_eq!(view.state, State::InDoubt);
    let nested = (0..200).fold(serde_json::Value::Null, |inner, _| vec![inner].into());
    for resolution in [
        Resolution::completed(f64::NAN),
        Resolution::completed(Some(())),
        Resolution::failed([Some(None::<u8>)]),
        Resolution::completed(nested),
    ] {
        let refused = record.resolve(&view, resolution).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Encode);
        assert!(refused.to_string().contains("the answer was not stored"), "{refused}");
    }
    let amount: f64 = 0.1 + 0.2;
    record.resolve(&view, Resolution::completed(amount)).await.unwrap();
    let answer = world.call(1).run(|| async { Ok::<f64, Error>(1.0) }).await.unwrap();
    assert_eq!(answer.to_bits(), amount.to_bits());
}
