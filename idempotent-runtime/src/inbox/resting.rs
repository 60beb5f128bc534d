//! The messages that wait for their next try in the hands of their workers.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::task::Id;

/// The tasks of those messages. A lane whose first message rests is held back.
#[derive(Debug, Default)]
pub(super) struct Resting {
    tasks: Mutex<HashSet<Id>>,
    changed: Notify,
}

/// One message that rests, until this is dropped.
pub(super) struct Rests<'a>(&'a Resting, Option<Id>);

impl Resting {
    /// Notes that the message of this task rests.
    pub(super) fn this(&self) -> Rests<'_> {
        let id = tokio::task::try_id();
        if let Some(id) = id {
            self.tasks().insert(id);
            self.changed.notify_one();
        }
        Rests(self, id)
    }

    fn tasks(&self) -> MutexGuard<'_, HashSet<Id>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn contains(&self, id: Id) -> bool {
        self.tasks().contains(&id)
    }

    /// Resolves when a message has begun or ceased to rest. One waiter alone is woken.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}

impl Drop for Rests<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.1 {
            self.0.tasks().remove(&id);
            self.0.changed.notify_one();
        }
    }
}
