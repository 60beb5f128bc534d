//! The requests of a body that are known by their address alone.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::context::Context;

/// The keys of those that are on their way or were answered, in one attempt of a body.
#[derive(Default)]
pub(crate) struct Unlabelled(Mutex<HashSet<String>>);

impl Unlabelled {
    fn keys(&self) -> MutexGuard<'_, HashSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that is on its way. Dropped before it is answered, the next one is the same request
/// once more.
pub(super) struct Place {
    context: Context,
    key: String,
    is_answered: bool,
}

impl Place {
    /// `None` if there is a request with this key: which of the two is meant, nobody can say.
    pub(super) fn take(context: &Context, key: &str) -> Option<Self> {
        let is_free = context.unlabelled_requests().keys().insert(key.to_owned());
        is_free.then(|| Self { context: context.clone(), key: key.to_owned(), is_answered: false })
    }

    /// A further request with this key would be another one.
    pub(super) fn answered(mut self) {
        self.is_answered = true;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.is_answered {
            self.context.unlabelled_requests().keys().remove(&self.key);
        }
    }
}
