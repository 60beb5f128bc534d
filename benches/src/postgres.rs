//! The PostgreSQL store beside prepared statements on the same kind of pool.

use std::sync::Arc;

use idempotency::Idempotency;
use idempotency::store::PostgresStore;
use idempotency_test_support::server::{PostgresOptions, PostgresServer};
use sqlx::postgres::{PgPool, PgPoolOptions};

use crate::measure::{Row, Target, Turns, latency, throughput};
use crate::receipt::{KEYS, Order, Receipt, charge, decode};

/// The same columns, indexes and settings as the store's own table.
const COPY: &str = "CREATE TABLE reference (LIKE idempotency_records INCLUDING ALL);
    ALTER TABLE reference SET (fillfactor = 70);
    INSERT INTO reference SELECT * FROM idempotency_records";
const SELECT: &str = "SELECT body FROM reference WHERE key_hash = $1";
const INSERT: &str = "INSERT INTO reference SELECT $1, format, 1, owner, fence, revision, operation, namespace, holder, \
    fingerprint, policy, created_at, attempts, reason, linger, after_expiry, lease_until, expires_at, purge_at, schema_version, checkpoints, \
    taken_over, trace, '' FROM reference WHERE key_hash = $2";
const UPDATE: &str =
    "UPDATE reference SET state = 3, body = $2, expires_at = $3, purge_at = $3 WHERE key_hash = $1";

/// The statements with which a call is compared.
#[derive(Clone)]
struct Reference {
    pool: PgPool,
    keys: Arc<[Vec<u8>]>,
}

impl Reference {
    async fn connect(url: &str) -> anyhow::Result<Self> {
        let pool = PgPoolOptions::new().max_connections(10).connect(url).await?;
        let keys: Vec<_> =
            sqlx::query_scalar("SELECT key_hash FROM reference").fetch_all(&pool).await?;
        Ok(Self { pool, keys: keys.into() })
    }

    fn key(&self, number: u64) -> anyhow::Result<&[u8]> {
        Ok(&self.keys[usize::try_from(number % KEYS)?])
    }

    async fn select(self, number: u64) -> anyhow::Result<()> {
        let body: Vec<u8> =
            sqlx::query_scalar(SELECT).bind(self.key(number)?).fetch_one(&self.pool).await?;
        decode(&body).map(drop)
    }

    async fn write_twice(self, number: u64) -> anyhow::Result<()> {
        let key = number.to_be_bytes().repeat(4);
        sqlx::query(INSERT).bind(&key).bind(self.key(0)?).execute(&self.pool).await?;
        let body = serde_json::to_vec(&Receipt::of(&Order::new(number)))?;
        sqlx::query(UPDATE)
            .bind(&key)
            .bind(&body)
            .bind(i64::try_from(number)?)
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

pub async fn rows() -> anyhow::Result<Vec<Row>> {
    let server = PostgresServer::start(PostgresOptions::new().durable()).await?;
    let url = server.database("bench").await?;
    let store = PostgresStore::connect(&url).await?;
    store.migrate().await?;
    let engine = Idempotency::new(store);
    for key in 0..KEYS {
        charge(&engine, &Order::new(key)).await?;
    }
    server.sql_at(&url, COPY).await?;
    let reference = Reference::connect(&url).await?;
    let call = move |number| {
        let engine = engine.clone();
        async move { Ok(charge(&engine, &Order::new(number)).await.map(drop)?) }
    };

    let hits = Row::new(
        "PostgreSQL hit, throughput, 8 clients",
        "prepared `SELECT` by primary key + decode",
        Target::AtLeast(0.55),
    );
    let many = Turns { rounds: 9, calls: 4_000 };
    let (hit, selects) = (call.clone(), reference.clone());
    let hits = throughput(
        hits,
        many,
        8,
        move |number| hit(number % KEYS),
        move |number| selects.clone().select(number),
    )
    .await?;
    let misses = Row::new(
        "PostgreSQL miss, 1 client, both with fsync (time of the reference by time of the call)",
        "two autocommitted single-row writes on a table with the same indexes",
        Target::AtLeast(0.8),
    );
    let one = Turns { rounds: 25, calls: 200 };
    // Inverted: the remaining share of the reference's speed.
    let misses = latency(misses, one, |number| reference.clone().write_twice(number), call).await?;
    Ok(vec![hits, misses])
}
