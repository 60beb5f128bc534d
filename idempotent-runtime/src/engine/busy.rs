//! What a shutdown waits for, beside the leases: claims on their way, and tasks in the background.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// The number of things under way.
#[derive(Default)]
pub(super) struct UnderWay {
    count: AtomicUsize,
    changed: Notify,
}

impl UnderWay {
    pub(super) fn is_none(&self) -> bool {
        self.count.load(Ordering::SeqCst) == 0
    }

    /// Resolves at the next change after this was called and [enabled](Notified::enable).
    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Wakes those that wait for a change, also of what is counted elsewhere.
    pub(super) fn notify(&self) {
        self.changed.notify_waiters();
    }
}

/// Something under way, until it is dropped.
pub(crate) struct Busy(Arc<UnderWay>);

impl Busy {
    pub(super) fn new(under_way: &Arc<UnderWay>) -> Self {
        // Sequentially consistent, like the engine's `closing` flag. A claim increments this and
        // then reads the flag, and a shutdown sets the flag and then reads this, so at least one of
        // them sees the other.
        under_way.count.fetch_add(1, Ordering::SeqCst);
        Self(under_way.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::SeqCst);
        self.0.notify();
    }
}
