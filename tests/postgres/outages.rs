//! The server restarts, is killed, or is out of reach, and comes back: nothing has to be restarted.

use std::time::{Duration, Instant};

use idempotency::store::{Operation, PostgresStore, State, Store as _, StoreErrorKind};
use idempotency::{Error, ErrorKind, Idempotency};
use idempotency_test_support::deadline::{eventually_async, within};
use idempotency_test_support::proxy::{Protocol, Proxy};
use idempotency_test_support::server::{PostgresOptions, PostgresServer};

use crate::world::{DAY, OPERATION, PATIENCE, World, claim, key, migrated, number, patient, run};

/// Short enough to be waited for, and longer than a busy machine takes for an answer.
const IMPATIENCE: Duration = Duration::from_secs(5);

fn impatient(url: &str) -> anyhow::Result<PostgresStore> {
    Ok(PostgresStore::builder(url).response_timeout(IMPATIENCE).max_connections(4).build()?)
}

#[tokio::test]
async fn results_replay_after_a_restart_and_after_a_kill() -> anyhow::Result<()> {
    let mut server = PostgresServer::start(PostgresOptions::new().private()).await?;
    migrated(&server.url()).await?;
    let engine = Idempotency::builder(impatient(&server.url())?)
        .claim_timeout(Duration::from_secs(10))
        .build()?;
    let call = |key: u32, value: u32| {
        engine.call(OPERATION, key).ttl(DAY).run(async move || Ok::<_, Error>(value))
    };
    assert_eq!(call(1, 1).await?, 1);
    server.restart().await?;
    // The connections are gone, and nobody has told the pool.
    assert_eq!(call(1, 2).await?, 1);
    assert_eq!(call(2, 2).await?, 2);
    server.kill()?;
    let error = within("the refusal", call(3, 3)).await?.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{error}");
    server.restart().await?;
    assert_eq!((call(1, 4).await?, call(2, 4).await?, call(3, 4).await?), (1, 2, 4));
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_away_is_refused_and_nothing_was_sent() -> anyhow::Result<()> {
    let mut server = PostgresServer::start(PostgresOptions::new().private()).await?;
    let store = impatient(&server.url())?;
    server.stop().await?;
    let error = within("the refusal", Box::pin(store.claim(claim(1)))).await?.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Refused, "{error}");
    let error = PostgresStore::connect(&server.url()).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.operation()),
        (StoreErrorKind::Refused, Operation::Connect),
        "{error}"
    );
    Ok(())
}

/// Nothing arrives any more and nobody says so: only time tells.
#[tokio::test]
async fn a_half_open_connection_is_an_unknown_outcome_and_is_not_used_again() -> anyhow::Result<()>
{
    let world = World::new().await?;
    let proxy = Proxy::start_for(Protocol::Postgres, world.server.address()).await?;
    let store = impatient(&proxy.url(&world.url))?;
    run(&store, 1, "one", DAY).await?;
    let before = proxy.connections();
    proxy.half_open();
    let started = Instant::now();
    let error = store.claim(claim(2)).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
    assert!(error.is_outcome_unknown());
    assert!(started.elapsed() >= IMPATIENCE);
    proxy.heal();
    // The late answer to the first claim must not be taken for that of this one.
    let record = store.read(key(1)).await?.expect("the record");
    assert_eq!((record.key, record.state), (key(1), State::Completed));
    assert!(proxy.connections() <= before, "the dead connection is closed");
    Ok(())
}

#[tokio::test]
async fn an_idle_connection_is_tried_before_it_is_used() -> anyhow::Result<()> {
    let world = World::new().await?;
    let proxy = Proxy::start_for(Protocol::Postgres, world.server.address()).await?;
    let store = patient(&proxy.url(&world.url)).build()?;
    run(&store, 1, "one", DAY).await?;
    proxy.reset_all();
    // Longer than a connection is taken to be alive without a try, which counts from when it was
    // back in its pool.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    store.claim(claim(2)).await?;
    Ok(())
}

#[tokio::test]
async fn a_request_that_is_dropped_takes_its_connection_with_it() -> anyhow::Result<()> {
    let world = World::new().await?;
    let proxy = Proxy::start_for(Protocol::Postgres, world.server.address()).await?;
    let store = patient(&proxy.url(&world.url)).max_connections(1).build()?;
    run(&store, 1, "one", DAY).await?;
    proxy.half_open();
    assert!(tokio::time::timeout(Duration::from_millis(100), store.read(key(2))).await.is_err());
    proxy.heal();
    let record = store.read(key(1)).await?.expect("the record");
    assert_eq!(record.key, key(1));
    Ok(())
}

#[tokio::test]
async fn a_statement_that_waits_too_long_is_cancelled_by_the_server_and_has_not_happened()
-> anyhow::Result<()> {
    let world = World::new().await?;
    // The server gives the lock up after three quarters of that: four seconds are left for its
    // answer.
    let store =
        PostgresStore::builder(&world.url).response_timeout(Duration::from_secs(16)).build()?;
    run(&store, 1, "one", DAY).await?;
    let other = sqlx::PgPool::connect(&world.url).await?;
    let mut transaction = other.begin().await?;
    sqlx::query("SELECT 1 FROM idempotency_records FOR UPDATE").execute(&mut *transaction).await?;
    let remove = idempotency::store::Remove::new(key(1), crate::world::token(1));
    let error = store.remove(remove).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Refused, "{error}");
    transaction.rollback().await?;
    assert_eq!(store.remove(remove).await?, idempotency::store::AdminOutcome::Applied);
    Ok(())
}

#[tokio::test]
async fn a_session_that_the_server_ends_is_an_unknown_outcome() -> anyhow::Result<()> {
    let world = World::new().await?;
    run(&world.store, 1, "one", DAY).await?;
    let other = sqlx::PgPool::connect(&world.url).await?;
    let mut transaction = other.begin().await?;
    sqlx::query("SELECT 1 FROM idempotency_records FOR UPDATE").execute(&mut *transaction).await?;
    let store =
        PostgresStore::builder(&world.url).response_timeout(Duration::from_secs(60)).build()?;
    let remove = idempotency::store::Remove::new(key(1), crate::world::token(1));
    let waiting = tokio::spawn(async move { store.remove(remove).await });
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE wait_event_type = 'Lock' AND datname = current_database()";
    eventually_async("the session to be ended", async || {
        world.sql(end).await.is_ok_and(|rows| !rows.is_empty())
    })
    .await?;
    let error = waiting.await?.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
    transaction.rollback().await?;
    assert_eq!(world.store.read(key(1)).await?.map(|record| record.state), Some(State::Completed));
    Ok(())
}

#[tokio::test]
async fn a_server_without_writes_refuses_claims_and_replays_stored_results() -> anyhow::Result<()> {
    let world = World::new().await?;
    let engine = world.engine(|builder| builder);
    engine.call(OPERATION, 2_u32).ttl(DAY).run(async || Ok::<_, Error>(1)).await?;
    let database = world.url.rsplit('/').next().unwrap_or_default();
    world.sql(&format!("ALTER DATABASE {database} SET default_transaction_read_only = on")).await?;
    let store = patient(&world.url).connect().await?;
    let error = store.claim(claim(2)).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Refused, "{error}");
    assert!(error.to_string().contains("read-only"), "{error}");
    let engine = Idempotency::builder(store).claim_timeout(PATIENCE).build()?;
    let old = engine.call(OPERATION, 2_u32).ttl(DAY).run(async || Ok::<_, Error>(2)).await?;
    assert_eq!(old, 1);
    Ok(())
}

/// Nothing bounds how long a commit waits for its standby, and a server does not notice that its
/// client has gone.
#[tokio::test]
async fn requests_that_a_standby_keeps_waiting_do_not_fill_the_server_with_sessions()
-> anyhow::Result<()> {
    const CONNECTIONS: u32 = 3;
    let server =
        PostgresServer::start(PostgresOptions::new().private().setting("max_connections", "40"))
            .await?;
    migrated(&server.url()).await?;
    let builder = PostgresStore::builder(server.url()).max_connections(CONNECTIONS);
    let store = builder.response_timeout(Duration::from_millis(300)).build()?;
    let standby = async |name: &str| {
        server.sql(&format!("ALTER SYSTEM SET synchronous_standby_names = '{name}'")).await?;
        server.sql("SELECT pg_reload_conf()").await?;
        let is_set = format!(
            "SELECT count(*) FROM pg_settings WHERE name = 'synchronous_standby_names' AND setting = '{name}'"
        );
        eventually_async("the setting", async || {
            server.sql(&is_set).await.is_ok_and(|rows| number(&rows).is_ok_and(|count| count == 1))
        })
        .await
    };
    standby("away").await?;
    for number in 0..40 {
        let error = store.claim(claim(number)).await.unwrap_err();
        assert!(error.is_transient(), "{error}");
    }
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let waiting = number(&server.sql(sessions).await?)?;
    assert!(waiting <= i64::from(2 * CONNECTIONS), "{waiting} sessions wait for the standby");
    standby("").await?;
    let works = async || run(&store, 100, "one", DAY).await.is_ok();
    eventually_async("the store to work", works).await
}
