//! Results at hand, through a wrapper and not.

use std::sync::Arc;
use std::time::Duration;

use idempotency::store::{DynStore, MemoryStore, Operation, Store};
use idempotency::{Error, Idempotency};

use crate::counting::Counting;
use crate::delaying::Delaying;
use crate::sealing::Sealing;

const DAY: Duration = Duration::from_secs(86_400);

/// Calls twice, and returns both answers.
async fn twice(store: impl Store) -> Result<(String, String), Error> {
    let engine = Idempotency::new(store);
    let call = async |answer: &str| {
        let answer = answer.to_owned();
        engine.call("charge", 1).ttl(DAY).run(|| async { Ok::<_, Error>(answer) }).await
    };
    Ok((call("the first").await?, call("the second").await?))
}

#[tokio::test]
async fn a_wrapper_that_hands_the_results_at_hand_on_is_asked_for_no_second_claim() {
    let store = Counting::new(MemoryStore::new());
    assert_eq!(twice(store.clone()).await.unwrap(), ("the first".into(), "the first".into()));
    assert_eq!(store.of(Operation::Claim), 1);
}

#[tokio::test]
async fn so_is_one_behind_a_pointer_to_a_store_of_any_type() {
    let store = Counting::new(MemoryStore::new());
    let erased: Arc<dyn DynStore> = Arc::new(Arc::new(store.clone()));
    twice(erased).await.unwrap();
    assert_eq!(store.of(Operation::Claim), 1);
}

#[tokio::test]
async fn a_wrapper_that_leaves_them_out_is_asked_for_each_claim() {
    let inside = Counting::new(MemoryStore::new());
    twice(Delaying::new(inside.clone())).await.unwrap();
    assert_eq!(inside.of(Operation::Claim), 2);
}

#[tokio::test]
async fn results_at_hand_come_through_a_wrapper_that_seals_them() {
    let inside = Counting::new(MemoryStore::new());
    let answers = twice(Sealing::new(inside.clone())).await.unwrap();
    assert_eq!(answers, ("the first".into(), "the first".into()));
    assert_eq!(inside.of(Operation::Claim), 1);
}

#[tokio::test]
async fn what_a_wrapper_seals_is_not_in_the_store_inside() {
    let inside = MemoryStore::new();
    twice(Sealing::new(inside.clone())).await.unwrap();
    let listed = inside.scan(idempotency::store::Scan::default()).await.unwrap();
    let record = inside.read(listed.records[0].key).await.unwrap().unwrap();
    let plain = b"the first";
    assert!(!record.body.windows(plain.len()).any(|window| window == plain));
    assert!(record.body.len() > plain.len());
}
