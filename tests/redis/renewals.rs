//! The leases of a process are renewed together.

use std::sync::Arc;
use std::time::Duration;

use futures::future::try_join_all;
use idempotency::key::KeyHash;
use idempotency::store::{CensusBudget, Claim, Renewal, Scan, Store as _, Token, WriteOutcome};
use idempotency::testing::ManualClock;
use idempotency::{Context, Error, Idempotency};
use idempotency_test_support::deadline::{eventually_within, within};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

use crate::world::{DAY, OPERATION, World, patient};

const CALLS: usize = 10_000;
/// No claim ends by itself on the server, whose clock goes on: the engine's is moved by the test.
const LEASE: Duration = Duration::from_secs(3_600);
/// For what ten thousand calls do on a busy machine.
const LONG: Duration = Duration::from_secs(120);

/// Calls of `engine` whose bodies are under way until `finished`.
async fn running(
    engine: &Idempotency,
    keys: std::ops::Range<usize>,
    finished: &watch::Receiver<bool>,
) -> anyhow::Result<Vec<JoinHandle<Result<bool, Error>>>> {
    let (count, started) = (u32::try_from(keys.len())?, Arc::new(Semaphore::new(0)));
    let calls = keys.map(|key| {
        let (engine, started, mut finished) = (engine.clone(), started.clone(), finished.clone());
        tokio::spawn(async move {
            let body = || async move {
                started.add_permits(1);
                let _ = finished.wait_for(|finished| *finished).await;
                Ok::<_, Error>(!Context::current().lease_lost())
            };
            engine.call(OPERATION, key).ttl(DAY).run(body).await
        })
    });
    let calls = calls.collect();
    tokio::time::timeout(LONG, started.acquire_many(count)).await??.forget();
    Ok(calls)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_leases_are_renewed_in_one_round_trip() -> anyhow::Result<()> {
    let world = World::new().await?;
    let clock = ManualClock::new();
    let url = world.proxy.url(&world.server.url());
    let store = patient(&url).response_timeout(LONG).connect().await?;
    let engine = Idempotency::builder(store).clock(clock.clone()).lease(LEASE).build()?;
    let renewals = || world.proxy.requests_of("EVALSHA");
    let renewed = async |what: &str, count| {
        eventually_within(LONG, what, async || renewals() >= count).await?;
        anyhow::Ok(())
    };

    // Makes the connection for renewals, and loads the script: the first try finds none.
    let (finish, finished) = watch::channel(false);
    let early = running(&engine, 0..1, &finished).await?;
    clock.advance(LEASE / 3);
    renewed("the first renewal", 2).await?;
    finish.send(true)?;
    try_join_all(early).await?;

    let (finish, finished) = watch::channel(false);
    let calls = running(&engine, 1..CALLS + 1, &finished).await?;
    let (before, trips, scripts) = (world.proxy.requests(), world.proxy.round_trips(), renewals());
    // What is sent while nothing is answered has not waited for anything.
    world.proxy.hold_answers();
    clock.advance(LEASE / 3);
    let all = async || world.proxy.requests() >= before + CALLS;
    eventually_within(LONG, "all renewals", all).await?;
    assert_eq!(world.proxy.round_trips() - trips, 1);
    world.proxy.heal();
    finish.send(true)?;
    for call in calls {
        assert!(within("the end of a call", call).await???, "the lease was renewed");
    }
    // On a busy machine a connection may be taken for silent, and another one be made.
    assert_eq!(renewals() - scripts, 2 * CALLS, "a renewal and a commit for each");
    Ok(())
}

#[tokio::test]
async fn a_key_that_somebody_else_has_overwritten_costs_no_other_its_renewal_or_place_in_a_list()
-> anyhow::Result<()> {
    let world = World::patient().await?;
    let key = |number| KeyHash::from_bytes([number; 32]);
    let token = |number: u8| Token::from_bits(number.into());
    for number in 1..=4 {
        world.direct.claim(Claim::new(key(number), token(number), OPERATION.into())).await?;
    }
    let name = |number| format!("idempotency:{{{}}}", key(number).to_hex());
    world.server.command(&["DEL", &name(2)]).await?;
    world.server.command(&["RPUSH", &name(2), "a list"]).await?;
    world.server.command(&["SET", &name(3), "no record"]).await?;
    let renewals = (1..=5).map(|number| Renewal::new(key(number), token(number), LEASE)).collect();
    let renewed = [
        WriteOutcome::Applied,
        WriteOutcome::Lost,
        WriteOutcome::Lost,
        WriteOutcome::Applied,
        WriteOutcome::Gone,
    ];
    assert_eq!(world.direct.renew(renewals).await?, renewed);
    let page = world.direct.scan(Scan::default()).await?;
    let listed: Vec<_> = page.records.iter().map(|record| record.key).collect();
    assert_eq!((listed, page.unreadable), (vec![key(1), key(4)], vec![key(2), key(3)]));
    let census = world.direct.census(CensusBudget::of(DAY)).await?;
    assert_eq!((census.count(), census.unreadable, census.complete), (2, 2, true));
    Ok(())
}
