//! How often a call asks for memory on its caller's thread, what the client of the store does there
//! included. Leases are kept on another thread.

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

/// The holder has the same name in each run: a few names push each other out of those that are
/// remembered.
fn engine(builder: Builder) -> Idempotency {
    let builder = builder.instance("test").lease(LEASE).claim_timeout(PATIENCE);
    builder.background_purge(false).build().unwrap()
}

async fn redis(server: &RedisServer) -> anyhow::Result<RedisStore> {
    let store =
        RedisStore::builder(server.url()).connect_timeout(PATIENCE).response_timeout(PATIENCE);
    Ok(store.connect().await?)
}

/// Asserts that calls with the keys that `key` makes of their numbers allocate `each` times at
/// most, and run `bodies` bodies altogether.
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
    println!(
        "{}.{:03} allocations, {} bytes",
        total / CALLS,
        total % CALLS,
        counted.bytes_total / CALLS as u64
    );
    assert_eq!(bodies.0.into_inner(), expected_bodies);
    // Less than one for each call is a buffer or a map that grows now and then.
    assert!(
        total / CALLS <= each,
        "{total} allocations by {CALLS} calls: more than {each} by each"
    );
}

/// The key, the fingerprint (its bytes, and the ends of its fields), the call's future, and the
/// text in the result.
const NEAR_HIT: usize = 1 + 2 + 1 + 1;
/// The record, whose body is not copied.
const MEMORY_HIT: usize = NEAR_HIT + 1;
/// The call and its way to the store, the place where others with the same key wait, the claim, the
/// request, the failures of its tries, who follows it when the caller leaves, its time limit, and the
/// future of the store.
const ASKING: usize = 9;
/// The grant, the lease and the signal of its end, what is under way, the journal, context and
/// scope of the body, the result as bytes (two, and one to share them), and the commit with its
/// future, its request, the future of the store, its time limit and the record. The text in the
/// result is the body's own here, and once more where the result is read back.
const RUNNING: usize = 16;
const MEMORY_MISS: usize = NEAR_HIT + ASKING + RUNNING;
/// The pending record, the key's name (two), the command (two) and its bytes, the client's future,
/// the way back of the answer, the answer (three), and the record's body in it, which is not
/// copied. Its texts are those of the record that was read before.
const REDIS_CLAIM: usize = 11;
const REDIS_HIT: usize = MEMORY_HIT + ASKING + REDIS_CLAIM;
/// A claim and a script with ten arguments, some of which are numbers that are written as text.
const REDIS_MISS: usize = MEMORY_MISS + 41;

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
    let engine = engine(
        Idempotency::builder(MemoryStore::new()).near_cache(1_000_000).near_cache_ttl(LEASE),
    );
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
fn a_hit_on_redis_in_a_trace() -> anyhow::Result<()> {
    const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let runtime = runtime();
    let server = runtime.block_on(RedisServer::start(RedisOptions::new().private()))?;
    let builder = Idempotency::builder(runtime.block_on(redis(&server))?);
    let engine = engine(builder.trace_context(|| Some(TRACEPARENT.into())));
    // The trace of the call, and that of the record.
    assert_allocations(&runtime, &engine, ONE_KEY, REDIS_HIT + 2, 1);
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
