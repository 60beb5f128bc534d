//! A value that tasks wait for.

use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// A value, and the tasks that wait until it is as they want it. They are woken in the order in which
/// they began to wait, so that a test with a clock of its own repeats. (Tokio's `watch` wakes them in
/// a random order.)
#[derive(Debug, Default)]
pub(super) struct Observed<T> {
    value: Mutex<T>,
    changed: Notify,
}

impl<T: Copy> Observed<T> {
    fn lock(&self) -> MutexGuard<'_, T> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self) -> T {
        *self.lock()
    }

    /// Changes the value, and wakes those who wait for it.
    pub(super) fn change(&self, change: impl FnOnce(&mut T)) {
        change(&mut self.lock());
        self.changed.notify_waiters();
    }

    /// Changes a part of the value for which none waits.
    pub(super) fn change_quietly<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        change(&mut self.lock())
    }

    /// Resolves when `is` is true of the value, and returns that.
    pub(super) async fn when(&self, is: impl Fn(&T) -> bool) -> T {
        loop {
            // Registered before the value is read: a change in between wakes it too.
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            let value = self.get();
            if is(&value) {
                return value;
            }
            changed.await;
        }
    }
}
