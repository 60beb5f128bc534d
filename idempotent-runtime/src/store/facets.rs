//! The optional abilities of a store: local results, a change feed, transactions.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::Record;
use super::transaction::Transactions;
use crate::key::KeyHash;

/// The abilities of a store beyond the operations of [`Store`](super::Store).
///
/// A store that wraps another one decides about each of them. It forwards an ability that does not
/// concern it, wraps one that does, and leaves out one that would bypass it. A store that encrypts
/// bodies must not forward the transactions of the inner store, which would write plaintext.
///
/// ```
/// use idempotency::store::{Facets, MemoryStore, Store};
///
/// let store = MemoryStore::new();
/// let inside = store.facets();
/// assert!(inside.local_results.is_some() && inside.transactions.is_none());
/// // Of a wrapper that has to see every claim, and therefore answers nothing without one:
/// let outside = Facets::none().with_change_feed(inside.change_feed);
/// assert!(outside.local_results.is_none());
/// ```
#[derive(Clone, Copy, Default)]
#[non_exhaustive]
pub struct Facets<'a> {
    /// Results that can be read at once. Without it, a repeated call sends a claim.
    pub local_results: Option<&'a dyn LocalResults>,
    /// Pushed changes of records. Without it, the near cache notices them after its time limit.
    pub change_feed: Option<&'a dyn ChangeFeed>,
    /// Records in the user's transactions. Without it, a call with `tx` is rejected.
    pub transactions: Option<&'a dyn Transactions>,
}

impl<'a> Facets<'a> {
    /// None of the abilities.
    #[must_use]
    pub const fn none() -> Self {
        Self { local_results: None, change_feed: None, transactions: None }
    }

    /// Sets [`local_results`](Self::local_results).
    #[must_use]
    pub const fn with_local_results(mut self, local: Option<&'a dyn LocalResults>) -> Self {
        self.local_results = local;
        self
    }

    /// Sets [`change_feed`](Self::change_feed).
    #[must_use]
    pub const fn with_change_feed(mut self, feed: Option<&'a dyn ChangeFeed>) -> Self {
        self.change_feed = feed;
        self
    }

    /// Sets [`transactions`](Self::transactions).
    #[must_use]
    pub const fn with_transactions(mut self, transactions: Option<&'a dyn Transactions>) -> Self {
        self.transactions = transactions;
        self
    }
}

impl fmt::Debug for Facets<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Facets")
            .field("local_results", &self.local_results.is_some())
            .field("change_feed", &self.change_feed.is_some())
            .field("transactions", &self.transactions.is_some())
            .finish()
    }
}

/// Results that can be read without waiting, because they are in this process's memory.
pub trait LocalResults: Send + Sync {
    /// Returns the result that a claim of `key` would be answered with. A store that has this
    /// ability answers its other operations without waiting too: what a dropped call leaves to be
    /// written is polled once where it is dropped.
    ///
    /// To be correct: the record is completed or failed and has not expired, and nothing changes.
    /// `None` is always correct: the engine then sends a claim.
    fn local_result(&self, key: &KeyHash) -> Option<Record>;
}

/// Notifications of changed records.
pub trait ChangeFeed: Send + Sync {
    /// Reports changes to `listener`, and reconnects as often as necessary. Returns only if the
    /// store cannot report changes at all. The engine drops the future when it ends. It polls it on
    /// the thread that renews leases, so it must not block.
    ///
    /// To be correct:
    /// - It calls [`missed_changes`](ChangeListener::missed_changes) after each connect, and
    ///   whenever a change may have gone unnoticed.
    /// - It calls [`knows_changes_until`](ChangeListener::knows_changes_until) only with a moment
    ///   before which every change has been reported. A feed that cannot know that never calls it.
    fn follow(
        &self,
        listener: Arc<dyn ChangeListener>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

/// The receiver of a [`ChangeFeed`]: the near cache.
pub trait ChangeListener: Send + Sync {
    /// Notes that the record of `key` has changed or is gone.
    fn changed(&self, key: &KeyHash);

    /// Notes that any record may have changed.
    fn missed_changes(&self);

    /// The current time on the listener's clock.
    fn now(&self) -> Moment;

    /// Notes that every change before `moment` has been reported.
    fn knows_changes_until(&self, moment: Moment);

    /// The time for which the listener relies on what it knows. A feed calls
    /// [`knows_changes_until`](Self::knows_changes_until) several times within it.
    fn patience(&self) -> Duration;
}

/// A point in time on the clock of a [`ChangeListener`]. A store uses another clock, with another
/// start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

impl Moment {
    /// Creates the moment `since_start` on a monotonic clock.
    pub const fn new(since_start: Duration) -> Self {
        Self(since_start)
    }

    /// Returns the time on the clock from which the moment was taken.
    pub const fn since_start(self) -> Duration {
        self.0
    }
}
