//! How the server finds the rows of a large table, for each thing that a store does, as the server
//! itself tells: `auto_explain` writes down the plan of every statement that it has executed.
//!
//! `IDEMPOTENCY_LONG` makes it ten million rows.

mod log;

use std::time::Duration;

use idempotency::key::KeyHash;
use idempotency::store::{
    Abandon, CensusBudget, Checkpoint, ClaimOutcome, Commit, Park, PostgresStore, Reason, Release,
    Remove, Renewal, Scan, Store as _, WriteOutcome,
};
use idempotency_test_support::server::{PostgresOptions, PostgresServer};
use log::{Log, Plan};
use sqlx::{AssertSqlSafe, PgPool};

use crate::world::{DAY, HOUR, claim, key, patient, run, token};

const PRIMARY: &str = "idempotency_records_pkey";
const PURGE: &str = "idempotency_records_purge_at";

fn rows() -> u32 {
    if std::env::var_os("IDEMPOTENCY_LONG").is_some() { 10_000_000 } else { 200_000 }
}

/// Records in all states, one in twenty-five due; their keys and times are in no order.
async fn load(url: &str, rows: u32) -> anyhow::Result<()> {
    let now = "floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint";
    // One transaction: what is written into a table that it has emptied is not logged.
    let load = format!(
        "ALTER TABLE idempotency_records DROP CONSTRAINT {PRIMARY};
         DROP INDEX {PURGE};
         TRUNCATE idempotency_records;
         INSERT INTO idempotency_records
         SELECT decode(md5(n::text) || md5('b' || n), 'hex'), 1, (ARRAY[1, 2, 4, 5, 6, 3, 3, 3, 3, 3])[1 + n % 10],
             decode(md5('o' || n), 'hex'), n, 1, (ARRAY['payments.charge', 'orders.create', 'mails.send'])[1 + n % 3],
             'default', 'shop-6c9f/1234', NULL, 1, now - 86400000, 1, 0, 3600000, 86400000 * (n % 7 / 6), now + 3600000, over, over, 1, 0, 0, NULL,
             decode(md5(n::text), 'hex')
         FROM (
             SELECT n, now, now + (n::bigint * 7919 % 10000019) * 8 - 3200000 AS over
             FROM (SELECT {now} AS now) AS clock, generate_series(1, {rows}) AS n
         ) AS numbers;
         ALTER TABLE idempotency_records ADD CONSTRAINT {PRIMARY} PRIMARY KEY (key_hash);
         CREATE INDEX {PURGE} ON idempotency_records (purge_at);
         ANALYZE idempotency_records"
    );
    // Takes longer than the client that other tests use would wait.
    sqlx::raw_sql(AssertSqlSafe(load)).execute(&PgPool::connect(url).await?).await?;
    Ok(())
}

/// The keys of some records that the store itself did not make.
async fn loaded(server: &PostgresServer, url: &str) -> anyhow::Result<Vec<KeyHash>> {
    let keys = "SELECT encode(key_hash, 'hex') FROM idempotency_records
                WHERE state = 3 AND expires_at > extract(epoch FROM clock_timestamp()) * 1000 + 3600000 LIMIT 5";
    let rows = server.sql_at(url, keys).await?;
    let key = |digits: &str| {
        let byte = |at: usize| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16);
        let bytes = (0..32).map(byte).collect::<Result<Vec<_>, _>>()?;
        Ok(KeyHash::from_bytes(bytes.try_into().map_err(|_| anyhow::anyhow!("{digits}"))?))
    };
    rows.iter().map(|row| key(row[0].as_deref().unwrap_or_default())).collect()
}

/// What each thing that the store does may use, and how many pages it may look at. `first` is a
/// number that no other run on the table has.
async fn everything(
    store: &PostgresStore,
    log: &Log,
    loaded: &[KeyHash],
    first: u32,
) -> anyhow::Result<()> {
    let by_key = |plan: &Plan, pages: i64| plan.assert_uses(&[PRIMARY], pages);
    let expect = async |what: &str, pages: i64| {
        let plans = log.plans().await?;
        assert!(!plans.is_empty(), "{what}: no statement was seen");
        for plan in &plans {
            by_key(plan, pages);
        }
        anyhow::Ok(())
    };
    for round in 0..10 {
        run(store, first + round, "receipt", DAY).await?;
    }
    expect("claims and results", 60).await?;
    for key in loaded {
        assert!(matches!(store.claim(claim_of(*key)).await?, ClaimOutcome::Existing(_)));
        assert!(store.read(*key).await?.is_some());
    }
    expect("hits", 20).await?;
    let (one, many) = (first + 20, if rows() > 1_000_000 { 1_000 } else { 100 });
    for number in 0..many {
        store.claim(claim(one + number)).await?;
    }
    log.plans().await?;
    let renewals =
        (0..many).map(|number| Renewal::new(key(one + number), token(one + number), HOUR));
    assert!(
        store
            .renew(renewals.collect())
            .await?
            .iter()
            .all(|written| *written == WriteOutcome::Applied)
    );
    expect("a renewal", i64::from(many) * 40).await?;
    let others = (0..many).map(|number| Renewal::new(key(one + number), token(7), HOUR));
    store.renew(others.collect()).await?;
    expect("a renewal of what is others'", i64::from(many) * 40).await?;
    assert!(store.fence(key(one), token(one)).await?.is_some());
    expect("a fence", 20).await?;
    let watch = store.watch(key(one)).await?;
    let waiting = tokio::spawn(watch);
    log.eventually("two looks of a waiter", |plans| {
        for plan in plans {
            by_key(plan, 20);
        }
        plans.len() >= 3
    })
    .await?;
    store.complete(Commit::new(key(one), token(one), "done".into(), DAY)).await?;
    waiting.await?;
    log.plans().await?;
    store.checkpoint(Checkpoint::new(key(one + 1), token(one + 1), 0, "step".into())).await?;
    store.abandon(Abandon::new(key(one + 1), token(one + 1), Reason::Dropped)).await?;
    store.park(Park::own(key(one + 2), token(one + 2), Reason::Error)).await?;
    store.release(Release::new(key(one + 3), token(one + 3))).await?;
    let mut remove = Remove::new(key(one + 4), token(one + 4));
    remove.force = true;
    store.remove(remove).await?;
    expect("changes", 60).await?;
    let mut scan = Scan::default();
    scan.limit = 100;
    for _ in 0..3 {
        scan.after = store.scan(scan.clone()).await?.next;
        assert!(scan.after.is_some());
    }
    expect("pages of a listing", 1_200).await?;
    // Step by step, each with as many rows as it counts.
    let census = store.census(CensusBudget::of(DAY)).await?;
    assert!(census.complete && census.unreadable == 0, "{census:?}");
    assert!(census.count() > u64::from(rows()) / 2, "{census:?}");
    let plans = log.plans().await?;
    assert!(plans.len() > 20, "{} steps of a census", plans.len());
    for plan in &plans {
        plan.assert_finds(&[PRIMARY], 4_000 * 3);
    }
    let part = store.census(CensusBudget::of(Duration::from_millis(20))).await?;
    assert!(!part.complete && part.percent < Some(100), "{part:?}");
    let (percent, share) = (part.percent.unwrap_or_default(), part.count() * 100 / census.count());
    assert!(share.abs_diff(percent.into()) <= 3, "{percent} % with {share} % of the records");
    log.plans().await?;
    for _ in 0..3 {
        assert!(store.purge(500).await?.lag.is_some());
    }
    let plans = log.plans().await?;
    assert_eq!(plans.len(), 3);
    for plan in plans {
        plan.assert_uses(&[PRIMARY, PURGE], 500 * 40);
    }
    Ok(())
}

fn claim_of(key: KeyHash) -> idempotency::store::Claim {
    idempotency::store::Claim::new(key, token(7), "payments.charge".into())
}

#[tokio::test]
async fn every_row_is_found_by_an_index() -> anyhow::Result<()> {
    let mut options = PostgresOptions::new().private();
    for (name, value) in [
        ("shared_preload_libraries", "auto_explain"),
        ("auto_explain.log_min_duration", "0"),
        ("auto_explain.log_format", "json"),
        ("auto_explain.log_analyze", "on"),
        ("auto_explain.log_timing", "off"),
        ("auto_explain.log_buffers", "on"),
        ("logging_collector", "on"),
        ("log_line_prefix", ""),
        ("log_rotation_size", "0"),
        ("log_rotation_age", "0"),
        ("autovacuum", "off"),
        // The rows are not written twice, and their index is sorted in memory.
        ("wal_level", "minimal"),
        ("max_wal_senders", "0"),
        ("maintenance_work_mem", "1GB"),
        ("shared_buffers", "512MB"),
    ] {
        options = options.setting(name, value);
    }
    let server = PostgresServer::start(options).await?;
    let url = server.database("plans").await?;
    patient(&url).connect().await?.migrate().await?;
    load(&url, rows()).await?;
    let loaded = loaded(&server, &url).await?;
    let database = url.rsplit('/').next().unwrap_or_default();
    for (number, mode) in (0..).zip(["force_custom_plan", "force_generic_plan", "text"]) {
        let builder = patient(&url).response_timeout(Duration::from_secs(60));
        let store = if mode == "text" {
            builder.without_prepared_statements().connect().await?
        } else {
            server.sql(&format!("ALTER DATABASE {database} SET plan_cache_mode = {mode}")).await?;
            builder.connect().await?
        };
        let log = Log::new(&server, mode).await?;
        everything(&store, &log, &loaded, 10_000 * number).await?;
    }
    Ok(())
}
