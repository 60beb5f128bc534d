//! Who holds the connections of a pool that the store was given keeps its requests waiting, and is
//! told so.

use idempotency::store::{MySqlStore, Store as _};
use sqlx::mysql::MySqlPoolOptions;

use crate::warnings::Warnings;
use crate::world::{World, key};

#[tokio::test]
async fn who_holds_all_connections_of_the_pool_is_warned_once() -> anyhow::Result<()> {
    let world = World::new().await?;
    let warnings = Warnings::listen();
    let pool = MySqlPoolOptions::new().max_connections(1).connect(&world.url).await?;
    let store = MySqlStore::from_pool(pool.clone());
    let transaction = pool.begin().await?;
    for _ in 0..2 {
        let error = store.read(key(1)).await.unwrap_err();
        assert!(error.is_transient(), "{error}");
    }
    assert_eq!(warnings.count("a pool of its own"), 1);
    transaction.rollback().await?;
    store.read(key(1)).await?;
    Ok(())
}
