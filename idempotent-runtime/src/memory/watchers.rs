//! The watchers of each record.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::task::Poll;

use tokio::sync::Notify;

use super::{Inner, shard_number};
use crate::key::KeyHash;
use crate::waiters::Waiters;

/// The watchers of a shard.
#[derive(Default)]
pub(super) struct Watchers {
    all: Waiters<KeyHash, Arc<Notify>>,
    /// The notifiers to wake once the shard is unlocked.
    changed: Vec<Arc<Notify>>,
}

impl Watchers {
    /// Returns the number of the new watch, and a future that resolves at the next change, even if
    /// it is first polled after that.
    pub(super) fn register(
        &mut self,
        key: KeyHash,
    ) -> (u64, impl Future<Output = ()> + Send + use<>) {
        let changed = Arc::new(Notify::new());
        (self.all.add(key, changed.clone()), changed.notified_owned())
    }

    pub(super) fn changed(&mut self, key: &KeyHash) {
        self.changed.extend(self.all.of(key).cloned());
    }

    pub(super) fn take_changed(&mut self) -> Vec<Arc<Notify>> {
        std::mem::take(&mut self.changed)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

/// Ends one watch when it is dropped.
pub(super) struct Registration {
    store: Weak<Inner>,
    key: KeyHash,
    number: u64,
}

impl Registration {
    pub(super) fn new(store: Weak<Inner>, key: KeyHash, number: u64) -> Self {
        Self { store, key, number }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(store) = self.store.upgrade() {
            let ends = |watchers: &mut Watchers| watchers.all.remove(&self.key, self.number);
            store.visit(shard_number(&self.key), |shard, _| ends(&mut shard.watchers));
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
