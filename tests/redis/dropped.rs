//! The caller's future is dropped: while it claims, while it waits, before its body and in it.

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Waker};

use idempotency::record::State;
use idempotency::store::Reason;
use idempotency::{Error, ErrorKind, Idempotency, OnCrash, WithEngine as _, idempotent};
use idempotency_test_support::deadline::eventually_async;
use idempotency_test_support::effects::EffectLog;
use idempotency_test_support::proxy::{Action, Fault, Moment};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;

use crate::world::{DAY, OPERATION, World, is_commit};

fn poll_once<F: Future + Unpin>(future: &mut F) -> bool {
    std::pin::Pin::new(future).poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

/// What a body and its test tell each other.
struct Gate {
    started: Semaphore,
    open: Semaphore,
    effects: Arc<EffectLog>,
}

impl Gate {
    fn new(world: &World) -> Arc<Self> {
        Arc::new(Self {
            started: Semaphore::new(0),
            open: Semaphore::new(0),
            effects: world.effects.clone(),
        })
    }

    async fn pass(&self, key: u64) -> Result<String, Error> {
        self.started.add_permits(1);
        let _ = self.open.acquire().await;
        self.effects.append(&format!("{key} charged")).expect("the log takes a line");
        Ok("receipt".to_owned())
    }

    fn has_started(&self) -> bool {
        self.started.available_permits() > 0
    }
}

#[idempotent(key = key, ttl = "24h", name = "payments.charge", detach)]
async fn detached(key: u64, gate: Arc<Gate>) -> Result<String, Error> {
    gate.pass(key).await
}

async fn attached(engine: Idempotency, key: u64, gate: Arc<Gate>) -> Result<String, Error> {
    engine.call(OPERATION, key).ttl(DAY).run(|| gate.pass(key)).await
}

type Call = std::pin::Pin<Box<dyn Future<Output = Result<String, Error>> + Send>>;

fn both(world: &World, gate: &Arc<Gate>) -> [(u64, Call); 2] {
    [
        (1, Box::pin(attached(world.engine.clone(), 1, gate.clone()))),
        (2, Box::pin(detached(2, gate.clone()).with_engine(&world.engine))),
    ]
}

/// The server has the claim, and nobody has its answer when the caller goes.
#[tokio::test]
async fn a_call_dropped_while_it_claims_leaves_nothing_behind() -> anyhow::Result<()> {
    let world = World::new().await?;
    world.warm_up().await?;
    let gate = Gate::new(&world);
    gate.open.close();
    for (key, mut call) in both(&world, &gate) {
        let silence = Fault::new(Moment::AfterRequest, Action::Silence);
        world.proxy.every(|request| request.command() == "SET", silence);
        eventually_async("the claim to be applied", async || {
            assert!(!poll_once(&mut call), "the answer is lost");
            world.record(key).await.is_some()
        })
        .await?;
        drop(call);
        world.proxy.clear();
        eventually_async("the release", async || world.record(key).await.is_none()).await?;
        assert!(!gate.has_started());
        assert_eq!(world.charge(key).await?, format!("receipt {key}.1"));
    }
    Ok(())
}

#[tokio::test]
async fn a_call_dropped_while_it_waits_changes_nothing() -> anyhow::Result<()> {
    let world = World::new().await?;
    let gate = Gate::new(&world);
    for (key, mut waiter) in both(&world, &gate) {
        let owner = {
            let (engine, gate) = (world.elsewhere(), gate.clone());
            tokio::spawn(async move { attached(engine, key, gate).await })
        };
        gate.started.acquire().await?.forget();
        let before = world.record(key).await;
        eventually_async("the waiter to be registered", async || {
            assert!(!poll_once(&mut waiter), "the owner's body waits");
            let stats = world.server.command(&["INFO", "stats"]).await.unwrap_or_default();
            stats.contains("tracking_total_keys:1\r")
        })
        .await?;
        drop(waiter);
        assert_eq!(world.record(key).await.map(|record| (record.state, record.owner)), {
            before.map(|record| (record.state, record.owner))
        });
        gate.open.add_permits(1);
        assert_eq!(owner.await??, "receipt");
        gate.open.acquire().await?.forget();
        assert_eq!(world.count(key), 1);
    }
    Ok(())
}

/// A claim was granted to a future that nobody polls any more: the body has not begun.
#[tokio::test]
async fn a_call_dropped_before_its_body_releases_the_claim() -> anyhow::Result<()> {
    let world = World::new().await?;
    world.warm_up().await?;
    let gate = Gate::new(&world);
    for (key, mut call) in both(&world, &gate) {
        assert!(!poll_once(&mut call), "the claim is sent");
        eventually_async("the claim to be granted", async || world.record(key).await.is_some())
            .await?;
        drop(call);
        eventually_async("the release", async || world.record(key).await.is_none()).await?;
        assert!(!gate.has_started());
        assert_eq!(world.charge(key).await?, format!("receipt {key}.1"));
    }
    Ok(())
}

#[tokio::test]
async fn a_body_dropped_in_the_middle_is_in_doubt_or_the_next_callers_by_its_policy()
-> anyhow::Result<()> {
    let world = World::new().await?;
    for (key, policy) in [(1, OnCrash::Hold), (2, OnCrash::Retry)] {
        let call = world.call(key).on_crash(policy).run(|| async {
            world.effect(key);
            std::future::pending::<Result<String, Error>>().await
        });
        let mut call = Box::pin(call);
        eventually_async("the effect", async || {
            assert!(!poll_once(&mut call), "the body does not end");
            world.count(key) == 1
        })
        .await?;
        drop(call);
        eventually_async("the policy", async || {
            world.record(key).await.is_some_and(|record| record.reason == Some(Reason::Dropped))
        })
        .await?;
        let elsewhere = world.elsewhere();
        let next = elsewhere.call(OPERATION, key).ttl(DAY).on_crash(policy);
        let next = next.run(|| async { Ok::<_, Error>(world.effect(key)) }).await;
        match policy {
            OnCrash::Retry => assert_eq!(next?, "receipt 2.2"),
            _ => assert_eq!(next.unwrap_err().kind(), ErrorKind::InDoubt),
        }
    }
    assert_eq!((world.count(1), world.count(2)), (1, 2));
    Ok(())
}

#[tokio::test]
async fn a_detached_body_goes_on_without_its_caller_and_its_result_is_stored() -> anyhow::Result<()>
{
    let world = World::new().await?;
    let gate = Gate::new(&world);
    let mut call: Call = Box::pin(detached(1, gate.clone()).with_engine(&world.engine));
    eventually_async("the body to start", async || {
        assert!(!poll_once(&mut call), "the gate is closed");
        gate.has_started()
    })
    .await?;
    drop(call);
    gate.open.add_permits(1);
    eventually_async("the result", async || {
        world.record(1).await.is_some_and(|r| r.state == State::Completed)
    })
    .await?;
    assert_eq!(attached(world.elsewhere(), 1, gate).await?, "receipt");
    assert_eq!(world.count(1), 1);
    Ok(())
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// The server has the claim, and its answer belongs to a runtime that nobody drives any more.
#[test]
fn a_call_dropped_while_it_claims_leaves_nothing_behind_on_a_runtime_that_stands_still()
-> anyhow::Result<()> {
    let (home, callers) =
        (Builder::new_multi_thread().worker_threads(1).enable_all().build()?, runtime());
    let world = home.block_on(World::new())?;
    // The store's connection is made by the callers.
    callers.block_on(world.charge_on(&world.hasty, 1))?;
    let gate = Gate::new(&world);
    let mut call = Box::pin(attached(world.hasty.clone(), 2, gate.clone()));
    callers.block_on(async {
        for _ in 0..3 {
            assert!(!poll_once(&mut call), "the answer was not heard");
            tokio::task::yield_now().await;
        }
    });
    home.block_on(eventually_async("the claim to be applied", async || {
        world.record(2).await.is_some()
    }))?;
    drop(call);
    home.block_on(eventually_async("the release", async || world.record(2).await.is_none()))?;
    assert!(!gate.has_started());
    assert_eq!(home.block_on(world.charge(2))?, "receipt 2.1");
    drop(callers);
    Ok(())
}

/// The answer is on its way, and the client waits for it with a timer of a runtime that has ended.
#[test]
fn a_call_whose_runtime_ends_while_it_waits_for_the_server_leaves_no_claim_and_loses_no_result()
-> anyhow::Result<()> {
    let home = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let world = home.block_on(World::new())?;
    home.block_on(world.warm_up())?;
    let gate = Gate::new(&world);

    let callers = runtime();
    // They have a connection.
    callers.block_on(world.charge(3))?;
    world.proxy.hold_answers();
    callers.block_on(async {
        tokio::spawn(attached(world.engine.clone(), 1, gate.clone()));
        eventually_async("the claim to be applied", async || world.record(1).await.is_some()).await
    })?;
    drop(callers);
    world.proxy.heal();
    home.block_on(eventually_async("the release", async || world.record(1).await.is_none()))?;
    assert!(!gate.has_started());

    let callers = runtime();
    let lost = world.proxy.nth(1, is_commit, Fault::new(Moment::BeforeRequest, Action::Silence));
    gate.open.close();
    callers.block_on(async {
        tokio::spawn(attached(world.engine.clone(), 2, gate.clone()));
        lost.happened().await
    })?;
    drop(callers);
    let is_stored =
        async || world.record(2).await.is_some_and(|record| record.state == State::Completed);
    home.block_on(eventually_async("the result to be stored", is_stored))?;
    assert_eq!((home.block_on(world.charge(2))?, world.count(2)), ("receipt".to_owned(), 1));
    Ok(())
}
