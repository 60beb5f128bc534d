//! A primary that became a replica: who answers that it takes no writes is not asked again on the
//! same connection, so that the next one finds its successor.

use std::collections::BTreeSet;

use idempotency::store::{
    Commit, MySqlStore, Operation, Renewal, Store as _, StoreError, StoreErrorKind,
};
use idempotency_test_support::deadline::eventually_async;
use idempotency_test_support::server::MariaDbOptions;
use sqlx::mysql::MySqlPoolOptions;

use crate::world::{DAY, LEASE, PATIENCE, World, claim, commit, fresh, held, key, mine, patient};

/// A server with a user who may not write while it is read-only, and the user's URL.
async fn demotable() -> anyhow::Result<(World, String)> {
    let world = World::private(MariaDbOptions::new()).await?;
    world.sql("CREATE USER 'shop'@'%'; GRANT SELECT, INSERT, UPDATE, DELETE ON idempotency.* TO 'shop'@'%'").await?;
    let url = world.url.replace("root@", "shop@");
    Ok((world, url))
}

/// The user's sessions in the server.
async fn sessions(world: &World) -> anyhow::Result<BTreeSet<String>> {
    let rows =
        world.sql("SELECT ID FROM information_schema.PROCESSLIST WHERE USER = 'shop'").await?;
    Ok(rows.into_iter().flatten().flatten().collect())
}

async fn all_are_others(
    world: &World,
    before: &BTreeSet<String>,
    what: &str,
) -> anyhow::Result<()> {
    eventually_async(format!("the sessions to end in which {what}"), async || {
        sessions(world).await.is_ok_and(|now| now.is_disjoint(before))
    })
    .await
}

#[track_caller]
fn is_refused<A: std::fmt::Debug>(answer: Result<A, StoreError>) {
    let error = answer.unwrap_err();
    assert!(error.kind() == StoreErrorKind::Refused && error.is_transient(), "{error}");
    assert!(error.to_string().contains("read-only"), "{error}");
}

#[tokio::test]
async fn a_connection_to_a_demoted_server_is_closed_by_the_write_that_finds_it_so()
-> anyhow::Result<()> {
    let (world, url) = demotable().await?;
    // One connection, which each write has to find out about anew.
    let pool = MySqlPoolOptions::new().max_connections(1).connect(&url).await?;
    let foreign = MySqlStore::builder(pool).response_timeout(PATIENCE).build()?;
    // So that no other sessions end than those that are meant.
    let mut kept = Vec::new();
    for (name, store) in
        [("own", patient(&url).max_connections(1).build()?), ("the user's", foreign)]
    {
        kept.push(store.clone());
        let (running, token) = (key(if name == "own" { 1 } else { 2 }), fresh());
        mine(store.claim(claim(running, token)).await?);
        store.renew(vec![Renewal::new(running, token, LEASE)]).await?;
        for write in [Operation::Claim, Operation::Complete, Operation::Renew] {
            store.read(running).await?;
            let before = sessions(&world).await?;
            world.sql("SET GLOBAL read_only = 1").await?;
            let ended = |now: &BTreeSet<String>| now.intersection(&before).count() < before.len();
            // In a second no more are closed than the pool has.
            eventually_async(format!("{name}, {write}"), async || {
                match write {
                    Operation::Claim => is_refused(store.claim(claim(key(3), fresh())).await),
                    Operation::Complete => is_refused(
                        store.complete(Commit::new(running, token, "late".into(), DAY)).await,
                    ),
                    _ => is_refused(store.renew(vec![Renewal::new(running, token, LEASE)]).await),
                }
                sessions(&world).await.is_ok_and(|now| ended(&now))
            })
            .await?;
            continue_with_writes(&world).await?;
            store.renew(vec![Renewal::new(running, token, LEASE)]).await?;
        }
        store.complete(commit(running, token)).await?;
        assert_eq!(held(store.claim(claim(running, fresh())).await?).body, "receipt 1", "{name}");
    }
    Ok(())
}

async fn continue_with_writes(world: &World) -> anyhow::Result<()> {
    world.sql("SET GLOBAL read_only = 0").await.map(drop)
}

#[tokio::test]
async fn one_refusal_is_enough_for_all_of_a_stores_own_connections() -> anyhow::Result<()> {
    let (world, url) = demotable().await?;
    let store = patient(&url).max_connections(4).build()?;
    let all = || futures::future::join_all((0..16).map(|number| store.read(key(number))));
    for answer in all().await {
        answer?;
    }
    let before = sessions(&world).await?;
    world.sql("SET GLOBAL read_only = 1").await?;
    is_refused(store.claim(claim(key(1), fresh())).await);
    for answer in all().await {
        answer?;
    }
    all_are_others(&world, &before, "the server was a primary").await?;
    continue_with_writes(&world).await?;
    mine(store.claim(claim(key(1), fresh())).await?);
    Ok(())
}
