//! Several runtimes on one store: what one of them keeps while it stands still, or while a body
//! blocks it, nobody else waits for.

use std::sync::mpsc::channel;

use idempotency::Error;
use idempotency_test_support::deadline::{DEADLINE, eventually, within};
use tokio::runtime::{Builder, Runtime};

use crate::world::World;

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Of servers and proxies.
fn home() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

#[test]
fn a_runtime_that_stands_still_while_it_connects_keeps_no_other_waiting() -> anyhow::Result<()> {
    let (home, still, other) = (home(), runtime(), runtime());
    let world = home.block_on(World::patient())?;
    world.proxy.hold_answers();
    let before = world.proxy.requests();
    still.block_on(async {
        tokio::select! {
            biased;
            charged = world.charge(1) => anyhow::bail!("nothing was answered: {charged:?}"),
            asked = eventually("the connection to be begun", || world.proxy.requests() > before) => asked,
        }
    })?;
    world.proxy.heal();
    for runtime in [&other, &home] {
        assert!(runtime.block_on(within("another call", world.charge(2)))?.is_ok());
    }
    assert_eq!(world.count(2), 1);
    // The one that stood still goes on, and one that has ended leaves nothing behind that others
    // wait for.
    assert!(still.block_on(within("a call on it", world.charge(1)))?.is_ok());
    drop(still);
    assert!(other.block_on(within("a call after its end", world.charge(3)))?.is_ok());
    Ok(())
}

#[test]
fn a_body_that_blocks_its_runtime_keeps_no_other_waiting() -> anyhow::Result<()> {
    let (home, blocked) = (home(), runtime());
    let world = home.block_on(World::patient())?;
    let ((began, begins), (go_on, goes_on)) = (channel(), channel::<()>());
    let call = world.call(1).run(move || async move {
        began.send(()).expect("the test waits");
        let _ = goes_on.recv_timeout(DEADLINE);
        Ok::<_, Error>(1)
    });
    let owner = std::thread::spawn(move || blocked.block_on(call));
    begins.recv_timeout(DEADLINE)?;
    assert_eq!(home.block_on(within("another call", world.charge(2)))??, "receipt 2.1");
    go_on.send(())?;
    assert_eq!(owner.join().expect("no panic")?, 1);
    Ok(())
}
