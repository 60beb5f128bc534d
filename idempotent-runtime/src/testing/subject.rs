//! The interface between the conformance suite and a store.

use std::future::Future;
use std::time::Duration;

use crate::store::Store;

/// A store under test, with its clock and its clean-up.
///
/// The suite creates one for each case. It must hold no records at the start: a server's store gets
/// a prefix, a table or a database of its own.
pub trait Subject: Send + Sync + 'static {
    /// The store.
    type Store: Store;

    /// The store under test.
    fn store(&self) -> &Self::Store;

    /// Returns another handle on the same records, as another process would have it: with its own
    /// connection to the server, and nothing shared except what is stored. For a store within one
    /// process, return a clone.
    ///
    /// The suite uses both concurrently, as far as the store waits: one that blocks the thread instead
    /// lets them take turns. Everything that makes the store correct must be in what
    /// they share.
    fn second(&self) -> impl Future<Output = Self::Store> + Send;

    /// Returns when `duration` has passed on the store's clock: moves the injected clock, or waits.
    fn advance(&self, duration: Duration) -> impl Future<Output = ()> + Send;

    /// The lease that the cases use, 15 seconds unless overridden. Everything else is a small
    /// multiple of it.
    ///
    /// With real time, a short lease makes the suite fast. It must be several dozen round trips
    /// long, or cases are run more than once.
    fn lease(&self) -> Duration {
        Duration::from_secs(15)
    }

    /// Sets the store's wall clock, and returns true if that was possible. It must be possible for
    /// stores with [`StoreClock::Injected`](crate::store::StoreClock::Injected).
    fn jump_clock(&self, jump: ClockJump) -> bool {
        let _ = jump;
        false
    }

    /// Removes what the case left, even if it failed.
    fn clean_up(&self) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// A change of the wall clock while the monotonic clock continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockJump {
    /// The clock is set forward by this much.
    Forward(Duration),
    /// The clock is set back by this much.
    Back(Duration),
}
