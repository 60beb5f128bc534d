//! Rows of every format: those of released versions are read as they were meant, others are left
//! alone.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use idempotency::clock::Timestamp;
use idempotency::key::{Fingerprint, KeyHash};
use idempotency::store::{
    CensusBudget, CrashPolicy, Reason, Record, Release, Renewal, Scan, State, Store as _,
    StoreErrorKind, Token, WriteOutcome,
};

use crate::world::{LEASE, World, claim, commit, fresh, held, key, mine};

const FAR: Timestamp = Timestamp::from_millis(9_999_999_999_000);

/// What the rows of `golden.sql` say.
fn golden() -> Vec<Record> {
    let record = |byte, owner, operation: &str, state| {
        let mut record = Record::new(
            KeyHash::from_bytes([byte; 32]),
            Token::from_bits(owner),
            Arc::from(operation),
        );
        (record.state, record.expires) = (state, FAR);
        record
    };
    let mut progress = record(
        0xa1,
        0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f,
        "payments.charge",
        State::InProgress,
    );
    progress.fence = 1_700_000_000_000_000;
    (progress.namespace, progress.holder) = ("shop".into(), "shop-6c9f/1234".into());
    progress.fingerprint =
        Some(Fingerprint { version: 1, bits: 0xffee_ddcc_bbaa_9988_7766_5544_3322_1100 });
    progress.policy = CrashPolicy::Verify;
    progress.created = Timestamp::from_millis(1_700_000_000_000);
    progress.attempts = 2;
    progress.linger = Duration::from_millis(86_400_000);
    progress.after_expiry = Duration::from_millis(3_600_000);
    progress.lease_until = Timestamp::from_millis(9_999_999_990_000);
    progress.schema = 7;
    progress.checkpoints = 2;
    progress.taken_over = Some(State::InDoubt);
    progress.trace = Some(Arc::from("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
    progress.body = Bytes::from_static(b"\x00\xffhello");

    let mut doubt = record(0xa2, u128::MAX, "möbel.größe 🪑", State::InDoubt);
    (doubt.fence, doubt.reason) = (1, Some(Reason::Crashed));
    (doubt.namespace, doubt.holder) = ("default".into(), "büro 🪑/7".into());

    let other = |byte, state, policy, attempts, reason, body| {
        let mut record = record(byte, 1, "a", state);
        (record.fence, record.created, record.linger) =
            (5, Timestamp::from_millis(12), Duration::from_millis(1));
        (record.policy, record.attempts, record.reason) = (policy, attempts, reason);
        record.body = Bytes::from_static(body);
        record
    };
    let mut completed =
        other(0xa3, State::Completed, CrashPolicy::Retry, u32::MAX, Some(Reason::Resolved), b"{}");
    completed.schema = u32::MAX;
    let mut failed =
        other(0xa4, State::Failed, CrashPolicy::Resume, 1, Some(Reason::Error), b"\"no\"");
    failed.taken_over = Some(State::InProgress);
    let released = other(0xa5, State::Released, CrashPolicy::Hold, 3, None, b"");
    let tombstone =
        other(0xa6, State::Tombstone, CrashPolicy::Hold, 1, Some(Reason::Resolved), b"");
    vec![progress, doubt, completed, failed, released, tombstone]
}

#[tokio::test]
async fn rows_of_format_1_are_read_as_they_were_written() -> anyhow::Result<()> {
    let world = World::new().await?;
    world.sql(include_str!("golden.sql")).await?;
    for expected in golden() {
        let mut record = world.store.read(expected.key).await?.expect("it is there");
        assert!(record.read_at > Timestamp::default());
        record.read_at = expected.read_at;
        assert_eq!(record, expected);
    }
    // And each is what the rules take it for.
    let claimed = |byte| world.store.claim(claim(KeyHash::from_bytes([byte; 32]), fresh()));
    for (byte, state) in
        [(0xa1, State::InProgress), (0xa2, State::InDoubt), (0xa3, State::Completed)]
    {
        assert_eq!(held(claimed(byte).await?).state, state);
    }
    assert_eq!(mine(claimed(0xa5).await?).attempts, 4);
    let owner = Token::from_bits(0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f);
    let stored = world.store.complete(commit(KeyHash::from_bytes([0xa1; 32]), owner)).await?;
    assert_eq!(stored, WriteOutcome::Applied);
    Ok(())
}

#[tokio::test]
async fn a_row_is_written_in_format_1() -> anyhow::Result<()> {
    let world = World::new().await?;
    mine(world.store.claim(claim(key(1), fresh())).await?);
    assert_eq!(world.figure("SELECT format FROM idempotency_records").await?, 1);
    Ok(())
}

#[tokio::test]
async fn rows_of_an_unknown_format_are_refused_and_left_alone() -> anyhow::Result<()> {
    let world = World::new().await?;
    let (mine_too, token) = (key(2), fresh());
    for key in [key(1), mine_too] {
        mine(world.store.claim(claim(key, token)).await?);
    }
    let unknown = "key_hash = (SELECT MIN(key_hash) FROM (SELECT key_hash FROM idempotency_records) AS records)";
    world
        .sql(&format!("UPDATE idempotency_records SET format = 2, purge_at = 1, expires_at = 1 WHERE {unknown}"))
        .await?;
    let dump = "SELECT HEX(key_hash), format, state, HEX(owner), revision, expires_at, purge_at, lease_until, HEX(body)
        FROM idempotency_records WHERE format = 2";
    let before = world.sql(dump).await?;

    let store = &world.store;
    let errors = [
        store.claim(claim(key(1), token)).await.map(drop).unwrap_err(),
        store.claim(claim(key(1), fresh())).await.map(drop).unwrap_err(),
        store.read(key(1)).await.map(drop).unwrap_err(),
        store.complete(commit(key(1), token)).await.map(drop).unwrap_err(),
        store.release(Release::new(key(1), token)).await.map(drop).unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), StoreErrorKind::Corrupt, "{error}");
    }
    let renewals = vec![Renewal::new(key(1), token, LEASE), Renewal::new(mine_too, token, LEASE)];
    assert_eq!(
        store.renew(renewals).await?,
        [WriteOutcome::Lost, WriteOutcome::Applied],
        "one row is no reason to lose the others"
    );
    let page = store.scan(Scan::default()).await?;
    let listed: Vec<_> = page.records.iter().map(|record| record.key).collect();
    assert_eq!(
        (listed, page.unreadable),
        (vec![mine_too], vec![key(1)]),
        "it lists what can be read"
    );
    let census = store.census(CensusBudget::of(Duration::from_secs(600))).await?;
    assert_eq!((census.count(), census.unreadable, census.complete), (1, 1, true));
    assert_eq!(store.purge(100).await?.removed, 0);
    assert_eq!(world.sql(dump).await?, before);
    assert_eq!(before.len(), 1);
    Ok(())
}
