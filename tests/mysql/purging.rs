//! What a purge removes, what it must not, and that nobody is in its way.

use std::time::Duration;

use futures::future::try_join_all;
use idempotency::store::{MySqlStore, State, Store as _, WriteOutcome};
use idempotency_test_support::deadline::eventually_async;

use crate::world::{DAY, PATIENCE, World, claim, commit, fresh, key, mine, patient};

#[tokio::test]
async fn unfinished_records_and_tombstones_to_be_are_put_off() -> anyhow::Result<()> {
    let world = World::new().await?;
    for number in 1..=4 {
        mine(world.store.claim(claim(key(number), fresh())).await?);
    }
    // A claim plans the purge for the end of the result's time, which is over here: one runs, one's
    // lease is over, one is in doubt, one was finished and leaves a tombstone.
    let row = |number: u64| format!("WHERE key_hash = X'{}'", key(number).to_hex());
    world.sql("UPDATE idempotency_records SET purge_at = 1").await?;
    world.sql(&format!("UPDATE idempotency_records SET lease_until = 0 {}", row(2))).await?;
    world.sql(&format!("UPDATE idempotency_records SET state = 2 {}", row(3))).await?;
    world
        .sql(&format!(
            "UPDATE idempotency_records SET state = 3, expires_at = 5, after_expiry = {} {}",
            1_i64 << 50,
            row(4)
        ))
        .await?;
    for put_off in [4, 0] {
        let purged = world.store.purge(100).await?;
        assert_eq!((purged.removed, purged.put_off, purged.lag), (0, put_off, None));
    }
    assert_eq!(
        world.figure("SELECT COUNT(*) FROM idempotency_records WHERE purge_at = expires_at + after_expiry").await?,
        4
    );
    for (number, state) in
        [(1, State::InProgress), (2, State::InProgress), (3, State::InDoubt), (4, State::Tombstone)]
    {
        assert_eq!(world.store.read(key(number)).await?.map(|record| record.state), Some(state));
    }
    Ok(())
}

#[tokio::test]
async fn a_purge_takes_no_more_than_it_may_and_tells_how_far_behind_it_is() -> anyhow::Result<()> {
    let world = World::new().await?;
    try_join_all((0..30).map(|number| world.store.claim(claim(key(number), fresh())))).await?;
    let now = "TIMESTAMPDIFF(MICROSECOND, '1970-01-01 00:00:00', UTC_TIMESTAMP(6)) DIV 1000";
    let forgotten = format!("expires_at = {now} - 5000, purge_at = {now} - 5000");
    world.sql(&format!("UPDATE idempotency_records SET {forgotten}")).await?;
    world.completed(key(100)).await?;
    let purged = world.store.purge(20).await?;
    assert_eq!(purged.removed, 20);
    let lag = purged.lag.expect("ten are left");
    assert!((Duration::from_secs(5)..Duration::from_secs(60)).contains(&lag), "{lag:?}");
    let purged = world.store.purge(20).await?;
    assert_eq!((purged.removed, purged.lag), (10, None));
    assert_eq!(world.figure("SELECT COUNT(*) FROM idempotency_records").await?, 1);
    assert_eq!(world.store.purge(0).await?.removed, 0);
    Ok(())
}

#[tokio::test]
async fn the_index_of_a_table_that_was_renamed_has_another_name() -> anyhow::Result<()> {
    let world = World::new().await?;
    for number in 0..3 {
        world.completed(key(number)).await?;
    }
    world.sql("UPDATE idempotency_records SET expires_at = 5, purge_at = 5").await?;
    world.completed(key(3)).await?;
    world
        .sql("RENAME TABLE idempotency_records TO claims, idempotency_records_meta TO claims_meta")
        .await?;
    let store = patient(&world.url).table("claims").connect().await?;
    for (removed, is_one_left) in [(2, true), (1, false), (0, false)] {
        let purged = store.purge(2).await?;
        assert_eq!((purged.removed, purged.lag.is_some()), (removed, is_one_left));
    }
    assert_eq!(world.figure("SELECT COUNT(*) FROM claims").await?, 1);
    Ok(())
}

#[tokio::test]
async fn what_is_due_before_the_end_of_the_last_batch_is_found() -> anyhow::Result<()> {
    let world = World::new().await?;
    for number in 0..3 {
        world.completed(key(number)).await?;
    }
    let older = format!("WHERE key_hash < X'{}'", key(2).to_hex());
    world
        .sql(&format!("UPDATE idempotency_records SET expires_at = 9, purge_at = 9 {older}"))
        .await?;
    assert_eq!(world.store.purge(2).await?.removed, 2);
    world.sql("UPDATE idempotency_records SET expires_at = 5, purge_at = 5").await?;
    let purged = world.store.purge(2).await?;
    assert_eq!((purged.removed, purged.lag), (1, None));
    assert_eq!(world.figure("SELECT COUNT(*) FROM idempotency_records").await?, 0);
    Ok(())
}

#[tokio::test]
async fn two_purges_and_32_claimers_do_not_disturb_each_other() -> anyhow::Result<()> {
    let world = World::new().await?;
    let short = Duration::from_millis(1);
    // A server that stands still for a while takes each lock that was waited for meanwhile for one
    // that is held too long.
    let pool = world.pool("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED").await?;
    let store = MySqlStore::builder(pool).response_timeout(PATIENCE).build()?;
    let claimers = (0..32_u64).map(|claimer| {
        let store = store.clone();
        async move {
            for round in 0..40_u64 {
                let token = fresh();
                if round % 2 == 0 {
                    // A key of all, which expires under its claimers.
                    let mut claim = claim(key(round), token);
                    (claim.lease, claim.linger, claim.ttl) = (short, short, short);
                    store.claim(claim).await?;
                    store.complete(commit(key(round), token)).await?;
                } else {
                    // A key of its own, whose result is kept for a day or not at all.
                    let key = key((claimer + 1) * 1_000 + round);
                    mine(store.claim(claim(key, token)).await?);
                    let mut commit = commit(key, token);
                    commit.ttl = if round % 4 == 1 { short } else { DAY };
                    assert_eq!(store.complete(commit).await?, WriteOutcome::Applied);
                }
            }
            anyhow::Ok(())
        }
    });
    let claimers: Vec<_> = claimers.map(tokio::spawn).collect();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let purges = (0..2).map(|_| {
        let (store, stopped) = (store.clone(), stopped.clone());
        tokio::spawn(async move {
            let mut removed = 0;
            while !*stopped.borrow() {
                removed += store.purge(10).await?.removed;
            }
            anyhow::Ok(removed)
        })
    });
    let purges: Vec<_> = purges.collect();
    for result in try_join_all(claimers).await? {
        result?;
    }
    stop.send(true)?;
    let mut removed = 0;
    for result in try_join_all(purges).await? {
        removed += result?;
    }
    assert!(removed > 0);
    // What is over goes, what was kept for a day stays.
    let own = "SELECT COUNT(*) FROM idempotency_records WHERE key_hash >= X'00000000000003E8'";
    eventually_async("the short results to go", async || {
        world.store.purge(1_000).await.is_ok()
            && world.figure(own).await.is_ok_and(|left| left <= 32 * 10)
    })
    .await?;
    assert_eq!(world.figure(own).await?, 32 * 10);
    Ok(())
}
