//! Requests of a body that only their address identifies.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::edge::Attempt;

/// The number of the try of a step; zero outside of steps.
type Try = u32;

/// The keys of those that are in flight or were answered, in one attempt of a body, each with the
/// try that has sent it. A key belongs to one step, or to none.
#[derive(Default)]
struct Unlabelled(Mutex<HashMap<String, Try>>);

impl Unlabelled {
    fn keys(&self) -> MutexGuard<'_, HashMap<String, Try>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that is in flight. If it is dropped before it is answered, the next request is the
/// same one again.
pub(super) struct Place {
    taken: Arc<Unlabelled>,
    key: String,
    number: Try,
    is_answered: bool,
}

impl Place {
    /// Takes the place of `key`. Returns `None` if another request has it: a later attempt could
    /// mean either of them. The requests of earlier tries of the step are not others: this try
    /// repeats them, as a later attempt does.
    pub(super) fn take(attempt: &Attempt, key: &str) -> Option<Self> {
        let taken = attempt.extension::<Unlabelled>();
        let number = attempt.step_try().unwrap_or_default();
        match taken.keys().entry(key.to_owned()) {
            Entry::Occupied(entry) if *entry.get() >= number => return None,
            entry => entry.insert_entry(number),
        };
        Some(Self { taken, key: key.to_owned(), number, is_answered: false })
    }

    /// Keeps the place for good: a further request with this key would be another one.
    pub(super) fn answered(mut self) {
        self.is_answered = true;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.is_answered {
            return;
        }
        // A later try may have taken it.
        if let Entry::Occupied(entry) = self.taken.keys().entry(std::mem::take(&mut self.key))
            && *entry.get() == self.number
        {
            entry.remove();
        }
    }
}
