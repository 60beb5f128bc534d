//! Waiting for records of other owners: one statement per tick for all waiters on a runtime.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, MutexGuard, Weak};
use std::time::Duration;

use tokio::runtime::{Handle, Id};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::clock::{Clock, Timestamp};
use crate::key::KeyHash;
use crate::lock::Mutex;
use crate::store::{Record, State, StoreError, Token, Watch};
use crate::waiters::Waiters;

/// The interval at which the store is polled while a caller waits.
const TICK: Duration = Duration::from_millis(25);
/// The minimum pause between two statements, as a multiple of the time that the last one took:
/// waiting must not dominate the load.
const REST: u32 = 4;

/// The part of a record that decides whether a waiter is notified of a change: renewals do not
/// count, giving up a lease does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) owner: Token,
    pub(crate) state: State,
    pub(crate) given_up: bool,
}

impl Seen {
    pub(crate) fn of(record: &Record) -> Self {
        let given_up = record.lease_until == Timestamp::default();
        Self { owner: record.owner, state: record.state, given_up }
    }
}

pub(crate) type Look =
    Pin<Box<dyn Future<Output = Result<HashMap<KeyHash, Seen>, StoreError>> + Send>>;

/// The waiters and the records that they wait for.
pub(crate) struct Watchers {
    /// Queries the store for records that have not expired; keys without a record are not in the
    /// answer.
    look: Box<dyn Fn(Vec<KeyHash>) -> Look + Send + Sync>,
    clock: Arc<dyn Clock>,
    state: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    watches: Waiters<KeyHash, Watched>,
    /// One poller on each runtime that has waiters: a poller on another runtime would stop polling
    /// whenever that runtime stands still.
    pollers: HashMap<Id, JoinHandle<()>>,
}

struct Watched {
    runtime: Id,
    seen: Option<Seen>,
    changed: Arc<Notify>,
}

impl Watchers {
    pub(crate) fn new(
        clock: Arc<dyn Clock>,
        look: impl Fn(Vec<KeyHash>) -> Look + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self { look: Box::new(look), clock, state: Mutex::default() })
    }

    /// Returns a watch for changes after `record` was read. No change in between is missed: the
    /// result of the next poll is compared with what was read.
    pub(crate) fn watch(self: &Arc<Self>, key: KeyHash, record: Option<Record>) -> Watch {
        let changed = Arc::new(Notify::new());
        let seen = record.as_ref().map(Seen::of);
        let mut waiting = self.waiting();
        let home = Handle::current();
        let runtime = home.id();
        let number =
            waiting.watches.add(key, Watched { runtime, seen, changed: Arc::clone(&changed) });
        // A poller ends with its runtime.
        waiting.pollers.retain(|_, poller| !poller.is_finished());
        waiting
            .pollers
            .entry(runtime)
            .or_insert_with(|| home.spawn(poll(Arc::downgrade(self), runtime)));
        drop(waiting);
        let registration = Registration { watchers: Arc::downgrade(self), key, number };
        Watch::new(record, async move {
            let _registration = registration;
            changed.notified().await;
        })
    }

    /// Wakes the waiters for `key` in this process: a caller in this process has changed its
    /// record.
    pub(crate) fn changed(&self, key: &KeyHash) {
        for watched in self.waiting().watches.of(key) {
            watched.changed.notify_one();
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock()
    }

    /// Polls once for all waiters on `runtime`. Returns false once no waiters remain there.
    async fn look(&self, runtime: Id) -> bool {
        let keys: Vec<_> = {
            let mut waiting = self.waiting();
            let keys = waiting.watches.keys(|watched| watched.runtime == runtime);
            if keys.is_empty() {
                // Removed under the lock under which the keys were found to be empty. A watch that
                // is registered at the same time is either in the keys that this look found, or
                // finds no poller and spawns one: it is never left without.
                waiting.pollers.remove(&runtime);
                return false;
            }
            keys
        };
        let found = (self.look)(keys.clone()).await;
        let waiting = self.waiting();
        // Watches registered meanwhile for other keys have read their records themselves.
        for key in &keys {
            for watched in waiting.watches.of(key) {
                // After an error, the waiters read the record again and get the error themselves.
                if found.as_ref().map_or(true, |found| found.get(key).copied() != watched.seen) {
                    watched.changed.notify_one();
                }
            }
        }
        true
    }
}

/// Polls until no waiters remain on `runtime`, the runtime of this task, or the store is dropped.
async fn poll(watchers: Weak<Watchers>, runtime: Id) {
    let mut pause = TICK;
    loop {
        let Some(clock) = watchers.upgrade().map(|watchers| Arc::clone(&watchers.clock)) else {
            return;
        };
        clock.sleep(pause).await;
        let Some(watchers) = watchers.upgrade() else { return };
        let started = clock.monotonic();
        if !watchers.look(runtime).await {
            return;
        }
        pause = TICK.max(clock.monotonic().saturating_sub(started) * REST);
    }
}

/// Deregisters one watch when dropped.
struct Registration {
    watchers: Weak<Watchers>,
    key: KeyHash,
    number: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let Some(watchers) = self.watchers.upgrade() else { return };
        watchers.waiting().watches.remove(&self.key, self.number);
    }
}
