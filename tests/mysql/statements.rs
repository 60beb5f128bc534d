//! How many statements a call takes, and what they leave alone: from the server's own statistics.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use idempotency::store::{Release, Renewal, Store as _, WriteOutcome};
use idempotency_test_support::deadline::eventually_async;
use idempotency_test_support::server::MariaDbOptions;

use crate::world::{LEASE, World, claim, commit, fresh, held, key, mine};

/// Counts the locks of rows, which the server does only when asked to.
const COUNT_LOCKS: (&str, &str) = ("innodb_monitor_enable", "module_lock");

async fn status(world: &World) -> anyhow::Result<BTreeMap<String, i64>> {
    let names = "'Innodb_rows_inserted', 'Innodb_rows_updated', 'Innodb_rows_deleted', 'Innodb_row_lock_waits',
        'Handler_update', 'Handler_delete', 'Handler_write', 'Com_insert', 'Com_update', 'Com_delete', 'Com_begin'";
    let rows = world
        .sql(&format!(
            "SHOW GLOBAL STATUS WHERE Variable_name IN ({names});
             SELECT NAME, COUNT FROM information_schema.INNODB_METRICS
                 WHERE NAME IN ('lock_rec_lock_created', 'lock_rec_lock_requests', 'lock_table_lock_created')"
        ))
        .await?;
    let pair = |row: Vec<Option<String>>| match &row[..] {
        [Some(name), Some(count)] => Ok((name.clone(), count.parse()?)),
        other => anyhow::bail!("an unexpected answer: {other:?}"),
    };
    rows.into_iter().map(pair).collect()
}

async fn executed(world: &World) -> anyhow::Result<i64> {
    world
        .figure("SELECT VARIABLE_VALUE FROM information_schema.GLOBAL_STATUS WHERE VARIABLE_NAME = 'Com_stmt_execute'")
        .await
}

#[tokio::test]
async fn a_hit_takes_no_lock_and_writes_nothing() -> anyhow::Result<()> {
    let world = World::private(MariaDbOptions::new().setting(COUNT_LOCKS.0, COUNT_LOCKS.1)).await?;
    world.completed(key(1)).await?;
    held(world.store.claim(claim(key(1), fresh())).await?);
    // Whoever wants a lock waits until the end of this test.
    let lock = world.lock(key(1)).await?;

    let (before, executed_before) = (status(&world).await?, executed(&world).await?);
    for _ in 0..1_000 {
        assert_eq!(held(world.store.claim(claim(key(1), fresh())).await?).body, "receipt 1");
    }
    assert_eq!(executed(&world).await? - executed_before, 1_000, "one statement for each hit");
    let after = status(&world).await?;
    let mut changed: BTreeMap<_, _> =
        after.iter().map(|(name, count)| (name, count - before[name])).collect();
    // What it takes to ask.
    for name in ["Handler_write", "Handler_update"] {
        let cost = changed.remove(&String::from(name)).unwrap_or_default();
        assert!(cost < 1_000, "{name}: {cost}");
    }
    assert!(changed.values().all(|count| *count == 0), "{changed:?}");
    assert!(after["lock_rec_lock_created"] > 0, "locks are counted");
    lock.rollback().await?;
    Ok(())
}

#[tokio::test]
async fn each_call_takes_the_statements_that_are_promised() -> anyhow::Result<()> {
    let world = World::private(MariaDbOptions::new()).await?;
    let store = &world.store;
    let renewals_take = if world.skips_locked().await { 2 } else { 1 };
    let (token, other) = (fresh(), fresh());
    let before = executed(&world).await?;
    mine(store.claim(claim(key(1), token)).await?);
    let claimed = executed(&world).await?;
    assert_eq!(claimed - before, 2, "a first claim reads and inserts");
    store.renew(vec![Renewal::new(key(1), token, LEASE)]).await?;
    let renewed = executed(&world).await?;
    assert_eq!(
        renewed - claimed,
        renewals_take,
        "a renewal: which rows nobody has locked, and the renewal of those"
    );
    store.complete(commit(key(1), token)).await?;
    let completed = executed(&world).await?;
    assert_eq!(completed - renewed, 1, "a commit");
    held(store.claim(claim(key(1), other)).await?);
    let replayed = executed(&world).await?;
    assert_eq!(replayed - completed, 1, "a hit");
    mine(store.claim(claim(key(2), token)).await?);
    let claimed = executed(&world).await?;
    store.release(Release::new(key(2), token)).await?;
    assert_eq!(executed(&world).await? - claimed, 1, "a release");
    assert_eq!(store.complete(commit(key(1), token)).await?, WriteOutcome::AlreadyApplied);
    Ok(())
}

#[tokio::test]
async fn renewals_of_a_process_share_statements() -> anyhow::Result<()> {
    let world = World::private(MariaDbOptions::new()).await?;
    let token = fresh();
    try_join_all((0..1_000).map(|number| world.store.claim(claim(key(number), token)))).await?;
    let renewals = |lease| {
        (0..1_000).map(move |number| Renewal::new(key(number), token, lease)).collect::<Vec<_>>()
    };
    let before = executed(&world).await?;
    assert_eq!(world.store.renew(renewals(LEASE * 2)).await?, [WriteOutcome::Applied; 1_000]);
    let statements = if world.skips_locked().await { 2 } else { 1 };
    assert_eq!(executed(&world).await? - before, statements, "a thousand at once");
    let lease = world.store.read(key(999)).await?.expect("it is there");
    assert!(lease.lease_until > lease.read_at + LEASE, "{lease:?}");

    // One was released, one is somebody else's by now, one has a result.
    world.store.release(Release::new(key(10), token)).await?;
    world.store.release(Release::new(key(20), token)).await?;
    mine(world.store.claim(claim(key(20), fresh())).await?);
    world.store.complete(commit(key(30), token)).await?;
    let before = executed(&world).await?;
    let written = world.store.renew(renewals(LEASE * 3)).await?;
    assert!(executed(&world).await? - before <= 10, "the others are looked at together");
    for (number, written) in written.into_iter().enumerate() {
        let expected = match number {
            10 => WriteOutcome::Gone,
            20 | 30 => WriteOutcome::Lost,
            _ => WriteOutcome::Applied,
        };
        assert_eq!(written, expected, "{number}");
    }
    let lease = world.store.read(key(999)).await?.expect("it is there");
    assert!(lease.lease_until > lease.read_at + LEASE * 2, "{lease:?}");
    Ok(())
}

#[tokio::test]
async fn all_waiters_of_a_process_share_one_statement() -> anyhow::Result<()> {
    const TICK: Duration = Duration::from_millis(25);
    let world = World::private(MariaDbOptions::new()).await?;
    let token = fresh();
    try_join_all((0..200).map(|number| world.store.claim(claim(key(number), token)))).await?;
    let watches = try_join_all((0..200).map(|number| world.store.watch(key(number)))).await?;
    let waiting: Vec<_> = watches.into_iter().map(|watch| tokio::spawn(watch)).collect();

    let (started, before) = (Instant::now(), executed(&world).await?);
    let mut looks = 0;
    eventually_async("twenty looks", async || {
        looks = executed(&world).await.map_or(0, |now| now - before);
        looks >= 20
    })
    .await?;
    let most = started.elapsed().as_millis() / TICK.as_millis() + 1;
    assert!(u128::try_from(looks)? <= most, "{looks} statements in {:?}", started.elapsed());
    assert!(waiting.iter().all(|waiter| !waiter.is_finished()), "nothing has changed");

    // Somebody who is not this process.
    world.sql("UPDATE idempotency_records SET state = 3, revision = revision + 1").await?;
    for waiter in waiting {
        idempotency_test_support::deadline::within("the waiter", waiter).await??;
    }
    Ok(())
}
