//! Lists of records, for operators.

use std::collections::BTreeSet;

use idempotency::ErrorAction;
use idempotency::ErrorKind;
use idempotency::key::KeyHash;
use idempotency::record::Records;
use idempotency::store::{
    Claim, ClaimOutcome, Cursor, Only, Operation, Scan, Store as _, StoreErrorKind, Token,
};

use crate::faults::{Fault, Gate};
use crate::world::{DAY, World, without_renewals};

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

/// Claims this many records of another operation, straight in the store.
async fn crowd(world: &World, records: u32) {
    for number in 0..records {
        let mut name = [0x44; 32];
        name[..4].copy_from_slice(&number.to_be_bytes());
        let token = Token::from_bits(u128::from(number) + 1);
        let mut claim = Claim::new(KeyHash::from_bytes(name), token, "another".into());
        (claim.lease, claim.namespace) = (DAY, "default".into());
        assert!(matches!(world.memory.claim(claim).await, Ok(ClaimOutcome::Granted(_))));
    }
}

#[tokio::test]
async fn a_list_goes_on_through_pages_without_records_and_keeps_its_place_after_an_error() {
    let world = World::new();
    crowd(&world, 25_000).await;
    let mut last = Claim::new(KeyHash::from_bytes([0xff; 32]), Token::from_bits(7), "mine".into());
    (last.lease, last.namespace) = (DAY, "default".into());
    assert!(matches!(world.memory.claim(last).await, Ok(ClaimOutcome::Granted(_))));
    let mut scan = pages_of(10);
    scan.operation = Some("mine".into());
    let mut records = world.engine.records(scan.clone());
    assert_eq!(records.next().await.unwrap().unwrap().key, KeyHash::from_bytes([0xff; 32]));
    let pages = world.store.requests(Operation::Scan);
    assert!(pages > 2, "{pages} pages: the first ones list nothing");
    assert!(records.next().await.is_none());

    // The third page is refused: the next call asks for it, and not for the first one.
    let mut records = world.engine.records(scan);
    for _ in 0..2 {
        let gate = Gate::new();
        gate.open();
        world.store.next(Operation::Scan, Fault::Late(gate));
    }
    world.store.next(Operation::Scan, Fault::Refused(StoreErrorKind::Corrupt));
    let before = world.store.requests(Operation::Scan);
    assert_eq!(records.next().await.unwrap().unwrap_err().kind(), ErrorKind::Decode);
    assert_eq!(records.next().await.unwrap().unwrap().key, KeyHash::from_bytes([0xff; 32]));
    assert_eq!(world.store.requests(Operation::Scan) - before, pages + 1);
}

#[tokio::test]
async fn a_list_is_continued_from_the_text_of_its_cursor() {
    let world = World::new();
    for key in 0..7 {
        world.charge(key).await.unwrap();
    }
    let whole = all(world.engine.records(Scan::default())).await;
    let mut records = world.engine.records(pages_of(2));
    assert_eq!(records.cursor(), None, "nothing was listed");
    let mut names = Vec::new();
    for _ in 0..4 {
        names.push(records.next().await.unwrap().unwrap().key.to_string());
    }
    let mut later = pages_of(2);
    later.after = records.cursor().map(|cursor| cursor.to_string().parse().unwrap());
    names.extend(all(world.other_process().engine.records(later)).await);
    assert_eq!(names, whole);

    // In the middle of a page, the whole page is listed again.
    records.next().await.unwrap().unwrap();
    let mut again = pages_of(2);
    again.after = records.cursor().cloned();
    assert_eq!(all(world.engine.records(again)).await, whole[4..]);
    while records.next().await.is_some() {}
    assert_eq!(records.cursor(), None, "it is at its end");
}

#[tokio::test]
async fn a_list_says_that_a_cursor_is_of_another_store() {
    let world = World::new();
    let mut scan = Scan::default();
    scan.after = Some(Cursor::new("redis", "17"));
    let error = world.engine.records(scan).next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let text = error.to_string();
    assert!(text.contains("cannot go on at this cursor") && text.contains("`redis`"), "{text}");
}
