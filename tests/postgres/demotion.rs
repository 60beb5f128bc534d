//! A primary that became a standby: who answers that it takes no writes is not asked again on the
//! same connection, so that the next one finds its successor.

use std::collections::BTreeSet;

use idempotency::store::{
    Commit, Operation, PostgresStore, Renewal, Store as _, StoreError, StoreErrorKind, WriteOutcome,
};
use idempotency_test_support::deadline::eventually_async;
use idempotency_test_support::server::{PostgresOptions, PostgresServer};
use sqlx::postgres::PgPoolOptions;

use crate::world::{DAY, HOUR, PATIENCE, claim, key, migrated, patient, token};

/// Sessions of stores in the server.
async fn sessions(server: &PostgresServer) -> anyhow::Result<BTreeSet<String>> {
    let others = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND application_name <> 'psql'";
    Ok(server.sql(others).await?.into_iter().flatten().flatten().collect())
}

async fn takes_writes(server: &PostgresServer, does: bool) -> anyhow::Result<()> {
    let value = if does { "off" } else { "on" };
    server.sql(&format!("ALTER SYSTEM SET default_transaction_read_only = {value}")).await?;
    server.sql("SELECT pg_reload_conf()").await?;
    eventually_async("the setting", async || {
        let shown = server.sql("SHOW default_transaction_read_only").await;
        shown.is_ok_and(|rows| rows == [[Some(String::from(value))]])
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
    let server = PostgresServer::start(PostgresOptions::new().private()).await?;
    // Kept, as the others are, so that no other sessions end than those that are meant.
    let mut kept = vec![migrated(&server.url()).await?];
    // One connection, which each write has to find out about anew.
    let pool = PgPoolOptions::new().max_connections(1).connect(&server.url()).await?;
    let foreign = PostgresStore::builder(pool).response_timeout(PATIENCE).build()?;
    let own = || patient(&server.url()).max_connections(1);
    let unprepared = own().without_prepared_statements().build()?;
    let stores = [("own", own().build()?), ("the user's", foreign), ("unprepared", unprepared)];
    for (number, (name, store)) in (1..).zip(stores) {
        kept.push(store.clone());
        let (running, owner) = (key(number), token(number));
        store.claim(claim(number)).await?;
        let renewal = || vec![Renewal::new(running, owner, HOUR)];
        assert_eq!(store.renew(renewal()).await?, [WriteOutcome::Applied]);
        for write in [Operation::Claim, Operation::Complete, Operation::Renew] {
            store.read(running).await?;
            let before = sessions(&server).await?;
            takes_writes(&server, false).await?;
            let ended = |now: &BTreeSet<String>| now.intersection(&before).count() < before.len();
            // In a second no more are closed than the pool has.
            eventually_async(format!("{name}, {write}"), async || {
                match write {
                    Operation::Claim => is_refused(store.claim(claim(100)).await),
                    Operation::Complete => is_refused(
                        store.complete(Commit::new(running, owner, "late".into(), DAY)).await,
                    ),
                    _ => is_refused(store.renew(renewal()).await),
                }
                sessions(&server).await.is_ok_and(|now| ended(&now))
            })
            .await?;
            takes_writes(&server, true).await?;
            // A session may have begun while the server took no writes.
            eventually_async(format!("{name} to write"), async || {
                store.renew(renewal()).await.is_ok()
            })
            .await?;
        }
        let writes = async || {
            store.complete(Commit::new(running, owner, "in time".into(), DAY)).await.is_ok()
        };
        eventually_async(format!("{name} to write"), writes).await?;
    }
    Ok(())
}

#[tokio::test]
async fn one_refusal_is_enough_for_all_of_a_stores_own_connections() -> anyhow::Result<()> {
    let server = PostgresServer::start(PostgresOptions::new().private()).await?;
    migrated(&server.url()).await?;
    let store = patient(&server.url()).max_connections(4).build()?;
    let all = || futures::future::join_all((0..16).map(|number| store.read(key(number))));
    for answer in all().await {
        answer?;
    }
    let before = sessions(&server).await?;
    takes_writes(&server, false).await?;
    is_refused(store.claim(claim(1)).await);
    for answer in all().await {
        answer?;
    }
    eventually_async("the sessions to end in which the server was a primary", async || {
        sessions(&server).await.is_ok_and(|now| now.is_disjoint(&before))
    })
    .await?;
    takes_writes(&server, true).await?;
    store.claim(claim(1)).await?;
    Ok(())
}
