//! The handlers that run, and for how long.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::Id;

use crate::clock::Clock;

/// The tasks whose message is being handled.
pub(super) struct Calling {
    clock: Arc<dyn Clock>,
    /// The time after which the engine leaves a handler to itself, and its record to its policy.
    longest: Duration,
    begun: Mutex<HashMap<Id, Begun>>,
}

struct Begun {
    at: Duration,
    is_reported: bool,
}

/// One message that is being handled, until this is dropped.
pub(super) struct Calls<'a>(&'a Calling, Option<Id>);

impl Calling {
    pub(super) fn new(clock: Arc<dyn Clock>, longest: Duration) -> Self {
        Self { clock, longest, begun: Mutex::default() }
    }

    /// How often to look for handlers that hang.
    pub(super) fn look_every(&self) -> Duration {
        self.longest / 4
    }

    /// Notes that the message of this task is being handled.
    pub(super) fn this(&self) -> Calls<'_> {
        let id = tokio::task::try_id();
        if let Some(id) = id {
            self.begun().insert(id, Begun { at: self.clock.monotonic(), is_reported: false });
        }
        Calls(self, id)
    }

    /// Returns true if the handler of this task has run for so long that its message is not to be
    /// kept from other consumers any more. The first time that is an error in the log.
    pub(super) fn hangs(&self, id: Id) -> bool {
        let now = self.clock.monotonic();
        let mut begun = self.begun();
        let Some(begun) = begun.get_mut(&id) else { return false };
        let hangs = now.saturating_sub(begun.at) > self.longest;
        if hangs && !std::mem::replace(&mut begun.is_reported, true) {
            tracing::error!(
                max_run = ?self.longest,
                "the handler of a message has run for longer than `max_run`: the broker may deliver \
                 the message to another consumer, which finds its record; where it cannot, the lane \
                 waits"
            );
        }
        hangs
    }

    fn begun(&self) -> MutexGuard<'_, HashMap<Id, Begun>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Calls<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.1 {
            self.0.begun().remove(&id);
        }
    }
}
