//! Nobody waits for a lock when nobody waits for the answer any more: what the server did then
//! would be nobody's.

use std::time::Duration;

use anyhow::Context as _;
use idempotency::store::{CensusBudget, CrashPolicy, PostgresStore, Scan, State, Store as _};
use idempotency::{Error, ErrorKind, Idempotency};
use idempotency_test_support::deadline::eventually_async;
use idempotency_test_support::server::{PgBouncer, PgBouncerOptions};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Postgres, Transaction};

use crate::world::{DAY, OPERATION, World, claim, key, number, token};

/// Stores whose sessions wait for ever, and the pooler behind which one of them is: it takes the
/// settings that the store gives a session, and drops them.
async fn patient_sessions(
    world: &World,
) -> anyhow::Result<(PgBouncer, [(&'static str, PostgresStore); 3])> {
    let options = PgBouncerOptions::before(world.server).setting("pool_mode", "session");
    let pooler = PgBouncer::start(
        options.setting("ignore_startup_parameters", "extra_float_digits, options"),
    )
    .await?;
    let through = pooler.through(&world.url);
    // Read back, so that a pooler that lets them pass some day is noticed.
    let bound =
        PgPoolOptions::new().connect(&format!("{through}?options=-c%20lock_timeout%3D1234")).await;
    let (bound,): (String,) = sqlx::query_as("SHOW lock_timeout").fetch_one(&bound?).await?;
    assert_eq!(bound, "0", "the pooler drops it");
    let stores = [
        (
            "a pool of the user's",
            PostgresStore::from_pool(PgPoolOptions::new().connect(&world.url).await?),
        ),
        (
            "unprepared",
            PostgresStore::builder(&world.url).without_prepared_statements().connect().await?,
        ),
        ("behind a pooler", PostgresStore::builder(through).connect().await?),
    ];
    Ok((pooler, stores))
}

/// Also where its client has gone.
async fn nobody_waits(world: &World) -> anyhow::Result<()> {
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
    eventually_async("the server to give up waiting", async || {
        world.sql(waiting).await.is_ok_and(|rows| number(&rows).is_ok_and(|count| count == 0))
    })
    .await
}

#[tokio::test]
async fn a_claim_that_waited_for_a_transaction_leaves_nothing_when_that_is_rolled_back()
-> anyhow::Result<()> {
    let world = World::new().await?;
    let (_pooler, stores) = patient_sessions(&world).await?;
    for (name, store) in stores {
        let engine = Idempotency::new(store);
        let pool = PgPoolOptions::new().connect(&world.url).await?;
        let mut transaction = pool.begin().await?;
        engine
            .call(OPERATION, name)
            .ttl(DAY)
            .run_in(&mut transaction, async |_| Ok::<_, Error>(1))
            .await?;
        let refused = engine.call(OPERATION, name).ttl(DAY).run(async || Ok::<_, Error>(2)).await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::StoreUnavailable, "{name}");
        nobody_waits(&world).await?;
        transaction.rollback().await?;
        let record = engine.record(OPERATION, name).inspect().await?;
        assert!(record.is_none(), "{name}: {record:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_takeover_that_waited_for_a_transaction_does_not_happen_when_that_is_rolled_back()
-> anyhow::Result<()> {
    let world = World::new().await?;
    let (_pooler, stores) = patient_sessions(&world).await?;
    for (number, (name, store)) in (1..).zip(stores) {
        let mut dead = claim(number);
        (dead.policy, dead.lease) = (CrashPolicy::Retry, Duration::from_millis(1));
        (dead.linger, dead.ttl) = (DAY, DAY);
        store.claim(dead.clone()).await?;
        let lease_is_over = async || {
            let record = store.read(key(number)).await;
            record.is_ok_and(|record| {
                record.is_some_and(|record| record.lease_until < record.read_at)
            })
        };
        eventually_async("the lease to be over", lease_is_over).await?;
        let pool = PgPoolOptions::new().connect(&world.url).await?;
        let mut transaction = pool.begin().await?;
        sqlx::query("SELECT 1 FROM idempotency_records FOR UPDATE")
            .execute(&mut *transaction)
            .await?;
        let mut next = dead.clone();
        next.token = token(1_000);
        let error = store.claim(next).await.unwrap_err();
        assert!(error.is_transient(), "{name}: {error}");
        nobody_waits(&world).await?;
        transaction.rollback().await?;
        let record = store.read(key(number)).await?.expect("it is there");
        assert_eq!((record.owner, record.state), (token(number), State::InProgress), "{name}");
    }
    Ok(())
}

#[tokio::test]
async fn the_bound_of_a_claim_is_not_left_in_the_users_session() -> anyhow::Result<()> {
    let world = World::new().await?;
    let pool = PgPoolOptions::new().max_connections(1).connect(&world.url).await?;
    sqlx::query("SET lock_timeout = '17s'").execute(&pool).await?;
    let store = PostgresStore::from_pool(pool.clone());
    store.claim(claim(1)).await?;
    crate::world::run(&store, 2, "one", DAY).await?;
    let (bound,): (String,) = sqlx::query_as("SHOW lock_timeout").fetch_one(&pool).await?;
    assert_eq!(bound, "17s");
    Ok(())
}

/// As `ALTER TABLE` and `VACUUM FULL` do. The statements wait for the table before they can bound
/// anything.
#[tokio::test]
async fn a_claim_that_waited_for_a_locked_table_leaves_nothing() -> anyhow::Result<()> {
    const CLAIMS: u32 = 6;
    let world = World::new().await?;
    let own = PostgresStore::builder(&world.url).connect().await?;
    let (_pooler, stores) = patient_sessions(&world).await?;
    for (name, store) in stores.into_iter().chain([("own", own)]) {
        // Prepared.
        store.claim(claim(100)).await?;
        let mut locking = PgPoolOptions::new().connect(&world.url).await?.begin().await?;
        sqlx::raw_sql("LOCK TABLE idempotency_records IN ACCESS EXCLUSIVE MODE")
            .execute(&mut *locking)
            .await?;
        for refused in
            futures::future::join_all((0..CLAIMS).map(|number| store.claim(claim(number)))).await
        {
            assert!(refused.unwrap_err().is_transient(), "{name}");
        }
        locking.rollback().await?;
        nobody_waits(&world).await?;
        let late = number(&world.sql("SELECT count(*) FROM idempotency_records").await?)?;
        assert_eq!(late, 1, "{name}: claims that nobody waited for were written");
    }
    Ok(())
}

/// All that a store can be connected by, each with a session that waits for ever unless it is told
/// otherwise.
async fn all_kinds(
    world: &World,
    poolers: &[PgBouncer; 2],
) -> anyhow::Result<Vec<(&'static str, PostgresStore)>> {
    let [by_session, by_transaction] = poolers;
    let (_pooler, [foreign, unprepared, _]) = patient_sessions(world).await?;
    let url = by_transaction.through(&world.url);
    Ok(vec![
        ("own", PostgresStore::builder(&world.url).build()?),
        foreign,
        unprepared,
        (
            "behind a pooler that drops settings",
            PostgresStore::builder(by_session.through(&world.url)).build()?,
        ),
        (
            "behind a pooler of transactions",
            PostgresStore::builder(url).without_prepared_statements().build()?,
        ),
    ])
}

async fn poolers(world: &World) -> anyhow::Result<[PgBouncer; 2]> {
    let options =
        || PgBouncerOptions::before(world.server).setting("ignore_startup_parameters", "options");
    let by_session = PgBouncer::start(options().setting("pool_mode", "session")).await?;
    Ok([by_session, PgBouncer::start(options().setting("pool_mode", "transaction")).await?])
}

async fn lock(world: &World) -> anyhow::Result<Transaction<'static, Postgres>> {
    let mut locking = PgPoolOptions::new().connect(&world.url).await?.begin().await?;
    let statement =
        "LOCK TABLE idempotency_records, idempotency_records_meta IN ACCESS EXCLUSIVE MODE";
    sqlx::raw_sql(statement).execute(&mut *locking).await?;
    Ok(locking)
}

#[tokio::test]
async fn reads_of_a_locked_table_leave_no_session_waiting() -> anyhow::Result<()> {
    let world = World::new().await?;
    let poolers = poolers(&world).await?;
    for (name, store) in all_kinds(&world, &poolers).await? {
        // Once with statements that have to be prepared, and once with those of the first time.
        for time in 1..=2 {
            let locking = lock(&world).await?;
            let reads = futures::future::join_all((0..4).map(|number| store.read(key(number))));
            let (reads, listed, counted, watched) = futures::join!(
                reads,
                store.scan(Scan::default()),
                store.census(CensusBudget::of(DAY)),
                store.watch(key(1))
            );
            let others = [listed.map(drop), counted.map(drop), watched.map(drop)];
            for answer in reads.into_iter().map(|read| read.map(drop)).chain(others) {
                let error = answer.expect_err("the table is locked");
                assert!(error.is_transient(), "{name}, {time}: {error}");
            }
            nobody_waits(&world).await.with_context(|| format!("{name}, {time}"))?;
            locking.rollback().await?;
            store.read(key(1)).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_migration_that_was_given_up_leaves_no_session_waiting() -> anyhow::Result<()> {
    let world = World::new().await?;
    let poolers = poolers(&world).await?;
    for (name, store) in all_kinds(&world, &poolers).await? {
        let locking = lock(&world).await?;
        let mut migrating = Box::pin(store.migrate());
        let waits =
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()
            AND state = 'active'";
        let it_waits = async || {
            world.sql(waits).await.is_ok_and(|rows| number(&rows).is_ok_and(|count| count == 1))
        };
        tokio::select! {
            migrated = &mut migrating => panic!("{name}: {migrated:?}"),
            waited = eventually_async(format!("{name} to wait"), it_waits) => waited?,
        }
        drop(migrating);
        nobody_waits(&world).await.with_context(|| String::from(name))?;
        locking.rollback().await?;
        store.migrate().await?;
    }
    Ok(())
}
