//! Making the table.

use idempotency::key::KeyHash;
use idempotency::store::{SqliteStore, Store as _, StoreErrorKind};
use sqlx::AssertSqlSafe;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};

use crate::world::{World, patient};

const KEY: KeyHash = KeyHash::from_bytes([1; 32]);

#[tokio::test]
async fn many_make_the_table_at_once() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("records.db");
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let path = path.clone();
            tokio::spawn(async move { patient(path).open().await?.migrate().await })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    let pool =
        SqlitePoolOptions::new().connect_with(SqliteConnectOptions::new().filename(&path)).await?;
    let (versions, identity): (i64, Vec<u8>) =
        sqlx::query_as("SELECT count(*), identity FROM idempotency_records_meta")
            .fetch_one(&pool)
            .await?;
    assert_eq!((versions, identity.len()), (1, 16));
    Ok(())
}

const FILE_VARIABLE: &str = "IDEMPOTENCY_TEST_OPENS";

/// What the processes of the next test run. In the test process it has no file, and nothing to do.
#[tokio::test]
async fn opens_the_file() -> anyhow::Result<()> {
    let Some(path) = std::env::var_os(FILE_VARIABLE) else { return Ok(()) };
    SqliteStore::open(path).await?;
    Ok(())
}

/// SQLite refuses one of them the change to its log at once, and lets it wait for nothing.
#[tokio::test]
async fn processes_that_create_the_file_at_once_all_open_it() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    for file in 0..20 {
        let path = directory.path().join(format!("{file}.db"));
        let open = || {
            let mut command = tokio::process::Command::new(std::env::current_exe()?);
            command.args(["migrations::opens_the_file", "--exact", "--quiet"]);
            command.env(FILE_VARIABLE, &path).stdout(std::process::Stdio::piped());
            anyhow::Ok(command.spawn()?.wait_with_output())
        };
        let opened = (0..12).map(|_| open()).collect::<anyhow::Result<Vec<_>>>()?;
        for output in futures::future::try_join_all(opened).await? {
            let printed = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{printed}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_pool_without_the_table_says_what_to_do_and_the_table_has_any_name() -> anyhow::Result<()>
{
    let pool = SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await?;
    let store = SqliteStore::from_pool(pool);
    let error = store.read(KeyHash::from_bytes([1; 32])).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Config);
    assert!(error.to_string().contains("call `migrate`"), "{error}");
    store.migrate().await?;
    assert_eq!(store.read(KeyHash::from_bytes([1; 32])).await?, None);

    let world = World::new().await?;
    let named = patient(&world.path).table("payments_records").open().await?;
    assert_eq!(named.read(KeyHash::from_bytes([1; 32])).await?, None);
    let tables = "SELECT count(*) FROM sqlite_schema WHERE tbl_name LIKE 'payments_records%' AND sql IS NOT NULL";
    let (count,): (i64,) = sqlx::query_as(tables).fetch_one(&world.pool).await?;
    assert_eq!(count, 4, "the table, its index and trigger, and its meta table");
    for name in ["records; DROP", "main.records"] {
        let error = patient(&world.path).table(name).open().await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Config, "{name}: {error}");
    }
    Ok(())
}

#[tokio::test]
async fn a_table_that_was_dropped_is_made_again_beside_what_is_known_of_it() -> anyhow::Result<()> {
    const META: &str = "SELECT identity FROM idempotency_records_meta";
    let world = World::new().await?;
    let (identity,): (Vec<u8>,) = sqlx::query_as(META).fetch_one(&world.pool).await?;
    for table in ["idempotency_records", "idempotency_records_meta"] {
        sqlx::query(AssertSqlSafe(format!("DROP TABLE {table}"))).execute(&world.pool).await?;
        let error = world.store.read(KEY).await.unwrap_err();
        assert!(error.to_string().contains("call `migrate`"), "{table}: {error}");
        world.store.migrate().await?;
        assert_eq!(world.store.read(KEY).await?, None, "{table}");
        let (there,): (Vec<u8>,) = sqlx::query_as(META).fetch_one(&world.pool).await?;
        assert_eq!(there == identity, table == "idempotency_records", "{table}");
    }
    Ok(())
}

#[tokio::test]
async fn a_table_of_a_newer_release_is_refused() -> anyhow::Result<()> {
    let world = World::new().await?;
    sqlx::query("UPDATE idempotency_records_meta SET version = 2").execute(&world.pool).await?;
    let error = patient(&world.path).open().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Config);
    assert!(error.to_string().contains("created by a newer release"), "{error}");
    Ok(())
}

#[tokio::test]
async fn the_shipped_script_makes_the_table_that_the_store_needs() -> anyhow::Result<()> {
    let pool = SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await?;
    sqlx::raw_sql(include_str!("../../idempotent-runtime/migrations/sqlite/0001_records.sql"))
        .execute(&pool)
        .await?;
    assert_eq!(SqliteStore::from_pool(pool).read(KeyHash::from_bytes([1; 32])).await?, None);
    Ok(())
}

#[tokio::test]
async fn a_store_whose_table_is_there_opens_while_somebody_writes() -> anyhow::Result<()> {
    let world = World::new().await?;
    let writing = world.pool.begin_with("BEGIN IMMEDIATE").await?;
    patient(&world.path).open().await?;
    writing.rollback().await?;
    Ok(())
}
