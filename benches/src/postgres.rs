//! The PostgreSQL store beside prepared statements on the same kind of pool.

use std::sync::Arc;

use idempotency::Idempotency;
use idempotency::store::PostgresStore;
use idempotency_test_support::server::{PostgresOptions, PostgresServer};
use sqlx::postgres::{PgPool, PgPoolOptions};

use crate::measure::{Row, Target, Turns, latency, throughput};
use crate::receipt::{HOT, Order, Receipt, charge, decode};

/// The same columns, indexes and settings as the store's own table.
const COPY: &str = "CREATE TABLE reference (LIKE idempotency_records INCLUDING ALL);
    ALTER TABLE reference SET (fillfactor = 70);
    INSERT INTO reference SELECT * FROM idempotency_records";
const SELECT: &str = "SELECT body FROM reference WHERE key_hash = $1";
const INSERT: &str = "INSERT INTO reference SELECT $1, format, 1, owner, fence, revision, operation, fingerprint, policy, \
    created_at, attempts, reason, linger, after_expiry, lease_until, expires_at, purge_at, schema_version, checkpoints, \
    taken_over, trace, '' FROM reference WHERE key_hash = $2";
const UPDATE: &str = "UPDATE reference SET state = 3, body = $2, expires_at = $3, purge_at = $3 WHERE key_hash = $1";

pub async fn rows() -> anyhow::Result<Vec<Row>> {
    let server = PostgresServer::start(PostgresOptions::new().durable()).await?;
    let url = server.database("bench").await?;
    let store = PostgresStore::connect(&url).await?;
    store.migrate().await?;
    let engine = Idempotency::new(store);
    charge(&engine, &Order::new(HOT)).await?;
    server.sql_at(&url, COPY).await?;
    let pool = PgPoolOptions::new().max_connections(10).connect(&url).await?;
    let hot: Arc<Vec<u8>> = Arc::new(sqlx::query_scalar("SELECT key_hash FROM reference").fetch_one(&pool).await?);

    let select = move |pool: PgPool, key: Arc<Vec<u8>>| async move {
        let body: Vec<u8> = sqlx::query_scalar(SELECT).bind(&**key).fetch_one(&pool).await?;
        decode(&body).map(drop)
    };
    let write_twice = move |pool: PgPool, hot: Arc<Vec<u8>>, number: u64| async move {
        let key = number.to_be_bytes().repeat(4);
        sqlx::query(INSERT).bind(&key).bind(&**hot).execute(&pool).await?;
        let body = serde_json::to_vec(&Receipt::of(&Order::new(number)))?;
        sqlx::query(UPDATE).bind(&key).bind(&body).bind(i64::try_from(number)?).execute(&pool).await?;
        Ok(())
    };
    let (of_hits, of_misses) = (engine.clone(), engine.clone());
    let hit = move |_| {
        let engine = of_hits.clone();
        async move { Ok(charge(&engine, &Order::new(HOT)).await.map(drop)?) }
    };
    let miss = move |number| {
        let engine = of_misses.clone();
        async move { Ok(charge(&engine, &Order::new(number)).await.map(drop)?) }
    };
    let (of_selects, of_writes) = ((pool.clone(), hot.clone()), (pool.clone(), hot.clone()));
    let hits = Row::new(
        "PostgreSQL hit, throughput, 8 clients",
        "prepared `SELECT` by primary key + decode",
        Target::AtLeast(0.55),
    );
    let many = Turns { rounds: 9, calls: 4_000 };
    let hits = throughput(hits, many, 8, hit, move |_| select(of_selects.0.clone(), of_selects.1.clone())).await?;
    let misses = Row::new(
        "PostgreSQL miss, 1 client, both with fsync (time of the reference by time of the call)",
        "two autocommitted single-row writes on a table with the same indexes",
        Target::AtLeast(0.8),
    );
    let one = Turns { rounds: 9, calls: 200 };
    // Turned around: the share of the reference's speed that is left.
    let misses =
        latency(misses, one, move |number| write_twice(of_writes.0.clone(), of_writes.1.clone(), number), miss).await?;
    Ok(vec![hits, misses])
}
