//! How the server finds the rows of a large table, for each thing that a store does, as the server
//! itself tells: the plan of every statement that it has executed is in its log of slow queries,
//! and none is fast enough to be left out.
//!
//! `IDEMPOTENCY_LONG` makes it ten million rows.

mod log;

use std::time::Duration;

use idempotency::key::KeyHash;
use idempotency::store::{
    Abandon, CensusBudget, Checkpoint, ClaimOutcome, MySqlStore, Park, Reason, Release, Remove,
    Renewal, Scan, Store as _, Token, WriteOutcome,
};
use idempotency_test_support::deadline::eventually_async;
use idempotency_test_support::server::MariaDbOptions;
use log::Log;
use sqlx::{AssertSqlSafe, MySqlPool};

use crate::world::{LEASE, World, claim, commit, mine};

fn rows() -> u32 {
    if std::env::var_os("IDEMPOTENCY_LONG").is_some() { 10_000_000 } else { 200_000 }
}

/// Records in all states, one in twenty-five due, their times in no order. Their keys are text, so
/// that statements with them can be sent again as text.
async fn load(world: &World, rows: u32) -> anyhow::Result<()> {
    let now = "TIMESTAMPDIFF(MICROSECOND, '1970-01-01 00:00:00', UTC_TIMESTAMP(6)) DIV 1000";
    let over = "@now + CRC32(seq) MOD 80000000 - 3200000";
    let load = format!(
        "SET @now = {now}, unique_checks = 0, foreign_key_checks = 0;
         ALTER TABLE idempotency_records DROP INDEX idempotency_records_purge_at;
         INSERT INTO idempotency_records
         SELECT CONCAT(LPAD(HEX(seq * 429), 8, '0'), SUBSTR(MD5(seq), 1, 24)), 1, ELT(1 + seq MOD 8, 1, 2, 4, 5, 6, 3, 3, 3),
             SUBSTR(MD5(seq * 7), 1, 16), seq, 1, ELT(1 + seq MOD 3, 'payments.charge', 'orders.create', 'mails.send'),
             'default', 'shop-6c9f/1234', NULL, 1, @now - 86400000, 1, 0, 3600000, IF(seq MOD 7, 0, 86400000),
             @now + 3600000, {over}, {over}, 1, 0, 0, NULL, MD5(seq)
         FROM seq_1_to_{rows};
         ALTER TABLE idempotency_records ADD INDEX idempotency_records_purge_at (purge_at);
         ANALYZE TABLE idempotency_records"
    );
    // Takes longer than the client that other tests use would wait.
    sqlx::raw_sql(AssertSqlSafe(load)).execute(&MySqlPool::connect(&world.url).await?).await?;
    Ok(())
}

/// The key of a loaded record that has a result.
async fn loaded(world: &World) -> anyhow::Result<KeyHash> {
    let key = "SELECT key_hash FROM idempotency_records WHERE state = 3
               AND expires_at > UNIX_TIMESTAMP() * 1000 + 3600000 LIMIT 1";
    let rows = world.sql(key).await?;
    let key = rows[0][0].as_deref().unwrap_or_default();
    Ok(KeyHash::from_bytes(key.as_bytes().try_into()?))
}

fn key(number: u32) -> KeyHash {
    let digits = format!("{number:032}");
    KeyHash::from_bytes(digits.as_bytes().try_into().expect("32 digits"))
}

fn token(name: &[u8; 16]) -> Token {
    Token::from_bits(u128::from_be_bytes(*name))
}

async fn everything(store: &MySqlStore, loaded: KeyHash) -> anyhow::Result<()> {
    let (own, other) = (token(b"the claim is our"), token(b"somebody else is"));
    for number in 0..600 {
        mine(store.claim(claim(key(number), own)).await?);
    }
    assert!(matches!(store.claim(claim(loaded, other)).await?, ClaimOutcome::Existing(_)));
    for token in [own, other] {
        let renewals = (0..600).map(|number| Renewal::new(key(number), token, LEASE * 2));
        let written = store.renew(renewals.collect()).await?;
        assert!(
            written.iter().all(|written| (*written == WriteOutcome::Applied) == (token == own))
        );
    }
    assert!(store.fence(key(0), own).await?.is_some());
    let waiting = tokio::spawn(store.watch(key(1)).await?);
    store.checkpoint(Checkpoint::new(key(2), own, 0, "step".into())).await?;
    store.abandon(Abandon::new(key(2), own, Reason::Dropped)).await?;
    store.park(Park::own(key(3), own, Reason::Error)).await?;
    store.release(Release::new(key(4), own)).await?;
    let mut remove = Remove::new(key(5), own);
    remove.force = true;
    store.remove(remove).await?;
    let mut scan = Scan::default();
    scan.limit = 100;
    for _ in 0..3 {
        scan.after = store.scan(scan.clone()).await?.next;
        assert!(scan.after.is_some());
    }
    let census = store.census(CensusBudget::of(Duration::from_secs(600))).await?;
    assert!(census.complete && census.unreadable == 0, "{census:?}");
    for _ in 0..3 {
        assert!(store.purge(1_000).await?.removed > 0);
    }
    assert_eq!(store.complete(commit(key(1), own)).await?, WriteOutcome::Applied);
    waiting.await?;
    Ok(())
}

/// How the statements begin that have to be among those that were seen.
const KINDS: [&str; 14] = [
    "SELECT server.micros",
    "INSERT",
    "UPDATE `idempotency_records` SET `format`",
    "UPDATE `idempotency_records` SET purge_at",
    "UPDATE `idempotency_records` FORCE INDEX (PRIMARY)\n             SET expires_at",
    "DELETE FROM",
    "DELETE kept",
    "SELECT key_hash FROM `idempotency_records` FORCE INDEX (PRIMARY)",
    "SELECT key_hash, owner",
    "SELECT key_hash, purge_at",
    "SELECT server.read_at",
    "SELECT (TIMESTAMPDIFF(MICROSECOND, '1970-01-01 00:00:00', UTC_TIMESTAMP(6)) DIV 1000), `key_hash`",
    "SELECT CAST(max(now_is) AS SIGNED)",
    "UPDATE `idempotency_records` FORCE INDEX (PRIMARY) SET purge_at",
];

#[tokio::test]
async fn every_row_is_found_by_an_index() -> anyhow::Result<()> {
    let mut options = MariaDbOptions::new();
    for (name, value) in [
        ("slow_query_log", "1"),
        ("long_query_time", "0"),
        ("log_slow_verbosity", "explain"),
        ("innodb_buffer_pool_size", "1G"),
        ("innodb_log_file_size", "1G"),
    ] {
        options = options.setting(name, value);
    }
    let world = World::private(options).await?;
    load(&world, rows()).await?;
    let log = Log::new(&world.url).await?;
    everything(&world.store, loaded(&world).await?).await?;
    let mut seen = Vec::new();
    eventually_async("all statements in the log", async || {
        seen = log.executed().await.unwrap_or_default();
        KINDS.iter().all(|kind| seen.iter().any(|executed| executed.text.starts_with(kind)))
    })
    .await
    .map_err(|error| {
        let missing = KINDS
            .iter()
            .filter(|kind| !seen.iter().any(|executed| executed.text.starts_with(**kind)));
        error.context(format!("missing: {:?}", missing.collect::<Vec<_>>()))
    })?;
    for executed in &seen {
        executed.assert_by_index();
    }
    // The same as text.
    for kind in KINDS {
        let executed =
            seen.iter().find(|executed| executed.text.starts_with(kind)).expect("it was seen");
        log.explained(&executed.text).await?.assert_by_index();
    }
    Ok(())
}
