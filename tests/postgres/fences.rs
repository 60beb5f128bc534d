//! The order of fences, on a server that is asked more often than once in a millisecond.

use idempotency::Context;
use idempotency::store::{ClaimOutcome, PostgresStore, Release, Store as _};

use crate::world::{DAY, OPERATION, World, claim, key, token};

#[tokio::test]
async fn fences_grow_over_records_that_are_gone() -> anyhow::Result<()> {
    let world = World::new().await?;
    // Two processes, one after the other.
    let stores = [world.store.clone(), PostgresStore::connect(&world.url).await?];
    let mut fences = Vec::new();
    for number in 0..200 {
        let (store, owner) = (&stores[usize::try_from(number % 2)?], token(number));
        let mut claim = claim(1);
        claim.token = owner;
        let claimed = store.claim(claim).await?;
        assert!(matches!(claimed, ClaimOutcome::Granted(_)), "{claimed:?}");
        fences.extend(store.fence(key(1), owner).await?);
        store.release(Release::new(key(1), owner)).await?;
    }
    assert_eq!(fences.len(), 200);
    assert!(fences.is_sorted_by(|before, after| before < after), "{fences:?}");
    Ok(())
}

#[tokio::test]
async fn fences_grow_over_transactions_that_are_rolled_back() -> anyhow::Result<()> {
    let world = World::new().await?;
    let engine = world.engine(|builder| builder);
    let pool = sqlx::PgPool::connect(&world.url).await?;
    let mut fences = Vec::new();
    for _ in 0..50 {
        let mut transaction = pool.begin().await?;
        let call = engine.call(OPERATION, 1).ttl(DAY);
        fences
            .push(call.run_in(&mut transaction, async |_| Context::current().fence().await).await?);
        transaction.rollback().await?;
    }
    assert!(fences.is_sorted_by(|before, after| before < after), "{fences:?}");
    Ok(())
}
