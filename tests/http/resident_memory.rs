//! How much memory a server holds after many requests.
#![cfg(target_os = "linux")]

use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures::future::try_join_all;
use idempotency_test_support::server::{RedisOptions, RedisServer};

use crate::client::Client;
use crate::process::{Orders, Policy, Process};

/// By how much a server may grow, in bytes. A leak of two kilobytes with each request is more than
/// that.
const GROWTH: u64 = 20 * 1024 * 1024;
/// What is sent before the first look: connections, buffers and the allocator's pools have their
/// size after it, and the pages of the program that requests need are loaded. A tenth of the
/// requests in the default run, of the same mix, so that what grows with each request has grown by
/// little.
const WARM_UP: usize = 1_000;
const CLIENTS: usize = 8;
/// No renewal falls due.
const LEASE: Duration = Duration::from_secs(3_600);

fn requests() -> usize {
    if std::env::var_os("IDEMPOTENCY_LONG").is_some() { 100_000 } else { 10_000 }
}

/// What the kernel counts as in memory, in bytes.
fn resident(process: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1024)
}

/// Five requests with a new key, and what the layer makes of them.
async fn five(client: &Client, key: &str, number: usize) -> anyhow::Result<()> {
    // Some are large, and some too large to be kept.
    let size = if number.is_multiple_of(100) {
        1_000_000
    } else if number.is_multiple_of(20) {
        100_000
    } else {
        100
    };
    let body = "x".repeat(size);
    let pay = || client.post("/pay").key(key).body(body.clone()).send();
    let first = pay().await?;
    ensure!((first.status, first.is_replayed()) == (201, false), "{first:?}");
    for _ in 0..2 {
        let retry = pay().await?;
        let as_stored =
            if size == 1_000_000 { retry.problem()? == "not-kept" } else { retry.is_replayed() };
        ensure!(as_stored, "{retry:?}");
    }
    client.post("/pay").key(key).body("other").send().await?.assert_problem(422, "mismatch")?;
    client.post("/pay").header("idempotency-key", "").send().await?.assert_problem(400, "malformed")
}

/// `count` requests by some clients at once.
async fn send(client: &Client, round: &str, count: usize) -> anyhow::Result<()> {
    let clients = (0..CLIENTS).map(async |number| {
        for turn in 0..count / CLIENTS / 5 {
            five(client, &format!("{round}-{number}-{turn}"), turn).await?;
        }
        anyhow::Ok(())
    });
    try_join_all(clients).await?;
    Ok(())
}

#[tokio::test]
async fn the_memory_of_a_server_does_not_grow_with_its_requests() -> anyhow::Result<()> {
    // The records are in another process, and are not counted.
    let redis = RedisServer::start(RedisOptions::new().private()).await?;
    let orders = Orders::new(redis.url())?.with(Policy::Hold, LEASE);
    let server = Process::start(&orders, &[]).await?;
    send(server.client(), "warm-up", WARM_UP).await?;
    let before = resident(server.pid())?;
    send(server.client(), "counted", requests()).await?;
    let after = resident(server.pid())?;
    println!("{before} bytes after the warm-up, {after} after {} requests", requests());
    ensure!(after < before + GROWTH, "{before} bytes have become {after}");
    server.kill().await
}
