//! What a purge costs beside a transaction that has been open for long, counted by the server.
//!
//! What was removed after the transaction began stays in the table and its indexes until it ends. A
//! batch that went over what the batches before it have removed would cost more each time.

use idempotency::store::Store as _;
use idempotency_test_support::server::PostgresServer;
use sqlx::PgPool;

use crate::world::{HOUR, migrated, number, quiet_server, run};

const BATCH: usize = 500;
const BATCHES: usize = 40;

/// How many pages the store's statements in the database at `url` have looked at.
async fn pages(server: &PostgresServer, url: &str) -> anyhow::Result<i64> {
    let database = url.rsplit('/').next().unwrap_or_default();
    let pages = format!(
        "SELECT coalesce(sum(shared_blks_hit + shared_blks_read), 0)::bigint FROM pg_stat_statements
         WHERE dbid = (SELECT oid FROM pg_database WHERE datname = '{database}') AND query LIKE '%due AS%'"
    );
    number(&server.sql(&pages).await?)
}

/// Adds `count` records whose time is over, each at another time and in no order.
async fn expired(
    server: &PostgresServer,
    url: &str,
    from: usize,
    count: usize,
) -> anyhow::Result<()> {
    let records = format!(
        "INSERT INTO idempotency_records
         SELECT sha256(number::text::bytea), format, state, owner, fence, revision, operation, namespace, holder,
             fingerprint, policy, created_at, attempts, reason, linger, 0, lease_until, over, over, schema_version, checkpoints, taken_over,
             trace, body
         FROM (SELECT * FROM idempotency_records ORDER BY key_hash LIMIT 1) AS record, (
             SELECT number, 1000000 + number::bigint * 7919 % 1000003 AS over
             FROM generate_series({from}, {from} + {count} - 1) AS number
         ) AS numbers"
    );
    server.sql_at(url, &records).await?;
    Ok(())
}

#[tokio::test]
async fn batches_beside_an_old_transaction_do_not_get_more_expensive() -> anyhow::Result<()> {
    let server = quiet_server().await?;
    let url = server.database("purging").await?;
    let store = migrated(&url).await?;
    run(&store, 0, "young", HOUR).await?;
    expired(&server, &url, 1, BATCH * BATCHES).await?;
    server.sql_at(&url, "VACUUM ANALYZE idempotency_records").await?;
    let other = PgPool::connect(&url).await?;
    let mut old = other.begin().await?;
    let seen = "SELECT count(*) FROM idempotency_records";
    sqlx::raw_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").execute(&mut *old).await?;
    let before: i64 = sqlx::query_scalar(seen).fetch_one(&mut *old).await?;

    let mut costs = Vec::new();
    for batch in 1..=BATCHES {
        let start = pages(&server, &url).await?;
        let purged = store.purge(BATCH).await?;
        assert_eq!(
            (purged.removed, purged.lag.is_some()),
            (BATCH, batch < BATCHES),
            "batch {batch}"
        );
        costs.push(pages(&server, &url).await? - start);
    }
    let sum = |costs: &[i64]| costs.iter().sum::<i64>();
    let (first, last) = (sum(&costs[..5]), sum(&costs[BATCHES - 5..]));
    assert!(last <= first * 3 / 2, "pages that each batch looked at: {costs:?}");

    // The old transaction still sees all of them, so nothing was tidied up meanwhile.
    assert_eq!(sqlx::query_scalar::<_, i64>(seen).fetch_one(&mut *old).await?, before);
    old.rollback().await?;
    Ok(())
}

/// A service that goes on for days beside it: each look of its purge finds nothing, or a few.
#[tokio::test]
async fn looks_beside_an_old_transaction_do_not_go_over_all_that_was_removed() -> anyhow::Result<()>
{
    const REMOVED: usize = 20_000;
    const LOOKS: i64 = 100;
    let server = quiet_server().await?;
    let url = server.database("purging").await?;
    let store = migrated(&url).await?;
    run(&store, 0, "young", HOUR).await?;
    expired(&server, &url, 1, REMOVED).await?;
    let other = PgPool::connect(&url).await?;
    let mut old = other.begin().await?;
    sqlx::raw_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").execute(&mut *old).await?;
    sqlx::query("SELECT count(*) FROM idempotency_records").execute(&mut *old).await?;
    while store.purge(1_000).await?.lag.is_some() {}

    let start = pages(&server, &url).await?;
    for _ in 0..LOOKS {
        let purged = store.purge(1_000).await?;
        assert_eq!((purged.removed, purged.lag), (0, None));
    }
    let spent = pages(&server, &url).await? - start;
    let at_least_for_all = i64::try_from(REMOVED)?;
    assert!(spent < LOOKS * at_least_for_all / 10, "{spent} pages for {LOOKS} looks");

    // What is due behind that, because somebody has set it back, is found in the end.
    server.sql_at(&url, "UPDATE idempotency_records SET expires_at = 5, purge_at = 5").await?;
    let mut removed = 0;
    for _ in 0..LOOKS {
        removed += store.purge(1_000).await?.removed;
    }
    assert_eq!(removed, 1);
    old.rollback().await?;
    Ok(())
}
