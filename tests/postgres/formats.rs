//! Rows of released formats are read for ever; those of unknown ones are refused and left alone.

use std::time::Duration;

use idempotency::clock::Timestamp;
use idempotency::key::{Fingerprint, KeyHash};
use idempotency::store::{
    CensusBudget, Claim, Commit, CrashPolicy, Only, PostgresStore, Reason, Record, Scan, State,
    Store as _, StoreErrorKind, Token,
};

use crate::world::{DAY, World, claim, key, patient};

/// Rows as format 1 has them, one with every field set and one with none.
const FORMAT_1: &str = include_str!("format_1.sql");

/// The columns after the key.
const COLUMNS: &str = "format, state, owner, fence, revision, operation, namespace, holder, fingerprint, policy, \
    created_at, attempts, reason, linger, after_expiry, lease_until, expires_at, purge_at, \
    schema_version, checkpoints, taken_over, trace, body";

const FULL: KeyHash = KeyHash::from_bytes([0x11; 32]);
const BARE: KeyHash = KeyHash::from_bytes([0x22; 32]);
const OWNER: Token = Token::from_bits(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);

fn full() -> Record {
    let mut full = Record::new(FULL, OWNER, "payments.charge".into());
    full.state = State::InDoubt;
    full.fence = 1_699_999_000_000_001;
    full.namespace = "shop".into();
    full.holder = "shop-6c9f/1234".into();
    full.fingerprint = Some(Fingerprint { version: 1, bits: 0xfeed });
    full.policy = CrashPolicy::Verify;
    full.created = Timestamp::from_millis(1_699_999_000_000);
    full.attempts = 4;
    full.reason = Some(Reason::LeaseLost);
    full.linger = Duration::from_millis(2_592_000_000);
    full.after_expiry = Duration::from_millis(86_400_000);
    full.lease_until = Timestamp::from_millis(4_102_444_800_000);
    full.expires = Timestamp::from_millis(4_105_036_800_000);
    full.schema = 5;
    full.checkpoints = 6;
    full.taken_over = Some(State::InProgress);
    full.trace = Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into());
    full.body = "body".into();
    full
}

fn bare() -> Record {
    let mut bare = Record::new(BARE, Token::from_bits(1), "".into());
    bare.state = State::Completed;
    bare.policy = CrashPolicy::Retry;
    bare.expires = Timestamp::from_millis(4_102_444_800_001);
    bare
}

/// The record as it is but for the time of the read.
async fn read(store: &PostgresStore, key: KeyHash) -> anyhow::Result<Option<Record>> {
    Ok(store.read(key).await?.map(|mut record| {
        assert_ne!(std::mem::take(&mut record.read_at), Timestamp::default());
        record
    }))
}

#[tokio::test]
async fn golden_rows_of_format_1_are_read() -> anyhow::Result<()> {
    let world = World::new().await?;
    world.sql(FORMAT_1).await?;
    let unprepared = patient(&world.url).without_prepared_statements().connect().await?;
    for store in [&world.store, &unprepared] {
        assert_eq!(read(store, FULL).await?, Some(full()));
        assert_eq!(read(store, BARE).await?, Some(bare()));
    }
    Ok(())
}

#[tokio::test]
async fn rows_of_an_unknown_format_are_refused_and_left_alone() -> anyhow::Result<()> {
    let world = World::new().await?;
    world.sql(FORMAT_1).await?;
    world.sql("UPDATE idempotency_records SET format = 2, purge_at = 0, expires_at = 1, after_expiry = 0").await?;
    let errors = [
        world.store.read(FULL).await.unwrap_err(),
        world
            .store
            .claim(Claim::new(FULL, Token::from_bits(9), "payments.charge".into()))
            .await
            .unwrap_err(),
        world.store.complete(Commit::new(FULL, OWNER, "x".into(), DAY)).await.unwrap_err(),
        world.store.watch(FULL).await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), StoreErrorKind::Corrupt, "{error}");
        let source = std::error::Error::source(&error).expect("the reason");
        assert!(source.to_string().contains("format version 2"), "{source}");
    }
    lists_around(&world.store).await?;
    // One that says that it is of this format, and has no policy of it.
    world.store.claim(claim(2)).await?;
    let unknown = format!("WHERE key_hash = '\\x{}'", key(2).to_hex());
    world.sql(&format!("UPDATE idempotency_records SET policy = 77 {unknown}")).await?;
    let census = world.store.census(CensusBudget::of(DAY)).await?;
    assert_eq!((census.count(), census.unreadable, census.complete), (1, 3, true));
    world.sql(&format!("DELETE FROM idempotency_records {unknown}")).await?;
    let purged = world.store.purge(10).await?;
    assert_eq!((purged.removed, world.rows().await?), (0, 3));
    Ok(())
}

/// A list has what can be read, and the keys of the rest; also where a page has nothing else.
async fn lists_around(store: &PostgresStore) -> anyhow::Result<()> {
    let readable = key(1);
    store.claim(claim(1)).await?;
    let mut unknown = [FULL, BARE];
    unknown.sort_unstable();
    let page = store.scan(Scan::default()).await?;
    let listed: Vec<_> = page.records.iter().map(|record| record.key).collect();
    assert_eq!((listed, &page.unreadable[..], page.next), (vec![readable], &unknown[..], None));
    let (mut listed, mut unreadable, mut after) = (Vec::new(), Vec::new(), None);
    loop {
        let mut scan = Scan::default();
        (scan.limit, scan.after) = (1, after);
        let page = store.scan(scan).await?;
        listed.extend(page.records.iter().map(|record| record.key));
        unreadable.extend(page.unreadable);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!((listed, &unreadable[..]), (vec![readable], &unknown[..]));
    Ok(())
}

#[tokio::test]
async fn a_row_whose_key_is_no_hash_costs_no_other_its_place_in_a_list() -> anyhow::Result<()> {
    let world = World::new().await?;
    for number in 1..=9 {
        world.store.claim(claim(number)).await?;
    }
    // Shorter, longer and empty: what an `INSERT` by hand leaves.
    for (number, name) in [(3, "substr(key_hash, 1, 20)"), (5, "key_hash || key_hash"), (7, "''")] {
        let digits = key(number).to_hex();
        world
            .sql(&format!(
                "UPDATE idempotency_records SET key_hash = {name} WHERE key_hash = '\\x{digits}'"
            ))
            .await?;
    }
    let mut expected = [1, 2, 4, 6, 8, 9].map(key);
    expected.sort_unstable();
    for limit in [1, 2, 100] {
        let (mut listed, mut scan) = (Vec::new(), Scan::default());
        scan.limit = limit;
        loop {
            let page = world.store.scan(scan.clone()).await?;
            assert!(page.unreadable.is_empty());
            listed.extend(page.records.iter().map(|record| record.key));
            scan.after = page.next;
            if scan.after.is_none() {
                break;
            }
            assert!(listed.len() < 20, "the list does not end");
        }
        assert_eq!(listed, expected, "pages of {limit}");
    }
    let census = world.store.census(CensusBudget::of(DAY)).await?;
    // The empty one is before every place.
    assert_eq!((census.count(), census.unreadable, census.complete), (6, 2, true));
    Ok(())
}

/// A filtered list of a large table goes on from page to page, whatever the filter leaves out.
#[tokio::test]
async fn a_page_examines_a_part_of_the_table_whatever_it_lists() -> anyhow::Result<()> {
    let world = World::new().await?;
    world.store.claim(claim(1)).await?;
    // The names of the others are spread like hashes.
    world
        .sql(&format!(
            "INSERT INTO idempotency_records
             SELECT sha256(int4send(number)), {COLUMNS} FROM idempotency_records, generate_series(1, 4500) AS number"
        ))
        .await?;
    let mut scan = Scan::default();
    (scan.only, scan.operation) = (Only::InDoubt, Some("none".into()));
    for page in 1..=5 {
        let found = world.store.scan(scan.clone()).await?;
        assert!(found.records.is_empty());
        assert_eq!(found.next.is_some(), page < 5, "page {page} of 4501 rows");
        scan.after = found.next;
    }
    Ok(())
}
