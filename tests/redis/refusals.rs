//! The server is there and refuses: no memory, no writes, no replicas, no password.

use std::time::Duration;

use idempotency::key::KeyHash;
use idempotency::store::{Claim, Commit, Store as _, StoreErrorKind, Token, WriteOutcome};
use idempotency::{Error, ErrorKind};
use idempotency_test_support::deadline::eventually_async;
use idempotency_test_support::server::RedisOptions;
use tokio::sync::oneshot;

use crate::world::{DAY, World, engine_on, large, patient};

const KEY: KeyHash = KeyHash::from_bytes([7; 32]);

/// What is stored is served, new calls are refused and have no effect; afterwards all is as before.
async fn refuses_new_calls(refuse: &[&str], allow: &[&str], named: &str) -> anyhow::Result<()> {
    let world = World::patient().await?;
    world.charge(1).await?;
    let big = world.call(2).run(|| async { Ok::<_, Error>(large()) });
    big.await?;

    let (start, started) = oneshot::channel();
    let (finish, finished) = oneshot::channel::<()>();
    let owner = world.call(3).run(|| async {
        let _ = start.send(());
        let _ = finished.await;
        Ok::<_, Error>(world.effect(3))
    });
    let rest = async {
        started.await?;
        world.server.command(refuse).await?;
        for _ in 0..2 {
            assert_eq!(world.charge(1).await?, "receipt 1.1");
            assert_eq!(world.charge(2).await?, large());
            let error = world.charge_on(&world.hasty, 4).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::StoreUnavailable);
            assert!(error.is_retryable() && error.to_string().contains(named), "{error}");
        }
        assert_eq!(world.count(4), 0);
        // The body ends while nothing can be stored: its commit goes on until it can.
        let _ = finish.send(());
        idempotency_test_support::deadline::eventually("the effect", || world.count(3) == 1)
            .await?;
        world.server.command(allow).await?;
        anyhow::Ok(())
    };
    let (owner, rest) = tokio::join!(owner, rest);
    rest?;
    assert_eq!(owner?, "receipt 3.1");
    assert_eq!(world.charge(3).await?, "receipt 3.1");
    assert_eq!(world.charge(4).await?, "receipt 4.1");
    assert_eq!((world.count(1), world.count(3), world.count(4)), (1, 1, 1));
    Ok(())
}

#[tokio::test]
async fn a_server_out_of_memory_replays_and_refuses_new_calls() -> anyhow::Result<()> {
    refuses_new_calls(
        &["CONFIG", "SET", "maxmemory", "1"],
        &["CONFIG", "SET", "maxmemory", "0"],
        "out of memory",
    )
    .await
}

#[tokio::test]
async fn a_read_only_server_replays_and_refuses_new_calls() -> anyhow::Result<()> {
    refuses_new_calls(
        &["REPLICAOF", "127.0.0.1", "1"],
        &["REPLICAOF", "NO", "ONE"],
        "read-only replica",
    )
    .await
}

/// The claim is a transaction then, and its refusal is in the middle of it.
#[tokio::test]
async fn a_demoted_server_is_left_by_claims_that_ask_for_the_expiry() -> anyhow::Result<()> {
    let hasty = |builder: idempotency::Builder| {
        builder.near_cache(1_000_000).claim_timeout(Duration::from_secs(2))
    };
    let world = World::on(RedisOptions::new().private(), patient, hasty).await?;
    world.charge(1).await?;
    // Each connection begins with it, that of the near cache too.
    let opened = || world.proxy.requests_of("TIME");
    eventually_async("both connections", async || opened() >= 2).await?;
    let before = opened();
    world.server.command(&["REPLICAOF", "127.0.0.1", "1"]).await?;
    let error = world.charge(2).await.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("read-only replica"), "{error}");
    world.server.command(&["REPLICAOF", "NO", "ONE"]).await?;
    eventually_async("the charge", async || world.charge(2).await.is_ok()).await?;
    assert_eq!((world.charge(2).await?, world.count(2)), (String::from("receipt 2.1"), 1));
    assert!(opened() > before, "on another connection: this server may stay a replica");
    Ok(())
}

/// A commit whose answer was lost is repeated, with its large result.
#[tokio::test]
async fn a_result_that_is_stored_is_known_although_its_copy_has_no_room() -> anyhow::Result<()> {
    let world = World::patient().await?;
    let store = &world.direct;
    let claim = Claim::new(KEY, Token::from_bits(1), "payments.charge".into());
    store.claim(claim).await?;
    let commit = Commit::new(KEY, Token::from_bits(1), large().into(), DAY);
    assert_eq!(store.complete(commit.clone()).await?, WriteOutcome::Applied);
    world.server.command(&["CONFIG", "SET", "maxmemory", "1"]).await?;
    assert_eq!(store.complete(commit).await?, WriteOutcome::AlreadyApplied);
    Ok(())
}

#[tokio::test]
async fn a_server_without_its_replicas_replays_and_refuses_new_calls() -> anyhow::Result<()> {
    let setting = "min-replicas-to-write";
    refuses_new_calls(
        &["CONFIG", "SET", setting, "1"],
        &["CONFIG", "SET", setting, "0"],
        "too few replicas",
    )
    .await
}

#[tokio::test]
async fn a_refused_password_is_a_configuration_error_until_it_is_right() -> anyhow::Result<()> {
    let rules = "on >right ~* &* +@all";
    let world = World::with(RedisOptions::new().user("app", rules), |builder| builder).await?;
    let url = |password| {
        world
            .proxy
            .url(&world.server.url())
            .replace("redis://", &format!("redis://app:{password}@"))
    };
    let error = patient(&url("wrong")).connect().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Config, "{error}");
    assert!(error.to_string().contains("refuses the user or the password"), "{error}");

    let engine = engine_on(patient(&url("right")).connect().await?).build()?;
    assert_eq!(world.charge_on(&engine, 1).await?, "receipt 1.1");
    world.server.command(&["ACL", "SETUSER", "app", "resetpass", ">another"]).await?;
    world.server.command(&["CLIENT", "KILL", "USER", "app"]).await?;
    // The first call finds its connection broken: whether its claim was applied is not known.
    let error = world.charge_on(&engine, 2).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Config | ErrorKind::StoreUnavailable), "{error}");
    for key in [1, 2] {
        let error = world.charge_on(&engine, key).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(!error.to_string().contains("right"), "{error}");
    }
    assert_eq!(world.count(2), 0);
    world.server.command(&["ACL", "SETUSER", "app", ">right"]).await?;
    assert_eq!(world.charge_on(&engine, 2).await?, "receipt 2.1");
    Ok(())
}
