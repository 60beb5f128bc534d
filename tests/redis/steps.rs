//! Steps on a server.

use idempotency::{Call, Context, Error, Idempotency, OnCrash, State};

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
        assert_eq!(context.step("reserve", || act("again")).await?, "reserve".to_owned() + &large());
        context.step("charge", || act("again")).await?;
        context.step("ship", async || Ok::<_, Error>("shipped".to_owned())).await
    });
    assert_eq!(resumed.await?, "shipped");
    assert_eq!(world.count(1), 2);
    let record = world.record(1).await.expect("a record");
    assert_eq!((record.state, record.attempts), (State::Completed, 2));
    Ok(())
}
