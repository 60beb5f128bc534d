//! The SQLite store beside statements of the same client on a file with the same settings.

use idempotency::Idempotency;
use idempotency::store::SqliteStore;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};

use crate::measure::{Row, Target, Turns, latency};
use crate::receipt::{HOT, Order, Receipt, charge, decode};

pub async fn rows() -> anyhow::Result<Vec<Row>> {
    let directory = tempfile::tempdir()?;
    let store = SqliteStore::open(directory.path().join("records.db")).await?;
    store.migrate().await?;
    let engine = Idempotency::new(store);
    charge(&engine, &Order::new(HOT)).await?;

    let options = SqliteConnectOptions::new()
        .filename(directory.path().join("reference.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full);
    let pool = SqlitePoolOptions::new().max_connections(4).connect_with(options).await?;
    sqlx::raw_sql(
        "CREATE TABLE reference (id BLOB PRIMARY KEY, state INTEGER, purge_at INTEGER, body BLOB) WITHOUT ROWID;
         CREATE INDEX reference_purge_at ON reference (purge_at)",
    )
    .execute(&pool)
    .await?;
    write_twice(&pool, HOT).await?;

    let call = |number| {
        let engine = engine.clone();
        async move { Ok(charge(&engine, &Order::new(number)).await.map(drop)?) }
    };
    let hits = Row::new(
        "SQLite hit, 1 client (time of the reference by time of the call)",
        "`SELECT` by primary key + decode",
        Target::AtLeast(0.5),
    );
    let select = |_| async {
        let body: Vec<u8> = sqlx::query_scalar("SELECT body FROM reference WHERE id = ?1")
            .bind(HOT.to_be_bytes().repeat(4))
            .fetch_one(&pool)
            .await?;
        decode(&body).map(drop)
    };
    let hits = latency(hits, Turns { rounds: 15, calls: 500 }, select, |_| call(HOT)).await?;
    let misses = Row::new(
        "SQLite miss, 1 client, both with `synchronous = FULL` (time of the reference by time of the call)",
        "two autocommitted writes by primary key",
        Target::AtLeast(0.7),
    );
    let misses =
        latency(misses, Turns { rounds: 9, calls: 200 }, |number| write_twice(&pool, number), call)
            .await?;
    Ok(vec![hits, misses])
}

async fn write_twice(pool: &SqlitePool, number: u64) -> anyhow::Result<()> {
    let key = number.to_be_bytes().repeat(4);
    let later = i64::try_from(number)?;
    sqlx::query("INSERT INTO reference VALUES (?1, 1, ?2, '')")
        .bind(&key)
        .bind(later)
        .execute(pool)
        .await?;
    let body = serde_json::to_vec(&Receipt::of(&Order::new(number)))?;
    sqlx::query("UPDATE reference SET state = 3, purge_at = ?2, body = ?3 WHERE id = ?1")
        .bind(&key)
        .bind(later + 1)
        .bind(body)
        .execute(pool)
        .await?;
    Ok(())
}
