//! What a request costs at the store, counted between the two.

use idempotency::Idempotency;
use idempotency::http::{IdempotencyLayer, Scope};
use idempotency::store::RedisStore;
use idempotency_test_support::deadline::eventually;
use idempotency_test_support::proxy::Proxy;
use idempotency_test_support::server::{RedisOptions, RedisServer};

use crate::world::{DAY, PATIENCE, Shop, memory_directory};

#[tokio::test]
async fn a_first_request_costs_two_round_trips_and_a_replay_one() -> anyhow::Result<()> {
    let redis = RedisServer::start(RedisOptions::new().private()).await?;
    let proxy = Proxy::start(redis.address()).await?;
    let directory = memory_directory()?;
    let connecting = RedisStore::builder(proxy.url(&redis.url())).connect_timeout(PATIENCE);
    let store = connecting.response_timeout(PATIENCE).connect().await?;
    // No renewal comes in between.
    let engine = Idempotency::builder(store).claim_timeout(PATIENCE).lease(DAY).build()?;
    let layer = IdempotencyLayer::new(engine, Scope::global()).with_ttl(DAY * 2);
    // A large result is staged by a command of its own, which does not wait for its answer.
    for (key, bytes, commands) in [("small", 1, 2), ("large", 100_000, 3)] {
        let shop = Shop::open(directory.path())?;
        let server = shop.serve(layer.clone()).await?;
        // Connects, and loads the script.
        server.client().post("/pay").key(&format!("before-{key}")).send().await?;

        let pay = || server.client().post("/pay").key(key).body("x".repeat(bytes));
        let (trips, requests) = (proxy.round_trips(), proxy.requests());
        let first = pay().header("x-wait", "1").spawn();
        let entered = format!("entered-{key}");
        eventually(&entered, || shop.count(&entered) == 1).await?;
        assert_eq!((proxy.round_trips() - trips, proxy.requests() - requests), (1, 1), "the claim");
        // Nothing is answered before all is sent.
        redis.pause()?;
        shop.gate.open();
        eventually("the commit", || proxy.requests() == requests + commands).await?;
        redis.resume()?;
        assert!(!first.reply().await?.is_replayed());
        assert_eq!(proxy.round_trips() - trips, 2, "{key}: {:?}", proxy.requests_by_command());

        let (trips, requests) = (proxy.round_trips(), proxy.requests());
        assert!(pay().send().await?.is_replayed());
        assert_eq!(
            (proxy.round_trips() - trips, proxy.requests() - requests),
            (1, 1),
            "{key}: the replay"
        );
    }
    Ok(())
}
