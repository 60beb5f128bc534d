//! A statement that the server rolled back to resolve a deadlock is sent again.

use idempotency::store::{Renewal, Store as _, StoreErrorKind, Written};
use idempotency_test_support::deadline::{eventually_async, within};
use idempotency_test_support::server::MariaDbOptions;

use crate::world::{LEASE, World, claim, commit, fresh, key, mine};

async fn waits_for_a_lock(world: &World) -> bool {
    let waiting = "SELECT COUNT(*) FROM information_schema.INNODB_TRX WHERE trx_state = 'LOCK WAIT'";
    world.figure(waiting).await.is_ok_and(|count| count > 0)
}

#[tokio::test]
async fn the_victim_of_a_deadlock_tries_again() -> anyhow::Result<()> {
    // The server looks for deadlocks only when it is made to wait longer than this test takes.
    let world = World::private(MariaDbOptions::new()).await?;
    let token = fresh();
    for number in 1..=100 {
        mine(world.store.claim(claim(key(number), token)).await?);
    }
    // Somebody who has written much, so that the store's statement is the cheaper one to roll back.
    let mut other = world.lock(key(50)).await?;
    let heavy = sqlx::query("UPDATE idempotency_records SET schema_version = 9 WHERE key_hash >= ?");
    heavy.bind(key(50).as_bytes().to_vec()).execute(&mut *other).await?;
    let renewals = vec![Renewal::new(key(1), token, LEASE), Renewal::new(key(50), token, LEASE)];
    let store = world.store.clone();
    let renewing = tokio::spawn(async move { store.renew(renewals).await });
    eventually_async("the renewal to wait", async || waits_for_a_lock(&world).await).await?;
    let crossing = sqlx::query("UPDATE idempotency_records SET schema_version = 9 WHERE key_hash = ?");
    crossing.bind(key(1).as_bytes().to_vec()).execute(&mut *other).await?;
    other.commit().await?;
    assert_eq!(within("the renewal", renewing).await???, [Written::Applied; 2]);
    let deadlocks =
        "SELECT VARIABLE_VALUE FROM information_schema.GLOBAL_STATUS WHERE VARIABLE_NAME = 'Innodb_deadlocks'";
    assert_eq!(world.figure(deadlocks).await?, 1, "it was one");
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
