//! How many statements a call takes, counted by the server.

use idempotency::store::{Renewal, Store as _, WriteOutcome};
use idempotency::{Error, Idempotency};
use idempotency_test_support::server::PostgresServer;

use crate::world::{
    DAY, HOUR, OPERATION, PATIENCE, claim, key, migrated, number, quiet_server, token,
};

/// Of all but what a new connection asks.
async fn counted(server: &PostgresServer, url: &str) -> anyhow::Result<i64> {
    let database = url.rsplit('/').next().unwrap_or_default();
    let calls = format!(
        "SELECT coalesce(sum(calls), 0) FROM pg_stat_statements
         WHERE dbid = (SELECT oid FROM pg_database WHERE datname = '{database}')
             AND query NOT LIKE '%current_setting(%'"
    );
    number(&server.sql(&calls).await?)
}

#[tokio::test]
async fn a_replay_is_one_statement_and_a_call_that_runs_is_two() -> anyhow::Result<()> {
    let server = quiet_server().await?;
    let url = server.database("statements").await?;
    let engine = Idempotency::builder(migrated(&url).await?)
        .claim_timeout(PATIENCE)
        .background_purge(false)
        .build()?;
    let call = |key: u32| engine.call(OPERATION, key).ttl(DAY).run(async || Ok::<_, Error>(1));
    call(0).await?;
    let before = counted(&server, &url).await?;
    for key in 1..=100 {
        call(key).await?;
    }
    assert_eq!(counted(&server, &url).await? - before, 200);
    for key in 1..=100 {
        call(key).await?;
    }
    assert_eq!(counted(&server, &url).await? - before, 300);
    let failed = engine.call(OPERATION, 101_u32).ttl(DAY).run(async || Err::<u32, _>(refusal()));
    failed.await.unwrap_err();
    assert_eq!(
        counted(&server, &url).await? - before,
        302,
        "a released claim is two statements as well"
    );
    Ok(())
}

#[tokio::test]
async fn a_thousand_leases_are_renewed_by_one_statement() -> anyhow::Result<()> {
    let server = quiet_server().await?;
    let url = server.database("renewals").await?;
    let store = migrated(&url).await?;
    for number in 0..1_000 {
        store.claim(claim(number)).await?;
    }
    let renewals =
        (0..1_000).map(|number| Renewal::new(key(number), token(number), HOUR)).collect();
    let before = counted(&server, &url).await?;
    assert_eq!(store.renew(renewals).await?, [WriteOutcome::Applied; 1_000]);
    assert_eq!(counted(&server, &url).await? - before, 1);
    Ok(())
}

fn refusal() -> Error {
    use idempotency::store::{Operation, StoreError, StoreErrorKind};
    StoreError::new(StoreErrorKind::Refused, Operation::Claim).into()
}
