//! What only some stores can do: answering at once, reporting changes, transactions.

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
/// A store that wraps another one decides about each of them. It forwards an ability that its own
/// work does not concern, wraps one that it does concern, and leaves out one that would go around
/// it: a store that encrypts bodies must not forward the transactions of the store inside, which
/// would write them as they are.
///
/// ```
/// use idempotent_runtime::store::{Facets, MemoryStore, Store};
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
    /// Results can be read at once. Without it, a repeated call asks by a claim.
    pub local_results: Option<&'a dyn LocalResults>,
    /// Changes of records are pushed. Without it, the near cache learns of them by its time limit.
    pub change_feed: Option<&'a dyn ChangeFeed>,
    /// Records can be kept in transactions of the user's. Without it, a call with `tx` is refused.
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
    /// The result that a claim of `key` would be answered with, or `None`.
    ///
    /// To be correct: returns a completed or failed record that has not expired, and changes
    /// nothing. `None` is always right, and the engine sends a claim then.
    fn local_result(&self, key: &KeyHash) -> Option<Record>;
}

/// Notifications of changed records.
pub trait ChangeFeed: Send + Sync {
    /// Reports changes to `listener`. Returns when the store cannot report any more; reconnects
    /// otherwise. The future is dropped when nobody listens any more.
    ///
    /// To be correct:
    /// - After each connect, and whenever a change may have gone unnoticed, calls
    ///   [`missed_changes`](ChangeListener::missed_changes).
    /// - Calls [`knows_changes_until`](ChangeListener::knows_changes_until) only with a moment
    ///   before which every change was reported. A feed that cannot know that never calls it.
    fn follow(
        &self,
        listener: Arc<dyn ChangeListener>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

/// A party that a [`ChangeFeed`] reports to: the near cache.
pub trait ChangeListener: Send + Sync {
    /// The record of `key` has changed or is gone.
    fn changed(&self, key: &KeyHash);

    /// Any record may have changed.
    fn missed_changes(&self);

    /// The current time on the listener's clock.
    fn now(&self) -> Moment;

    /// Every change before `moment` has been reported.
    fn knows_changes_until(&self, moment: Moment);

    /// The time for which the listener relies on what it knows. A feed calls
    /// [`knows_changes_until`](Self::knows_changes_until) several times in it.
    fn patience(&self) -> Duration;
}

/// A point in time on the clock of a [`ChangeListener`]. A store counts on another clock, which
/// began at another time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

impl Moment {
    /// The moment `since_start` on a monotonic clock.
    pub const fn new(since_start: Duration) -> Self {
        Self(since_start)
    }

    /// The time on the clock on which the moment was taken.
    pub const fn since_start(self) -> Duration {
        self.0
    }
}
