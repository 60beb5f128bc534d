//! A claim that is believed lost, and arrives when everything is over.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use idempotency::store::{Claim, ClaimOutcome};
use idempotency_test_support::deadline::eventually_async;
use idempotency_test_support::proxy::{Action, Fault, Moment, Request};

use crate::backend::Backend;
use crate::world::{DAY, LONG_LEASE, OPERATION, World, call};

pub async fn a_claim_transmitted_twice_that_arrives_late_is_released_again<B: Backend>()
-> anyhow::Result<()> {
    let world = World::<B>::new().await?;
    // The claim is given back once more after this time.
    let way = world.warm_way_with(|builder| builder.claim_timeout(Duration::from_secs(5))).await?;
    let lost = way.proxy.nth(1, B::claims, Fault::new(Moment::BeforeRequest, Action::Close));
    // However slow this test is, the engine gives the claim back again when the late one has
    // arrived, and not before.
    let releases = AtomicUsize::new(0);
    let is_again = move |request: &Request| {
        B::releases(request) && releases.fetch_add(1, Ordering::SeqCst) > 0
    };
    let mut owner = None;
    let failed = call(&way.engine, 1).run(|| async {
        owner = world.record(1).await.map(|record| record.owner);
        way.proxy.every(is_again, Fault::new(Moment::BeforeRequest, Action::Close));
        Err::<(), _>(anyhow::anyhow!("busy"))
    });
    assert_eq!(failed.await.unwrap_err().to_string(), "busy");
    lost.happened().await?;
    assert!(world.record(1).await.is_none(), "the claim was released");

    let token = owner.expect("the claim was there while the body ran");
    let mut first_try =
        Claim::new(way.engine.record(OPERATION, 1_u64).hash()?, token, OPERATION.into());
    (first_try.lease, first_try.linger, first_try.ttl) = (LONG_LEASE, DAY, DAY);
    let late = world.direct.clone().claim(first_try).await?;
    assert!(matches!(late, ClaimOutcome::Granted(_)), "granted to nobody: {late:?}");
    way.proxy.clear();
    eventually_async("the second release", async || world.record(1).await.is_none()).await?;
    world.recovers(&way.engine, 1).await
}
