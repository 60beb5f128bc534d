//! Renewals are cut while another process waits to take over.

use std::time::Duration;

use idempotency::{Error, OnConflict, OnCrash};
use idempotency_test_support::deadline::eventually_async;
use idempotency_test_support::proxy::{Action, Fault, Moment};
use tokio::sync::oneshot;

use crate::backend::Backend;
use crate::world::{World, call};

/// So long that one renewal may fail, its answer be waited for in vain, and the next one come late
/// on a busy machine.
const LEASE: Duration = Duration::from_secs(15);

pub async fn a_renewal_cut_at_any_boundary_does_not_lose_the_lease<B: Backend>()
-> anyhow::Result<()> {
    let world = World::<B>::new().await?;
    let actions = [Action::Close, Action::Reset, Action::Silence];
    let faults =
        actions.into_iter().flat_map(|action| Moment::ALL.map(|moment| Fault::new(moment, action)));
    let rounds = (1_u64..).zip(faults).map(|(key, fault)| cut(&world, key, fault));
    futures::future::try_join_all(rounds).await?;
    Ok(())
}

async fn cut<B: Backend>(world: &World<B>, key: u64, fault: Fault) -> anyhow::Result<()> {
    let way = world.way_with(|builder| builder.lease(LEASE)).await?;
    let elsewhere = world.elsewhere().lease(LEASE).build()?;
    let (start, started) = oneshot::channel();
    let body = call(&way.engine, key).on_crash(OnCrash::Retry).run(|| async {
        let claimed = world.record(key).await.expect("the claim is there");
        let cut = way.proxy.nth(1, B::renews, fault);
        let _ = start.send(());
        cut.happened().await.expect("the renewal is cut");
        let outlived = eventually_async("the first lease to end", async || {
            let record = world.record(key).await.expect("the claim is there");
            assert_eq!(
                (record.owner, record.attempts),
                (claimed.owner, 1),
                "{fault:?}: the claim was taken over"
            );
            record.read_at > claimed.lease_until
        });
        outlived.await.expect("the server's clock goes on");
        Ok::<_, Error>(world.effect(key))
    });
    let waiting = async {
        started.await?;
        let call = call(&elsewhere, key)
            .on_crash(OnCrash::Retry)
            .on_conflict(OnConflict::Wait(LEASE * 10));
        Ok::<_, anyhow::Error>(call.run(|| async { Ok::<_, Error>(world.effect(key)) }).await?)
    };
    let (answer, waited) = tokio::join!(body, waiting);
    assert_eq!(
        (answer?, waited?),
        (format!("receipt {key}.1"), format!("receipt {key}.1")),
        "{fault:?}"
    );
    assert_eq!((world.count(key), way.engine.duplicates()), (1, 0), "{fault:?}");
    Ok(())
}
