//! Several runtimes on one store: what one of them keeps while it stands still, nobody else waits
//! for.

use idempotency::store::MySqlStore;
use idempotency::{Error, Idempotency};
use tokio::runtime::{Builder, Runtime};

use crate::world::{DAY, World};

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

async fn call(engine: &Idempotency, key: u64) -> Result<u64, Error> {
    engine.call("payments.charge", key).ttl(DAY).run(|| async move { Ok::<_, Error>(key) }).await
}

#[test]
fn runtimes_that_stand_still_between_their_calls_take_no_connection_from_others()
-> anyhow::Result<()> {
    const CONNECTIONS: u32 = 2;
    let home = runtime();
    let world = home.block_on(World::new())?;
    let engine = home.block_on(async {
        let store = MySqlStore::builder(&world.url).max_connections(CONNECTIONS).connect().await?;
        anyhow::Ok(Idempotency::new(store))
    })?;
    let mut runtimes = Vec::new();
    for key in 0..2 * u64::from(CONNECTIONS) {
        let runtime = runtime();
        assert_eq!(runtime.block_on(call(&engine, key))?, key);
        runtimes.push(runtime);
    }
    assert_eq!(home.block_on(call(&engine, 99))?, 99);
    // The first one goes on where it was.
    assert_eq!(runtimes[0].block_on(call(&engine, 100))?, 100);
    Ok(())
}
