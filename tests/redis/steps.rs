//! Steps on a server.

use futures::FutureExt as _;
use idempotency::record::{Resolution, State};
use idempotency::store::{Scan, Store as _};
use idempotency::{Call, Context, Error, Idempotency, OnCrash};
use idempotency_test_support::deadline::eventually_async;

use crate::world::{DAY, OPERATION, SHORT_LEASE, World, large};

fn fulfil(engine: &Idempotency) -> Call {
    engine.call(OPERATION, 1).ttl(DAY).lease(SHORT_LEASE).on_crash(OnCrash::Resume)
}

#[tokio::test]
async fn a_call_resumes_after_the_lease_of_an_owner_that_was_cut_off() -> anyhow::Result<()> {
    let world = World::new().await?;
    let act = async |name: &str| {
        world.effects.append(&format!("1 {name}")).expect("the log takes a line");
        Ok::<_, Error>(name.to_owned() + &large())
    };
    let (recorded, is_recorded) = tokio::sync::oneshot::channel();
    let mut attempt = Box::pin(fulfil(&world.engine).run(async || {
        let context = Context::current();
        let (reserved, charged) = tokio::join!(
            context.step("reserve", || act("reserve")),
            context.step("charge", || act("charge")).at_most_once(),
        );
        reserved.and(charged)?;
        let _ = recorded.send(());
        std::future::pending::<Result<String, Error>>().await
    }));
    tokio::select! {
        result = &mut attempt => panic!("it ended with {result:?}"),
        recorded = is_recorded => recorded?,
    }
    // It can neither renew its lease nor give it up.
    world.proxy.half_open();
    drop(attempt);
    let lease_until = world.record(1).await.expect("a record").lease_until;
    let there = world.elsewhere();
    let resumed = fulfil(&there).run(async || {
        let context = Context::current();
        assert_eq!(context.attempt(), 2);
        let record = world.record(1).await.expect("a record");
        assert!(record.read_at >= lease_until, "the lease was given up");
        assert_eq!(
            context.step("reserve", || act("again")).await?,
            "reserve".to_owned() + &large()
        );
        context.step("charge", || act("again")).await?;
        context.step("ship", async || Ok::<_, Error>("shipped".to_owned())).await
    });
    assert_eq!(resumed.await?, "shipped");
    assert_eq!(world.count(1), 2);
    let record = world.record(1).await.expect("a record");
    assert_eq!((record.state, record.attempts), (State::Completed, 2));
    Ok(())
}

/// What is large is stored in another way, as a whole.
#[tokio::test]
async fn a_large_checkpoint_and_a_large_answer_keep_the_name_of_the_operation() -> anyhow::Result<()>
{
    let world = World::new().await?;
    let call = world.call(1).run(async || {
        Context::current().step("reserve", async || Ok::<_, Error>(large())).await?;
        std::future::pending::<Result<String, Error>>().await
    });
    let mut call = Box::pin(call);
    eventually_async("the checkpoint", async || {
        assert!(call.as_mut().now_or_never().is_none());
        world.record(1).await.is_some_and(|record| record.checkpoints == 1)
    })
    .await?;
    drop(call);
    let record = world.elsewhere().record(OPERATION, 1_u64);
    eventually_async("the doubt", async || {
        world.record(1).await.is_some_and(|record| record.state == State::InDoubt)
    })
    .await?;
    let listed = async || {
        let mut scan = Scan::default();
        scan.operation = Some(OPERATION.into());
        world.direct.scan(scan).await.map(|page| page.records.len())
    };
    assert_eq!(listed().await?, 1, "operators find it");
    let view = record.inspect().await?.expect("a record");
    assert_eq!(&*view.operation, OPERATION);
    record.resolve(&view, Resolution::completed(large())).await?;
    assert_eq!(listed().await?, 1);
    assert_eq!(world.charge(1).await?, large());
    Ok(())
}
