//! What connecting checks, refuses and warns about; TLS; prefixes and databases.

use std::path::Path;

use idempotency::key::KeyHash;
use idempotency::store::{Claim, Scan, Store as _, StoreErrorKind, Token};
use idempotency::{Error, ErrorKind, Idempotency};
use idempotency_test_support::server::{RedisOptions, RedisServer, TlsClients};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::warnings::Warnings;
use crate::world::{OPERATION, World, engine_on, patient};

#[tokio::test]
async fn a_server_that_may_evict_records_is_refused_unless_that_is_allowed() -> anyhow::Result<()> {
    let warnings = Warnings::listen();
    let evicting =
        RedisServer::start(RedisOptions::new().max_memory(100_000_000, "allkeys-lru")).await?;
    let error = patient(&evicting.url()).connect().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Config);
    for part in ["maxmemory-policy allkeys-lru", "maxmemory-policy noeviction", "allow_eviction()"]
    {
        assert!(error.to_string().contains(part), "{error}");
    }
    let error = Idempotency::connect(&evicting.url()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(!warnings.mention("may evict"));
    patient(&evicting.url()).allow_eviction().connect().await?;
    assert!(warnings.mention("may evict"));

    let keeping =
        RedisServer::start(RedisOptions::new().max_memory(100_000_000, "noeviction")).await?;
    patient(&keeping.url()).connect().await?;
    Ok(())
}

/// Nothing is evicted before there is a limit, which can be set at any time.
#[tokio::test]
async fn a_server_that_would_evict_records_under_a_limit_is_warned_about() -> anyhow::Result<()> {
    let warnings = Warnings::listen();
    let keeping = RedisServer::start(RedisOptions::new().private()).await?;
    patient(&keeping.url()).connect().await?;
    assert!(!warnings.mention("maxmemory-policy"));
    let unlimited = RedisOptions::new().private().setting("maxmemory-policy", "allkeys-lru");
    let unlimited = RedisServer::start(unlimited).await?;
    patient(&unlimited.url()).connect().await?;
    assert!(warnings.mention("has no memory limit now"));
    assert!(warnings.mention("maxmemory-policy allkeys-lru"));

    unlimited.command(&["CONFIG", "SET", "maxmemory", "100mb"]).await?;
    let error = patient(&unlimited.url()).connect().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Config, "{error}");
    Ok(())
}

#[tokio::test]
async fn a_server_that_a_paused_clock_leaves_no_time_is_not_said_to_be_silent() -> anyhow::Result<()>
{
    let server = RedisServer::start(RedisOptions::new().private()).await?;
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
async fn a_node_of_a_cluster_is_refused() -> anyhow::Result<()> {
    let node =
        RedisServer::start(RedisOptions::new().private().setting("cluster-enabled", "yes")).await?;
    let error = patient(&node.url()).connect().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Config, "{error}");
    assert!(error.to_string().contains("Redis Cluster"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_server_without_an_append_only_file_is_warned_about() -> anyhow::Result<()> {
    let warnings = Warnings::listen();
    let durable = RedisServer::start(RedisOptions::new().append_only()).await?;
    patient(&durable.url()).connect().await?;
    assert!(!warnings.mention("append-only"));
    let forgetful = RedisServer::start(RedisOptions::new().private()).await?;
    patient(&forgetful.url()).connect().await?;
    assert!(warnings.mention("the server has no append-only file"));
    Ok(())
}

/// A listener that answers like an old server: no such server is at hand, and this is about the
/// message.
#[tokio::test]
async fn the_message_for_a_server_that_is_too_old_names_the_versions() -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("redis://{}", listener.local_addr()?);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut bytes = [0; 4096];
                while let Ok(length @ 1..) = stream.read(&mut bytes).await {
                    let text = String::from_utf8_lossy(&bytes[..length]).to_uppercase();
                    for request in text.split('*').skip(1) {
                        let answer: &[u8] = match request {
                            _ if request.contains("HELLO") => {
                                b"%1\r\n$6\r\nserver\r\n$5\r\nredis\r\n"
                            }
                            _ if request.contains("TIME") => b"*2\r\n$1\r\n1\r\n$1\r\n1\r\n",
                            _ if request.contains("INFO\r\n") => b"$20\r\nredis_version:6.2.14\r\n",
                            _ => b"+OK\r\n",
                        };
                        if stream.write_all(answer).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    let error = patient(&url).connect().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unsupported, "{error}");
    assert!(
        error.to_string().contains("6.2.14") && error.to_string().contains("Redis 7.0 or later"),
        "{error}"
    );
    Ok(())
}

#[tokio::test]
async fn an_unknown_scheme_is_named_and_its_password_is_not() {
    let error = Idempotency::connect("gopher://user:secret@example.com").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    let message = error.to_string();
    assert!(message.contains("`gopher:`") && message.contains("feature `redis`"), "{message}");
    assert!(!message.contains("secret"), "{message}");
}

fn pem(path: &Path) -> Vec<u8> {
    std::fs::read(path).expect("the certificate is there")
}

#[tokio::test]
async fn tls_takes_the_own_authority_and_the_clients_certificate_and_refuses_without_them()
-> anyhow::Result<()> {
    let server = RedisServer::start(RedisOptions::new().tls(TlsClients::WithCertificate)).await?;
    let (url, certificates) = (server.tls_url()?, server.certificates()?);
    let (authority, client, key) =
        (pem(&certificates.authority), pem(&certificates.client), pem(&certificates.client_key));
    let builder = || patient(url.as_str());

    let store = builder()
        .tls_ca(authority.clone())
        .tls_client(client.clone(), key.clone())
        .connect()
        .await?;
    let engine = engine_on(store).build()?;
    for _ in 0..2 {
        let call = engine.call("tls", 1_u64).ttl(crate::world::DAY);
        call.run(|| async { Ok::<_, Error>("secret".to_owned()) }).await?;
    }
    assert_eq!(server.command(&["DBSIZE"]).await?, "1");

    let stranger = builder().connect().await.unwrap_err();
    let nameless = builder().tls_ca(authority).connect().await.unwrap_err();
    let doubtful = builder().tls_client(client, key).connect().await.unwrap_err();
    for error in [stranger, nameless, doubtful] {
        assert_eq!(error.kind(), StoreErrorKind::Config, "{error:?}");
        assert!(error.to_string().contains("certificate"), "{error}");
    }
    Ok(())
}

/// What stands for other characters in a pattern of the server is a character of a prefix.
#[tokio::test]
async fn a_list_has_the_records_under_its_own_prefix_whatever_its_characters() -> anyhow::Result<()>
{
    let world = World::new().await?;
    for (number, prefix) in
        (1..).zip(["shop:", "shop[1]:", "shop?:", "sh*:", "shop\\:", "shop{x}:", ""])
    {
        let store = patient(&world.server.url()).prefix(prefix).connect().await?;
        let token = Token::from_bits(number);
        store.claim(Claim::new(KeyHash::from_bytes([7; 32]), token, OPERATION.into())).await?;
        let page = store.scan(Scan::default()).await?;
        let owners: Vec<_> = page.records.iter().map(|record| record.owner).collect();
        assert_eq!((owners, page.unreadable), (vec![token], vec![]), "{prefix}");
    }
    Ok(())
}

#[tokio::test]
async fn prefixes_and_databases_keep_records_apart() -> anyhow::Result<()> {
    let world = World::new().await?;
    let url = world.server.url();
    let stores = [
        patient(&url).connect().await?,
        patient(url.as_str()).prefix("shop:").connect().await?,
        patient(&format!("{url}/3")).connect().await?,
    ];
    for (number, store) in stores.into_iter().enumerate() {
        let engine = engine_on(store).build()?;
        for _ in 0..2 {
            assert_eq!(world.charge_on(&engine, 1).await?, format!("receipt 1.{}", number + 1));
        }
    }
    let keys = world.server.command(&["KEYS", "*"]).await?;
    assert!(keys.contains("\nidempotency:{") && keys.contains("\nshop:{"), "{keys}");
    assert!(world.server.command(&["INFO", "keyspace"]).await?.contains("db3:keys=1,"));
    Ok(())
}
