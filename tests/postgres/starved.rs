//! Who holds the connections of a pool that the store was given keeps its requests waiting, and is
//! told so.

use std::time::Duration;

use idempotency::store::{PostgresStore, Store as _};
use idempotency::{ErrorKind, Idempotency};
use sqlx::postgres::PgPoolOptions;

use crate::warnings::Warnings;
use crate::world::{World, key};

#[tokio::test]
async fn who_holds_all_connections_of_the_pool_is_warned_once() -> anyhow::Result<()> {
    let world = World::new().await?;
    let warnings = Warnings::listen();
    let pool = PgPoolOptions::new().max_connections(1).connect(&world.url).await?;
    let store = PostgresStore::from_pool(pool.clone());
    let transaction = pool.begin().await?;
    for _ in 0..2 {
        let error = store.read(key(1)).await.unwrap_err();
        assert!(error.is_transient(), "{error}");
    }
    assert!(warnings.mention("others hold them"));
    assert_eq!(warnings.count("a pool of its own"), 1);
    transaction.rollback().await?;
    store.read(key(1)).await?;
    Ok(())
}

#[tokio::test]
async fn a_call_that_gets_no_connection_says_why_after_its_claim_timeout() -> anyhow::Result<()> {
    let world = World::new().await?;
    let pool = PgPoolOptions::new().max_connections(1).connect(&world.url).await?;
    let store = PostgresStore::from_pool(pool.clone());
    // More than one wait of two seconds for a connection, and less than two of them.
    let engine = Idempotency::builder(store).claim_timeout(Duration::from_secs(3)).build()?;
    let transaction = pool.begin().await?;
    let call = engine.call("charge", "order-7").ttl(Duration::from_secs(60));
    let error = call.run(async || Ok::<_, idempotency::Error>(())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable);
    let reasons: Vec<_> =
        std::iter::successors(std::error::Error::source(&error), |source| source.source())
            .map(ToString::to_string)
            .collect();
    assert!(reasons.iter().any(|reason| reason.contains("no connection within")), "{reasons:?}");
    transaction.rollback().await?;
    Ok(())
}
