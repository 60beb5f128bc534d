//! Steps on a file.

use std::sync::Mutex;
use std::time::Duration;

use idempotency::record::State;
use idempotency::{Call, Context, Error, ErrorKind, Idempotency, OnCrash};

use crate::world::{DAY, OPERATION, World};

fn fulfil(engine: &Idempotency) -> Call {
    engine.call(OPERATION, 1).ttl(DAY).on_crash(OnCrash::Resume)
}

#[tokio::test]
async fn a_call_resumes_after_a_takeover_with_the_steps_in_the_file() -> anyhow::Result<()> {
    let world = World::new().await?;
    let effects = Mutex::new(Vec::new());
    let act = async |name: &str| {
        effects.lock().unwrap().push(name.to_owned());
        Ok::<_, Error>(name.repeat(5_000))
    };
    let died = world.engine(|builder| builder);
    let (recorded, is_recorded) = tokio::sync::oneshot::channel();
    let attempt = fulfil(&died).run(async || {
        let context = Context::current();
        for index in 0..3 {
            context.step_at("item", index, || act("item")).await?;
        }
        context.step("charge", || act("charge")).at_most_once().await?;
        let _ = recorded.send(());
        std::future::pending::<Result<(), Error>>().await
    });
    tokio::select! {
        result = attempt => panic!("it ended with {result:?}"),
        recorded = is_recorded => recorded?,
    }
    let there = world.engine(|builder| builder);
    let resumed = fulfil(&there).run(async || {
        let context = Context::current();
        assert_eq!(context.attempt(), 2);
        for index in 0..3 {
            assert_eq!(
                context.step_at("item", index, || act("again")).await?,
                "item".repeat(5_000)
            );
        }
        context.step("charge", || act("again")).await?;
        context.step("ship", || act("ship")).await
    });
    assert_eq!(resumed.await?.len(), 20_000);
    assert_eq!(*effects.lock().unwrap(), ["item", "item", "item", "charge", "ship"]);
    let record = there.record(OPERATION, 1).inspect().await?.expect("a record");
    assert_eq!((record.state, record.attempts), (State::Completed, 2));
    died.shutdown(Duration::ZERO).await;
    Ok(())
}

#[tokio::test]
async fn a_call_in_a_transaction_has_no_steps() -> anyhow::Result<()> {
    let world = World::new().await?;
    let engine = world.engine(|builder| builder);
    let mut transaction = world.pool.begin().await?;
    let call = engine.call(OPERATION, 1).ttl(DAY).run_in(&mut transaction, async |_| {
        Context::current()
            .step("charge", async || -> Result<(), Error> { panic!("the step runs") })
            .await
    });
    let error = call.await.unwrap_err();
    assert_eq!((error.kind(), error.step()), (ErrorKind::Unsupported, Some("charge")));
    Ok(())
}
