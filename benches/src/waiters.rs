//! Many callers that wait for owners elsewhere, each for a key of its own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use idempotency::store::RedisStore;
use idempotency::{Error, Idempotency, OnConflict};
use idempotency_test_support::server::{RedisOptions, RedisServer};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::measure::{Row, quantile};
use crate::receipt::DAY;

const KEYS: u64 = 5_000;
const OPERATION: &str = "bench.wait";

async fn engine(server: &RedisServer) -> anyhow::Result<Idempotency> {
    let store = RedisStore::builder(server.url())
        .response_timeout(Duration::from_secs(20))
        .connect()
        .await?;
    let engine = Idempotency::builder(store)
        .lease(Duration::from_secs(120))
        .claim_timeout(Duration::from_secs(20));
    Ok(engine.on_conflict(OnConflict::Wait(Duration::from_secs(120))).build()?)
}

/// Returns the number of commands that the server has processed.
async fn commands(server: &RedisServer) -> anyhow::Result<u64> {
    let info = server.command(&["INFO", "stats"]).await?;
    let line = info.lines().find_map(|line| line.strip_prefix("total_commands_processed:"));
    Ok(line.unwrap_or_default().trim().parse()?)
}

pub async fn rows() -> anyhow::Result<Vec<Row>> {
    let server = RedisServer::start(RedisOptions::new().private()).await?;
    let (owners, others) = (engine(&server).await?, engine(&server).await?);
    let (release, released) = watch::channel(0);
    let mut running = JoinSet::new();
    for key in 0..KEYS {
        let (owners, mut released) = (owners.clone(), released.clone());
        running.spawn(async move {
            let body = || async move {
                // One after the other, so that the time between commit and wake-up is not that of
                // all commits. The sender lives as long as the calls.
                let _ = released.wait_for(|released| *released > key).await;
                Ok::<_, Error>(key)
            };
            let result = owners.call(OPERATION, key).ttl(DAY).run(body).await;
            result.map(|key| (key, Instant::now()))
        });
    }
    until_keys(&server, KEYS).await?;
    let before = commands(&server).await?;
    let woken = Arc::new(Mutex::new(HashMap::new()));
    let mut waiting = JoinSet::new();
    for key in 0..KEYS {
        let (others, woken) = (others.clone(), woken.clone());
        waiting.spawn(async move {
            let key = others
                .call(OPERATION, key)
                .ttl(DAY)
                .run(|| async { Ok::<_, Error>(u64::MAX) })
                .await?;
            woken.lock().unwrap_or_else(PoisonError::into_inner).insert(key, Instant::now());
            Ok::<_, Error>(())
        });
    }
    // A claim and a read for each, and no further query while nothing changes.
    let asked = before + 2 * KEYS;
    while commands(&server).await? < asked {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for next in 1..=KEYS {
        release.send_replace(next);
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
    let mut committed = HashMap::new();
    while let Some(ended) = running.join_next().await {
        let (key, at) = ended??;
        committed.insert(key, at);
    }
    while let Some(ended) = waiting.join_next().await {
        ended??;
    }
    let woken = woken.lock().unwrap_or_else(PoisonError::into_inner);
    let mut times: Vec<_> = woken
        .iter()
        .filter_map(|(key, at)| Some(at.saturating_duration_since(*committed.get(key)?)))
        .collect();
    times.sort();
    let (half, most) = (quantile(&times, 0.5), quantile(&times, 0.99));
    let figures = format!("p50 {half:.1?}, p99 {most:.1?} after the owner's return");
    Ok(vec![Row::figure(
        "5 000 waiters on 5 000 keys, Redis, one connection: until one is woken (p99 ≤ 25 ms)",
        figures,
    )])
}

/// Waits until that many records exist.
async fn until_keys(server: &RedisServer, keys: u64) -> anyhow::Result<()> {
    while server.command(&["DBSIZE"]).await?.trim().parse::<u64>()? < keys {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
