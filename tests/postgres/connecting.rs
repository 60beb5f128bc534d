//! What is told of a server or an address that is unfit.

use idempotency::store::{PostgresStore, Store as _, StoreErrorKind};
use idempotency::{ErrorKind, Idempotency};
use idempotency_test_support::server::{PostgresOptions, PostgresServer};

use crate::world::{World, claim, key, patient, shared_server};

#[tokio::test]
async fn addresses_roles_and_databases_that_are_not_there_are_configuration() -> anyhow::Result<()>
{
    let server = shared_server().await?;
    let url = server.url();
    let cases = [
        ("no URL".to_owned(), "URL is invalid"),
        ("postgres://127.0.0.1:port/x".to_owned(), "URL is invalid"),
        (url.replace("idempotency@", "nobody_such@"), "role"),
        (format!("{}_not_there", server.url()), "no such database"),
        (format!("{}?sslmode=require", server.url()), "TLS"),
    ];
    for (url, expected) in cases {
        let error = patient(&url).connect().await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Config, "{url}: {error}");
        assert!(error.to_string().contains(expected), "{url}: {error}");
    }
    let error = PostgresStore::builder(&url).table("a; b").connect().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Config, "{error}");
    let error = Idempotency::connect("postgres://nobody_such@127.0.0.1:1x/").await.unwrap_err();
    assert_eq!((error.kind(), error.store()), (ErrorKind::Config, Some("postgres")), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_server_that_a_paused_clock_leaves_no_time_is_not_said_to_be_silent() -> anyhow::Result<()>
{
    let server = PostgresServer::start(PostgresOptions::new().private()).await?;
    // It would take some time to answer, and the clock goes to the next time-out as soon as
    // everybody waits.
    server.pause()?;
    tokio::time::pause();
    let error = patient(&server.url()).connect().await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("start_paused"), "{error}");
    tokio::time::resume();
    server.resume()?;
    patient(&server.url()).connect().await?;
    Ok(())
}

#[tokio::test]
async fn a_wrong_password_is_configuration() -> anyhow::Result<()> {
    let server = PostgresServer::start(PostgresOptions::new().private()).await?;
    // Before version 14 a password was kept in a form with which SCRAM does not work.
    server
        .sql("SET password_encryption = 'scram-sha-256'; CREATE ROLE shop LOGIN PASSWORD 'right'")
        .await?;
    let access = server.directory()?.join("data/pg_hba.conf");
    let rest = std::fs::read_to_string(&access)?;
    std::fs::write(&access, format!("host all shop 127.0.0.1/32 scram-sha-256\n{rest}"))?;
    server.sql("SELECT pg_reload_conf()").await?;
    let url =
        |password: &str| format!("postgres://shop:{password}@{}/idempotency", server.address());
    idempotency_test_support::deadline::eventually_async("passwords to be asked for", async || {
        patient(&url("wrong")).connect().await.is_err()
    })
    .await?;
    let error = patient(&url("wrong")).connect().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Config, "{error}");
    assert!(!format!("{error:?}").contains("wrong"), "the password is not told: {error:?}");
    patient(&url("right")).connect().await?;
    Ok(())
}

#[tokio::test]
async fn a_name_that_text_cannot_hold_is_refused_and_nothing_happens() -> anyhow::Result<()> {
    let world = World::new().await?;
    let mut claim = claim(1);
    claim.operation = "zero \0 byte".into();
    let error = world.store.claim(claim).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unsupported, "{error}");
    assert_eq!(world.store.read(key(1)).await?, None);
    Ok(())
}
