//! What a purge costs beside a transaction that has been open for long, counted by the server.
//!
//! What was removed after the transaction began stays in the index, and in its history, until it
//! ends. A batch that went over what the batches before it have removed would cost more each time.

use idempotency::store::Store as _;
use idempotency_test_support::server::MariaDbOptions;
use sqlx::{MySql, Transaction};

use crate::world::{World, key};

const BATCH: usize = 500;
const BATCHES: usize = 40;

/// How many pages the server has looked at.
async fn pages(world: &World) -> anyhow::Result<i64> {
    world
        .figure(
            "SELECT VARIABLE_VALUE FROM information_schema.GLOBAL_STATUS
             WHERE VARIABLE_NAME = 'Innodb_buffer_pool_read_requests'",
        )
        .await
}

/// Adds `count` records whose time is over, in no order of their keys, as many at a time as there
/// are in `same`.
async fn expired(world: &World, count: usize, same: usize) -> anyhow::Result<()> {
    let over = format!("1000000 + (seq DIV {same}) * 7919 MOD 1000003");
    world
        .sql(&format!(
            "INSERT INTO idempotency_records
             SELECT UNHEX(SHA2(seq, 256)), 1, 3, UNHEX(MD5(seq)), seq, 1, 'payments.charge', '', '', NULL, 0, 1, 1, 0, 0, 0, 0,
                 {over}, {over}, 1, 0, 0, NULL, 'receipt' FROM seq_1_to_{count};
             ANALYZE TABLE idempotency_records"
        ))
        .await?;
    Ok(())
}

/// A transaction that has seen all records, and has written something: the server remembers for it
/// what each record was.
async fn old_transaction(world: &World) -> anyhow::Result<Transaction<'static, MySql>> {
    let pool = world.pool("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ").await?;
    sqlx::raw_sql("CREATE TABLE others (id INT PRIMARY KEY)").execute(&pool).await?;
    let mut old = pool.begin().await?;
    sqlx::raw_sql("INSERT INTO others VALUES (1)").execute(&mut *old).await?;
    sqlx::raw_sql("SELECT COUNT(*) FROM idempotency_records").execute(&mut *old).await?;
    Ok(old)
}

async fn costs_of_batches(world: &World) -> anyhow::Result<Vec<i64>> {
    let mut costs = Vec::new();
    for batch in 1..=BATCHES {
        let start = pages(world).await?;
        let purged = world.store.purge(BATCH).await?;
        assert_eq!(
            (purged.removed, purged.lag.is_some()),
            (BATCH, batch < BATCHES),
            "batch {batch}"
        );
        costs.push(pages(world).await? - start);
    }
    Ok(costs)
}

#[track_caller]
fn assert_steady(costs: &[i64]) {
    let sum = |costs: &[i64]| costs.iter().sum::<i64>();
    let (first, last) = (sum(&costs[..5]), sum(&costs[BATCHES - 5..]));
    assert!(last <= first * 3 / 2, "pages that were looked at for each batch: {costs:?}");
}

#[tokio::test]
async fn batches_beside_an_old_transaction_do_not_get_more_expensive() -> anyhow::Result<()> {
    let world = World::private(MariaDbOptions::new()).await?;
    expired(&world, BATCH * BATCHES, 1).await?;
    let old = old_transaction(&world).await?;
    assert_steady(&costs_of_batches(&world).await?);
    old.rollback().await?;
    Ok(())
}

#[tokio::test]
async fn nor_where_many_records_end_at_the_same_time() -> anyhow::Result<()> {
    let world = World::private(MariaDbOptions::new()).await?;
    expired(&world, BATCH * BATCHES, 7_000).await?;
    let old = old_transaction(&world).await?;
    assert_steady(&costs_of_batches(&world).await?);
    old.rollback().await?;
    Ok(())
}

/// A service that goes on for days beside it: each look of its purge finds nothing, or a few.
#[tokio::test]
async fn looks_beside_an_old_transaction_do_not_go_over_all_that_was_removed() -> anyhow::Result<()>
{
    const REMOVED: usize = 20_000;
    const LOOKS: i64 = 100;
    let world = World::private(MariaDbOptions::new()).await?;
    expired(&world, REMOVED, 1).await?;
    world.completed(key(1)).await?;
    let old = old_transaction(&world).await?;
    while world.store.purge(1_000).await?.lag.is_some() {}

    let start = pages(&world).await?;
    for _ in 0..LOOKS {
        let purged = world.store.purge(1_000).await?;
        assert_eq!((purged.removed, purged.lag), (0, None));
    }
    let spent = pages(&world).await? - start;
    let at_least_for_all = i64::try_from(REMOVED)?;
    assert!(spent < LOOKS * at_least_for_all / 10, "{spent} pages for {LOOKS} looks");

    // What is due behind that, because somebody has set it back, is found in the end.
    world.sql("UPDATE idempotency_records SET expires_at = 5, purge_at = 5").await?;
    let mut removed = 0;
    for _ in 0..LOOKS {
        removed += world.store.purge(1_000).await?.removed;
    }
    assert_eq!(removed, 1);
    old.rollback().await?;
    Ok(())
}
