//! The watchers of each record.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::task::Poll;

use tokio::sync::Notify;

use super::{Inner, shard_number};
use crate::key::KeyHash;

/// A key is present only while it is watched.
#[derive(Default)]
pub(super) struct Watchers {
    by_key: HashMap<KeyHash, Watched>,
    /// The notifiers to wake once the shard is unlocked.
    changed: Vec<Arc<Notify>>,
}

#[derive(Default)]
struct Watched {
    changed: Arc<Notify>,
    watches: usize,
}

impl Watchers {
    /// Returns a future that resolves at the next change, even if it is first polled after that.
    pub(super) fn register(&mut self, key: KeyHash) -> impl Future<Output = ()> + Send + use<> {
        let watched = self.by_key.entry(key).or_default();
        watched.watches += 1;
        Arc::clone(&watched.changed).notified_owned()
    }

    pub(super) fn deregister(&mut self, key: &KeyHash) {
        if let Some(watched) = self.by_key.get_mut(key) {
            watched.watches -= 1;
            if watched.watches == 0 {
                self.by_key.remove(key);
            }
        }
    }

    pub(super) fn changed(&mut self, key: &KeyHash) {
        if let Some(watched) = self.by_key.get(key) {
            self.changed.push(Arc::clone(&watched.changed));
        }
    }

    pub(super) fn take_changed(&mut self) -> Vec<Arc<Notify>> {
        std::mem::take(&mut self.changed)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }
}

/// Ends one watch when it is dropped.
pub(super) struct Registration {
    store: Weak<Inner>,
    key: KeyHash,
}

impl Registration {
    pub(super) fn new(store: Weak<Inner>, key: KeyHash) -> Self {
        Self { store, key }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(store) = self.store.upgrade() {
            store.visit(shard_number(&self.key), |shard, _| shard.watchers.deregister(&self.key));
        }
    }
}

/// Resolves with the first of the two.
pub(super) async fn either(one: impl Future<Output = ()>, other: impl Future<Output = ()>) {
    let (mut one, mut other) = (pin!(one), pin!(other));
    poll_fn(|cx| {
        let ready = one.as_mut().poll(cx).is_ready() || other.as_mut().poll(cx).is_ready();
        if ready { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}
