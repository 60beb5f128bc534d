//! Those who wait are woken by the server.

use std::time::{Duration, Instant};

use futures::future::join_all;
use idempotency::store::RedisStore;
use idempotency::{Error, Idempotency, OnConflict, OnCrash};
use idempotency_test_support::server::{RedisOptions, RedisServer};

use crate::setup::{DAY, OPERATION, Setup, call};

/// A waiter looks by itself after two seconds: whoever is faster was woken.
const FASTER_THAN_POLLING: Duration = Duration::from_millis(1500);

#[tokio::test]
async fn a_waiter_is_woken_by_the_commit() -> anyhow::Result<()> {
    let setup = Setup::new().await?;
    let there = setup.elsewhere().await?;
    let (started, has_started) = tokio::sync::oneshot::channel();
    let (finish, may_finish) = tokio::sync::oneshot::channel::<()>();
    let owner = call(&setup.engine, 1).lease(Duration::from_secs(30)).run(|| async {
        let _ = started.send(());
        let _ = may_finish.await;
        setup.effect(1)
    });
    let waiter = async {
        has_started.await?;
        let mut waiting = Box::pin(setup.charge(&there, 1, OnCrash::Hold));
        // Registered with the server.
        loop {
            tokio::select! {
                biased;
                _ = &mut waiting => anyhow::bail!("it did not wait"),
                clients = setup.server.command(&["INFO", "stats"]) => {
                    if clients?.lines().any(|line| line.starts_with("tracking_total_keys:") && !line.ends_with(":0")) {
                        break;
                    }
                }
            }
        }
        let committed = Instant::now();
        let _ = finish.send(());
        let receipt = waiting.await?;
        anyhow::Ok((receipt, committed.elapsed()))
    };
    let (owner, waiter) = tokio::join!(owner, waiter);
    let (receipt, took) = waiter?;
    assert_eq!((owner?, setup.effects(1)), (receipt, 1));
    assert!(took < FASTER_THAN_POLLING, "woken after {took:?}");
    Ok(())
}

#[tokio::test]
async fn waiters_poll_where_the_users_rights_leave_no_tracking() -> anyhow::Result<()> {
    let rights = "on >secret ~* &* +@all -client|tracking";
    let server = RedisServer::start(RedisOptions::new().user("limited", rights)).await?;
    let url = format!("redis://limited:secret@{}", server.address()?);
    let engine = async || anyhow::Ok(Idempotency::new(RedisStore::connect(&url).await?));
    let (here, there) = (engine().await?, engine().await?);
    let (started, has_started) = tokio::sync::oneshot::channel();
    let owner = here.call(OPERATION, 1).ttl(DAY).run(|| async {
        let _ = started.send(());
        tokio::time::sleep(Duration::from_millis(300)).await;
        Ok::<_, Error>("once".to_owned())
    });
    let waiter = async {
        has_started.await?;
        anyhow::Ok(there.call(OPERATION, 1).ttl(DAY).run(|| async { Ok::<_, Error>("twice".to_owned()) }).await?)
    };
    let (owner, waiter) = tokio::join!(owner, waiter);
    assert_eq!((owner?, waiter?), ("once".to_owned(), "once".to_owned()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_waiters_are_woken_by_one_commit_each() -> anyhow::Result<()> {
    const WAITERS: u64 = 5000;
    let server = RedisServer::start(RedisOptions::new().private()).await?;
    let engine = async || {
        let store = RedisStore::builder(server.url()).response_timeout(Duration::from_secs(20)).connect().await?;
        let patience = OnConflict::Wait(Duration::from_secs(100));
        let builder = Idempotency::builder(store).lease(Duration::from_secs(60)).claim_timeout(Duration::from_secs(20));
        anyhow::Ok(builder.on_conflict(patience).build())
    };
    let (here, there) = (engine().await?, engine().await?);
    let (finish, _) = tokio::sync::watch::channel(false);
    let owners: Vec<_> = (0..WAITERS)
        .map(|key| {
            let mut may_finish = finish.subscribe();
            let call = here.call(OPERATION, key).ttl(DAY).run(move || async move {
                let _ = may_finish.wait_for(|finish| *finish).await;
                Ok::<_, Error>(key)
            });
            tokio::spawn(call)
        })
        .collect();
    let commands = async |name: &str| {
        let statistics = server.command(&["INFO", "commandstats"]).await?;
        let calls = statistics.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{name}:calls=")));
        anyhow::Ok(calls.and_then(|calls| calls.split(',').next()).map_or(Ok(0), str::parse::<u64>)?)
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while commands("set").await? < WAITERS {
        anyhow::ensure!(Instant::now() < deadline, "the owners never all claimed");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let gets = commands("get").await?;
    let waiters: Vec<_> = (0..WAITERS)
        .map(|key| {
            tokio::spawn(there.call(OPERATION, key).ttl(DAY).run(move || async move { Ok::<_, Error>(u64::MAX) }))
        })
        .collect();
    while commands("get").await? < gets + WAITERS {
        anyhow::ensure!(Instant::now() < deadline, "the waiters never all waited");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    finish.send_replace(true);
    for (key, answer) in (0..WAITERS).zip(join_all(waiters).await) {
        assert_eq!(answer??, key, "the owner's answer");
    }
    for owner in join_all(owners).await {
        owner??;
    }
    Ok(())
}
