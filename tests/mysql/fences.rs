//! The order of fences, on a server that is asked more often than once in a millisecond.

use idempotency::store::{Release, Store as _};
use idempotency::{Context, Idempotency};

use crate::world::{DAY, World, claim, fresh, key, mine};

#[tokio::test]
async fn fences_grow_over_records_that_are_gone() -> anyhow::Result<()> {
    let world = World::new().await?;
    // Two processes, one after the other.
    let stores = [world.store.clone(), idempotency::store::MySqlStore::connect(&world.url).await?];
    let mut fences = Vec::new();
    for number in 0..200 {
        let (store, token) = (&stores[number % 2], fresh());
        let claimed = mine(store.claim(claim(key(1), token)).await?);
        let fence = store.fence(key(1), token).await?;
        assert_eq!(fence, Some(claimed.fence), "the figure of the claim");
        fences.extend(fence);
        store.release(Release::new(key(1), token)).await?;
    }
    assert_eq!(fences.len(), 200);
    assert!(fences.is_sorted_by(|before, after| before < after), "{fences:?}");
    Ok(())
}

#[tokio::test]
async fn fences_grow_over_transactions_that_are_rolled_back() -> anyhow::Result<()> {
    let world = World::new().await?;
    let engine = Idempotency::new(world.store.clone());
    let pool = sqlx::MySqlPool::connect(&world.url).await?;
    let mut fences = Vec::new();
    for _ in 0..50 {
        let mut transaction = pool.begin().await?;
        let call = engine.call("payments.charge", 1).ttl(DAY);
        fences
            .push(call.run_in(&mut transaction, async |_| Context::current().fence().await).await?);
        transaction.rollback().await?;
    }
    assert!(fences.is_sorted_by(|before, after| before < after), "{fences:?}");
    Ok(())
}
