//! A store with a million results beside one with a thousand.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use idempotency::store::{Claim, Commit, MemoryStore, PostgresStore, Store, Token};
use idempotency::{Idempotency, key::KeyHash};
use idempotency_test_support::server::{PostgresOptions, PostgresServer};

use crate::measure::{Row, Target, quantile};
use crate::receipt::{DAY, HOT, Order, Receipt, charge};
use crate::redis::World;

const FEW: u32 = 1_000;
const MANY: u32 = 1_000_000;
/// The number of records that are sent at once.
const BATCH: u32 = 10_000;
const HITS: u64 = 2_000;
const ROUNDS: u32 = 9;

pub async fn rows() -> anyhow::Result<Vec<Row>> {
    Ok(vec![in_memory().await?, in_redis().await?, in_postgres().await?])
}

/// Returns the 99th percentile of hits.
async fn slow_hits(engine: &Idempotency) -> anyhow::Result<Duration> {
    let mut times = Vec::new();
    for _ in 0..HITS {
        let start = Instant::now();
        charge(engine, &Order::new(HOT)).await?;
        times.push(start.elapsed());
    }
    times.sort();
    Ok(quantile(&times, 0.99))
}

async fn compare(
    name: &str,
    few: &Idempotency,
    many: &Idempotency,
    bytes: u64,
) -> anyhow::Result<Row> {
    let path = format!("{name} hit, p99, 1 000 000 completed records, {bytes} bytes for each");
    let mut row = Row::new(&path, "the same store with 1 000 records", Target::AtMost(1.5));
    let (mut of_many, mut of_few) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (with_many, with_few) = (slow_hits(many).await?, slow_hits(few).await?);
        row.ratios.push(with_many.as_secs_f64() / with_few.as_secs_f64());
        of_many.push(with_many);
        of_few.push(with_few);
    }
    of_many.sort();
    of_few.sort();
    row.figures = format!("{:.1?} : {:.1?}", quantile(&of_many, 0.5), quantile(&of_few, 0.5));
    Ok(row)
}

fn hash(number: u32) -> KeyHash {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&number.wrapping_mul(0x9e37_79b1).to_be_bytes());
    bytes[28..].copy_from_slice(&number.to_be_bytes());
    KeyHash::from_bytes(bytes)
}

/// Returns the resident memory of this process in bytes.
fn resident() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no `VmRSS`")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
}

async fn in_memory() -> anyhow::Result<Row> {
    let engine = async |records: u32| {
        let store =
            MemoryStore::builder().max_records(2 * MANY as usize).max_bytes(usize::MAX).build();
        let body: bytes::Bytes = serde_json::to_vec(&Receipt::of(&Order::new(HOT)))?.into();
        for number in 0..records {
            let token = Token::from_bits(u128::from(number));
            store.claim(Claim::new(hash(number), token, "bench.charge".into())).await?;
            // Each has bytes of its own, as results have.
            let body = bytes::Bytes::copy_from_slice(&body);
            store.complete(Commit::new(hash(number), token, body, DAY)).await?;
        }
        let engine = Idempotency::new(store);
        charge(&engine, &Order::new(HOT)).await?;
        anyhow::Ok(engine)
    };
    let few = engine(FEW).await?;
    let before = resident()?;
    let many = engine(MANY).await?;
    let bytes = resident()?.saturating_sub(before) / u64::from(MANY);
    compare("memory store", &few, &many, bytes).await
}

async fn in_redis() -> anyhow::Result<Row> {
    let loaded = async |records: u32| {
        let world = World::new().await?;
        charge(&world.engine, &Order::new(HOT)).await?;
        let mut connection = world.connection.clone();
        let name: String = redis::cmd("RANDOMKEY").query_async(&mut connection).await?;
        let value: Vec<u8> = redis::cmd("GET").arg(name).query_async(&mut connection).await?;
        let before = used_memory(&mut connection).await?;
        for first in (0..records).step_by(BATCH as usize) {
            let mut batch = redis::pipe();
            for number in first..(first + BATCH).min(records) {
                let name = format!("idempotency:{{{}}}", hash(number).to_hex());
                batch.cmd("SET").arg(name).arg(&value).arg("PX").arg(86_400_000).ignore();
            }
            batch.query_async::<()>(&mut connection).await?;
        }
        let bytes = used_memory(&mut connection).await?.saturating_sub(before) / u64::from(records);
        anyhow::Ok((world, bytes))
    };
    let ((few, _), (many, bytes)) = (loaded(FEW).await?, loaded(MANY).await?);
    compare("Redis", &few.engine, &many.engine, bytes).await
}

async fn used_memory(connection: &mut redis::aio::MultiplexedConnection) -> anyhow::Result<u64> {
    let info: String = redis::cmd("INFO").arg("memory").query_async(connection).await?;
    let used = info
        .lines()
        .find_map(|line| line.strip_prefix("used_memory:"))
        .context("no `used_memory`")?;
    Ok(used.trim().parse()?)
}

async fn in_postgres() -> anyhow::Result<Row> {
    let server = PostgresServer::start(PostgresOptions::new().private()).await?;
    let loaded = async |name: &str, records: u32| {
        let url = server.database(name).await?;
        let store = PostgresStore::connect(&url).await?;
        store.migrate().await?;
        let engine = Idempotency::new(store);
        charge(&engine, &Order::new(HOT)).await?;
        let fill = format!(
            "INSERT INTO idempotency_records SELECT sha256(number::text::bytea), format, state, owner, fence, revision,
                operation, namespace, holder, fingerprint, policy, created_at, attempts, reason, linger, after_expiry,
                lease_until, expires_at, purge_at, schema_version, checkpoints, taken_over, trace, body
            FROM idempotency_records, generate_series(1, {records}) AS number"
        );
        server.sql_at(&url, &fill).await?;
        server.sql_at(&url, "VACUUM ANALYZE idempotency_records").await?;
        let pool = sqlx::PgPool::connect(&url).await?;
        let bytes: i64 = sqlx::query_scalar("SELECT pg_total_relation_size('idempotency_records')")
            .fetch_one(&pool)
            .await?;
        anyhow::Ok((engine, u64::try_from(bytes)? / u64::from(records)))
    };
    let ((few, _), (many, bytes)) = (loaded("few", FEW).await?, loaded("many", MANY).await?);
    compare("PostgreSQL", &few, &many, bytes).await
}
