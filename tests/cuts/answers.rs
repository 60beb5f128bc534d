//! The answer to a claim or a commit is lost, or the commit is: whoever sent it finds out what
//! became of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use idempotency::record::State;
use idempotency::{Error, OnConflict};
use idempotency_test_support::deadline::eventually_async;
use idempotency_test_support::proxy::{Action, Fault, Moment, Request};

use crate::backend::Backend;
use crate::world::{World, call};

const ACTIONS: [Action; 3] = [Action::Close, Action::Reset, Action::Silence];

pub async fn a_commit_whose_answer_is_lost_is_found_applied<B: Backend>() -> anyhow::Result<()> {
    commit_meets::<B>(Moment::AfterRequest).await
}

pub async fn a_commit_that_never_arrives_is_sent_again<B: Backend>() -> anyhow::Result<()> {
    commit_meets::<B>(Moment::BeforeRequest).await
}

async fn commit_meets<B: Backend>(moment: Moment) -> anyhow::Result<()> {
    let world = World::<B>::new().await?;
    for (key, action) in (1..).zip(ACTIONS) {
        let way = world.warm_way().await?;
        let lost = way.proxy.nth(1, B::commits, Fault::new(moment, action));
        let receipt = world.charge(&way.engine, key).await?;
        assert_eq!(receipt, format!("receipt {key}.1"));
        lost.happened().await?;
        assert_eq!(
            world.record(key).await.map(|record| record.state),
            Some(State::Completed),
            "{action:?}"
        );
        let (replayed, report) =
            idempotency::with_report(world.charge(&world.elsewhere().build()?, key)).await;
        assert_eq!(
            (replayed?, report.map(|report| report.replayed)),
            (receipt, Some(true)),
            "{action:?}"
        );
        assert_eq!((world.count(key), way.engine.duplicates()), (1, 0), "{action:?}");
    }
    Ok(())
}

pub async fn a_claim_whose_answer_is_lost_is_recognised_by_its_token<B: Backend>()
-> anyhow::Result<()> {
    let world = World::<B>::new().await?;
    for (key, action) in (1..).zip(ACTIONS) {
        let way = world.warm_way().await?;
        let lost = way.proxy.nth(1, B::claims, Fault::new(Moment::AfterRequest, action));
        // Who takes its own claim for another's would be refused.
        let call = call(&way.engine, key).on_conflict(OnConflict::Reject);
        let receipt = call.run(|| async { Ok::<_, Error>(world.effect(key)) }).await?;
        assert_eq!(receipt, format!("receipt {key}.1"));
        lost.happened().await?;
        let record = world.record(key).await.map(|record| (record.state, record.attempts));
        assert_eq!((record, world.count(key)), (Some((State::Completed, 1)), 1), "{action:?}");
    }
    Ok(())
}

/// The claim was applied and its owner never heard of it.
pub async fn a_claim_whose_answers_are_all_lost_is_released_when_the_store_is_back<B: Backend>()
-> anyhow::Result<()> {
    let world = World::<B>::new().await?;
    let way = world.warm_way().await?;
    let is_claimed = Arc::new(AtomicBool::new(false));
    let claimed = Arc::clone(&is_claimed);
    let is_claim =
        move |request: &Request| B::claims(request) && !claimed.swap(true, Ordering::SeqCst);
    let claim = way.proxy.nth(1, is_claim, Fault::new(Moment::AfterRequest, Action::Silence));
    let all = Fault::new(Moment::BeforeRequest, Action::Silence);
    way.proxy.every(move |_| is_claimed.load(Ordering::SeqCst), all);
    world.refused(&way, 1).await?;
    claim.happened().await?;
    assert!(
        world.record(1).await.is_some_and(|record| record.is_running()),
        "the claim was applied"
    );
    way.proxy.clear();
    eventually_async("the release, long before the lease ends", async || {
        world.record(1).await.is_none()
    })
    .await?;
    world.recovers(&way.engine, 1).await
}
