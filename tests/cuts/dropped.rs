//! The caller's future is dropped while its claim is on the way.

use std::future::Future;
use std::task::{Context, Waker};

use idempotency_test_support::deadline::eventually_async;
use idempotency_test_support::proxy::{Action, Fault, Moment};

use crate::backend::Backend;
use crate::world::World;

fn poll_once<F: Future + Unpin>(future: &mut F) -> bool {
    std::pin::Pin::new(future).poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

/// The server has the claim, and nobody has its answer when the caller goes.
pub async fn a_call_dropped_while_it_claims_leaves_nothing_behind<B: Backend>() -> anyhow::Result<()>
{
    let world = World::<B>::new().await?;
    let way = world.warm_way().await?;
    way.proxy.every(B::claims, Fault::new(Moment::AfterRequest, Action::Silence));
    let mut calling = Box::pin(world.charge(&way.engine, 1));
    eventually_async("the claim to be applied", async || {
        assert!(!poll_once(&mut calling), "the answer is lost");
        world.record(1).await.is_some()
    })
    .await?;
    drop(calling);
    way.proxy.clear();
    eventually_async("the release", async || world.record(1).await.is_none()).await?;
    assert_eq!(world.count(1), 0, "the body did not run");
    world.recovers(&way.engine, 1).await
}
