//! Requests of a body that only their address identifies.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::edge::Attempt;

/// The keys of those that are in flight or were answered, in one attempt of a body.
#[derive(Default)]
struct Unlabelled(Mutex<HashSet<String>>);

impl Unlabelled {
    fn keys(&self) -> MutexGuard<'_, HashSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that is in flight. If it is dropped before it is answered, the next request is the
/// same one again.
pub(super) struct Place {
    taken: Arc<Unlabelled>,
    key: String,
    is_answered: bool,
}

impl Place {
    /// Takes the place of `key`. Returns `None` if another request has it: a later attempt could
    /// mean either of them.
    pub(super) fn take(attempt: &Attempt, key: &str) -> Option<Self> {
        let taken = attempt.extension::<Unlabelled>();
        let is_free = taken.keys().insert(key.to_owned());
        is_free.then(|| Self { taken, key: key.to_owned(), is_answered: false })
    }

    /// Keeps the place for good: a further request with this key would be another one.
    pub(super) fn answered(mut self) {
        self.is_answered = true;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.is_answered {
            self.taken.keys().remove(&self.key);
        }
    }
}
