//! A statement that the server rolled back to resolve a deadlock is sent again.

use std::sync::atomic::{AtomicU64, Ordering};

use idempotency::store::{Renewal, Store as _, StoreErrorKind, Written};
use idempotency_test_support::deadline::{eventually_async, within};
use idempotency_test_support::server::MariaDbOptions;

use crate::world::{LEASE, World, claim, commit, fresh, key, mine};

/// A count of the server's. `INNODB_TRX` is no place to look into: it is only brought up to date when nobody has looked for
/// a tenth of a second.
async fn count(world: &World, name: &str) -> anyhow::Result<i64> {
    let statement =
        format!("SELECT VARIABLE_VALUE FROM information_schema.GLOBAL_STATUS WHERE VARIABLE_NAME = '{name}'");
    world.figure(&statement).await
}

async fn waits_for_a_lock(world: &World) -> bool {
    count(world, "Innodb_row_lock_current_waits").await.is_ok_and(|count| count > 0)
}

async fn deadlocks(world: &World) -> anyhow::Result<i64> {
    count(world, "Innodb_deadlocks").await
}

/// Whether a commit was the victim of a deadlock, and was applied all the same. The server waits for a lock for one
/// second: where the machine stands still for that long, nothing is shown either way.
async fn is_applied_as_a_victim(world: &World, number: u64) -> anyhow::Result<bool> {
    let (key, token) = (key(number), fresh());
    mine(world.store.claim(claim(key, token)).await?);
    let before = deadlocks(world).await?;
    // Somebody who has written much, so that the store's statement is the cheaper one to roll back.
    let mut other = world.pool("SET autocommit = 1").await?.begin().await?;
    sqlx::query("UPDATE audit SET entry = entry + 1").execute(&mut *other).await?;
    let store = world.store.clone();
    let committing = tokio::spawn(async move { store.complete(commit(key, token)).await });
    let waits = async || committing.is_finished() || waits_for_a_lock(world).await;
    eventually_async("the commit to wait", waits).await?;
    let crossing = sqlx::query("SELECT 1 FROM idempotency_records WHERE key_hash = ? FOR UPDATE");
    crossing.bind(key.as_bytes().to_vec()).fetch_optional(&mut *other).await?;
    other.commit().await?;
    let written = within("the commit", committing).await??;
    Ok(deadlocks(world).await? > before && written.is_ok_and(|written| written == Written::Applied))
}

#[tokio::test]
async fn the_victim_of_a_deadlock_tries_again() -> anyhow::Result<()> {
    let world = World::private(MariaDbOptions::new()).await?;
    // Every change of a record writes to another table too, after the record is locked.
    world
        .sql(
            "CREATE TABLE audit (id INT PRIMARY KEY, entry INT NOT NULL);
             INSERT INTO audit SELECT seq, 0 FROM seq_1_to_100;
             CREATE TRIGGER audited AFTER UPDATE ON idempotency_records FOR EACH ROW
                 UPDATE audit SET entry = entry + 1 WHERE id = 1;",
        )
        .await?;
    let tries = AtomicU64::new(0);
    let is_applied = async || {
        let number = tries.fetch_add(1, Ordering::SeqCst);
        is_applied_as_a_victim(&world, number).await.unwrap_or(false)
    };
    eventually_async("the victim of a deadlock to be applied", is_applied).await
}

#[tokio::test]
async fn a_locked_row_is_not_answered_and_does_not_cost_others_their_renewal() -> anyhow::Result<()> {
    let world = World::new().await?;
    let token = fresh();
    for number in 1..=3 {
        mine(world.store.claim(claim(key(number), token)).await?);
    }
    let lock = world.lock(key(2)).await?;
    let renewal = |number, token| Renewal::new(key(number), token, LEASE);
    let mut renewals: Vec<_> = (1..=4).map(|number| renewal(number, token)).collect();
    renewals.push(renewal(3, fresh()));
    let renewed = [Written::Applied, Written::Unanswered, Written::Applied, Written::Gone, Written::Lost];
    assert_eq!(within("the renewals", world.store.renew(renewals)).await??, renewed);
    lock.rollback().await?;
    assert_eq!(world.store.renew(vec![renewal(2, token)]).await?, [Written::Applied]);
    Ok(())
}

#[tokio::test]
async fn a_lock_that_is_held_for_long_refuses_the_request() -> anyhow::Result<()> {
    let world = World::new().await?;
    let token = fresh();
    mine(world.store.claim(claim(key(1), token)).await?);
    let lock = world.lock(key(1)).await?;
    let error = world.store.complete(commit(key(1), token)).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Refused, "nothing was applied: {error}");
    lock.rollback().await?;
    assert_eq!(world.store.complete(commit(key(1), token)).await?, Written::Applied);
    Ok(())
}
