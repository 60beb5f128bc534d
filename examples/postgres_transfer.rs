//! Two processes make the same transfers between two accounts on PostgreSQL, each in one
//! transaction with its record. One is killed in the middle of its transactions (SIGKILL). Still
//! every transfer is made once and no cent is lost.
//!
//! ```sh
//! cargo run --features postgres --example postgres_transfer -- postgres://user:password@localhost/database
//! ```
//!
//! `DATABASE_URL` can name the database too. The tables are in a schema of this run, which is
//! dropped at the end.

use std::process::Stdio;

use anyhow::{Context as _, ensure};
use futures::stream::{self, StreamExt as _};
use idempotency::store::PostgresStore;
use idempotency::tx::in_transaction;
use idempotency::{Error, Idempotency, idempotent};
use serde::Serialize;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{PgPool, Postgres, Transaction};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

const TRANSFERS: i64 = 300;
const SCHEMA: &str = "
    CREATE TABLE accounts (name text PRIMARY KEY, cents bigint NOT NULL CHECK (cents >= 0));
    CREATE TABLE postings (transfer bigint NOT NULL, account text NOT NULL, cents bigint NOT NULL);
    INSERT INTO accounts VALUES ('alice', 1000000), ('bob', 1000000);
";

#[derive(Serialize)]
struct Transfer {
    id: i64,
    from: &'static str,
    to: &'static str,
    cents: i64,
}

impl Transfer {
    fn number(id: i64) -> Self {
        let (from, to) = if id % 3 == 0 { ("bob", "alice") } else { ("alice", "bob") };
        Self { id, from, to, cents: 100 + id }
    }
}

#[derive(Debug, thiserror::Error)]
enum BankError {
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    #[error(transparent)]
    Idempotency(#[from] Error),
}

/// Transfers money with relative updates. If they ran twice, they would move the money twice, and
/// the balances would not show it.
#[idempotent(name = "bank.transfer", key = transfer.id, ttl = "24h", fingerprint = transfer, tx = tx)]
async fn make(tx: &mut Transaction<'_, Postgres>, transfer: &Transfer) -> Result<(), BankError> {
    let mut updates = [(transfer.from, -transfer.cents), (transfer.to, transfer.cents)];
    updates.sort_unstable(); // one lock order for all transactions avoids deadlocks
    for (account, cents) in updates {
        let update = sqlx::query("UPDATE accounts SET cents = cents + $1 WHERE name = $2")
            .bind(cents)
            .bind(account);
        update.execute(&mut **tx).await?;
        let posting =
            sqlx::query("INSERT INTO postings VALUES ($1, $2, $3)").bind(transfer.id).bind(account);
        posting.bind(cents).execute(&mut **tx).await?;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next(), arguments.next(), arguments.next()) {
        (Some(word), Some(url), Some(schema)) if word == "worker" => work(&url, &schema).await,
        (url, ..) => {
            let url = url.or_else(|| std::env::var("DATABASE_URL").ok());
            lead(
                &url.context(
                    "give the URL of a PostgreSQL database as argument or in DATABASE_URL",
                )?,
            )
            .await
        }
    }
}

async fn connect(url: &str, schema: &str) -> anyhow::Result<PgPool> {
    let options = url.parse::<PgConnectOptions>()?.options([("search_path", schema)]);
    Ok(PgPoolOptions::new().max_connections(8).connect_with(options).await?)
}

/// Runs all transfers, eight at a time. This is the work of each worker.
async fn work(url: &str, schema: &str) -> anyhow::Result<()> {
    let pool = &connect(url, schema).await?;
    Idempotency::new(PostgresStore::from_pool(pool.clone())).install()?;
    let mut transfers = stream::iter((0..TRANSFERS).map(Transfer::number))
        .map(|transfer| async move {
            let transfer = &transfer;
            in_transaction(pool, |mut tx| async move { make(&mut tx, transfer).await }).await
        })
        .buffer_unordered(8);
    while let Some(result) = transfers.next().await {
        result?;
        println!("made or replayed");
    }
    Ok(())
}

async fn lead(url: &str) -> anyhow::Result<()> {
    let schema = format!("transfer_{}", std::process::id());
    let pool = connect(url, &schema).await?;
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("CREATE SCHEMA {schema}; {SCHEMA}")))
        .execute(&pool)
        .await?;
    PostgresStore::from_pool(pool.clone()).migrate().await?;
    let result = run(url, &schema, &pool).await;
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("DROP SCHEMA {schema} CASCADE")))
        .execute(&pool)
        .await?;
    result
}

async fn run(url: &str, schema: &str, pool: &PgPool) -> anyhow::Result<()> {
    let (mut victim, survivor) = (start(url, schema)?, start(url, schema)?);
    let mut lines = BufReader::new(victim.stdout.take().context("a worker has an output")?).lines();
    for _ in 0..40 {
        lines.next_line().await?.context("the worker ended early")?;
    }
    victim.kill().await?;
    println!("one of two workers was killed (SIGKILL) after 40 of {TRANSFERS} transfers");
    ensure!(survivor.wait_with_output().await?.status.success(), "the other worker failed");

    let (made, postings): (i64, i64) =
        sqlx::query_as("SELECT count(DISTINCT transfer), count(*) FROM postings")
            .fetch_one(pool)
            .await?;
    let (records,): (i64,) =
        sqlx::query_as("SELECT count(*) FROM idempotency_records").fetch_one(pool).await?;
    let (alice,): (i64,) =
        sqlx::query_as("SELECT cents FROM accounts WHERE name = 'alice'").fetch_one(pool).await?;
    let (total,): (i64,) =
        sqlx::query_as("SELECT sum(cents)::bigint FROM accounts").fetch_one(pool).await?;
    println!("transfers made: {made}, postings: {postings}, records: {records}");
    println!("alice has {alice} cents, both together {total}");
    let transfers = (0..TRANSFERS).map(Transfer::number);
    let to_alice: i64 = transfers
        .map(|transfer| if transfer.to == "alice" { transfer.cents } else { -transfer.cents })
        .sum();
    ensure!(
        (made, postings, records) == (TRANSFERS, 2 * TRANSFERS, TRANSFERS),
        "a transfer was made twice or not at all"
    );
    ensure!((alice, total) == (1_000_000 + to_alice, 2_000_000), "the sums are wrong");
    println!("every transfer was made once");
    Ok(())
}

fn start(url: &str, schema: &str) -> anyhow::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["worker", url, schema]).stdout(Stdio::piped()).kill_on_drop(true);
    command.spawn().context("cannot start a worker")
}
