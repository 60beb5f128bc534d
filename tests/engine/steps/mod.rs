//! Steps: what is recorded, what is replayed, what runs again.

mod checkpoints;
mod ends;
mod identities;
mod keys;
mod once;
mod replay;
mod spawned;
mod stored_errors;
mod tries;
mod views;

use std::fmt::Debug;

use idempotency::{Call, Context, Error, OnCrash};

use crate::world::{World, eventually, poll_once};

impl World {
    /// A call that resumes.
    fn fulfil(&self) -> Call {
        self.call(1).on_crash(OnCrash::Resume)
    }

    /// A step with an effect.
    async fn step(&self, name: &str) -> Result<String, Error> {
        Context::current().step(name, || self.act(name)).await
    }

    /// The effect of a step, and its result.
    async fn act(&self, name: impl Into<String>) -> Result<String, Error> {
        let name = name.into();
        tokio::task::yield_now().await;
        self.ledger.charge(&name);
        Ok(format!("{name} done"))
    }

    /// Polls `call` until the ledger has `count` lines and as many checkpoints are answered, and
    /// drops it there: the attempt is over.
    async fn crash_after<T: Debug>(
        &self,
        count: usize,
        checkpoints: usize,
        call: impl Future<Output = T>,
    ) {
        let mut call = Box::pin(call);
        eventually("the effects and the checkpoints", async || {
            if let std::task::Poll::Ready(result) = poll_once(&mut call) {
                panic!("it ended with {result:?}");
            }
            self.ledger.count() == count && self.checkpoints().await == checkpoints
        })
        .await;
        // What was answered is also noted.
        assert!(poll_once(&mut call).is_pending());
    }

    async fn checkpoints(&self) -> usize {
        self.record(1).await.map_or(0, |record| record.checkpoints as usize)
    }
}

/// Where an attempt ends that does not come to its end.
async fn hang<T>() -> T {
    std::future::pending().await
}
