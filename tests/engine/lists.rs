//! Lists of records, for operators.

use std::collections::BTreeSet;

use idempotency::ErrorAction;
use idempotency::ErrorKind;
use idempotency::record::Records;
use idempotency::store::{Only, Operation, Scan, StoreErrorKind};

use crate::faults::Fault;
use crate::world::{World, without_renewals};

async fn all(mut records: Records) -> Vec<String> {
    let mut names = Vec::new();
    while let Some(record) = records.next().await {
        names.push(record.unwrap().key.to_string());
        assert!(names.len() <= 100, "the list does not end");
    }
    names
}

fn pages_of(limit: usize) -> Scan {
    let mut scan = Scan::default();
    scan.limit = limit;
    scan
}

#[tokio::test]
async fn a_list_has_each_record_once_over_all_pages() {
    let world = World::new();
    for key in 0..7 {
        world.charge(key).await.unwrap();
    }
    for limit in [1, 2, 7, 100] {
        let names = all(world.engine.records(pages_of(limit))).await;
        assert_eq!(names.len(), 7, "pages of {limit}");
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), 7, "pages of {limit}");
    }
    assert_eq!(world.store.requests(Operation::Scan), 7 + 4 + 1 + 1);
}

#[tokio::test]
async fn a_list_is_of_the_engine_s_namespace_and_of_what_is_asked_for() {
    let world = World::new();
    let shop = world.other_process_with(|builder| builder.namespace("shop"));
    world.charge(1).await.unwrap();
    shop.charge(1).await.unwrap();
    let held = world.call(2).on_error(ErrorAction::Hold);
    held.run(async || Err::<String, _>(anyhow::anyhow!("no answer"))).await.unwrap_err();
    assert_eq!(all(world.engine.records(Scan::default())).await.len(), 2);
    assert_eq!(all(shop.engine.records(Scan::default())).await.len(), 1);
    let mut in_doubt = Scan::default();
    in_doubt.only = Only::InDoubt;
    let mut records = world.engine.records(in_doubt);
    let record = records.next().await.unwrap().unwrap();
    assert_eq!(record.key, world.engine.record(crate::world::OPERATION, 2).hash().unwrap());
    assert!(records.next().await.is_none());
    assert!(records.next().await.is_none(), "it stays at its end");
}

#[tokio::test]
async fn a_list_goes_on_after_an_error_of_the_store() {
    let world = World::new();
    for key in 0..4 {
        world.charge(key).await.unwrap();
    }
    let mut records = world.engine.records(pages_of(2));
    for _ in 0..2 {
        records.next().await.unwrap().unwrap();
    }
    world.store.next(Operation::Scan, Fault::Refused(StoreErrorKind::Corrupt));
    assert_eq!(records.next().await.unwrap().unwrap_err().kind(), ErrorKind::Decode);
    world.store.always(Operation::Scan, Some(Fault::LostRequest));
    let refused = without_renewals(&world, records.next()).await.unwrap().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::StoreUnavailable);
    assert!(refused.to_string().contains("could not be listed"), "{refused}");
    world.store.always(Operation::Scan, None);
    assert_eq!(all(records).await.len(), 2, "the page that was missing");
}
