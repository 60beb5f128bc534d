//! Nobody waits for a lock when nobody waits for the answer any more: what the server did then
//! would be nobody's.

use std::time::Duration;

use idempotency::store::{CrashPolicy, MySqlStore, Scan, State, Store as _, StoreError};
use idempotency::{Error, ErrorKind, Idempotency};
use idempotency_test_support::deadline::eventually_async;
use idempotency_test_support::server::MariaDbOptions;
use sqlx::MySqlPool;
use sqlx::mysql::MySqlPoolOptions;

use crate::world::{DAY, World, claim, fresh, key, mine};

const OPERATION: &str = "payments.charge";
/// As long as a test may take.
const PATIENT: &str = "SET SESSION innodb_lock_wait_timeout = 600";

/// Also where its client has gone.
async fn nobody_waits(world: &World) -> anyhow::Result<()> {
    let (_, database) = world.url.rsplit_once('/').expect("the URL names a database");
    let waiting = format!(
        "SELECT count(*) FROM information_schema.PROCESSLIST WHERE DB = '{database}'
             AND (INFO LIKE 'INSERT INTO `idempotency%' OR INFO LIKE 'UPDATE `idempotency%')"
    );
    let nobody_waits = async || world.figure(&waiting).await.is_ok_and(|count| count == 0);
    eventually_async("the server to give up waiting", nobody_waits).await
}

#[tokio::test]
async fn a_claim_that_waited_for_a_transaction_leaves_nothing_when_that_is_rolled_back()
-> anyhow::Result<()> {
    let world = World::new().await?;
    let pool = world.pool(PATIENT).await?;
    let engine = Idempotency::new(MySqlStore::from_pool(pool.clone()));
    let mut transaction = pool.begin().await?;
    engine
        .call(OPERATION, 1)
        .ttl(DAY)
        .run_in(&mut transaction, async |_| Ok::<_, Error>(1))
        .await?;
    let refused = engine.call(OPERATION, 1).ttl(DAY).run(async || Ok::<_, Error>(2)).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::StoreUnavailable);
    nobody_waits(&world).await?;
    transaction.rollback().await?;
    let record = engine.record(OPERATION, 1).inspect().await?;
    assert!(record.is_none(), "{record:?}");
    Ok(())
}

#[tokio::test]
async fn a_takeover_that_waited_for_a_transaction_does_not_happen_when_that_is_rolled_back()
-> anyhow::Result<()> {
    let world = World::new().await?;
    let pool = world.pool(PATIENT).await?;
    let store = MySqlStore::from_pool(pool.clone());
    let mut dead = claim(key(1), fresh());
    (dead.policy, dead.lease) = (CrashPolicy::Retry, Duration::from_millis(1));
    mine(store.claim(dead.clone()).await?);
    let lease_is_over = async || {
        let record = store.read(key(1)).await;
        record.is_ok_and(|record| record.is_some_and(|record| record.lease_until < record.read_at))
    };
    eventually_async("the lease to be over", lease_is_over).await?;
    let lock = world.lock(key(1)).await?;
    let mut next = dead.clone();
    next.token = fresh();
    let error = store.claim(next).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    nobody_waits(&world).await?;
    assert_eq!(bound_of(&pool).await?, 600, "after a claim that was refused");
    lock.rollback().await?;
    let record = store.read(key(1)).await?.expect("it is there");
    assert_eq!((record.owner, record.state), (dead.token, State::InProgress));
    Ok(())
}

async fn bound_of(pool: &MySqlPool) -> anyhow::Result<i64> {
    let bound = sqlx::query_as("SELECT CAST(@@SESSION.innodb_lock_wait_timeout AS SIGNED)");
    let (bound,): (i64,) = bound.fetch_one(pool).await?;
    Ok(bound)
}

#[tokio::test]
async fn the_bound_of_a_claim_is_not_left_in_the_users_session() -> anyhow::Result<()> {
    let world = World::new().await?;
    let pool = MySqlPoolOptions::new().max_connections(1).connect(&world.url).await?;
    sqlx::query("SET SESSION innodb_lock_wait_timeout = 17").execute(&pool).await?;
    let store = MySqlStore::from_pool(pool.clone());
    let token = fresh();
    for number in 0..3 {
        mine(store.claim(claim(key(number), token)).await?);
        assert_eq!(bound_of(&pool).await?, 17, "after a claim");
    }
    Ok(())
}

/// As `ALTER TABLE` and backups do.
#[tokio::test]
async fn a_table_that_somebody_locks_leaves_no_session_waiting_and_no_claim() -> anyhow::Result<()>
{
    let world = World::private(MariaDbOptions::new()).await?;
    let foreign = world.pool("SET SESSION lock_wait_timeout = 17").await?;
    for store in [world.store.clone(), MySqlStore::from_pool(foreign.clone())] {
        let mut locking = world.pool("SET autocommit = 1").await?.acquire().await?;
        sqlx::raw_sql("FLUSH TABLES WITH READ LOCK").execute(&mut *locking).await?;
        let engine = Idempotency::new(store);
        let calls = (0..8)
            .map(|call| engine.call(OPERATION, call).ttl(DAY).run(async || Ok::<_, Error>(1)));
        for refused in futures::future::join_all(calls).await {
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::StoreUnavailable);
        }
        nobody_waits(&world).await?;
        sqlx::raw_sql("UNLOCK TABLES").execute(&mut *locking).await?;
        let records = world.figure("SELECT COUNT(*) FROM idempotency_records").await?;
        assert_eq!(records, 0, "no request was left behind to be applied later");
        let (bound,): (i64,) = sqlx::query_as("SELECT CAST(@@SESSION.lock_wait_timeout AS SIGNED)")
            .fetch_one(&foreign)
            .await?;
        assert_eq!(bound, 17, "what the pool's owner has set");
    }
    Ok(())
}

/// How many sessions wait for a table, also those whose client has gone.
async fn sessions_that_wait(world: &World) -> anyhow::Result<i64> {
    let (_, database) = world.url.rsplit_once('/').expect("the URL names a database");
    let waiting = format!(
        "SELECT count(*) FROM information_schema.PROCESSLIST WHERE DB = '{database}' AND STATE LIKE 'Waiting for table%'"
    );
    world.figure(&waiting).await
}

/// Stores whose pools may wait for longer than a test takes, and connect when they are used first.
fn readers(world: &World, pool: &MySqlPool) -> anyhow::Result<[(&'static str, MySqlStore); 2]> {
    let own = MySqlStore::builder(&world.url).build()?;
    let foreign = MySqlStore::from_pool(pool.clone());
    Ok([("own", own), ("the user's", foreign)])
}

const PATIENT_READERS: &str = "SET SESSION lock_wait_timeout = 600, max_statement_time = 500";

async fn read_all(store: &MySqlStore) -> Vec<StoreError> {
    let reads = futures::future::join_all((0..4).map(|number| store.read(key(number))));
    let (listing, watching, asking) =
        (store.scan(Scan::default()), store.watch(key(1)), store.fence(key(1), fresh()));
    let (reads, listed, watched, asked) = futures::join!(reads, listing, watching, asking);
    let others = [listed.map(drop), watched.map(drop), asked.map(drop)];
    let answers = reads.into_iter().map(|read| read.map(drop)).chain(others);
    answers.map(|answer| answer.expect_err("the table is locked")).collect()
}

#[tokio::test]
async fn reads_of_a_locked_table_leave_no_session_waiting_and_the_users_bounds_alone()
-> anyhow::Result<()> {
    let world = World::new().await?;
    let pool = world.pool(PATIENT_READERS).await?;
    for (name, store) in readers(&world, &pool)? {
        // Once with statements that have to be prepared, and once with those of the first time.
        for time in 1..=2 {
            let mut locking = world.pool("SET autocommit = 1").await?.acquire().await?;
            sqlx::raw_sql("LOCK TABLES idempotency_records WRITE").execute(&mut *locking).await?;
            for error in read_all(&store).await {
                assert!(error.is_transient(), "{name}, {time}: {error}");
            }
            let nobody_waits =
                async || sessions_that_wait(&world).await.is_ok_and(|count| count == 0);
            eventually_async(format!("the sessions of {name}, {time}"), nobody_waits).await?;
            sqlx::raw_sql("UNLOCK TABLES").execute(&mut *locking).await?;
            store.read(key(1)).await?;
        }
    }
    for _ in 0..pool.size() {
        let bounds =
            "SELECT CONCAT(@@SESSION.lock_wait_timeout, ' ', @@SESSION.max_statement_time)";
        let (bounds,): (String,) = sqlx::query_as(bounds).fetch_one(&pool).await?;
        assert_eq!(bounds, "600 500.000000");
    }
    Ok(())
}

/// Preparing waits for a table behind those who want it for themselves, not only using it.
#[tokio::test]
async fn reads_behind_somebody_who_waits_for_the_table_leave_no_session_waiting()
-> anyhow::Result<()> {
    let world = World::new().await?;
    let pool = world.pool(PATIENT_READERS).await?;
    for (name, store) in readers(&world, &pool)? {
        let mut reader = world.pool("SET autocommit = 1").await?.begin().await?;
        sqlx::query("SELECT COUNT(*) FROM idempotency_records").fetch_one(&mut *reader).await?;
        let truncating = world.pool(PATIENT_READERS).await?;
        let truncating = tokio::spawn(async move {
            sqlx::raw_sql("TRUNCATE idempotency_records").execute(&truncating).await
        });
        let waits =
            async |count| sessions_that_wait(&world).await.is_ok_and(|waiting| waiting == count);
        eventually_async("somebody to wait for the table", async || waits(1).await).await?;
        for error in read_all(&store).await {
            assert!(error.is_transient(), "{name}: {error}");
        }
        eventually_async(format!("the sessions of {name}"), async || waits(1).await).await?;
        assert!(!truncating.is_finished(), "it still waits");
        reader.rollback().await?;
        truncating.await??;
        store.read(key(1)).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_migration_that_was_given_up_leaves_no_session_waiting() -> anyhow::Result<()> {
    let world = World::new().await?;
    let pool = world.pool(PATIENT_READERS).await?;
    for (name, store) in readers(&world, &pool)? {
        let mut locking = world.pool("SET autocommit = 1").await?.acquire().await?;
        sqlx::raw_sql("LOCK TABLES idempotency_records WRITE, idempotency_records_meta WRITE")
            .execute(&mut *locking)
            .await?;
        let mut migrating = Box::pin(store.migrate());
        let waits =
            async |count| sessions_that_wait(&world).await.is_ok_and(|waiting| waiting == count);
        tokio::select! {
            migrated = &mut migrating => panic!("{name}: {migrated:?}"),
            waited = eventually_async("it to wait", async || waits(1).await) => waited?,
        }
        drop(migrating);
        eventually_async(format!("the session of {name}"), async || waits(0).await).await?;
        sqlx::raw_sql("UNLOCK TABLES").execute(&mut *locking).await?;
        store.migrate().await?;
    }
    Ok(())
}
