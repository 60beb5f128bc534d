//! Waking callers that wait for a record: invalidation messages of the server's `CLIENT TRACKING`.
//!
//! `GET` on the tracking connection registers the interest, so that no change after it goes
//! unnoticed. A message without keys, and the end of the connection, wake all waiters: they read
//! again.

use std::sync::Arc;

use redis::{PushInfo, PushKind, Value};
use tokio::sync::oneshot;

use crate::lock::Mutex;

type ByKey = crate::waiters::Waiters<Vec<u8>, oneshot::Sender<()>>;

/// The waiters of each key.
#[derive(Default)]
pub(super) struct Waiters {
    by_key: Mutex<ByKey>,
}

/// One waiter. Deregisters itself when dropped.
pub(super) struct Waiter {
    waiters: Arc<Waiters>,
    key: Vec<u8>,
    number: u64,
    woken: oneshot::Receiver<()>,
}

impl Waiters {
    pub(super) fn register(self: &Arc<Self>, key: &str) -> Waiter {
        let (wake, woken) = oneshot::channel();
        let key = key.as_bytes().to_vec();
        let number = self.lock().add(key.clone(), wake);
        Waiter { waiters: self.clone(), key, number, woken }
    }

    /// Passes a message of the server, or the end of the connection, to the waiters that it
    /// concerns.
    pub(super) fn push(&self, push: &PushInfo) {
        match push.kind {
            PushKind::Disconnection => self.wake_all(),
            PushKind::Invalidate => match push.data.first() {
                Some(Value::Array(keys)) => {
                    let mut waiters = self.lock();
                    for key in keys {
                        if let Value::BulkString(key) = key {
                            waiters.drop_all_of(key);
                        }
                    }
                }
                // The server lost its tracking state: a flush, or a full table.
                _ => self.wake_all(),
            },
            _ => {}
        }
    }

    pub(super) fn wake_all(&self) {
        self.lock().drop_all();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, ByKey> {
        self.by_key.lock()
    }
}

impl Waiter {
    /// Waits until the record may have changed: the other end of the channel is dropped then.
    pub(super) async fn woken(mut self) {
        let _ = (&mut self.woken).await;
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.waiters.lock().remove(&self.key, self.number);
    }
}
