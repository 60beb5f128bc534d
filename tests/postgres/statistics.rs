//! What calls cost the server, by its own account.

use idempotency::store::{Claim, ClaimOutcome, PostgresStore, State, Store as _, Token};
use idempotency::{Error, Idempotency};
use sqlx::PgPool;

use crate::world::{DAY, HOUR, OPERATION, PATIENCE, key, migrated, number, quiet_server, run};

#[tokio::test]
async fn replays_write_no_wal_and_wait_for_no_lock() -> anyhow::Result<()> {
    let server = quiet_server().await?;
    let url = server.database("replays").await?;
    let store = migrated(&url).await?;
    for number in 0..10 {
        run(&store, number, "a result", DAY).await?;
    }
    let replay = async |number: u32| {
        let claimed =
            store.claim(Claim::new(key(number), Token::from_bits(99), OPERATION.into())).await?;
        let ClaimOutcome::Existing(record) = claimed else { anyhow::bail!("claimed anew") };
        assert_eq!((record.state, &record.body[..]), (State::Completed, &b"a result"[..]));
        Ok(())
    };
    // Reading rows for the first time tidies up behind their writers, and that is written.
    server.sql_at(&url, "VACUUM (FREEZE) idempotency_records; CHECKPOINT").await?;
    replay(0).await?;
    let position = || async {
        let position = server.sql("SELECT pg_current_wal_insert_lsn() - '0/0'").await?;
        number(&position)
    };
    let before = position().await?;
    for round in 0..1_000 {
        replay(round % 10).await?;
    }
    assert_eq!(position().await? - before, 0, "bytes of WAL");
    run(&store, 10, "a result", DAY).await?;
    assert!(position().await? > before, "a call that runs is written");

    // Somebody holds the strongest lock that a row can have.
    let other = PgPool::connect(&url).await?;
    let mut transaction = other.begin().await?;
    sqlx::query("SELECT 1 FROM idempotency_records FOR UPDATE").execute(&mut *transaction).await?;
    replay(3).await?;
    transaction.rollback().await?;
    Ok(())
}

/// 200 bytes of result, five hundred times.
#[tokio::test]
async fn a_call_writes_about_a_kilobyte_of_wal_and_its_replay_none() -> anyhow::Result<()> {
    const CALLS: u32 = 500;
    let server = quiet_server().await?;
    let url = server.database("wal").await?;
    let engine = Idempotency::builder(migrated(&url).await?).claim_timeout(PATIENCE).lease(HOUR);
    let engine = engine.background_purge(false).build()?;
    let call = async |key: u32| {
        let body = async || Ok::<_, Error>("x".repeat(198));
        engine
            .call(OPERATION, key)
            .ttl(DAY)
            .run(body)
            .await
            .map(|result| assert_eq!(result.len(), 198))
    };
    let position =
        async || number(&server.sql("SELECT pg_current_wal_insert_lsn() - '0/0'").await?);
    // Pages are there, and what is asked of the catalogs once.
    for key in 0..10 {
        call(key).await?;
    }
    let before = position().await?;
    for key in 10..10 + CALLS {
        call(key).await?;
    }
    let each = (position().await? - before) / i64::from(CALLS);
    assert!((800..1_150).contains(&each), "{each} bytes of WAL for a call");

    // Reading rows for the first time tidies up behind their writers, and that is written.
    server.sql_at(&url, "VACUUM (FREEZE) idempotency_records; CHECKPOINT").await?;
    call(10).await?;
    let before = position().await?;
    for key in 10..10 + CALLS {
        call(key).await?;
    }
    assert_eq!(position().await? - before, 0, "bytes of WAL for {CALLS} replays");
    Ok(())
}

#[tokio::test]
async fn commits_stay_in_their_page_and_touch_no_index() -> anyhow::Result<()> {
    let server = quiet_server().await?;
    let url = server.database("commits").await?;
    migrated(&url).await?;
    let pool = PgPool::connect(&url).await?;
    let store = PostgresStore::builder(pool.clone()).response_timeout(PATIENCE).build()?;
    let body = "x".repeat(200);
    for number in 0..500 {
        run(&store, number, &body, DAY).await?;
    }
    // A session hands its figures in when it ends.
    pool.close().await;
    let figures = "SELECT n_tup_ins, n_tup_upd, n_tup_hot_upd, n_tup_del FROM pg_stat_user_tables
                   WHERE relname = 'idempotency_records'";
    idempotency_test_support::deadline::eventually_async("the figures", async || {
        server
            .sql_at(&url, figures)
            .await
            .is_ok_and(|rows| rows == [["500", "500", "500", "0"].map(|n| Some(n.into()))])
    })
    .await?;
    Ok(())
}

/// Holds what `docs/postgres.md` says of sizes to the order of magnitude.
#[tokio::test]
async fn a_record_takes_about_a_kilobyte() -> anyhow::Result<()> {
    const RECORDS: u32 = 2_000;
    let server = quiet_server().await?;
    let url = server.database("sizes").await?;
    let store = migrated(&url).await?;
    let body = "x".repeat(200);
    for number in 0..RECORDS {
        run(&store, number, &body, DAY).await?;
    }
    let size = number(
        &server.sql_at(&url, "SELECT pg_total_relation_size('idempotency_records')").await?,
    )?;
    let each = size / i64::from(RECORDS);
    assert!((400..1_500).contains(&each), "{each} bytes per record with a result of 200 bytes");
    Ok(())
}
