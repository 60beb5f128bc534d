//! Other crates with the same work: `cached`, which keeps results, and `idempotent`, which claims
//! keys.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cached::AsyncRedisCache;
use cached::macros::{cached, concurrent_cached};
use futures::future::try_join_all;
use idempotency::store::MemoryStore;
use idempotency::{Error, Idempotency};
use idempotent::entry::ExistingEntry;
use idempotent::fingerprint::{DefaultFingerprintStrategy, FingerprintStrategy as _};
use idempotent::store::{IdempotencyStore, InsertResult};
use idempotent::{CachedResponse, IdempotencyEntry, IdempotencyKey, Metadata};

use crate::measure::{Row, Target, Turns, latency};
use crate::receipt::{DAY, HOT, Order, Receipt, charge, decode};
use crate::redis::World;

/// The number of concurrent calls.
const AT_ONCE: usize = 64;

/// An error of a peer's function, which needs a type of its own.
#[derive(Clone, Debug)]
struct Failed(String);

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failed {}

#[allow(clippy::unused_async, reason = "it is an async function that is kept")]
#[cached(ttl_secs = 86_400)]
async fn cached_in_memory(id: u64) -> Receipt {
    Receipt::of(&Order::new(id))
}

/// The URL at which `cached` finds its server; it is read once.
static REDIS: OnceLock<String> = OnceLock::new();

async fn cache() -> AsyncRedisCache<u64, Receipt> {
    let address = REDIS.get().map(String::as_str).unwrap_or_default();
    let cache = AsyncRedisCache::builder("bench").ttl(DAY).connection_string(address).build().await;
    cache.expect("the server of this measurement runs")
}

#[allow(clippy::unused_async, reason = "it is an async function that is kept")]
#[concurrent_cached(
    map_error = |error| Failed(format!("{error:?}")),
    ty = "AsyncRedisCache<u64, Receipt>",
    create = "{ cache().await }"
)]
async fn cached_in_redis(id: u64) -> Result<Receipt, Failed> {
    Ok(Receipt::of(&Order::new(id)))
}

static EXECUTIONS: AtomicUsize = AtomicUsize::new(0);

#[cached(ttl_secs = 86_400)]
async fn cached_slowly(id: u64) -> Receipt {
    EXECUTIONS.fetch_add(1, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(20)).await;
    Receipt::of(&Order::new(id))
}

/// Runs what a user of `idempotent` writes around a function.
async fn claimed<S: IdempotencyStore>(store: &S, order: &Order) -> anyhow::Result<Receipt> {
    let key = IdempotencyKey::new(format!("bench:{}", order.id))?;
    let fingerprint =
        DefaultFingerprintStrategy.compute("bench.charge", &serde_json::to_vec(order)?);
    let entry = IdempotencyEntry::new(fingerprint, DAY);
    match store.try_insert(&key, entry.clone()).await? {
        InsertResult::Claimed { fencing_token } => {
            let receipt = Receipt::of(order);
            let body = serde_json::to_vec(&receipt)?.into();
            let response = CachedResponse { status_code: 200, metadata: Metadata::default(), body };
            store.complete(&key, entry.complete(response), fencing_token).await?;
            Ok(receipt)
        }
        InsertResult::Exists(ExistingEntry::Completed(entry))
            if entry.fingerprint_matches(fingerprint) =>
        {
            decode(&entry.response().body)
        }
        InsertResult::Exists(_) => anyhow::bail!("it is in progress, or another request"),
    }
}

pub async fn rows() -> anyhow::Result<Vec<Row>> {
    let world = World::new().await?;
    let memory = Idempotency::new(MemoryStore::new());
    let hit = |engine: &Idempotency| {
        let engine = engine.clone();
        move |_| {
            let engine = engine.clone();
            async move { Ok(charge(&engine, &Order::new(HOT)).await.map(drop)?) }
        }
    };
    charge(&world.engine, &Order::new(HOT)).await?;
    charge(&memory, &Order::new(HOT)).await?;
    let (quick, slow) = (Turns { rounds: 20, calls: 10_000 }, Turns { rounds: 20, calls: 1_000 });

    let row = |path: &str, reference: &str, limit| Row::new(path, reference, Target::AtMost(limit));
    let claims = idempotent::store::memory::MemoryStore::new(1_024, Duration::from_secs(60));
    let of_claims = row("memory store hit beside `idempotent`, p50", "`idempotent`, memory", 1.0);
    let of_claims = latency(of_claims, quick, hit(&memory), |_| async {
        claimed(&claims, &Order::new(HOT)).await.map(drop)
    })
    .await?;
    let plain = Row::new(
        "memory store hit beside `cached`, p50",
        "`cached`, memory (clones, decodes nothing)",
        Target::Told,
    );
    let plain = latency(plain, quick, hit(&memory), |_| async {
        cached_in_memory(HOT).await;
        Ok(())
    })
    .await?;

    REDIS.get_or_init(|| world.server.url());
    let client = redis::Client::open(world.server.url())?;
    let claims = idempotent::store::valkey::ValkeyStore::new(client).await?;
    let on_redis = row("Redis hit beside `idempotent`, p50, 1 client", "`idempotent`, Valkey", 1.0);
    let on_redis = latency(on_redis, slow, hit(&world.engine), |_| async {
        claimed(&claims, &Order::new(HOT)).await.map(drop)
    })
    .await?;
    let kept = row("Redis hit beside `cached`, p50, 1 client", "`cached`, Redis", 1.3);
    let kept = latency(kept, slow, hit(&world.engine), |_| async {
        Ok(cached_in_redis(HOT).await.map(drop)?)
    })
    .await?;
    Ok(vec![of_claims, plain, on_redis, kept, executions(&memory).await?])
}

/// Counts how often the body runs when many call at once.
async fn executions(engine: &Idempotency) -> anyhow::Result<Row> {
    let own = Arc::new(AtomicUsize::new(0));
    let calls = (0..AT_ONCE).map(|_| {
        let own = own.clone();
        engine.call("bench.slow", 1).ttl(DAY).run(move || async move {
            own.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(20)).await;
            Ok::<_, Error>(Receipt::of(&Order::new(1)))
        })
    });
    try_join_all(calls).await?;
    futures::future::join_all((0..AT_ONCE).map(|_| cached_slowly(1))).await;
    let figures = format!(
        "{} : {} executions",
        own.load(Ordering::SeqCst),
        EXECUTIONS.load(Ordering::SeqCst)
    );
    let mut row = Row::new("64 calls at once of one key", "`cached`, memory", Target::Told);
    row.figures = figures;
    Ok(row)
}
