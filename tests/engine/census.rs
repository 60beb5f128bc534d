//! Counts of records, for operators.

use std::time::Duration;

use idempotency::record::State;
use idempotency::store::{Budget, Operation, StoreErrorKind};
use idempotency::{ErrorAction, ErrorKind};

use crate::faults::{Fault, Gate};
use crate::world::{OPERATION, World, without_renewals};

const MINUTE: Budget = Budget::of(Duration::from_secs(60));

#[tokio::test]
async fn a_census_counts_the_records_of_the_engine_s_namespace() {
    let world = World::new();
    let shop = world.other_process_with(|builder| builder.namespace("shop"));
    for key in 0..3 {
        world.charge(key).await.unwrap();
    }
    shop.charge(1).await.unwrap();
    let held = world.call(7).on_error(ErrorAction::Hold);
    held.run(async || Err::<String, _>(anyhow::anyhow!("no answer"))).await.unwrap_err();
    let census = world.engine.census(MINUTE).await.unwrap();
    let groups: Vec<_> =
        census.groups().map(|it| (&*it.operation, it.state, it.in_doubt, it.count)).collect();
    let expected = [(OPERATION, State::InDoubt, true, 1), (OPERATION, State::Completed, false, 3)];
    assert_eq!(groups, expected);
    assert_eq!((census.complete, census.in_doubt()), (true, 1));
    assert_eq!(shop.engine.census(MINUTE).await.unwrap().count(), 1);
}

#[tokio::test]
async fn a_census_without_time_is_not_complete_and_no_error() {
    let world = World::new();
    world.charge(1).await.unwrap();
    let census = world.engine.census(Budget::of(Duration::ZERO)).await.unwrap();
    assert_eq!((census.complete, census.percent, census.count()), (false, Some(0), 0));
    assert_eq!(world.store.requests(Operation::Census), 1);
}

#[tokio::test]
async fn a_census_is_made_again_where_the_store_did_not_answer_and_not_where_it_refuses() {
    let world = World::new();
    world.charge(1).await.unwrap();
    world.store.next(Operation::Census, Fault::LostAnswer);
    let census = without_renewals(&world, world.engine.census(MINUTE)).await.unwrap();
    assert_eq!((census.complete, census.count()), (true, 1));
    assert_eq!(world.store.requests(Operation::Census), 2);

    world.store.next(Operation::Census, Fault::Refused(StoreErrorKind::Corrupt));
    let refused = world.engine.census(MINUTE).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Decode);
    assert_eq!(world.store.requests(Operation::Census), 3);
}

#[tokio::test]
async fn a_census_that_is_not_answered_is_given_up() {
    let world = World::new();
    world.store.always(Operation::Census, Some(Fault::Late(Gate::new())));
    let refused = without_renewals(&world, world.engine.census(MINUTE)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::StoreUnavailable);
    assert!(refused.to_string().contains("could not be counted"), "{refused}");
    assert_eq!(world.store.requests(Operation::Census), 1, "it had all of the time");
}
