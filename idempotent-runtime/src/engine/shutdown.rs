//! The shutdown of an engine: which calls it still accepts, and what becomes of those that have not
//! ended.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::settle::{Cause, Left, Progress, Settlement, Steps, settle};
use super::unknown_outcome::{close_steps, leave};
use super::{Idempotency, Inner, claim};
use crate::store::{Reason, Release};

/// New calls are accepted.
pub(super) const OPEN: u8 = 0;
/// Only calls made by running bodies are accepted.
const DRAINING: u8 = 1;
/// No calls are accepted.
const CLOSED: u8 = 2;

/// The calls that a shutdown left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// The number of calls that had begun and had not ended when the time was up: their body or their
    /// verification ran, or their result was not stored yet. They were given up: in doubt under
    /// `hold` and where the body's error is held, and otherwise left to the next caller. The outcome
    /// of a call in a transaction is that of the transaction, and a call without protection leaves
    /// no record. A store that does not answer learns of it when their leases expire. Of two
    /// shutdowns at once, one counts each call that has a claim. Zero if all had ended.
    ///
    /// A call whose body has ended without a result, and whose record is being left in doubt or to
    /// the next caller when the time is up, is not counted: it is given up already. The shutdown
    /// waits for that like for those that it gives up.
    pub abandoned: usize,
}

impl Inner {
    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst) != OPEN
    }

    /// Returns true if calls of running bodies are rejected too, because the bodies were given up.
    pub(super) fn is_closed(&self) -> bool {
        self.closing.load(Ordering::SeqCst) == CLOSED
    }
}

impl Idempotency {
    /// Stops accepting new calls, waits at most `timeout` for the running bodies, and gives up the
    /// rest, which takes at most [`claim_timeout`](super::Builder::claim_timeout) more.
    ///
    /// New calls get [`ShuttingDown`](crate::ErrorKind::ShuttingDown), and so do waiting calls as
    /// soon as they would have to claim; those whose answer comes from elsewhere still get it.
    /// Calls made by a running body still work until `timeout` has passed. A body that was given up
    /// is not stopped: if it finishes after all and no other caller has taken over, its result is
    /// stored. A claim whose body had not begun is released, and does not count as an attempt.
    pub async fn shutdown(&self, timeout: Duration) -> ShutdownReport {
        let engine = &self.inner;
        // `fetch_max`: another caller may have shut the engine down already, and CLOSED must not go
        // back to DRAINING.
        engine.closing.fetch_max(DRAINING, Ordering::SeqCst);
        tokio::select! {
            biased;
            () = engine.keeper.idle() => {}
            () = engine.clock.sleep(timeout) => {}
        }
        // Setting `CLOSED` separates the claims that are taken away below from those that are never
        // sent. A call marks itself busy before it checks `closing`. If it checks before `CLOSED`
        // is set, its claim is either held already and seen in the loop, or on its way and awaited
        // by the last `idle`. If it checks afterwards, it sends nothing.
        engine.closing.store(CLOSED, Ordering::SeqCst);
        let mut abandoned = engine.without_lease.load(Ordering::SeqCst);
        for lease in engine.keeper.leases() {
            // The lease counts as lost from here on, so a commit that is under way no longer writes
            // a vanished record again. A verification counts as begun too: the next call verifies at
            // once.
            // `None`: another shutdown has, and ends it.
            let Some(has_begun) = lease.shut_down() else { continue };
            // Another shutdown must not find the engine idle in between.
            let busy = engine.keeper.busy();
            engine.keeper.forget(&lease);
            abandoned += usize::from(has_begun);
            let (keeper, engine) = (&engine.keeper, engine.clone());
            keeper.finish_left_behind(async move {
                let _busy = busy;
                let budget = engine.settings.claim_timeout;
                let progress = if has_begun { Progress::Begun } else { Progress::Granted };
                let cause = Cause::Cut(Reason::ShutDown);
                let may_be_taken_over = lease.may_be_taken_over();
                let left = match settle(progress, cause, may_be_taken_over, Steps::Silent) {
                    Settlement::ReleaseUnused => {
                        let release = Release::unused(lease.key, lease.token);
                        claim::release_unused(&engine, release, budget, false).await;
                        return;
                    }
                    Settlement::Leave(reason, left) => (reason, left),
                    // Not reached: an attempt that is cut off has no other settlement.
                    _ => (Reason::ShutDown, Left::InDoubt),
                };
                close_steps(&engine, &lease, budget).await;
                leave(&engine, &lease, left, budget).await;
            });
        }
        // All at once, and no longer than for one: otherwise a store that does not answer would
        // keep the process alive for the time of each.
        tokio::select! {
            biased;
            () = engine.keeper.idle() => {}
            () = engine.clock.sleep(engine.settings.claim_timeout) => {}
        }
        ShutdownReport { abandoned }
    }
}
