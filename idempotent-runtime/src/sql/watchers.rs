//! Waiting for records of others: one statement per tick for everybody on a runtime who waits.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::runtime::{Handle, Id};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::clock::{Clock, Timestamp};
use crate::key::KeyHash;
use crate::store::{Record, State, StoreError, Token, Watch};

/// How often the store is asked while somebody waits.
const TICK: Duration = Duration::from_millis(25);
/// Between two statements, at least this many times the time that the last one took: waiting must
/// not be the load.
const REST: u32 = 4;

/// What of a record tells whether a waiter wants to know of a change: renewals do not count, giving
/// up a lease does.
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

/// Who waits for which record.
pub(crate) struct Watchers {
    /// Asks the store for records that have not expired; those without record are not in the
    /// answer.
    look: Box<dyn Fn(Vec<KeyHash>) -> Look + Send + Sync>,
    clock: Arc<dyn Clock>,
    state: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    next: u64,
    /// The watches of each key, by their numbers.
    keys: HashMap<KeyHash, HashMap<u64, Watched>>,
    /// One on each runtime where somebody waits: that of another one looks no more while that one
    /// stands still.
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

    /// A watch for changes after `record` was read. Nothing is missed in between: what the next
    /// look finds is compared with what was read.
    pub(crate) fn watch(self: &Arc<Self>, key: KeyHash, record: Option<Record>) -> Watch {
        let changed = Arc::new(Notify::new());
        let seen = record.as_ref().map(Seen::of);
        let mut waiting = self.waiting();
        let id = waiting.next;
        waiting.next = id.wrapping_add(1);
        let home = Handle::current();
        let runtime = home.id();
        waiting
            .keys
            .entry(key)
            .or_default()
            .insert(id, Watched { runtime, seen, changed: Arc::clone(&changed) });
        // A poller ends with its runtime.
        waiting.pollers.retain(|_, poller| !poller.is_finished());
        waiting
            .pollers
            .entry(runtime)
            .or_insert_with(|| home.spawn(poll(Arc::downgrade(self), runtime)));
        drop(waiting);
        let registration = Registration { watchers: Arc::downgrade(self), key, id };
        Watch::new(record, async move {
            let _registration = registration;
            changed.notified().await;
        })
    }

    /// Wakes those in this process who wait for `key`: somebody in this process has changed it.
    pub(crate) fn changed(&self, key: &KeyHash) {
        if let Some(watches) = self.waiting().keys.get(key) {
            for watched in watches.values() {
                watched.changed.notify_one();
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One look for all on `runtime`. False when nobody waits there any more.
    async fn look(&self, runtime: Id) -> bool {
        let keys: Vec<_> = {
            let mut waiting = self.waiting();
            let is_here = |watches: &HashMap<_, Watched>| {
                watches.values().any(|watched| watched.runtime == runtime)
            };
            let keys: Vec<_> = waiting
                .keys
                .iter()
                .filter(|(_, watches)| is_here(watches))
                .map(|(key, _)| *key)
                .collect();
            if keys.is_empty() {
                waiting.pollers.remove(&runtime);
                return false;
            }
            keys
        };
        let found = (self.look)(keys.clone()).await;
        let waiting = self.waiting();
        // Those who came meanwhile for another key have read its record themselves.
        for key in &keys {
            for watched in waiting.keys.get(key).into_iter().flat_map(HashMap::values) {
                // After an error they read the record again, and meet the error themselves.
                if found.as_ref().map_or(true, |found| found.get(key).copied() != watched.seen) {
                    watched.changed.notify_one();
                }
            }
        }
        true
    }
}

/// Ends when nobody on `runtime`, which is that of the task, waits any more, or with the store.
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

/// Ends the interest of one watch.
struct Registration {
    watchers: Weak<Watchers>,
    key: KeyHash,
    id: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let Some(watchers) = self.watchers.upgrade() else { return };
        let mut waiting = watchers.waiting();
        if let Some(watches) = waiting.keys.get_mut(&self.key) {
            watches.remove(&self.id);
            if watches.is_empty() {
                waiting.keys.remove(&self.key);
            }
        }
    }
}
