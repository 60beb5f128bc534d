//! The memory store and the near cache beside a plain cache with the same decoding.

use std::sync::Arc;

use idempotency::Idempotency;
use idempotency::store::MemoryStore;

use crate::measure::{Row, Target, Turns, latency};
use crate::receipt::{HOT, Order, Receipt, acknowledge, charge, decode};
use crate::redis::World;

pub async fn rows() -> anyhow::Result<Vec<Row>> {
    let plain: moka::sync::Cache<String, Arc<Vec<u8>>> = moka::sync::Cache::new(10_000);
    plain.insert(
        format!("bench:{HOT}"),
        Arc::new(serde_json::to_vec(&Receipt::of(&Order::new(HOT)))?),
    );
    let get = |_| async {
        let body = plain.get(&format!("bench:{HOT}"));
        body.map_or(Ok(()), |body| decode(&body).map(drop))
    };
    let turns = Turns { rounds: 20, calls: 20_000 };

    let world = World::new().await?;
    let store = idempotency::store::RedisStore::connect(&world.server.url()).await?;
    let near = Idempotency::builder(store).near_cache(64 * 1024 * 1024).build()?;
    let memory = Idempotency::new(MemoryStore::new());
    // A caller already has the request.
    let order = Order::new(HOT);
    let of_near = Row::new("near-cache hit, p50", "`moka` get + decode", Target::AtMost(3.0));
    let of_near =
        latency(of_near, turns, |_| async { Ok(charge(&near, &order).await.map(drop)?) }, get)
            .await?;
    let of_memory = Row::new("memory store hit, p50", "`moka` get + decode", Target::AtMost(4.0));
    let of_memory =
        latency(of_memory, turns, |_| async { Ok(charge(&memory, &order).await.map(drop)?) }, get)
            .await?;
    // The cost of a result that is checked, encoded and read back. Each call leaves a record.
    let turns = Turns { rounds: 20, calls: 2_000 };
    let (receipts, nothing) =
        (Idempotency::new(MemoryStore::new()), Idempotency::new(MemoryStore::new()));
    let charge = |number| {
        let receipts = &receipts;
        async move { Ok(charge(receipts, &Order::new(number)).await.map(drop)?) }
    };
    let acknowledge = |number| {
        let nothing = &nothing;
        async move { Ok(acknowledge(nothing, &Order::new(number)).await?) }
    };
    let of_miss =
        Row::new("memory store miss, p50", "the same call, whose result is `()`", Target::Told);
    let of_miss = latency(of_miss, turns, charge, acknowledge).await?;
    Ok(vec![of_near, of_memory, of_miss])
}
