//! What is special about transactions of MySQL and MariaDB.

use std::time::{Duration, Instant};

use idempotency::record::State;
use idempotency::store::MySqlStore;
use idempotency::{Call, ErrorKind, Idempotency, OnConflict, with_report};
use idempotency_test_support::deadline::{eventually_async, within};
use idempotency_test_support::server::{MariaDbOptions, MariaDbServer};
use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions};
use sqlx::{Connection as _, MySqlConnection, MySqlPool};

use crate::world::{DAY, Fault, OPERATION, PATIENCE};

/// The default of the server is stricter, and there a transaction may not be shown what was
/// committed while it waited.
const READ_COMMITTED: &str = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; START TRANSACTION";

struct World {
    engine: Idempotency,
    pool: MySqlPool,
    server: MariaDbServer,
}

impl World {
    async fn new() -> anyhow::Result<Self> {
        let server = MariaDbServer::start(MariaDbOptions::new()).await?;
        let (engine, pool) = database(&server).await?;
        Ok(Self { engine, pool, server })
    }

    fn call(&self, key: &str) -> Call {
        self.engine.call(OPERATION, key).ttl(DAY)
    }

    async fn entries(&self) -> anyhow::Result<i64> {
        let (count,): (i64,) =
            sqlx::query_as("SELECT count(*) FROM ledger").fetch_one(&self.pool).await?;
        Ok(count)
    }
}

/// A database of its own with a ledger and the store's table.
async fn database(server: &MariaDbServer) -> anyhow::Result<(Idempotency, MySqlPool)> {
    let pool = MySqlPool::connect(&server.database("ledger").await?).await?;
    sqlx::query("CREATE TABLE ledger (entry TEXT NOT NULL)").execute(&pool).await?;
    let store = MySqlStore::builder(pool.clone()).response_timeout(PATIENCE).build()?;
    store.migrate().await?;
    Ok((Idempotency::builder(store).claim_timeout(PATIENCE).build()?, pool))
}

async fn add(connection: &mut MySqlConnection) -> Result<(), Fault> {
    sqlx::query("INSERT INTO ledger VALUES ('entry')").execute(connection).await?;
    Ok(())
}

#[tokio::test]
async fn a_second_transaction_waits_and_replays_or_runs() -> anyhow::Result<()> {
    let world = World::new().await?;
    for (key, commits, entries) in [("committed", true, 1), ("rolled back", false, 2)] {
        let mut first = world.pool.begin().await?;
        world.call(key).run_in(&mut first, add_in).await?;
        let second = async {
            let mut second = world.pool.begin_with(READ_COMMITTED).await?;
            let (result, report) = with_report(world.call(key).run_in(&mut second, add_in)).await;
            result?;
            let report = report.expect("the call reports");
            // One that rolled back leaves nothing that tells of it.
            assert_eq!((report.waited, report.replayed), (commits, commits), "{key}");
            second.commit().await?;
            anyhow::Ok(())
        };
        let end = async {
            let waits = "SELECT count(*) FROM information_schema.processlist WHERE info LIKE 'INSERT INTO `idempotency_records`%'";
            eventually_async("the second to wait", async || {
                sqlx::query_as(waits)
                    .fetch_one(&world.pool)
                    .await
                    .is_ok_and(|(waiting,): (i64,)| waiting > 0)
            })
            .await?;
            if commits {
                first.commit().await?;
            } else {
                first.rollback().await?;
            }
            anyhow::Ok(())
        };
        let (second, end) = tokio::join!(second, end);
        second?;
        end?;
        assert_eq!(world.entries().await?, entries, "{key}");
        assert_eq!(
            world.engine.record(OPERATION, key).inspect().await?.map(|view| view.state),
            Some(State::Completed)
        );
    }
    Ok(())
}

async fn add_in(connection: &mut MySqlConnection) -> Result<(), Fault> {
    add(connection).await
}

#[tokio::test]
async fn a_wait_is_bounded_and_leaves_the_transaction_as_it_was() -> anyhow::Result<()> {
    let world = World::new().await?;
    let mut first = world.pool.begin().await?;
    world.call("a").run_in(&mut first, add_in).await?;
    let mut second = world.pool.begin().await?;
    sqlx::query("SET SESSION innodb_lock_wait_timeout = 1700").execute(&mut *second).await?;
    add(&mut second).await?;
    let started = Instant::now();
    let patience = OnConflict::Wait(Duration::from_millis(300));
    let refused = world.call("a").on_conflict(patience).run_in(&mut second, add_in);
    let (refused, report) = within("the end of the wait", with_report(refused)).await?;
    let Err(Fault::Idempotency(error)) = refused else { panic!("somebody else holds it") };
    assert_eq!(error.kind(), ErrorKind::InProgress, "{error}");
    assert!(report.is_some_and(|report| report.waited));
    let waited = started.elapsed();
    assert!(waited >= Duration::from_millis(250), "{waited:?}");
    world.call("b").run_in(&mut second, add_in).await?;
    assert_eq!(bound_of(&mut second).await?, 1700, "the user's own bound is back");
    second.commit().await?;
    first.commit().await?;
    assert_eq!(world.entries().await?, 3);
    Ok(())
}

async fn bound_of(connection: &mut MySqlConnection) -> anyhow::Result<i64> {
    let bound = sqlx::query_as("SELECT CAST(@@SESSION.innodb_lock_wait_timeout AS SIGNED)");
    let (bound,): (i64,) = bound.fetch_one(connection).await?;
    Ok(bound)
}

/// The server undoes the whole transaction then, and not only the statement that waited.
#[tokio::test]
async fn a_wait_that_undoes_the_transaction_is_no_answer() -> anyhow::Result<()> {
    let options = MariaDbOptions::new().setting("innodb_rollback_on_timeout", "ON");
    let server = MariaDbServer::start(options).await?;
    let (engine, pool) = database(&server).await?;
    let world = World { engine, pool, server };
    let mut first = world.pool.begin().await?;
    world.call("a").run_in(&mut first, add_in).await?;
    let mut second = world.pool.begin().await?;
    add(&mut second).await?;
    let patience = OnConflict::Wait(Duration::from_millis(300));
    let refused = world.call("a").on_conflict(patience).run_in(&mut second, add_in);
    let Err(Fault::Idempotency(error)) = within("the refusal", refused).await? else {
        panic!("somebody holds it")
    };
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{error}");
    second.commit().await?;
    first.commit().await?;
    assert_eq!(world.entries().await?, 1, "all of the second is undone");
    Ok(())
}

/// There also a plain read waits for those who have written the row.
#[tokio::test]
async fn a_wait_is_bounded_under_serializable() -> anyhow::Result<()> {
    let world = World::new().await?;
    let mut first = world.pool.begin().await?;
    world.call("a").run_in(&mut first, add_in).await?;
    let begin = "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE; START TRANSACTION";
    let mut second = world.pool.begin_with(begin).await?;
    // Longer than the test may take.
    sqlx::query("SET SESSION innodb_lock_wait_timeout = 600").execute(&mut *second).await?;
    add(&mut second).await?;
    let patience = OnConflict::Wait(Duration::from_millis(300));
    let waiting = world.call("a").on_conflict(patience).run_in(&mut second, add_in);
    let refused = within("the refusal", waiting).await?;
    let Err(Fault::Idempotency(error)) = refused else { panic!("somebody else holds it") };
    assert_eq!(error.kind(), ErrorKind::InProgress, "{error}");
    assert_eq!(bound_of(&mut second).await?, 600, "the user's own bound is back");
    world.call("b").run_in(&mut second, add_in).await?;
    second.commit().await?;
    first.commit().await?;
    assert_eq!(world.entries().await?, 3, "the transaction was left as it was");
    Ok(())
}

#[tokio::test]
async fn a_bound_that_a_dropped_call_has_left_is_undone_by_the_next_one() -> anyhow::Result<()> {
    let world = World::new().await?;
    let mut first = world.pool.begin().await?;
    world.call("a").run_in(&mut first, add_in).await?;
    let mut second = world.pool.begin().await?;
    sqlx::query("SET SESSION innodb_lock_wait_timeout = 17").execute(&mut *second).await?;
    let waits = "SELECT count(*) FROM information_schema.processlist WHERE info LIKE 'INSERT INTO `idempotency_records`%'";
    let is_waiting = async || {
        sqlx::query_as(waits)
            .fetch_one(&world.pool)
            .await
            .is_ok_and(|(waiting,): (i64,)| waiting > 0)
    };
    let patience = OnConflict::Wait(Duration::from_secs(20));
    tokio::select! {
        _ = world.call("a").on_conflict(patience).run_in(&mut second, add_in) => panic!("somebody else holds it"),
        waits = eventually_async("the second to wait", is_waiting) => waits?,
    }
    first.rollback().await?;
    world.call("b").run_in(&mut second, add_in).await?;
    assert_eq!(bound_of(&mut second).await?, 17);
    Ok(())
}

#[tokio::test]
async fn a_connection_in_no_transaction_is_refused_before_anything_is_written() -> anyhow::Result<()>
{
    let world = World::new().await?;
    let mut connection = world.pool.acquire().await?;
    let refused = world.call("a").run_in(&mut *connection, add_in).await;
    let Err(Fault::Idempotency(error)) = refused else {
        panic!("each statement would be committed")
    };
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("not in a transaction"), "{error}");
    assert_eq!(world.entries().await?, 0);
    assert!(world.engine.record(OPERATION, "a").inspect().await?.is_none());
    Ok(())
}

/// What `innodb_snapshot_isolation` can be: on by default since MariaDB 11.6.2, and not there in
/// releases before it was invented, nor in MySQL.
async fn snapshot_isolations(pool: &MySqlPool) -> anyhow::Result<&'static [Option<&'static str>]> {
    let settings =
        sqlx::query("SHOW VARIABLES LIKE 'innodb_snapshot_isolation'").fetch_all(pool).await?;
    Ok(if settings.is_empty() { &[None] } else { &[Some("OFF"), Some("ON")] })
}

#[tokio::test]
async fn under_repeatable_read_an_older_snapshot_sees_what_was_committed_since_or_the_call_is_made_again()
-> anyhow::Result<()> {
    for isolation in snapshot_isolations(&World::new().await?.pool).await? {
        let world = World::new().await?;
        let mut old = world.pool.acquire().await?;
        if let Some(isolation) = isolation {
            let setting =
                sqlx::AssertSqlSafe(format!("SET SESSION innodb_snapshot_isolation = {isolation}"));
            sqlx::raw_sql(setting).execute(&mut *old).await?;
        }
        let mut old = old.begin().await?;
        let (count,): (i64,) =
            sqlx::query_as("SELECT count(*) FROM ledger").fetch_one(&mut *old).await?;
        assert_eq!(count, 0);
        let mut new = world.pool.begin().await?;
        world.call("a").run_in(&mut new, add_in).await?;
        new.commit().await?;
        let called = world.call("a").run_in(&mut old, add_in).await;
        if *isolation == Some("ON") {
            // The server has undone the transaction: what is committed now are statements outside
            // of it.
            let Err(Fault::Idempotency(error)) = called else {
                panic!("the server shows no newer row: {called:?}")
            };
            assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{error}");
            old.rollback().await?;
            let mut again = world.pool.begin().await?;
            world.call("a").run_in(&mut again, add_in).await?;
            again.commit().await?;
        } else {
            called?;
            old.commit().await?;
        }
        assert_eq!(world.entries().await?, 1, "{isolation:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_transaction_of_another_database_is_refused() -> anyhow::Result<()> {
    let world = World::new().await?;
    let (_, other) = database(&world.server).await?;
    let mut transaction = other.begin().await?;
    let refused = world.call("a").run_in(&mut transaction, add_in).await;
    let Err(Fault::Idempotency(error)) = refused else { panic!("it is another database") };
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("another database"), "{error}");
    transaction.commit().await?;
    let (count,): (i64,) =
        sqlx::query_as("SELECT count(*) FROM idempotency_records").fetch_one(&other).await?;
    assert_eq!((count, world.entries().await?), (0, 0));

    let elsewhere = Idempotency::new(idempotency::store::MemoryStore::new());
    let mut transaction = other.begin().await?;
    let refused = elsewhere.call(OPERATION, "a").ttl(DAY).run_in(&mut transaction, add_in).await;
    let Err(Fault::Idempotency(error)) = refused else { panic!("it is no PostgreSQL store") };
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("`memory`"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_transaction_of_a_copy_of_the_database_is_refused() -> anyhow::Result<()> {
    let world = World::new().await?;
    let (original,): (String,) = sqlx::query_as("SELECT DATABASE()").fetch_one(&world.pool).await?;
    let copy = MySqlPool::connect(&world.server.database("copy").await?).await?;
    for table in ["ledger", "idempotency_records", "idempotency_records_meta"] {
        for statement in [
            format!("CREATE TABLE {table} LIKE {original}.{table}"),
            format!("INSERT INTO {table} SELECT * FROM {original}.{table}"),
        ] {
            sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&copy).await?;
        }
    }
    let mut transaction = copy.begin().await?;
    let refused = world.call("a").run_in(&mut transaction, add_in).await;
    let Err(Fault::Idempotency(error)) = refused else { panic!("it is another database") };
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("another database"), "{error}");

    // The name of the table says where it is, whatever the connection's own database.
    let store = MySqlStore::builder(world.pool.clone())
        .table(format!("{original}.idempotency_records"))
        .build()?;
    let engine = Idempotency::builder(store).claim_timeout(PATIENCE).build()?;
    engine.call(OPERATION, "a").ttl(DAY).run_in(&mut transaction, add_in).await?;
    transaction.commit().await?;
    Ok(())
}

#[tokio::test]
async fn a_pool_whose_hook_chooses_the_database_keeps_records_in_its_transactions()
-> anyhow::Result<()> {
    let world = World::new().await?;
    let (name,): (String,) = sqlx::query_as("SELECT DATABASE()").fetch_one(&world.pool).await?;
    let options: MySqlConnectOptions = world.server.url().parse()?;
    let pool = MySqlPoolOptions::new().after_connect(move |connection, _| {
        let statement = sqlx::AssertSqlSafe(format!("USE {name}"));
        Box::pin(async move { sqlx::raw_sql(statement).execute(connection).await.map(drop) })
    });
    let pool = pool.connect_with(options).await?;
    let engine = Idempotency::builder(MySqlStore::from_pool(pool.clone()))
        .claim_timeout(PATIENCE)
        .build()?;
    for _ in 0..2 {
        let mut transaction = pool.begin().await?;
        engine.call(OPERATION, "a").ttl(DAY).run_in(&mut transaction, add_in).await?;
        transaction.commit().await?;
    }
    assert_eq!(world.entries().await?, 1);
    Ok(())
}
