//! How often a call asks for memory on its caller's thread, what the client of the store does there included. Leases are
//! kept on another thread.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use idempotency::store::{MemoryStore, RedisStore};
use idempotency::{Builder, Error, Idempotency, idempotent};
use idempotency_test_support::server::{RedisOptions, RedisServer};
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;

/// Buffers and tables grow with the first calls.
const WARM_UP: usize = 2_000;
const CALLS: usize = 1_000;
/// No answer is given up, and no lease is renewed meanwhile.
const PATIENCE: Duration = Duration::from_secs(60);
const LEASE: Duration = Duration::from_secs(3_600);

#[derive(Serialize)]
struct Order {
    id: usize,
    amount: u64,
    customer: &'static str,
}

/// About 200 bytes as JSON, which are one allocation each time that they are decoded.
#[derive(Deserialize, Serialize)]
struct Receipt {
    order: usize,
    reference: String,
}

/// Of this thread.
struct Bodies(AtomicUsize);

#[idempotent(name = "payments.charge", key = order.id, fingerprint = order, ttl = "24h", engine = engine)]
async fn charge(engine: &Idempotency, order: &Order, bodies: &Bodies) -> Result<Receipt, Error> {
    bodies.0.fetch_add(1, Ordering::Relaxed);
    Ok(Receipt { order: order.id, reference: "x".repeat(180) })
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn engine(builder: Builder) -> Idempotency {
    builder.lease(LEASE).claim_timeout(PATIENCE).background_purge(false).build()
}

async fn redis(server: &RedisServer) -> anyhow::Result<RedisStore> {
    let store = RedisStore::builder(server.url()).connect_timeout(PATIENCE).response_timeout(PATIENCE);
    Ok(store.connect().await?)
}

/// Asserts that calls with the keys that `key` makes of their numbers allocate `each` times at most, and run `bodies`
/// bodies altogether.
fn assert_allocations(
    runtime: &Runtime,
    engine: &Idempotency,
    key: impl Fn(usize) -> usize,
    each: usize,
    expected_bodies: usize,
) {
    let bodies = Bodies(AtomicUsize::new(0));
    let call = async |number: usize| {
        let order = Order { id: key(number), amount: 49_99, customer: "c-81733" };
        let receipt = charge(engine, &order, &bodies).await.expect("the call succeeds");
        assert_eq!(receipt.order, order.id);
    };
    let calls = async |numbers: std::ops::Range<usize>| {
        for number in numbers {
            call(number).await;
        }
    };
    runtime.block_on(calls(0..WARM_UP));
    let counted = allocation_counter::measure(|| runtime.block_on(calls(WARM_UP..WARM_UP + CALLS)));
    let total = usize::try_from(counted.count_total).expect("there are not that many");
    println!("{}.{:03} allocations, {} bytes", total / CALLS, total % CALLS, counted.bytes_total / CALLS as u64);
    assert_eq!(bodies.0.into_inner(), expected_bodies);
    // Less than one for each call is a buffer or a map that grows now and then.
    assert!(total / CALLS <= each, "{total} allocations by {CALLS} calls: more than {each} by each");
}

/// One for the key, eight for the fingerprint of three fields, three for the call (its future, what was asked for, the
/// scope that it runs in), and one for the text in the result.
const NEAR_HIT: usize = 13;
/// Beside those: the place where others with the same key wait, the request, who follows it when the caller leaves, its
/// time limit, the future of the store, and the record for all who waited.
const MEMORY_HIT: usize = NEAR_HIT + 6;
/// Instead of the record: the grant, the lease and the signal of its end, what is under way, the scope, journal and
/// context of the body, its text, the result as bytes, the commit with its future, time limit and record, and the record
/// that the store keeps.
const MEMORY_MISS: usize = 35;
/// The command with its words and bytes, the client's futures and the way back of the answer, the answer, and the record
/// that is read from it.
const REDIS_HIT: usize = MEMORY_HIT + 19;
/// A `SET` and a script.
const REDIS_MISS: usize = 89;

const ONE_KEY: fn(usize) -> usize = |_| 7;
const ALL_MISS: usize = WARM_UP + CALLS;

#[test]
fn a_hit_on_the_memory_store() {
    let engine = engine(Idempotency::builder(MemoryStore::new()));
    assert_allocations(&runtime(), &engine, ONE_KEY, MEMORY_HIT, 1);
}

#[test]
fn a_miss_on_the_memory_store() {
    let engine = engine(Idempotency::builder(MemoryStore::new()));
    assert_allocations(&runtime(), &engine, |number| number, MEMORY_MISS, ALL_MISS);
}

#[test]
fn a_hit_in_the_near_cache() {
    let engine = engine(Idempotency::builder(MemoryStore::new()).near_cache(1_000_000).near_cache_ttl(LEASE));
    assert_allocations(&runtime(), &engine, ONE_KEY, NEAR_HIT, 1);
}

#[test]
fn a_hit_on_redis() -> anyhow::Result<()> {
    let runtime = runtime();
    let server = runtime.block_on(RedisServer::start(RedisOptions::new().private()))?;
    let engine = engine(Idempotency::builder(runtime.block_on(redis(&server))?));
    assert_allocations(&runtime, &engine, ONE_KEY, REDIS_HIT, 1);
    Ok(())
}

#[test]
fn a_miss_on_redis() -> anyhow::Result<()> {
    let runtime = runtime();
    let server = runtime.block_on(RedisServer::start(RedisOptions::new().private()))?;
    let engine = engine(Idempotency::builder(runtime.block_on(redis(&server))?));
    assert_allocations(&runtime, &engine, |number| number, REDIS_MISS, ALL_MISS);
    Ok(())
}
