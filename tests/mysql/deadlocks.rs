//! A statement that the server rolled back to resolve a deadlock is sent again.

use idempotency::store::{Renewal, Store as _, StoreErrorKind, Token, WriteOutcome};
use idempotency_test_support::deadline::{eventually_async, within};
use idempotency_test_support::server::MariaDbOptions;

use crate::world::{LEASE, World, claim, commit, fresh, key, mine};

/// A count of the server's. `INNODB_TRX` is no place to look into: it is only brought up to date
/// when nobody has looked for a tenth of a second.
async fn count(world: &World, name: &str) -> anyhow::Result<i64> {
    let statement = format!(
        "SELECT VARIABLE_VALUE FROM information_schema.GLOBAL_STATUS WHERE VARIABLE_NAME = '{name}'"
    );
    world.figure(&statement).await
}

async fn waits_for_a_lock(world: &World) -> bool {
    count(world, "Innodb_row_lock_current_waits").await.is_ok_and(|count| count > 0)
}

async fn deadlocks(world: &World) -> anyhow::Result<i64> {
    count(world, "Innodb_deadlocks").await
}

/// Whether the renewal of two leases was the victim of a deadlock, and was applied all the same.
/// The server waits for a lock for one second: where the machine stands still for that long,
/// nothing is shown either way.
async fn is_applied_as_a_victim(world: &World, token: Token) -> anyhow::Result<bool> {
    let before = deadlocks(world).await?;
    // Somebody who has written much, so that the store's statement is the cheaper one to roll back;
    // and through the trigger, the row for which the renewal will wait.
    let mut other = world.lock(key(50)).await?;
    let heavy = sqlx::query(
        "UPDATE idempotency_records SET schema_version = schema_version + 1 WHERE key_hash >= ?",
    );
    heavy.bind(key(50).as_bytes().to_vec()).execute(&mut *other).await?;
    let renewals = vec![Renewal::new(key(1), token, LEASE), Renewal::new(key(2), token, LEASE)];
    let store = world.store.clone();
    let renewing = tokio::spawn(async move { store.renew(renewals).await });
    let waits = async || renewing.is_finished() || waits_for_a_lock(world).await;
    eventually_async("the renewal to wait", waits).await?;
    let crossing = sqlx::query(
        "UPDATE idempotency_records SET schema_version = schema_version + 1 WHERE key_hash = ?",
    );
    crossing.bind(key(1).as_bytes().to_vec()).execute(&mut *other).await?;
    other.commit().await?;
    let written = within("the renewal", renewing).await??;
    Ok(deadlocks(world).await? > before
        && written.is_ok_and(|written| written == [WriteOutcome::Applied; 2]))
}

#[tokio::test]
async fn the_victim_of_a_deadlock_tries_again() -> anyhow::Result<()> {
    let world = World::private(MariaDbOptions::new()).await?;
    // A renewal names no row that somebody has locked, but a trigger of the user's may need one.
    let trigger = "CREATE TABLE audit (id INT PRIMARY KEY, writes INT);
        INSERT INTO audit VALUES (1, 0);
        CREATE TRIGGER audited AFTER UPDATE ON idempotency_records
            FOR EACH ROW UPDATE audit SET writes = writes + 1 WHERE id = 1";
    world.sql(trigger).await?;
    let token = fresh();
    for number in 1..=100 {
        mine(world.store.claim(claim(key(number), token)).await?);
    }
    let is_applied = async || is_applied_as_a_victim(&world, token).await.unwrap_or(false);
    eventually_async("the victim of a deadlock to be applied", is_applied).await
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
    assert_eq!(world.store.complete(commit(key(1), token)).await?, WriteOutcome::Applied);
    Ok(())
}
