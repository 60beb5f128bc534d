//! A fence stops an owner that was paused. A lease cannot: the owner wakes up, believes that it
//! still owns the call, and writes. A row that remembers the largest fence rejects that write, so
//! that the order only moves forward.
//!
//! ```sh
//! cargo run --features sqlite --example advance_with_fence
//! cargo run --features sqlite --example advance_with_fence -- DIRECTORY   # keeps the tables in a new one
//! ```
//!
//! Two engines on one file represent two processes. The `max_run` of the first one is far too
//! short: its lease is no longer renewed while its body is still running, as after a pause of the
//! whole process.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use idempotency::store::SqliteStore;
use idempotency::{Context, Error, Idempotency, WithEngine as _, idempotent};
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};

const ORDER: u32 = 4711;
const SLOW: &str = "the slow owner";
const NEXT: &str = "the next owner";
const SCHEMA: &str = "
    CREATE TABLE orders (id INTEGER PRIMARY KEY, state TEXT NOT NULL, fence INTEGER NOT NULL);
    CREATE TABLE tries (owner TEXT NOT NULL, fence INTEGER NOT NULL, written INTEGER NOT NULL);
    INSERT INTO orders VALUES (4711, 'new', 0);
";

#[derive(Debug, thiserror::Error)]
enum ShopError {
    #[error("a later owner has written to the order")]
    Overtaken,
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    #[error(transparent)]
    Idempotency(#[from] Error),
}

/// The key is the order: the fences of one key grow with every claim, those of two keys are
/// unrelated.
#[idempotent(name = "orders.pack", key = order, ttl = "24h", lease = "10s", on_crash = retry)]
async fn pack(shop: &Shop, order: u32, owner: &str) -> Result<String, ShopError> {
    let context = Context::current();
    let fence = context.fence().await?; // before the work: a later claim has a larger one
    println!("{owner} has the claim, attempt {}", context.attempt());
    if owner == SLOW {
        shop.wait_until_packed(order).await?; // by others: its lease expires meanwhile
        println!(
            "{owner} wakes up; its lease is {}",
            if context.lease_lost() { "over" } else { "still there" }
        );
    }
    shop.advance(order, owner, &format!("packed by {owner}"), fence).await?;
    Ok(format!("packed by {owner}"))
}

struct Shop {
    pool: SqlitePool,
}

impl Shop {
    async fn open(path: &Path) -> Result<Self, sqlx::Error> {
        let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
        let options =
            options.journal_mode(SqliteJournalMode::Wal).busy_timeout(Duration::from_secs(20));
        let pool = SqlitePoolOptions::new().connect_with(options).await?;
        sqlx::raw_sql(SCHEMA).execute(&pool).await?;
        Ok(Self { pool })
    }

    /// Writes only if the fence is larger than the row's, in one statement. A caller that reads the
    /// row first and writes afterwards may be overtaken in between. Here an attempt writes once;
    /// `fence <= ?` would let it write again, and rejects late owners just as well.
    async fn advance(
        &self,
        order: u32,
        owner: &str,
        state: &str,
        fence: u64,
    ) -> Result<(), ShopError> {
        let fence = fence.cast_signed(); // fences fit
        let update =
            sqlx::query("UPDATE orders SET state = ?, fence = ? WHERE id = ? AND fence < ?");
        let updated =
            update.bind(state).bind(fence).bind(order).bind(fence).execute(&self.pool).await?;
        let written = updated.rows_affected() == 1;
        let note =
            sqlx::query("INSERT INTO tries VALUES (?, ?, ?)").bind(owner).bind(fence).bind(written);
        note.execute(&self.pool).await?;
        println!(
            "{owner} writes to the order: {}",
            if written { "done" } else { "refused by the row" }
        );
        if written { Ok(()) } else { Err(ShopError::Overtaken) }
    }

    async fn state(&self, order: u32) -> Result<String, sqlx::Error> {
        let state = sqlx::query_as("SELECT state FROM orders WHERE id = ?").bind(order);
        let (state,): (String,) = state.fetch_one(&self.pool).await?;
        Ok(state)
    }

    async fn wait_until_packed(&self, order: u32) -> Result<(), sqlx::Error> {
        while self.state(order).await? == "new" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }
}

async fn run(directory: &Path) -> anyhow::Result<()> {
    let shop = Shop::open(&directory.join("shop.db")).await?;
    let records = directory.join("records.db");
    let slow = Idempotency::builder(SqliteStore::open(&records).await?)
        .max_run(Duration::from_secs(1))
        .build()?;
    let next = Idempotency::new(SqliteStore::open(&records).await?);

    let slow_call = pack(&shop, ORDER, SLOW).with_engine(&slow);
    let next_call = async {
        while next.record("orders.pack", ORDER).inspect().await?.is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        anyhow::Ok(pack(&shop, ORDER, NEXT).with_engine(&next).await?)
    };
    let slow_call = async { anyhow::Ok(slow_call.await) };
    let (slow_result, next_result) = tokio::try_join!(slow_call, next_call)?;
    ensure!(next_result == "packed by the next owner", "the next owner has another result");
    match slow_result {
        Ok(result) => println!("{SLOW} returns the result of the call: {result}"),
        Err(error) => println!("{SLOW} returns an error: {error}"),
    }

    let state = shop.state(ORDER).await?;
    println!("the order is {state}");
    ensure!(state == "packed by the next owner", "a late owner has written");
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let own = tempfile::tempdir()?;
    let given = std::env::args_os().nth(1);
    if let Some(directory) = &given {
        std::fs::create_dir(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let directory = given.as_deref().map_or(own.path(), Path::new);
    match tokio::time::timeout(Duration::from_secs(60), run(directory)).await {
        Ok(result) => result,
        Err(_) => bail!("nobody takes the call over"),
    }
}
