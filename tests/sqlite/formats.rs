//! Rows of released formats are read for ever; those of unknown ones are refused and left alone.

use std::time::Duration;

use idempotency::clock::Timestamp;
use idempotency::key::{Fingerprint, KeyHash};
use idempotency::store::{
    CensusBudget, Claim, Commit, CrashPolicy, Reason, Record, Scan, State, Store as _,
    StoreErrorKind, Token,
};

use crate::world::{DAY, World};

/// Rows as format 1 has them, one with every field set and one with none.
const FORMAT_1: &str = include_str!("format_1.sql");

const FULL: KeyHash = KeyHash::from_bytes([0x11; 32]);
const BARE: KeyHash = KeyHash::from_bytes([0x22; 32]);

#[tokio::test]
async fn golden_rows_of_format_1_are_read() -> anyhow::Result<()> {
    let world = World::new().await?;
    sqlx::raw_sql(FORMAT_1).execute(&world.pool).await?;
    let read_at = Timestamp::from_millis(1_700_000_000_000);

    let mut full = Record::new(
        FULL,
        Token::from_bits(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10),
        "payments.charge".into(),
    );
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
    full.lease_until = Timestamp::from_millis(1_699_999_900_000);
    full.expires = Timestamp::from_millis(1_702_591_900_000);
    full.schema = 5;
    full.checkpoints = 6;
    full.taken_over = Some(State::InProgress);
    full.trace = Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into());
    full.body = "body".into();
    full.read_at = read_at;
    assert_eq!(world.store.read(FULL).await?, Some(full));

    let mut bare = Record::new(BARE, Token::from_bits(1), "".into());
    bare.state = State::Completed;
    bare.policy = CrashPolicy::Retry;
    bare.expires = Timestamp::from_millis(1_700_000_000_001);
    bare.read_at = read_at;
    assert_eq!(world.store.read(BARE).await?, Some(bare));
    Ok(())
}

#[tokio::test]
async fn rows_of_an_unknown_format_are_refused_and_left_alone() -> anyhow::Result<()> {
    let world = World::new().await?;
    sqlx::raw_sql(FORMAT_1).execute(&world.pool).await?;
    sqlx::query("UPDATE idempotency_records SET format = 2, purge_at = 0")
        .execute(&world.pool)
        .await?;
    let owner = Token::from_bits(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);
    let errors = [
        world.store.read(FULL).await.unwrap_err(),
        world
            .store
            .claim(Claim::new(FULL, Token::from_bits(9), "payments.charge".into()))
            .await
            .unwrap_err(),
        world.store.complete(Commit::new(FULL, owner, "x".into(), DAY)).await.unwrap_err(),
        world.store.watch(FULL).await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), StoreErrorKind::Corrupt, "{error}");
        let source = std::error::Error::source(&error).expect("the reason");
        assert!(source.to_string().contains("format version 2"), "{source}");
    }
    let page = world.store.scan(Scan::default()).await?;
    let mut unknown = [FULL, BARE];
    unknown.sort_unstable();
    assert_eq!(
        (page.records.len(), &page.unreadable[..]),
        (0, &unknown[..]),
        "it lists what can be read"
    );
    let readable = Claim::new(KeyHash::from_bytes([7; 32]), owner, "payments.charge".into());
    world.store.claim(readable).await?;
    let census = world.store.census(CensusBudget::of(DAY)).await?;
    assert_eq!((census.count(), census.unreadable, census.complete), (1, 2, true));
    world.clock.advance(Duration::from_secs(400 * 86_400));
    let purged = world.store.purge(10).await?;
    assert_eq!((purged.removed, world.rows().await?), (1, 2));
    Ok(())
}

#[tokio::test]
async fn a_row_whose_key_is_no_hash_costs_no_other_its_place_in_a_list() -> anyhow::Result<()> {
    let world = World::new().await?;
    let key = |number| KeyHash::from_bytes([number; 32]);
    for number in 1..=9 {
        let token = Token::from_bits(number.into());
        world.store.claim(Claim::new(key(number), token, "payments.charge".into())).await?;
    }
    // Shorter, longer and empty: what an `INSERT` by hand leaves.
    for (number, name) in
        [(3, "substr(key_hash, 1, 20)"), (5, "CAST(key_hash || x'05' AS BLOB)"), (7, "x''")]
    {
        let rename = format!(
            "UPDATE idempotency_records SET key_hash = {name} WHERE key_hash = x'{}'",
            key(number).to_hex()
        );
        sqlx::query(sqlx::AssertSqlSafe(rename)).execute(&world.pool).await?;
    }
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
        assert_eq!(listed, [1, 2, 4, 6, 8, 9].map(key), "pages of {limit}");
    }
    let census = world.store.census(CensusBudget::of(DAY)).await?;
    // The empty one is before every place.
    assert_eq!((census.count(), census.unreadable, census.complete), (6, 2, true));
    Ok(())
}

#[tokio::test]
async fn a_row_whose_names_are_not_text_is_counted_as_unreadable() -> anyhow::Result<()> {
    let world = World::new().await?;
    let key = |number| KeyHash::from_bytes([number; 32]);
    for number in 1..=3 {
        let token = Token::from_bits(number.into());
        world.store.claim(Claim::new(key(number), token, "payments.charge".into())).await?;
    }
    // SQLite takes any bytes for text.
    for (number, change) in
        [(2, "operation = CAST(x'ff' AS TEXT)"), (3, "namespace = CAST(x'c328' AS TEXT)")]
    {
        let update = format!(
            "UPDATE idempotency_records SET {change} WHERE key_hash = x'{}'",
            key(number).to_hex()
        );
        sqlx::query(sqlx::AssertSqlSafe(update)).execute(&world.pool).await?;
    }
    let page = world.store.scan(Scan::default()).await?;
    assert_eq!((page.records.len(), page.unreadable), (1, vec![key(2), key(3)]));
    let census = world.store.census(CensusBudget::of(DAY)).await?;
    assert_eq!((census.count(), census.unreadable, census.complete), (1, 2, true));
    Ok(())
}
