//! What is purged, and what is not.

use std::time::Duration;

use idempotency::Error;
use idempotency::store::{Claim, Commit, CrashPolicy, Park, Reason, State, Store as _};
use idempotency_test_support::deadline::eventually_async;
use sqlx::PgPool;

use crate::world::{DAY, HOUR, OPERATION, World, claim, key, run, token};

/// Moves every record so far into the past that its time is over.
const EXPIRE: &str = "UPDATE idempotency_records SET expires_at = expires_at - 2 * 86400000,
                          purge_at = purge_at - 2 * 86400000";

#[tokio::test]
async fn unfinished_records_stay_until_their_own_time_is_over() -> anyhow::Result<()> {
    let world = World::new().await?;
    let short = |number| {
        let mut claim = claim(number);
        claim.ttl = Duration::from_millis(1);
        claim.linger = HOUR;
        claim
    };
    world.store.claim(short(1)).await?;
    world.store.claim(short(2)).await?;
    world.store.park(Park::own(key(2), token(2), Reason::Error)).await?;
    // A purge comes by when the result would have been over, and puts them off.
    eventually_async("the purge to be due", async || {
        let due = "SELECT count(*) FROM idempotency_records
                   WHERE purge_at <= extract(epoch FROM clock_timestamp()) * 1000";
        world.sql(due).await.is_ok_and(|rows| rows == [[Some("1".to_owned())]])
    })
    .await?;
    let purged = world.store.purge(10).await?;
    assert_eq!((purged.removed, purged.lag, world.rows().await?), (0, None, 2));
    assert_eq!(purged.put_off, 1);
    assert_eq!(world.store.purge(10).await?.removed, 0);
    let states = [world.store.read(key(1)).await?, world.store.read(key(2)).await?]
        .map(|record| record.map(|r| r.state));
    assert_eq!(states, [Some(State::InProgress), Some(State::InDoubt)]);
    world.sql(EXPIRE).await?;
    assert_eq!((world.store.purge(10).await?.removed, world.rows().await?), (2, 0));
    Ok(())
}

#[tokio::test]
async fn batches_are_bounded_and_the_lag_is_told() -> anyhow::Result<()> {
    let world = World::new().await?;
    for number in 0..5 {
        run(&world.store, number, "old", HOUR).await?;
    }
    world.sql(EXPIRE).await?;
    run(&world.store, 5, "young", DAY).await?;
    let purged = world.store.purge(3).await?;
    assert_eq!((purged.removed, world.rows().await?), (3, 3));
    let lag = purged.lag.expect("two are left");
    assert!(lag > DAY && lag < 2 * DAY, "{lag:?}");
    let purged = world.store.purge(3).await?;
    assert_eq!((purged.removed, purged.lag, world.rows().await?), (2, None, 1));
    Ok(())
}

#[tokio::test]
async fn what_is_due_before_the_end_of_the_last_batch_is_found() -> anyhow::Result<()> {
    let world = World::new().await?;
    for number in 0..3 {
        run(&world.store, number, "old", HOUR).await?;
    }
    world.sql("UPDATE idempotency_records SET expires_at = 9, purge_at = 9 WHERE get_byte(key_hash, 3) < 2").await?;
    assert_eq!(world.store.purge(2).await?.removed, 2);
    world.sql("UPDATE idempotency_records SET expires_at = 5, purge_at = 5").await?;
    let purged = world.store.purge(2).await?;
    assert_eq!((purged.removed, purged.lag, world.rows().await?), (1, None, 0));
    Ok(())
}

#[tokio::test]
async fn tombstones_stay_until_they_are_over() -> anyhow::Result<()> {
    let world = World::new().await?;
    let mut claim = claim(1);
    claim.ttl = Duration::from_millis(1);
    claim.after_expiry = DAY;
    world.store.claim(claim).await?;
    world
        .store
        .complete(Commit::new(key(1), token(1), "x".into(), Duration::from_millis(1)))
        .await?;
    eventually_async("the record to expire", async || {
        world
            .store
            .read(key(1))
            .await
            .is_ok_and(|record| record.is_some_and(|record| record.state == State::Tombstone))
    })
    .await?;
    assert_eq!((world.store.purge(10).await?.removed, world.rows().await?), (0, 1));
    world.sql(EXPIRE).await?;
    assert_eq!((world.store.purge(10).await?.removed, world.rows().await?), (1, 0));
    Ok(())
}

#[tokio::test]
async fn a_purge_waits_for_nobody_and_takes_what_is_free() -> anyhow::Result<()> {
    let world = World::new().await?;
    for number in 0..4 {
        run(&world.store, number, "old", HOUR).await?;
    }
    world.sql(EXPIRE).await?;
    let other = PgPool::connect(&world.url).await?;
    let mut transaction = other.begin().await?;
    let lock = "SELECT 1 FROM idempotency_records WHERE key_hash = $1 FOR UPDATE";
    sqlx::query(lock).bind(&key(0).as_bytes()[..]).execute(&mut *transaction).await?;
    let purged = world.store.purge(10).await?;
    assert_eq!((purged.removed, purged.lag.is_some()), (3, true));
    transaction.rollback().await?;
    let purged = world.store.purge(10).await?;
    assert_eq!((purged.removed, purged.lag, world.rows().await?), (1, None, 0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_purge_at_once_and_none_twice() -> anyhow::Result<()> {
    let world = World::new().await?;
    run(&world.store, 0, "old", HOUR).await?;
    world
        .sql(
            "INSERT INTO idempotency_records
             SELECT sha256(number::text::bytea), format, state, owner, fence, revision, operation, namespace, holder,
                 fingerprint, policy, created_at, attempts, reason, linger, after_expiry, lease_until, expires_at, purge_at, schema_version,
                 checkpoints, taken_over, trace, body
             FROM idempotency_records, generate_series(1, 1999) AS number",
        )
        .await?;
    world.sql(EXPIRE).await?;
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let store = world.store.clone();
            tokio::spawn(async move {
                let mut removed = 0;
                loop {
                    let purged = store.purge(50).await?;
                    removed += purged.removed;
                    if purged.lag.is_none() {
                        return Ok::<_, idempotency::store::StoreError>(removed);
                    }
                }
            })
        })
        .collect();
    let mut removed = 0;
    for task in tasks {
        removed += task.await??;
    }
    assert_eq!((removed, world.rows().await?), (2_000, 0));
    Ok(())
}

#[tokio::test]
async fn a_result_that_lives_longer_than_was_planned_is_put_off() -> anyhow::Result<()> {
    let world = World::new().await?;
    let mut planned = claim(1);
    planned.ttl = Duration::from_millis(1);
    world.store.claim(planned).await?;
    world.store.complete(Commit::new(key(1), token(1), "done".into(), DAY)).await?;
    eventually_async("the purge to have come by", async || {
        world.store.purge(10).await.is_ok_and(|purged| purged.removed == 0)
            && world
                .sql("SELECT purge_at = expires_at FROM idempotency_records")
                .await
                .is_ok_and(|rows| rows == [[Some("t".to_owned())]])
    })
    .await?;
    assert_eq!(world.store.read(key(1)).await?.map(|record| record.state), Some(State::Completed));
    Ok(())
}

/// The engine's own purge finds what nobody asks for.
#[tokio::test]
async fn an_engine_purges_in_the_background() -> anyhow::Result<()> {
    let world = World::new().await?;
    run(&world.store, 1, "old", HOUR).await?;
    world.sql(EXPIRE).await?;
    let engine = world.engine(|builder| builder.purge_interval(Duration::from_millis(50)));
    engine.call(OPERATION, 2_u32).ttl(DAY).run(async || Ok::<_, Error>(1)).await?;
    eventually_async("the expired record to be removed", async || {
        world.rows().await.is_ok_and(|rows| rows == 1)
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn what_was_claimed_again_is_not_purged() -> anyhow::Result<()> {
    let world = World::new().await?;
    run(&world.store, 1, "old", HOUR).await?;
    world.sql(EXPIRE).await?;
    let mut again = Claim::new(key(1), token(7), OPERATION.into());
    again.policy = CrashPolicy::Retry;
    world.store.claim(again).await?;
    assert_eq!((world.store.purge(10).await?.removed, world.rows().await?), (0, 1));
    Ok(())
}
