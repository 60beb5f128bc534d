//! The settings of a session, which are the user's where the pool is, change nothing.

use std::time::{Duration, SystemTime};

use futures::future::try_join_all;
use idempotency::record::State;
use idempotency::store::{ClaimOutcome, MySqlStore, Store as _, StoreErrorKind};
use idempotency::{Error, ErrorAction, Idempotency, OnCrash};
use idempotency_test_support::deadline::eventually_async;
use sqlx::mysql::MySqlPoolOptions;

use crate::world::{DAY, PATIENCE, World, claim, everything, fresh, held, key, mine};

#[tokio::test]
async fn time_zones_and_modes_change_nothing() -> anyhow::Result<()> {
    const SESSIONS: [&str; 11] = [
        "SET time_zone = '+13:00', sql_mode = ''",
        "SET time_zone = '-12:59', sql_mode = 'ANSI'",
        "SET sql_mode = 'TRADITIONAL'",
        "SET sql_mode = 'ORACLE'",
        "SET sql_mode = 'MSSQL'",
        "SET sql_mode = 'PAD_CHAR_TO_FULL_LENGTH,NO_BACKSLASH_ESCAPES'",
        "SET sql_mode = 'IGNORE_SPACE,HIGH_NOT_PRECEDENCE,PIPES_AS_CONCAT'",
        "SET sql_mode = 'TIME_ROUND_FRACTIONAL,NO_UNSIGNED_SUBTRACTION,STRICT_ALL_TABLES'",
        "SET sql_safe_updates = 1, sql_select_limit = 1",
        "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    ];
    let world = World::new().await?;
    let running = mine(world.store.claim(claim(key(1), fresh())).await?);
    for (number, session) in (1..).zip(SESSIONS) {
        let store =
            MySqlStore::builder(world.pool(session).await?).response_timeout(PATIENCE).build()?;
        everything(&store, 1_000 * number)
            .await
            .unwrap_or_else(|error| panic!("{session}: {error:?}"));
        // Judged on the same time as by everybody else.
        let seen = held(store.claim(claim(key(1), fresh())).await?);
        assert!(
            seen.is_running() && seen.lease_until == running.lease_until,
            "{session}: {seen:?}"
        );
        let behind = seen.read_at.saturating_duration_since(running.read_at);
        assert!(behind < Duration::from_secs(60), "{session}: {behind:?}");
    }
    let since = SystemTime::from(running.read_at)
        .duration_since(SystemTime::now() - Duration::from_secs(60))?;
    assert!(since < Duration::from_secs(90), "it is the time in UTC");
    Ok(())
}

#[tokio::test]
async fn a_pool_whose_sessions_commit_nothing_or_change_results_is_refused() -> anyhow::Result<()> {
    let world = World::new().await?;
    for (session, word) in [
        ("SET autocommit = 0", "autocommit"),
        ("SET sql_mode = 'ANSI,EMPTY_STRING_IS_NULL'", "EMPTY_STRING_IS_NULL"),
        ("SET SESSION TRANSACTION ISOLATION LEVEL READ UNCOMMITTED", "READ UNCOMMITTED"),
    ] {
        let builder = MySqlStore::builder(world.pool(session).await?).response_timeout(PATIENCE);
        let error = builder.connect().await.unwrap_err();
        assert!(
            error.kind() == StoreErrorKind::Config && error.to_string().contains(word),
            "{error}"
        );
    }
    Ok(())
}

/// Other code may return a connection to the pool as it should not.
#[tokio::test]
async fn what_is_granted_is_committed_whatever_other_code_has_left_in_the_session()
-> anyhow::Result<()> {
    let world = World::new().await?;
    world.sql("CREATE TABLE charges (number INTEGER)").await?;
    let charge = async |engine: &Idempotency, number: u32| {
        let body = async || {
            let charge = format!("INSERT INTO charges VALUES ({number})");
            world.sql(&charge).await.expect("the charge");
            Ok::<_, Error>(())
        };
        engine.call("payments.charge", number).ttl(DAY).run(body).await
    };
    for (number, left) in (0..).zip(["START TRANSACTION", "SET autocommit = 0"]) {
        let pool = MySqlPoolOptions::new().max_connections(2).connect(&world.url).await?;
        let engine = Idempotency::builder(MySqlStore::from_pool(pool.clone()));
        let engine = engine.claim_timeout(PATIENCE).build()?;
        let connections = [pool.acquire().await?, pool.acquire().await?];
        for mut connection in connections {
            sqlx::raw_sql(left).execute(&mut *connection).await?;
        }
        let first = charge(&engine, number).await;
        pool.close().await;
        let elsewhere =
            Idempotency::builder(world.store.clone()).claim_timeout(PATIENCE).build()?;
        let again = charge(&elsewhere, number).await;
        let charges = format!("SELECT * FROM charges WHERE number = {number}");
        let charges = world.sql(&charges).await?.len();
        assert_eq!(charges, 1, "after {left}: {first:?}, {again:?}");
    }
    Ok(())
}

#[derive(Debug)]
struct MayHaveHappened;

impl From<Error> for MayHaveHappened {
    fn from(_: Error) -> Self {
        Self
    }
}

/// The pool gives the session that was returned first, and its reads see the time of its first one.
#[tokio::test]
async fn an_owner_is_not_misled_by_what_other_code_has_left_in_a_session() -> anyhow::Result<()> {
    for (number, left) in (0_u32..).zip(["START TRANSACTION", "SET autocommit = 0"]) {
        let world = World::new().await?;
        let pool = MySqlPoolOptions::new().max_connections(2).connect(&world.url).await?;
        let engine = Idempotency::builder(MySqlStore::from_pool(pool.clone()));
        let engine = engine.claim_timeout(PATIENCE).build()?;
        let (mut first, second) = (pool.acquire().await?, pool.acquire().await?);
        sqlx::raw_sql(left).execute(&mut *first).await?;
        first.return_to_pool().await;
        drop(second);
        eventually_async("both sessions", async || pool.num_idle() == 2).await?;
        let call = engine
            .call("payments.charge", number)
            .ttl(DAY)
            .on_crash(OnCrash::Retry)
            .on_error(ErrorAction::Hold);
        let body = async || Err::<(), _>(MayHaveHappened);
        let error = call.run(body).await.unwrap_err();
        let elsewhere = Idempotency::new(world.store.clone());
        let record = elsewhere.record("payments.charge", number).inspect().await?;
        let state = record.map(|record| record.state);
        assert_eq!(state, Some(State::InDoubt), "after {left}: {error:?}");
    }
    Ok(())
}

#[tokio::test]
async fn one_of_64_owns_the_key_in_every_isolation_level_that_is_taken() -> anyhow::Result<()> {
    let world = World::new().await?;
    let sessions = [
        "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
        "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    ];
    for (number, session) in (1..).zip(sessions) {
        let store =
            MySqlStore::builder(world.pool(session).await?).response_timeout(PATIENCE).build()?;
        for round in 0..5 {
            let key = key(number * 100 + round);
            let claims = (0..64).map(|_| {
                let store = store.clone();
                tokio::spawn(async move { store.claim(claim(key, fresh())).await })
            });
            let claims: Vec<_> = claims.collect();
            let mut owners = 0;
            for claimed in try_join_all(claims).await? {
                owners += usize::from(matches!(claimed?, ClaimOutcome::Granted(_)));
            }
            assert_eq!(owners, 1, "{session}");
        }
    }
    Ok(())
}
