//! What is special about transactions of PostgreSQL.

use std::time::{Duration, Instant};

use idempotency::record::State;
use idempotency::store::PostgresStore;
use idempotency::tx::in_transaction;
use idempotency::{Call, ErrorKind, Idempotency, OnConflict, with_report};
use idempotency_test_support::deadline::{eventually_async, within};
use idempotency_test_support::server::{PostgresOptions, PostgresServer};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{PgConnection, PgPool};

use crate::world::{DAY, Fault, OPERATION, PATIENCE};

struct World {
    engine: Idempotency,
    pool: PgPool,
    server: PostgresServer,
}

impl World {
    async fn new() -> anyhow::Result<Self> {
        let server = PostgresServer::start(PostgresOptions::new()).await?;
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
async fn database(server: &PostgresServer) -> anyhow::Result<(Idempotency, PgPool)> {
    let pool = PgPool::connect(&server.database("ledger").await?).await?;
    sqlx::query("CREATE TABLE ledger (entry TEXT NOT NULL)").execute(&pool).await?;
    let store = PostgresStore::builder(pool.clone()).response_timeout(PATIENCE).build()?;
    store.migrate().await?;
    Ok((Idempotency::builder(store).claim_timeout(PATIENCE).build()?, pool))
}

async fn add(connection: &mut PgConnection) -> Result<(), Fault> {
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
            let mut second = world.pool.begin().await?;
            let (result, report) = with_report(world.call(key).run_in(&mut second, add_in)).await;
            result?;
            let report = report.expect("the call reports");
            // One that rolled back leaves nothing that tells of it.
            assert_eq!((report.waited, report.replayed), (commits, commits), "{key}");
            second.commit().await?;
            anyhow::Ok(())
        };
        let end = async {
            let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
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

async fn add_in(connection: &mut PgConnection) -> Result<(), Fault> {
    add(connection).await
}

#[tokio::test]
async fn a_wait_is_bounded_and_leaves_the_transaction_as_it_was() -> anyhow::Result<()> {
    let world = World::new().await?;
    let mut first = world.pool.begin().await?;
    world.call("a").run_in(&mut first, add_in).await?;
    let mut second = world.pool.begin().await?;
    sqlx::query("SET LOCAL lock_timeout = '17min'").execute(&mut *second).await?;
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
    let (bound,): (String,) = sqlx::query_as("SHOW lock_timeout").fetch_one(&mut *second).await?;
    assert_eq!(bound, "17min", "the user's own bound is back");
    second.commit().await?;
    first.commit().await?;
    assert_eq!(world.entries().await?, 3);
    Ok(())
}

#[tokio::test]
async fn a_statement_that_fails_in_the_body_is_undone_under_the_callers_commit()
-> anyhow::Result<()> {
    let world = World::new().await?;
    let mut transaction = world.pool.begin().await?;
    add(&mut transaction).await?;
    let failed = world.call("a").run_in(&mut transaction, async |connection| {
        add(connection).await?;
        sqlx::query("SELECT 1 / 0").execute(connection).await?;
        Ok::<_, Fault>(())
    });
    assert!(matches!(failed.await, Err(Fault::Client(_))));
    add(&mut transaction).await?;
    transaction.commit().await?;
    assert_eq!(world.entries().await?, 2);
    assert!(world.engine.record(OPERATION, "a").inspect().await?.is_none());
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

/// It would take that long again each time, and the pool has too much to do already.
#[tokio::test]
async fn a_pool_that_gives_no_connection_is_not_asked_again() -> anyhow::Result<()> {
    // Takes connections and never says a word.
    let server = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("postgres://nobody@{}/nothing", server.local_addr()?);
    let pool =
        PgPoolOptions::new().acquire_timeout(Duration::from_millis(200)).connect_lazy(&url)?;
    let taken = std::cell::Cell::new(0);
    let server = async {
        let mut connections = Vec::new();
        loop {
            if let Ok((connection, _)) = server.accept().await {
                connections.push(connection);
                taken.set(connections.len());
            }
        }
    };
    let refused = tokio::select! {
        refused = in_transaction(&pool, |_| async { Ok::<_, Fault>(()) }) => refused,
        () = server => unreachable!("it goes on"),
    };
    let Err(Fault::Idempotency(error)) = refused else { panic!("there is no transaction") };
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{error}");
    assert_eq!(taken.get(), 1);
    Ok(())
}

/// As a database for each tenant, all made from one template.
#[tokio::test]
async fn a_transaction_of_a_copy_of_the_database_is_refused() -> anyhow::Result<()> {
    let world = World::new().await?;
    let options = world.pool.connect_options();
    let (original, copy) = (
        options.get_database().unwrap_or_default().to_owned(),
        world.server.database("copy").await?,
    );
    let copy: PgConnectOptions = copy.parse()?;
    let name = copy.get_database().unwrap_or_default().to_owned();
    // A template has no sessions.
    world.pool.close().await;
    let copied = format!("DROP DATABASE {name}; CREATE DATABASE {name} TEMPLATE {original}");
    for statement in copied.split("; ") {
        world.server.sql(statement).await?;
    }
    let store =
        PostgresStore::builder((*options).clone()).response_timeout(PATIENCE).connect().await?;
    let engine = Idempotency::builder(store).claim_timeout(PATIENCE).build()?;
    let copy = PgPool::connect_with(copy).await?;
    let mut transaction = copy.begin().await?;
    let refused = engine.call(OPERATION, "a").ttl(DAY).run_in(&mut transaction, add_in).await;
    let Err(Fault::Idempotency(error)) = refused else { panic!("it is another database") };
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("another database"), "{error}");
    let original = PgPool::connect_with((*options).clone()).await?;
    let mut transaction = original.begin().await?;
    engine.call(OPERATION, "a").ttl(DAY).run_in(&mut transaction, add_in).await?;
    transaction.commit().await?;
    Ok(())
}

/// As a schema for each tenant, all copied from one, with the data.
#[tokio::test]
async fn a_transaction_that_finds_copies_of_the_tables_in_another_schema_is_refused()
-> anyhow::Result<()> {
    let world = World::new().await?;
    for statement in [
        "CREATE SCHEMA tenant",
        "CREATE TABLE tenant.idempotency_records (LIKE public.idempotency_records INCLUDING ALL)",
        "CREATE TABLE tenant.idempotency_records_meta (LIKE public.idempotency_records_meta INCLUDING ALL)",
        "INSERT INTO tenant.idempotency_records_meta SELECT * FROM public.idempotency_records_meta",
    ] {
        sqlx::query(statement).execute(&world.pool).await?;
    }
    let copies = [
        "SET LOCAL search_path = tenant, public",
        // Without its `meta` table.
        "CREATE TEMPORARY TABLE idempotency_records (LIKE public.idempotency_records INCLUDING ALL) ON COMMIT DROP",
    ];
    for copy in copies {
        let mut transaction = world.pool.begin().await?;
        sqlx::query(copy).execute(&mut *transaction).await?;
        let refused = world.call("a").run_in(&mut transaction, add_in).await;
        let Err(Fault::Idempotency(error)) = refused else { panic!("{copy}: {refused:?}") };
        assert_eq!(error.kind(), ErrorKind::Config, "{copy}: {error}");
        assert!(error.to_string().contains("another table"), "{copy}: {error}");
        transaction.commit().await?;
    }
    for _ in 0..2 {
        let mut transaction = world.pool.begin().await?;
        world.call("a").run_in(&mut transaction, add_in).await?;
        transaction.commit().await?;
    }
    assert_eq!(world.entries().await?, 1);
    Ok(())
}

#[tokio::test]
async fn a_table_that_was_created_again_keeps_records_in_transactions() -> anyhow::Result<()> {
    let world = World::new().await?;
    for (key, statements) in [
        ("before", [].as_slice()),
        (
            "after",
            &[
                "ALTER TABLE idempotency_records RENAME TO before",
                "CREATE TABLE idempotency_records (LIKE before INCLUDING ALL)",
                "DROP TABLE before",
            ],
        ),
    ] {
        for &statement in statements {
            sqlx::query(statement).execute(&world.pool).await?;
        }
        let mut transaction = world.pool.begin().await?;
        world.call(key).run_in(&mut transaction, add_in).await?;
        transaction.commit().await?;
    }
    assert_eq!(world.entries().await?, 2);
    Ok(())
}

#[tokio::test]
async fn a_pool_whose_hook_chooses_the_schema_keeps_records_in_its_transactions()
-> anyhow::Result<()> {
    let server = PostgresServer::start(PostgresOptions::new()).await?;
    let url = server.database("ledger").await?;
    server
        .sql_at(&url, "CREATE SCHEMA shop; CREATE TABLE shop.ledger (entry TEXT NOT NULL)")
        .await?;
    let pool = PgPoolOptions::new().after_connect(|connection, _| {
        Box::pin(async move {
            sqlx::query("SET search_path TO shop").execute(connection).await.map(drop)
        })
    });
    let pool = pool.connect(&url).await?;
    let store = PostgresStore::from_pool(pool.clone());
    store.migrate().await?;
    let engine = Idempotency::builder(store).claim_timeout(PATIENCE).build()?;
    for _ in 0..2 {
        let mut transaction = pool.begin().await?;
        engine.call(OPERATION, "a").ttl(DAY).run_in(&mut transaction, add_in).await?;
        transaction.commit().await?;
    }
    let (count,): (i64,) =
        sqlx::query_as("SELECT count(*) FROM shop.ledger").fetch_one(&pool).await?;
    assert_eq!(count, 1);
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
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(error.to_string().contains("not in a transaction"), "{error}");
    assert_eq!(world.entries().await?, 0);
    assert!(world.engine.record(OPERATION, "a").inspect().await?.is_none());
    Ok(())
}
