//! The operations of a store, by name.

use std::fmt;

/// An operation of a [`Store`](super::Store): what was asked of it when it failed, what a
/// [`FaultyStore`](crate::testing::FaultyStore) disturbs, and what is counted and timed.
///
/// Displayed as the name of the method.
///
/// ```
/// use idempotency::store::Operation;
///
/// assert_eq!(Operation::Claim.to_string(), "claim");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// [`Store::claim`](super::Store::claim).
    Claim,
    /// [`Store::renew`](super::Store::renew).
    Renew,
    /// [`Store::complete`](super::Store::complete).
    Complete,
    /// [`Store::release`](super::Store::release).
    Release,
    /// [`Store::abandon`](super::Store::abandon).
    Abandon,
    /// [`Store::park`](super::Store::park).
    Park,
    /// [`Store::checkpoint`](super::Store::checkpoint).
    Checkpoint,
    /// [`Store::fence`](super::Store::fence).
    Fence,
    /// [`Store::read`](super::Store::read).
    Read,
    /// [`Store::watch`](super::Store::watch).
    Watch,
    /// [`Store::resolve`](super::Store::resolve).
    Resolve,
    /// [`Store::remove`](super::Store::remove).
    Remove,
    /// [`Store::scan`](super::Store::scan).
    Scan,
    /// [`Store::census`](super::Store::census).
    Census,
    /// [`Store::purge`](super::Store::purge).
    Purge,
    /// The connection to the store, and the check of its settings.
    Connect,
    /// The creation or the upgrade of the store's table.
    Migrate,
    /// The subscription to the changes that the store pushes
    /// ([`ChangeFeed::follow`](super::ChangeFeed::follow)).
    Follow,
    /// A claim, or its end, in the user's own transaction.
    Transaction,
}

impl Operation {
    /// The name of the operation, for people and for metrics: that of the method, in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Claim => "claim",
            Self::Renew => "renew",
            Self::Complete => "complete",
            Self::Release => "release",
            Self::Abandon => "abandon",
            Self::Park => "park",
            Self::Checkpoint => "checkpoint",
            Self::Fence => "fence",
            Self::Read => "read",
            Self::Watch => "watch",
            Self::Resolve => "resolve",
            Self::Remove => "remove",
            Self::Scan => "scan",
            Self::Census => "census",
            Self::Purge => "purge",
            Self::Connect => "connect",
            Self::Migrate => "migrate",
            Self::Follow => "follow",
            Self::Transaction => "claim in a transaction",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
