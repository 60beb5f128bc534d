//! Rules 36 to 42: requests at once.

use idempotency::store::Operation;
use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::{join_all, try_join_all};
use idempotency_test_support::deadline::eventually_async;
use idempotency_test_support::server::{RedisOptions, RedisServer};

use crate::client::raw_post;
use crate::process::{Orders, Process};
use crate::world::World;

/// Longer than any test takes.
const PATIENCE: Duration = Duration::from_secs(600);

#[tokio::test]
async fn rule_36_in_progress_is_a_409_that_says_when_to_retry() -> anyhow::Result<()> {
    let world = World::new().await?;
    let first = world.pay("abc").header("x-wait", "1").spawn();
    world.entered("abc").await?;
    let refused = world.pay("abc").send().await?;
    refused.assert_problem(409, "in-progress")?;
    let seconds: u64 = refused.header("retry-after").unwrap_or_default().parse()?;
    assert!(seconds >= 1);
    assert!(!first.is_answered());
    world.shop.gate.open();
    assert_eq!(first.reply().await?.status, 201);
    assert!(world.pay("abc").send().await?.is_replayed());
    Ok(())
}

#[tokio::test]
async fn rule_37_blocking_waits_and_replays_and_gives_up_at_its_bound() -> anyhow::Result<()> {
    let mut world = World::with(|layer| layer.blocking(PATIENCE)).await?;
    let impatient =
        world.another_server(|layer| layer.with_wait(Duration::from_millis(50))).await?;
    let first = world.pay("abc").header("x-wait", "1").spawn();
    world.entered("abc").await?;
    let waiting = world.pay("abc").spawn();
    impatient.post("/pay").key("abc").send().await?.assert_problem(409, "in-progress")?;
    assert!(!waiting.is_answered());
    world.shop.gate.open();
    let (first, waited) = (first.reply().await?, waiting.reply().await?);
    assert_eq!((first.is_replayed(), waited.is_replayed()), (false, true));
    assert_eq!((waited.answer(), world.effects("abc")), (first.answer(), 1));
    Ok(())
}

#[tokio::test]
async fn rule_38_a_waiter_that_leaves_never_changes_the_claim() -> anyhow::Result<()> {
    let mut world = World::with(|layer| layer.blocking(PATIENCE)).await?;
    // In the process of the owner and in another one.
    let elsewhere = world.another_server(|layer| layer.blocking(PATIENCE)).await?;
    let first = world.pay("abc").header("x-wait", "1").spawn();
    world.entered("abc").await?;
    let before = world.record("abc").inspect().await?.expect("there is a record");
    for client in [world.client.clone(), elsewhere.clone()] {
        let claims = world.store.requests(Operation::Claim);
        let waiter = client.write(raw_post("/pay", b"Idempotency-Key: abc\r\n", b"{}")).await?;
        // The one in the owner's process follows it there and asks no store.
        if client.address() == elsewhere.address() {
            eventually_async("the claim of the waiter", async || {
                world.store.requests(Operation::Claim) > claims
            })
            .await?;
        }
        drop(waiter);
        let stays = client.post("/pay").key("abc").spawn();
        stays.leave();
    }
    let after = world.record("abc").inspect().await?.expect("there is a record");
    assert_eq!(
        (after.revision == before.revision, after.fence, after.state),
        (true, before.fence, before.state)
    );
    world.shop.gate.open();
    let first = first.reply().await?;
    let retry = elsewhere.post("/pay").key("abc").send().await?;
    assert_eq!((first.status, retry.is_replayed(), retry.answer()), (201, true, first.answer()));
    assert_eq!(world.effects("abc"), 1);
    Ok(())
}

#[tokio::test]
async fn rule_39_of_64_at_once_on_two_processes_one_runs() -> anyhow::Result<()> {
    let redis = RedisServer::start(RedisOptions::new().private()).await?;
    let orders = Orders::new(redis.url())?;
    let servers = [Process::start(&orders, &[]).await?, Process::start(&orders, &[]).await?];
    for round in 0..5 {
        let key = format!("round-{round}");
        let requests =
            (0..64).map(|number| servers[number % 2].client().post("/pay").key(&key).spawn());
        let requests: Vec<_> = requests.collect();
        let replies = try_join_all(requests.into_iter().map(crate::client::Pending::reply)).await?;
        let mut receipts = BTreeSet::new();
        let mut ran = 0;
        for reply in &replies {
            match reply.status {
                201 => {
                    ran += usize::from(!reply.is_replayed());
                    receipts.insert(reply.body.clone());
                }
                _ => reply.assert_problem(409, "in-progress")?,
            }
        }
        assert_eq!((orders.effects(&key)?, ran, receipts.len()), (1, 1, 1), "{key}");
    }
    Ok(())
}

#[tokio::test]
async fn rule_40_of_two_payloads_at_once_one_runs_and_the_other_is_refused() -> anyhow::Result<()> {
    let redis = RedisServer::start(RedisOptions::new().private()).await?;
    let orders = Orders::new(redis.url())?;
    let servers = [Process::start(&orders, &[]).await?, Process::start(&orders, &[]).await?];
    for round in 0..5 {
        let key = format!("round-{round}");
        let request = |number: usize| {
            let payload = ["one", "two"][number / 2 % 2];
            let reply = servers[number % 2].client().post("/pay").key(&key).body(payload).spawn();
            async move { anyhow::Ok((payload, reply.reply().await?)) }
        };
        let replies = try_join_all((0..32).map(request)).await?;
        let winner =
            replies.iter().find(|(_, reply)| reply.status == 201).map(|(payload, _)| *payload);
        for (payload, reply) in &replies {
            if Some(*payload) != winner {
                reply.assert_problem(422, "mismatch")?;
            } else if reply.status == 201 {
                assert_eq!(reply.json()?["body"], *payload);
            } else {
                reply.assert_problem(409, "in-progress")?;
            }
        }
        assert_eq!(orders.effects(&key)?, 1, "{key}");
    }
    Ok(())
}

#[tokio::test]
async fn rule_41_many_keys_at_once_run_once_each_and_no_body_crosses_over() -> anyhow::Result<()> {
    let redis = RedisServer::start(RedisOptions::new().private()).await?;
    let orders = Orders::new(redis.url())?;
    let servers = [Process::start(&orders, &[]).await?, Process::start(&orders, &[]).await?];
    for _ in 0..2 {
        let request = |number: usize| {
            let (key, body) = (format!("key-{number}"), format!("body of {number}"));
            let reply =
                servers[number % 2].client().post("/pay").key(&key).body(body.clone()).spawn();
            async move {
                let reply = reply.reply().await?;
                assert_eq!(reply.status, 201);
                assert_eq!(
                    (reply.json()?["key"].as_str(), reply.json()?["body"].as_str()),
                    (Some(&*key), Some(&*body))
                );
                anyhow::Ok(())
            }
        };
        try_join_all((0..300).map(request)).await?;
    }
    let effects = orders.all_effects()?;
    assert_eq!(effects.len(), 300);
    assert!(effects.values().all(|count| *count == 1), "{effects:?}");
    Ok(())
}

#[tokio::test]
async fn rule_42_waiters_are_bounded_and_other_routes_stay_responsive() -> anyhow::Result<()> {
    const WAITERS: usize = 4;
    let world = World::setup()
        .engine(|builder| builder.max_waiters(WAITERS))
        .layer(|layer| layer.blocking(PATIENCE))
        .start()
        .await?;
    let first = world.pay("abc").header("x-wait", "1").spawn();
    world.entered("abc").await?;
    let requests: Vec<_> = (0..20).map(|_| world.pay("abc").spawn()).collect();
    let refused = || requests.iter().filter(|request| request.is_answered()).count();
    eventually_async("those that may not wait to be refused", async || refused() == 20 - WAITERS)
        .await?;
    assert_eq!(world.client.request(axum::http::Method::GET, "/pay").send().await?.status, 201);
    assert_eq!(world.pay("another").send().await?.status, 201);
    assert_eq!(refused(), 20 - WAITERS);
    world.shop.gate.open();
    let first = first.reply().await?;
    let replies = join_all(requests.into_iter().map(crate::client::Pending::reply)).await;
    let mut replayed = 0;
    for reply in replies {
        let reply = reply?;
        if reply.is_replayed() {
            assert_eq!(reply.answer(), first.answer());
            replayed += 1;
        } else {
            reply.assert_problem(409, "in-progress")?;
        }
    }
    assert_eq!((replayed, world.effects("abc")), (WAITERS, 1));
    Ok(())
}
