//! What is special about transactions of SQLite.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use idempotency::store::SqliteStore;
use idempotency::tx::{OpenTransaction, in_transaction};
use idempotency::{Context, ErrorKind, Idempotency, OnConflict};
use idempotency_test_support::deadline::within;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use sqlx::{AssertSqlSafe, SqliteConnection, SqlitePool};

use crate::world::{DAY, Fault, OPERATION, PATIENCE, World};

type Open = OpenTransaction<sqlx::Sqlite>;

async fn add(connection: &mut SqliteConnection) -> Result<(), Fault> {
    sqlx::query("INSERT INTO ledger VALUES ('entry')").execute(connection).await?;
    Ok(())
}

fn config(refused: Result<(), Fault>, why: &str) {
    let Err(Fault::Idempotency(error)) = refused else { panic!("it is refused: {refused:?}") };
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(error.to_string().contains(why), "{error}");
}

#[tokio::test]
async fn a_connection_in_no_transaction_is_refused_before_anything_is_written() -> anyhow::Result<()>
{
    let world = World::new().await?;
    let mut connection = world.pool.acquire().await?;
    config(world.call("a").run_in(&mut *connection, add).await, "not in a transaction");
    drop(connection);
    assert_eq!(world.entries("entry").await?, 0);
    assert!(world.state("a").await?.is_none());
    // Nothing was left open on it, and one that its user began by hand is one.
    let mut connection = world.pool.acquire().await?;
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut *connection).await?;
    world.call("a").run_in(&mut *connection, add).await?;
    sqlx::raw_sql("COMMIT").execute(&mut *connection).await?;
    assert_eq!(world.entries("entry").await?, 1);
    Ok(())
}

#[tokio::test]
async fn a_transaction_of_a_copy_of_the_file_is_refused() -> anyhow::Result<()> {
    let world = World::new().await?;
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("copy.db");
    sqlx::query(AssertSqlSafe(format!("VACUUM INTO '{}'", path.display())))
        .execute(&world.pool)
        .await?;
    let copy = SqlitePool::connect_with(SqliteConnectOptions::new().filename(&path)).await?;
    let mut transaction = copy.begin_with("BEGIN IMMEDIATE").await?;
    config(world.call("a").run_in(&mut transaction, add).await, "another database");
    // The same file is the same by whatever path.
    #[cfg(unix)]
    {
        let link = directory.path().join("link.db");
        let options = world.pool.connect_options();
        std::os::unix::fs::symlink(options.get_filename(), &link)?;
        let linked = SqlitePool::connect_with(SqliteConnectOptions::new().filename(&link)).await?;
        let mut transaction = linked.begin_with("BEGIN IMMEDIATE").await?;
        world.call("a").run_in(&mut transaction, add).await?;
        transaction.commit().await?;
        assert_eq!(world.entries("entry").await?, 1);
    }
    Ok(())
}

#[tokio::test]
async fn a_transaction_that_finds_a_temporary_table_in_place_of_the_records_is_refused()
-> anyhow::Result<()> {
    let world = World::new().await?;
    let mut connection = world.pool.acquire().await?;
    let temporary =
        "CREATE TEMPORARY TABLE idempotency_records AS SELECT * FROM main.idempotency_records";
    sqlx::raw_sql(temporary).execute(&mut *connection).await?;
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut *connection).await?;
    config(world.call("a").run_in(&mut *connection, add).await, "another table");
    sqlx::raw_sql("ROLLBACK; DROP TABLE temp.idempotency_records")
        .execute(&mut *connection)
        .await?;
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut *connection).await?;
    world.call("a").run_in(&mut *connection, add).await?;
    sqlx::raw_sql("COMMIT").execute(&mut *connection).await?;
    assert_eq!(world.entries("entry").await?, 1);
    Ok(())
}

#[tokio::test]
async fn a_pool_whose_hook_attaches_the_records_keeps_them_in_its_transactions()
-> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let (records, ledger) =
        (directory.path().join("records.db"), directory.path().join("ledger.db"));
    SqliteStore::open(&records).await?;
    let pool = SqlitePoolOptions::new().after_connect(move |connection, _| {
        let attach = sqlx::query("ATTACH ? AS kept").bind(records.display().to_string());
        Box::pin(async move { attach.execute(connection).await.map(drop) })
    });
    let pool = pool
        .connect_with(SqliteConnectOptions::new().filename(&ledger).create_if_missing(true))
        .await?;
    sqlx::query("CREATE TABLE ledger (entry TEXT NOT NULL)").execute(&pool).await?;
    let engine = Idempotency::builder(SqliteStore::from_pool(pool.clone()))
        .claim_timeout(PATIENCE)
        .build()?;
    for _ in 0..2 {
        let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
        engine.call(OPERATION, "a").ttl(DAY).run_in(&mut transaction, add).await?;
        transaction.commit().await?;
    }
    let (count,): (i64,) = sqlx::query_as("SELECT count(*) FROM ledger").fetch_one(&pool).await?;
    assert_eq!(count, 1);
    Ok(())
}

/// It has read, and cannot write before the other one is over, nor afterwards.
#[tokio::test]
async fn a_transaction_that_another_writer_keeps_from_writing_says_how_to_begin_it()
-> anyhow::Result<()> {
    let world = World::new().await?;
    let mut first = world.begin().await?;
    add(&mut first).await?;
    for conflict in [OnConflict::Reject, OnConflict::Wait(Duration::from_secs(12))] {
        let mut second = world.pool.begin().await?;
        let refused = world.call("a").on_conflict(conflict).run_in(&mut second, add).await;
        let Err(Fault::Idempotency(error)) = refused else {
            panic!("it cannot write: {refused:?}")
        };
        assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "nobody has the key: {error}");
        assert!(error.is_retryable());
        assert!(error.to_string().contains("BEGIN IMMEDIATE"), "{error}");
        second.rollback().await?;
    }
    first.rollback().await?;
    Ok(())
}

/// It would wait for the transaction, whose commit comes after it.
#[tokio::test]
async fn a_call_without_the_transaction_beside_the_guarded_one_is_refused() -> anyhow::Result<()> {
    let world = World::new().await?;
    let world = &world;
    let refused = in_transaction(&world.pool, |mut transaction| async move {
        world.call("a").run_in(&mut transaction, add).await?;
        drop(transaction);
        world.call("beside").run(async || Ok::<_, Fault>(())).await
    });
    let Err(Fault::Idempotency(error)) = within("the refusal", refused).await? else {
        panic!("it has waited for itself")
    };
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert_eq!(world.entries("entry").await?, 0);
    world.call("beside").run(async || Ok::<_, Fault>(())).await?;
    Ok(())
}

/// The transaction around both keeps the only writer of its file.
#[tokio::test]
async fn a_call_without_the_transaction_is_refused_in_a_transaction_of_another_database_inside()
-> anyhow::Result<()> {
    let (world, other) = (World::new().await?, World::new().await?);
    let (world, other) = (&world, &other);
    let refused = in_transaction(&world.pool, |mut transaction: Open| async move {
        world.call("a").run_in(&mut transaction, add).await?;
        in_transaction(&other.pool, |_: Open| async {
            world.call("beside").run(async || Ok::<_, Fault>(())).await
        })
        .await
    });
    let Err(Fault::Idempotency(error)) = within("the refusal", refused).await? else {
        panic!("it has waited for itself")
    };
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert_eq!(world.entries("entry").await?, 0);
    Ok(())
}

/// The step's effect would be there, and its record would wait for the transaction.
#[tokio::test]
async fn a_step_of_a_call_around_the_transaction_is_refused_before_its_effect() -> anyhow::Result<()>
{
    let world = World::new().await?;
    let world = &world;
    let mailed = &AtomicUsize::new(0);
    let around = world.call("around").run(async || {
        let outer = &Context::current();
        in_transaction(&world.pool, |mut transaction| async move {
            world.call("a").run_in(&mut transaction, add).await?;
            drop(transaction);
            let mail = async || {
                mailed.fetch_add(1, Ordering::SeqCst);
                Ok::<_, Fault>(())
            };
            outer.step("mail", mail).await
        })
        .await
    });
    let Err(Fault::Idempotency(error)) = within("the refusal", around).await? else {
        panic!("it has waited for itself")
    };
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert_eq!((mailed.load(Ordering::SeqCst), world.entries("entry").await?), (0, 0));
    Ok(())
}

/// It would wait for the one around it, and be run again each time that it has.
#[tokio::test]
async fn a_transaction_inside_another_one_of_the_file_is_refused_after_one_wait()
-> anyhow::Result<()> {
    let world = World::new().await?;
    let (world, runs) = (&world, &AtomicUsize::new(0));
    let nested = in_transaction(&world.pool, |mut transaction: Open| async move {
        runs.fetch_add(1, Ordering::SeqCst);
        add(&mut transaction).await?;
        in_transaction(&world.pool, |mut inner: Open| async move { add(&mut inner).await }).await
    });
    config(within("the refusal", nested).await?, "the one around this one");
    assert_eq!((runs.load(Ordering::SeqCst), world.entries("entry").await?), (1, 0));
    Ok(())
}
