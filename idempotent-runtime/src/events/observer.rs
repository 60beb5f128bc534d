//! Those who are told of events.

use std::ops::BitOr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Event, What};
use crate::key::KeyHash;

/// Gets the events of an engine, as the [module](crate::events) describes.
pub trait Observer: Send + Sync + 'static {
    /// The events that this observer wants. Asked once, when the engine is built.
    fn interest(&self) -> Interest {
        Interest::ALL
    }

    /// Gets an event. Must return soon, and must not block.
    fn observe(&self, event: &Event<'_>);
}

impl<O: Observer + ?Sized> Observer for Arc<O> {
    fn interest(&self) -> Interest {
        (**self).interest()
    }

    fn observe(&self, event: &Event<'_>) {
        (**self).observe(event);
    }
}

/// A set of kinds of events.
///
/// ```
/// use idempotency::events::Interest;
///
/// let interest = Interest::FINISHED | Interest::STORE;
/// assert!(interest.contains(Interest::STORE) && !interest.contains(Interest::BACKGROUND));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest(u8);

impl Interest {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Ends of calls: [`Finished`](What::Finished).
    pub const FINISHED: Self = Self(1);
    /// What happens to a claim: [`Claimed`](What::Claimed), [`InDoubt`](What::InDoubt),
    /// [`LeaseLost`](What::LeaseLost).
    pub const CLAIMS: Self = Self(2);
    /// What must not happen: [`Duplicate`](What::Duplicate), [`Adopted`](What::Adopted),
    /// [`StoredLate`](What::StoredLate), [`NeverStored`](What::NeverStored).
    pub const FAULTS: Self = Self(4);
    /// Requests to the store: [`Store`](What::Store).
    pub const STORE: Self = Self(8);
    /// The background: [`Renewed`](What::Renewed), [`Purged`](What::Purged),
    /// [`PurgeFailed`](What::PurgeFailed).
    pub const BACKGROUND: Self = Self(16);
    /// Operators: [`Operated`](What::Operated).
    pub const OPERATORS: Self = Self(32);
    /// Everything, also what later releases add.
    pub const ALL: Self = Self(u8::MAX);

    /// Returns true if all of `other` is in this set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    const fn of(what: &What<'_>) -> Self {
        match what {
            What::Finished { .. } => Self::FINISHED,
            What::Claimed { .. } | What::InDoubt { .. } | What::LeaseLost => Self::CLAIMS,
            What::Duplicate | What::Adopted | What::StoredLate { .. } | What::NeverStored => {
                Self::FAULTS
            }
            What::Store { .. } => Self::STORE,
            What::Renewed { .. } | What::Purged { .. } | What::PurgeFailed => Self::BACKGROUND,
            What::Operated { .. } => Self::OPERATORS,
        }
    }
}

impl BitOr for Interest {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The observers of an engine. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Observers(Arc<Inner>);

struct Inner {
    namespace: String,
    all: Vec<(Interest, Arc<dyn Observer>)>,
    /// That of all together.
    interest: Interest,
    panics: AtomicU64,
}

impl Observers {
    pub(crate) fn new(namespace: &str, all: Vec<Arc<dyn Observer>>) -> Self {
        let all: Vec<_> = all.into_iter().map(|observer| (observer.interest(), observer)).collect();
        let interest = all.iter().fold(Interest::NONE, |all, (one, _)| all | *one);
        let (namespace, panics) = (namespace.to_owned(), AtomicU64::new(0));
        Self(Arc::new(Inner { namespace, all, interest, panics }))
    }

    /// Returns true if any observer wants these events: what is needed for one alone is done only
    /// then.
    pub(crate) fn want(&self, interest: Interest) -> bool {
        self.0.interest.contains(interest)
    }

    /// The number of panics of observers.
    pub(crate) fn panics(&self) -> u64 {
        self.0.panics.load(Ordering::Relaxed)
    }

    pub(crate) fn tell(&self, operation: Option<&Arc<str>>, key: Option<&KeyHash>, what: What<'_>) {
        let interest = Interest::of(&what);
        if !self.want(interest) {
            return;
        }
        let event = Event { namespace: &self.0.namespace, operation, key, what };
        for (_, observer) in self.0.all.iter().filter(|(wanted, _)| wanted.contains(interest)) {
            if catch_unwind(AssertUnwindSafe(|| observer.observe(&event))).is_err()
                && self.0.panics.fetch_add(1, Ordering::Relaxed) == 0
            {
                tracing::error!(
                    "an observer panicked; this is logged once, later panics are counted"
                );
            }
        }
    }
}
