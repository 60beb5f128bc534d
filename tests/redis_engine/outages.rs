//! Servers that go away, refuse or forget.

use std::time::Duration;

use idempotency::store::{RedisStore, StoreErrorKind};
use idempotency::{ErrorKind, Idempotency, OnCrash};
use idempotency_test_support::server::{RedisOptions, RedisServer, TlsClients};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::setup::{Setup, until_ok};

#[tokio::test]
async fn a_restarted_server_that_keeps_its_log_replays() -> anyhow::Result<()> {
    let mut setup = Setup::on(RedisOptions::new().append_only()).await?;
    let receipt = setup.charge(&setup.engine, 1, OnCrash::Hold).await?;
    setup.server.kill()?;
    let error = setup.charge(&setup.engine, 1, OnCrash::Hold).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable);
    setup.server.restart().await?;
    let again = until_ok(async || setup.charge(&setup.engine, 1, OnCrash::Hold).await).await;
    assert_eq!((again, setup.effects(1)), (receipt, 1));
    Ok(())
}

#[tokio::test]
async fn a_server_that_stands_still_runs_no_body_and_goes_on_afterwards() -> anyhow::Result<()> {
    let setup = Setup::new().await?;
    setup.server.pause()?;
    let error = setup.charge(&setup.engine, 1, OnCrash::Hold).await.unwrap_err();
    assert_eq!((error.kind(), setup.effects(1)), (ErrorKind::StoreUnavailable, 0));
    setup.server.resume()?;
    let receipt = until_ok(async || setup.charge(&setup.engine, 1, OnCrash::Hold).await).await;
    assert_eq!((receipt.as_str(), setup.effects(1)), ("receipt 1.1", 1));
    Ok(())
}

#[tokio::test]
async fn without_memory_replays_go_on_and_new_claims_are_refused() -> anyhow::Result<()> {
    let setup = Setup::new().await?;
    let receipt = setup.charge(&setup.engine, 1, OnCrash::Hold).await?;
    setup.server.command(&["CONFIG", "SET", "maxmemory", "1"]).await?;
    assert_eq!(setup.charge(&setup.engine, 1, OnCrash::Hold).await?, receipt);
    let error = setup.charge(&setup.engine, 2, OnCrash::Hold).await.unwrap_err();
    assert_eq!((error.kind(), setup.effects(2)), (ErrorKind::StoreUnavailable, 0));
    assert!(error.to_string().contains("out of memory"), "{error}");
    setup.server.command(&["CONFIG", "SET", "maxmemory", "0"]).await?;
    setup.charge(&setup.engine, 2, OnCrash::Hold).await?;
    assert_eq!((setup.effects(1), setup.effects(2)), (1, 1));
    Ok(())
}

#[tokio::test]
async fn a_replica_replays_and_refuses_new_claims() -> anyhow::Result<()> {
    let setup = Setup::new().await?;
    let receipt = setup.charge(&setup.engine, 1, OnCrash::Hold).await?;
    // Of a primary that nobody ever hears from.
    setup.server.command(&["REPLICAOF", "127.0.0.1", "1"]).await?;
    assert_eq!(setup.charge(&setup.engine, 1, OnCrash::Hold).await?, receipt);
    let error = setup.charge(&setup.engine, 2, OnCrash::Hold).await.unwrap_err();
    assert_eq!((error.kind(), setup.effects(2)), (ErrorKind::StoreUnavailable, 0));
    setup.server.command(&["REPLICAOF", "NO", "ONE"]).await?;
    until_ok(async || setup.charge(&setup.engine, 2, OnCrash::Hold).await).await;
    assert_eq!(setup.effects(2), 1);
    Ok(())
}

#[tokio::test]
async fn without_the_replicas_it_needs_a_server_replays_and_takes_no_claims() -> anyhow::Result<()> {
    let setup = Setup::new().await?;
    let receipt = setup.charge(&setup.engine, 1, OnCrash::Hold).await?;
    setup.server.command(&["CONFIG", "SET", "min-replicas-to-write", "1"]).await?;
    assert_eq!(setup.charge(&setup.engine, 1, OnCrash::Hold).await?, receipt);
    let error = setup.charge(&setup.engine, 2, OnCrash::Hold).await.unwrap_err();
    assert_eq!((error.kind(), setup.effects(2)), (ErrorKind::StoreUnavailable, 0));
    Ok(())
}

#[tokio::test]
async fn a_server_that_may_evict_is_refused_unless_told() -> anyhow::Result<()> {
    let server = RedisServer::start(RedisOptions::new().max_memory(50_000_000, "allkeys-lru")).await?;
    let error = RedisStore::connect(&server.url()).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Config);
    assert!(error.to_string().contains("allkeys-lru") && error.to_string().contains("allow_eviction"), "{error}");
    assert_eq!(Idempotency::connect(&server.url()).await.unwrap_err().kind(), ErrorKind::Config);
    RedisStore::builder(server.url()).allow_eviction().connect().await?;
    Ok(())
}

#[tokio::test]
async fn a_wrong_password_is_a_configuration_error_that_does_not_show_it() -> anyhow::Result<()> {
    let server = RedisServer::start(RedisOptions::new().password("correct")).await?;
    RedisStore::connect(&server.url()).await?;
    let url = server.url().replace("correct", "guessed");
    let error = Idempotency::connect(&url).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(!format!("{error} {error:?}").contains("guessed"), "{error:?}");
    Ok(())
}

#[tokio::test]
async fn what_is_no_redis_is_told_so_and_runs_nothing() -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("redis://{}", listener.local_addr()?);
    let other = tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut request = [0; 64];
            let _ = client.read(&mut request).await;
            let _ = client.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let connecting = tokio::time::timeout(Duration::from_secs(10), Idempotency::connect(&url));
    let error = connecting.await?.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{error:?}");
    other.abort();
    Ok(())
}

#[tokio::test]
async fn tls_needs_the_servers_authority_and_the_clients_certificate() -> anyhow::Result<()> {
    let server = RedisServer::start(RedisOptions::new().tls(TlsClients::WithCertificate)).await?;
    let (url, certificates) = (server.tls_url()?, server.certificates()?);
    let authority = std::fs::read(&certificates.authority)?;
    let (certificate, key) = (std::fs::read(&certificates.client)?, std::fs::read(&certificates.client_key)?);
    let store =
        RedisStore::builder(url.as_str()).tls_ca(authority.clone()).tls_client(certificate.clone(), key.clone());
    let engine = Idempotency::builder(store.connect().await?).build();
    let call = engine.call("payments.charge", 1).ttl(Duration::from_secs(60));
    assert_eq!(call.run(|| async { Ok::<_, idempotency::Error>(7) }).await?, 7);
    assert!(RedisStore::builder(url.as_str()).tls_ca(authority).connect().await.is_err(), "without a certificate");
    assert!(
        RedisStore::builder(url.as_str()).tls_client(certificate, key).connect().await.is_err(),
        "without the authority"
    );
    Ok(())
}

#[tokio::test]
async fn an_unknown_scheme_names_the_known_ones_and_hides_the_url() {
    let error = Idempotency::connect("gopher://user:secret@example.com").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("`redis:` (feature `redis`)"), "{error}");
    assert!(!error.to_string().contains("secret"), "{error}");
}
