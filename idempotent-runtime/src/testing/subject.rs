//! What the conformance suite needs to know of a store.

use std::future::Future;
use std::time::Duration;

use crate::store::Store;

/// A store under test: how to reach it, how time passes for it, how to clean up after it.
///
/// The suite makes one for each case. It must hold no records at the start: a server's store gets a
/// prefix, a table or a database of its own.
pub trait Subject: Send + Sync + 'static {
    /// The store.
    type Store: Store;

    /// The store under test.
    fn store(&self) -> &Self::Store;

    /// Another handle on the same records, as another process of the store's users has it: with a
    /// connection of its own to a server, and nothing in common but what is stored. A clone, where
    /// a store is for one process.
    ///
    /// The suite lets both work at once. Whatever makes the store correct must be in what they
    /// share.
    fn second(&self) -> impl Future<Output = Self::Store> + Send;

    /// Returns when `duration` has passed on the store's clock: moves the clock that was injected,
    /// or waits.
    fn advance(&self, duration: Duration) -> impl Future<Output = ()> + Send;

    /// The lease that the cases use, 15 seconds unless overridden. Everything else is a small
    /// multiple of it.
    ///
    /// Where time passes for real a short one makes the suite fast; it must be several dozen round
    /// trips long, or cases are run more than once.
    fn lease(&self) -> Duration {
        Duration::from_secs(15)
    }

    /// Sets the store's wall clock, and says whether that was possible. Stores with
    /// [`StoreClock::Injected`](crate::store::StoreClock::Injected) must be able to.
    fn jump_clock(&self, jump: ClockJump) -> bool {
        let _ = jump;
        false
    }

    /// Removes what the case left, also after it failed.
    fn clean_up(&self) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// A wall clock that somebody sets while the monotonic clock goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockJump {
    /// The clock is set forward by this much.
    Forward(Duration),
    /// The clock is set back by this much.
    Back(Duration),
}
