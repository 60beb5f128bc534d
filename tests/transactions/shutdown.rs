//! Draining an engine whose bodies are in transactions.

use std::time::Duration;

use idempotency::{Error, ErrorKind};

use crate::world::{DAY, PATIENCE, World};

#[tokio::test]
async fn a_body_in_a_transaction_that_outlasts_the_shutdown_is_counted() -> anyhow::Result<()> {
    let world = World::new().await?;
    let mut transaction = world.begin().await?;
    let (begun, has_begun) = tokio::sync::oneshot::channel();
    let call = world.call("a").run_in(&mut transaction, async |_| {
        let _ = begun.send(());
        // Until the engine is closed, a call inside is refused for another reason: the transaction
        // keeps the writer.
        loop {
            let inner = world.engine.call("inner", 1).ttl(DAY).run(async || Ok::<_, Error>(()));
            if inner.await.is_err_and(|error| error.kind() == ErrorKind::ShuttingDown) {
                return Ok::<_, Error>(String::from("late"));
            }
            tokio::task::yield_now().await;
        }
    });
    let shutdown = async {
        has_begun.await?;
        anyhow::Ok(world.engine.shutdown(Duration::ZERO).await)
    };
    let both = async { tokio::join!(call, shutdown) };
    let (result, drained) = tokio::time::timeout(PATIENCE * 2, both).await?;
    assert_eq!((result?.as_str(), drained?.abandoned), ("late", 1));
    transaction.commit().await?;
    Ok(())
}

#[tokio::test]
async fn no_body_begins_in_a_transaction_after_the_shutdown() -> anyhow::Result<()> {
    let world = World::new().await?;
    world.engine.disable("disabled");
    assert_eq!(world.engine.shutdown(Duration::ZERO).await.abandoned, 0);
    let mut transaction = world.begin().await?;
    for operation in [crate::world::OPERATION, "disabled"] {
        let call = world.engine.call(operation, "a").ttl(DAY);
        let refused =
            call.run_in(&mut transaction, async |_| Ok::<_, Error>(())).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ShuttingDown, "{operation}");
    }
    transaction.commit().await?;
    assert_eq!(world.state("a").await?, None);
    Ok(())
}
