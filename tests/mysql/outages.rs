//! The server goes away, or a connection to it: what was acknowledged is there, and what is unknown
//! is settled by the owner's token.

use std::time::Duration;

use idempotency::store::{MySqlStore, Store as _, StoreErrorKind, WriteOutcome};
use idempotency_test_support::deadline::{eventually_async, within};
use idempotency_test_support::proxy::{Action, Fault, Moment, Proxy, Request};
use idempotency_test_support::server::MariaDbOptions;

use crate::world::{PATIENCE, World, claim, commit, fresh, held, key, mine, patient};

/// A store with an open connection that soon gives an answer up.
async fn impatient(world: &World) -> anyhow::Result<MySqlStore> {
    let store = MySqlStore::builder(&world.url).response_timeout(Duration::from_secs(2)).build()?;
    eventually_async("a connection", async || store.read(key(0)).await.is_ok()).await?;
    Ok(store)
}

#[tokio::test]
async fn every_record_is_there_after_the_server_was_killed() -> anyhow::Result<()> {
    let mut world = World::private(MariaDbOptions::new().durable()).await?;
    let token = fresh();
    for number in 0..50 {
        mine(world.store.claim(claim(key(number), token)).await?);
        if number % 2 == 0 {
            world.store.complete(commit(key(number), token)).await?;
        }
    }
    let store = impatient(&world).await?;
    world.own_server().kill()?;
    let error = store.claim(claim(key(100), token)).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    let is_refused = async || {
        let error = store.claim(claim(key(100), token)).await.unwrap_err();
        assert!(error.is_transient(), "{error}");
        error.kind() == StoreErrorKind::Refused
    };
    eventually_async(
        "requests to be refused because there is no connection to send them on",
        is_refused,
    )
    .await?;
    world.own_server().restart().await?;
    eventually_async("the store to recover", async || store.read(key(0)).await.is_ok()).await?;
    let store = world.store.clone();
    for number in 0..50 {
        let record = held(store.claim(claim(key(number), fresh())).await?);
        assert_eq!(record.state.is_answer(), number % 2 == 0, "{number}");
        assert_eq!(record.owner, token);
    }
    assert_eq!(store.complete(commit(key(1), token)).await?, WriteOutcome::Applied);
    mine(store.claim(claim(key(100), token)).await?);
    Ok(())
}

#[tokio::test]
async fn a_killed_connection_is_an_unknown_outcome_that_a_retry_settles() -> anyhow::Result<()> {
    let world = World::new().await?;
    let token = fresh();
    mine(world.store.claim(claim(key(1), token)).await?);
    let (_, database) = world.url.rsplit_once('/').expect("the URL names a database");
    // The commit waits for this lock when its connection is killed.
    let lock = world.lock(key(1)).await?;
    // Not in the second for which the store's own connections wait.
    let pool = world.pool("SET SESSION innodb_lock_wait_timeout = 60").await?;
    let store = MySqlStore::builder(pool).response_timeout(PATIENCE).build()?;
    let committing = tokio::spawn(async move { store.complete(commit(key(1), token)).await });
    let mut connection = 0;
    eventually_async("the commit to wait", async || {
        let waiting = format!(
            "SELECT ID FROM information_schema.PROCESSLIST WHERE DB = '{database}' AND INFO LIKE 'UPDATE%receipt%'
                 OR DB = '{database}' AND INFO LIKE 'UPDATE `idempotency_records`%'"
        );
        connection = world.figure(&waiting).await.unwrap_or_default();
        connection > 0
    })
    .await?;
    world.sql(&format!("KILL {connection}")).await?;
    let error = within("the commit", committing).await??.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
    lock.rollback().await?;
    assert_eq!(world.store.complete(commit(key(1), token)).await?, WriteOutcome::Applied);
    assert_eq!(world.store.complete(commit(key(1), token)).await?, WriteOutcome::AlreadyApplied);
    Ok(())
}

#[tokio::test]
async fn an_answer_that_is_lost_is_an_unknown_outcome_that_a_retry_settles() -> anyhow::Result<()> {
    const MARK: &[u8] = b"lost answer";
    let world = World::new().await?;
    let proxy = Proxy::start(world.server().address()).await?;
    let store = patient(&proxy.url(&world.url)).connect().await?;
    let token = fresh();
    mine(store.claim(claim(key(1), token)).await?);
    // The proxy sees the statement in pieces: the mark is in one of them wherever they are cut.
    let has_mark =
        |request: &Request| request.bytes().windows(MARK.len()).any(|bytes| bytes == MARK);
    let lost = proxy.nth(1, has_mark, Fault::new(Moment::AfterRequest, Action::Close));
    let commit = || {
        let mut commit = commit(key(1), token);
        commit.body = MARK.repeat(20).into();
        commit
    };
    let error = store.complete(commit()).await.unwrap_err();
    lost.happened().await?;
    assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
    assert_eq!(store.complete(commit()).await?, WriteOutcome::AlreadyApplied);
    Ok(())
}

#[tokio::test]
async fn a_server_that_hangs_is_given_up_and_found_again() -> anyhow::Result<()> {
    let mut world = World::private(MariaDbOptions::new()).await?;
    mine(world.store.claim(claim(key(1), fresh())).await?);
    let store = impatient(&world).await?;
    world.own_server().pause()?;
    let error = within("the answer", Box::pin(store.read(key(1)))).await?.unwrap_err();
    assert!(error.is_transient(), "{error}");
    world.own_server().resume()?;
    eventually_async("the store to recover", async || {
        store.read(key(1)).await.is_ok_and(|record| record.is_some())
    })
    .await
}
