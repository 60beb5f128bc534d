//! Messages that wait here for their return to the broker.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::message::QueueMessage;

/// The longest time without an answer: the broker closes the channel after 30 minutes.
pub(crate) const LONGEST: Duration = Duration::from_secs(5 * 60);

/// The messages, in the order in which they are returned.
#[derive(Default)]
pub(crate) struct Held {
    waiting: Mutex<Waiting>,
    changed: Notify,
}

#[derive(Default)]
struct Waiting {
    /// By the time and a number, for those of the same time.
    messages: BTreeMap<(Instant, u64), Arc<QueueMessage>>,
    next: u64,
    is_closed: bool,
}

impl Held {
    /// Holds the message for `pause`, but not longer than [`LONGEST`]. Returns it if it is to be
    /// returned at once: there is nothing to wait for, or the consumer stops.
    pub(crate) fn hold(
        &self,
        message: Arc<QueueMessage>,
        pause: Duration,
    ) -> Result<(), Arc<QueueMessage>> {
        let mut waiting = self.lock();
        if waiting.is_closed || pause.is_zero() {
            return Err(message);
        }
        let number = waiting.next;
        waiting.next += 1;
        waiting.messages.insert((Instant::now() + pause.min(LONGEST), number), message);
        drop(waiting);
        self.changed.notify_one();
        Ok(())
    }

    /// Waits for the next message whose time has come. Dropping the future loses none.
    pub(crate) async fn next(&self) -> Arc<QueueMessage> {
        loop {
            let changed = self.changed.notified();
            let first = self.lock().messages.first_key_value().map(|(key, _)| *key);
            let Some(key) = first else {
                changed.await;
                continue;
            };
            if key.0 <= Instant::now() {
                if let Some(message) = self.lock().messages.remove(&key) {
                    return message;
                }
                continue;
            }
            tokio::select! {
                () = changed => {}
                () = sleep_until(key.0) => {}
            }
        }
    }

    /// Holds nothing from now on, and returns what was held.
    pub(crate) fn close(&self) -> impl Iterator<Item = Arc<QueueMessage>> {
        let mut waiting = self.lock();
        waiting.is_closed = true;
        std::mem::take(&mut waiting.messages).into_values()
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().messages.len()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
