//! Results that this process has seen. Repeated calls of hot keys are answered without querying the
//! store.
//!
//! A completed record never changes, unless an operator corrects an operator's answer. It only
//! ends, when it expires or is removed. Its expiry is known when it is cached. A removal or a
//! correction by this engine is known at once, and one by others where the store can push.
//! Everything else shows after `near_cache_ttl`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use moka::sync::Cache;

use crate::clock::Clock;
use crate::engine::StoreClient;
use crate::key::KeyHash;
use crate::store::{ChangeListener, Moment, Record, State};

/// The size of an entry beside the body, in bytes.
const OVERHEAD: usize = 512;
/// The number of key groups for which changes are counted.
const GROUPS: usize = 1024;

pub(crate) struct NearCache {
    entries: Cache<KeyHash, Arc<Entry>>,
    ttl: Duration,
    clock: Arc<dyn Clock>,
    /// The number of changes seen per group. An answer to a query that was sent before a change is
    /// not cached after it.
    changes: Box<[AtomicU64]>,
    /// The monotonic time in nanoseconds before which all changes are known.
    known_until: AtomicU64,
}

struct Entry {
    record: Arc<Record>,
    /// Monotonic time at which the store was queried.
    asked: Duration,
    /// Monotonic time at which the record expires.
    until: Duration,
}

impl NearCache {
    /// Creates a cache of at most `max_bytes`.
    pub(crate) fn new(max_bytes: u64, ttl: Duration, clock: Arc<dyn Clock>) -> Self {
        let weight = |_: &KeyHash, entry: &Arc<Entry>| {
            u32::try_from(entry.record.body.len().saturating_add(OVERHEAD)).unwrap_or(u32::MAX)
        };
        Self {
            entries: Cache::builder().max_capacity(max_bytes).weigher(weight).build(),
            ttl,
            clock,
            changes: (0..GROUPS).map(|_| AtomicU64::new(0)).collect(),
            known_until: AtomicU64::new(0),
        }
    }

    /// Returns the record if it is known to exist, or did so recently.
    pub(crate) fn get(&self, key: &KeyHash) -> Option<Arc<Record>> {
        let entry = self.entries.get(key)?;
        let now = self.clock.monotonic();
        let seen = entry.asked.max(Duration::from_nanos(self.known_until.load(Ordering::Acquire)));
        if now < entry.until && now < seen.saturating_add(self.ttl) {
            return Some(entry.record.clone());
        }
        self.entries.invalidate(key);
        None
    }

    /// Begins a lookup. Must be called before the store is queried for the record.
    pub(crate) fn begin_lookup(&self, key: KeyHash) -> Lookup<'_> {
        Lookup {
            cache: self,
            key,
            changes: self.changes(&key).load(Ordering::SeqCst),
            since: self.clock.monotonic(),
        }
    }

    /// Forgets the record, because it has changed.
    pub(crate) fn forget(&self, key: &KeyHash) {
        // Bump the counter before invalidating. A concurrent `keep` reads it again after inserting,
        // so either it sees the bump and removes its stale entry, or its entry was inserted before
        // the bump and is removed here.
        self.changes(key).fetch_add(1, Ordering::SeqCst);
        self.entries.invalidate(key);
    }

    /// Learns of what others change, if `store` reports it.
    pub(crate) async fn follow(self: Arc<Self>, store: StoreClient) {
        if let Some(feed) = store.facets().change_feed {
            feed.follow(self).await;
        }
    }

    fn changes(&self, key: &KeyHash) -> &AtomicU64 {
        let [first, second, ..] = key.as_bytes();
        &self.changes[usize::from(u16::from_be_bytes([*first, *second])) % GROUPS]
    }
}

impl ChangeListener for NearCache {
    fn changed(&self, key: &KeyHash) {
        self.forget(key);
    }

    fn missed_changes(&self) {
        for changes in &self.changes {
            changes.fetch_add(1, Ordering::SeqCst);
        }
        self.entries.invalidate_all();
    }

    fn now(&self) -> Moment {
        Moment::new(self.clock.monotonic())
    }

    fn knows_changes_until(&self, moment: Moment) {
        let nanos = u64::try_from(moment.since_start().as_nanos()).unwrap_or(u64::MAX);
        self.known_until.store(nanos, Ordering::Release);
    }

    fn patience(&self) -> Duration {
        self.ttl
    }
}

/// A lookup in the store that is under way.
pub(crate) struct Lookup<'cache> {
    cache: &'cache NearCache,
    key: KeyHash,
    changes: u64,
    since: Duration,
}

impl Lookup<'_> {
    /// Caches the record that the store answered with, if it is a result with a known expiry.
    pub(crate) fn found(self, record: &Arc<Record>) {
        self.keep(record, record.expires.saturating_duration_since(record.read_at));
    }

    /// Caches `record`, a result that the store keeps for `left` or longer from when it was
    /// queried.
    pub(crate) fn keep(self, record: &Arc<Record>, left: Duration) {
        let Self { cache, key, changes, since } = self;
        let is_unchanged = || cache.changes(&key).load(Ordering::SeqCst) == changes;
        if record.state != State::Completed || left.is_zero() || !is_unchanged() {
            return;
        }
        let entry =
            Entry { record: record.clone(), asked: since, until: since.saturating_add(left) };
        cache.entries.insert(key, Arc::new(entry));
        // A `forget` between the first check and the insert found no entry to remove. It has bumped
        // the counter before, which shows here, so the stale entry is removed again.
        if !is_unchanged() {
            cache.entries.invalidate(&key);
        }
    }
}
