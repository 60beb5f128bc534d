//! A warehouse whose clients lose responses and retry: three kinds of updates that a retry would
//! spoil, each in one transaction with its record.
//!
//! ```sh
//! cargo run --features sqlite --example inventory                  # on a file of its own
//! cargo run --features sqlite --example inventory -- warehouse.db  # on yours; run it twice: the second run replays
//! ```

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures::stream::{self, StreamExt as _};
use idempotency::store::SqliteStore;
use idempotency::tx::in_transaction;
use idempotency::{Error, Idempotency, idempotent};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
use sqlx::{Sqlite, SqlitePool, Transaction};

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS items (name TEXT PRIMARY KEY, left INTEGER NOT NULL, price INTEGER NOT NULL, version INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS serials (serial INTEGER PRIMARY KEY, item TEXT NOT NULL);
    INSERT OR IGNORE INTO items VALUES ('lamp', 100, 1000, 0), ('chair', 40, 2000, 0);
";

#[derive(Debug, thiserror::Error)]
enum ShopError {
    #[error("sold out")]
    SoldOut,
    #[error("somebody else has changed the price meanwhile")]
    Stale,
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    #[error(transparent)]
    Idempotency(#[from] Error),
}

/// A conditional decrement. If it ran twice, the order would take two items.
#[idempotent(name = "inventory.reserve", key = order, ttl = "24h", fingerprint = item, tx = tx)]
async fn reserve(
    tx: &mut Transaction<'_, Sqlite>,
    order: u32,
    item: &str,
) -> Result<i64, ShopError> {
    let left = sqlx::query_as(
        "UPDATE items SET left = left - 1 WHERE name = ? AND left > 0 RETURNING left",
    );
    let left: Option<(i64,)> = left.bind(item).fetch_optional(&mut **tx).await?;
    Ok(left.ok_or(ShopError::SoldOut)?.0)
}

/// An update of the version that was seen. If it ran twice, the second would report that another
/// writer was faster.
#[idempotent(name = "inventory.reprice", key = (item, version), ttl = "24h", fingerprint = price, tx = tx)]
async fn reprice(
    tx: &mut Transaction<'_, Sqlite>,
    item: &str,
    version: u32,
    price: u32,
) -> Result<u32, ShopError> {
    let update = sqlx::query(
        "UPDATE items SET price = ?, version = version + 1 WHERE name = ? AND version = ?",
    );
    let updated = update.bind(price).bind(item).bind(version).execute(&mut **tx).await?;
    if updated.rows_affected() == 1 { Ok(version + 1) } else { Err(ShopError::Stale) }
}

/// An insert under a unique constraint. If it ran twice, the second would fail.
#[idempotent(name = "inventory.register", key = serial, ttl = "24h", fingerprint = item, tx = tx)]
async fn register(
    tx: &mut Transaction<'_, Sqlite>,
    serial: u32,
    item: &str,
) -> Result<(), ShopError> {
    sqlx::query("INSERT INTO serials VALUES (?, ?)")
        .bind(serial)
        .bind(item)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let path = std::env::args_os()
        .nth(1)
        .map_or_else(|| directory.path().join("warehouse.db"), PathBuf::from);
    let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
    let options =
        options.journal_mode(SqliteJournalMode::Wal).busy_timeout(Duration::from_secs(20));
    let pool = SqlitePoolOptions::new().connect_with(options).await?;
    sqlx::raw_sql(SCHEMA).execute(&pool).await?;
    Idempotency::new(SqliteStore::open(&path).await?).install()?;

    // 120 orders for 100 lamps, each sent three times; 40 serial numbers and 10 prices, each sent
    // twice.
    let orders = stream::iter((0..360).map(|number| number % 120)).map(|order| {
        let pool = &pool;
        async move {
            in_transaction(pool, |mut tx| async move { reserve(&mut tx, order, "lamp").await })
                .await
        }
    });
    let answers: Vec<_> = orders.buffer_unordered(8).collect().await;
    let reserved = answers.iter().filter(|answer| answer.is_ok()).count();
    let sold_out =
        answers.iter().filter(|answer| matches!(answer, Err(ShopError::SoldOut))).count();
    println!("orders for a lamp:  360 sent, {reserved} accepted, {sold_out} sold out");
    for serial in (0..40).flat_map(|serial| [serial, serial]) {
        in_transaction(&pool, |mut tx| async move { register(&mut tx, serial, "chair").await })
            .await?;
    }
    for version in (0..10).flat_map(|version| [version, version]) {
        let price = 2_000 + 10 * version;
        in_transaction(
            &pool,
            |mut tx| async move { reprice(&mut tx, "chair", version, price).await },
        )
        .await?;
    }
    check(&pool, reserved, sold_out).await
}

/// Checks the content of the tables, whatever the calls have returned.
async fn check(pool: &SqlitePool, reserved: usize, sold_out: usize) -> anyhow::Result<()> {
    let (lamps,): (i64,) =
        sqlx::query_as("SELECT left FROM items WHERE name = 'lamp'").fetch_one(pool).await?;
    let (serials,): (i64,) = sqlx::query_as("SELECT count(*) FROM serials").fetch_one(pool).await?;
    let chair = sqlx::query_as("SELECT price, version FROM items WHERE name = 'chair'");
    let (price, version): (i64, i64) = chair.fetch_one(pool).await.context("the chair is gone")?;
    println!(
        "in the warehouse:   {lamps} lamps left, {serials} serial numbers, chairs at {price} in version {version}"
    );
    ensure!((reserved, sold_out) == (300, 60), "each accepted order is answered three times");
    ensure!(
        (lamps, serials, price, version) == (0, 40, 2_090, 10),
        "something happened twice, or not at all"
    );
    println!("everything happened once");
    Ok(())
}
