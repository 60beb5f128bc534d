//! The in-memory store: records in this process's memory.

mod builder;
mod shard;
#[cfg(test)]
mod tests;
mod usage;
mod watchers;

use std::fmt;
use std::ops::Bound;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

pub use builder::MemoryStoreBuilder;
use shard::{Listing, Shard};
use usage::{Cost, Usage};
use watchers::Registration;

use crate::clock::{Clock, Timestamp};
use crate::key::KeyHash;
use crate::lock::Mutex;
use crate::store::{
    Abandon, AdminOutcome, Capabilities, Census, CensusBudget, Checkpoint, Claim, ClaimOutcome,
    Commit, Cursor, Facets, LocalResults, Operation, Page, Park, PurgeOutcome, Record, Release,
    Remove, Renewal, Resolve, Scan, Store, StoreError, StoreErrorKind, Token, Watch, WriteOutcome,
    transition,
};

/// A power of two. A shard holds the keys that share their first six bits, so the shards are in key
/// order.
const SHARDS: usize = 64;
const SHARD_SHIFT: u32 = 2;
/// The number of expired records that each operation removes from the shard it visits.
const EXPIRED_PER_OPERATION: usize = 4;
/// The number of expired records of each shard that a claim removes when the store is full.
const EXPIRED_WHEN_FULL: usize = 64;
/// The page size of a scan that sets none.
const DEFAULT_PAGE: usize = 100;
/// The largest number of records that one page examines, each of which the caller's thread pays for.
const EXAMINED_PER_PAGE: usize = 10_000;
/// The largest number of records that a census counts while it keeps others out of their shard, and
/// other tasks off its thread.
const COUNTED_PER_LOCK: usize = 1_000;
/// The first and the last key that there can be.
const EVERY_KEY: (KeyHash, KeyHash) =
    (KeyHash::from_bytes([0; 32]), KeyHash::from_bytes([0xff; 32]));

/// A store in this process's memory, which is lost with the process.
///
/// Use it for tests, for command-line tools, and for a single process whose restarts may run a call
/// again. Several processes need a shared store.
///
/// Cloning is cheap, and all clones share the records.
///
/// **Limits.** At most [`max_records`](MemoryStoreBuilder::max_records) records and
/// [`max_bytes`](MemoryStoreBuilder::max_bytes) bytes. A claim beyond that is rejected with
/// [`StoreErrorKind::Full`]; a record that has not expired is never dropped. A call that was
/// admitted can always store its result, so the bytes may exceed their limit by the results and
/// checkpoints of the running calls.
///
/// **Expiry** is counted on the wall clock of the injected [`Clock`]. Expired records are removed a
/// few at a time by later operations, and by [`Store::purge`].
///
/// ```
/// use idempotency::store::MemoryStore;
///
/// let default = MemoryStore::new();
/// let small = MemoryStore::builder().max_records(10_000).max_bytes(64 * 1024 * 1024).build();
/// # let _ = (default, small);
/// ```
#[derive(Clone)]
pub struct MemoryStore {
    inner: Arc<Inner>,
}

struct Inner {
    shards: Vec<Mutex<Shard>>,
    usage: Usage,
    clock: Arc<dyn Clock>,
}

impl MemoryStore {
    /// Creates an empty store with the default limits on the machine's clock.
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// Creates an empty store with the default limits on `clock`.
    pub fn with_clock(clock: impl Clock) -> Self {
        Self::builder().clock(clock).build()
    }

    /// Returns a builder for limits and clock.
    pub fn builder() -> MemoryStoreBuilder {
        MemoryStoreBuilder::default()
    }

    fn from_parts(usage: Usage, clock: Arc<dyn Clock>) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { inner: Arc::new(Inner { shards, usage, clock }) }
    }

    /// Applies one transition to the slot of `key`.
    fn apply<R>(
        &self,
        key: &KeyHash,
        transition: impl FnOnce(&mut Option<Record>, Timestamp) -> R,
    ) -> R {
        let now = self.inner.clock.now();
        self.inner.visit(shard_number(key), |shard, usage| {
            shard.remove_expired(EXPIRED_PER_OPERATION, now, usage);
            shard.apply(key, Cost::default(), usage, |slot| transition(slot, now))
        })
    }

    /// Returns `None` if there is no room for a new record.
    fn try_claim(&self, claim: &Claim) -> Option<ClaimOutcome> {
        let now = self.inner.clock.now();
        self.inner.visit(shard_number(&claim.key), |shard, usage| {
            shard.remove_expired(EXPIRED_PER_OPERATION, now, usage);
            let reserved =
                if shard.holds(&claim.key, now) { Cost::default() } else { Cost::of_claim(claim) };
            usage.reserve(reserved).then(|| shard.claim(claim, reserved, usage, now))
        })
    }

    fn remove_expired_everywhere(&self) {
        let now = self.inner.clock.now();
        for number in 0..SHARDS {
            self.inner
                .visit(number, |shard, usage| shard.remove_expired(EXPIRED_WHEN_FULL, now, usage));
        }
    }
}

impl Inner {
    /// Locks a shard for `visit`, then wakes those that watch what `visit` changed. They are woken
    /// after the lock is released, because a waker may run any code, which may visit the same
    /// shard.
    fn visit<R>(&self, number: usize, visit: impl FnOnce(&mut Shard, &Usage) -> R) -> R {
        let mut shard = lock(&self.shards[number]);
        let answer = visit(&mut shard, &self.usage);
        let changed = shard.watchers.take_changed();
        drop(shard);
        for changed in changed {
            changed.notify_waiters();
        }
        answer
    }
}

fn shard_number(key: &KeyHash) -> usize {
    usize::from(key.as_bytes()[0] >> SHARD_SHIFT)
}

fn first_of_shard(number: usize) -> KeyHash {
    let mut bytes = [0; 32];
    bytes[0] = u8::try_from(number << SHARD_SHIFT).unwrap_or(u8::MAX);
    KeyHash::from_bytes(bytes)
}

/// Transitions do not panic. If one did, it would have left the slot as it was.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock()
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore")
            .field("usage", &self.inner.usage)
            .field("clock", &self.inner.clock)
            .finish_non_exhaustive()
    }
}

impl LocalResults for MemoryStore {
    fn local_result(&self, key: &KeyHash) -> Option<Record> {
        let now = self.inner.clock.now();
        self.inner.visit(shard_number(key), |shard, usage| {
            shard.remove_expired(EXPIRED_PER_OPERATION, now, usage);
            shard.result(key, now)
        })
    }
}

#[deny(clippy::missing_trait_methods)]
impl Store for MemoryStore {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::in_process()
    }

    fn facets(&self) -> Facets<'_> {
        Facets::none().with_local_results(Some(self))
    }

    async fn claim(&self, claim: Claim) -> Result<ClaimOutcome, StoreError> {
        if let Some(claimed) = self.try_claim(&claim) {
            return Ok(claimed);
        }
        self.remove_expired_everywhere();
        self.try_claim(&claim).ok_or_else(|| {
            StoreError::new(StoreErrorKind::Full, Operation::Claim)
                .with_detail(self.inner.usage.to_string())
        })
    }

    async fn renew(&self, renewals: Vec<Renewal>) -> Result<Vec<WriteOutcome>, StoreError> {
        let renew = |renewal: &Renewal| {
            self.apply(&renewal.key, |slot, now| transition::renew(slot, renewal, now))
        };
        Ok(renewals.iter().map(renew).collect())
    }

    async fn complete(&self, commit: Commit) -> Result<WriteOutcome, StoreError> {
        Ok(self.apply(&commit.key, |slot, now| transition::complete(slot, &commit, now)))
    }

    async fn release(&self, release: Release) -> Result<WriteOutcome, StoreError> {
        Ok(self.apply(&release.key, |slot, now| transition::release(slot, &release, now)))
    }

    async fn abandon(&self, abandon: Abandon) -> Result<WriteOutcome, StoreError> {
        Ok(self.apply(&abandon.key, |slot, now| transition::abandon(slot, &abandon, now)))
    }

    async fn park(&self, park: Park) -> Result<WriteOutcome, StoreError> {
        Ok(self.apply(&park.key, |slot, now| transition::park(slot, &park, now)))
    }

    async fn checkpoint(&self, checkpoint: Checkpoint) -> Result<WriteOutcome, StoreError> {
        Ok(self.apply(&checkpoint.key, |slot, now| transition::checkpoint(slot, &checkpoint, now)))
    }

    async fn fence(&self, key: KeyHash, token: Token) -> Result<Option<u64>, StoreError> {
        Ok(self.apply(&key, |slot, now| transition::fence(slot, token, now)))
    }

    async fn read(&self, key: KeyHash) -> Result<Option<Record>, StoreError> {
        Ok(self.apply(&key, transition::read))
    }

    async fn watch(&self, key: KeyHash) -> Result<Watch, StoreError> {
        let clock = &self.inner.clock;
        let now = clock.now();
        // Read and registered under one lock of the shard: no change can fall between the record
        // that is returned and the first change that wakes the watch.
        let (record, (number, notified)) = self.inner.visit(shard_number(&key), |shard, usage| {
            let record =
                shard.apply(&key, Cost::default(), usage, |slot| transition::read(slot, now));
            (record, shard.watchers.register(key))
        });
        let registration = Registration::new(Arc::downgrade(&self.inner), key, number);
        // Without this, no operation might come by to notice the expiry.
        let expiry = record
            .as_ref()
            .map(|record| clock.sleep(record.expires.saturating_duration_since(now)));
        let changed = async move {
            let _deregisters = registration;
            match expiry {
                Some(expiry) => watchers::either(notified, expiry).await,
                None => notified.await,
            }
        };
        Ok(Watch::new(record, changed))
    }

    async fn resolve(&self, resolve: Resolve) -> Result<AdminOutcome, StoreError> {
        Ok(self.apply(&resolve.key, |slot, now| transition::resolve(slot, &resolve, now)))
    }

    async fn remove(&self, remove: Remove) -> Result<AdminOutcome, StoreError> {
        Ok(self.apply(&remove.key, |slot, now| transition::remove(slot, &remove, now)))
    }

    async fn scan(&self, scan: Scan) -> Result<Page, StoreError> {
        let now = self.inner.clock.now();
        let limit = if scan.limit == 0 { DEFAULT_PAGE } else { scan.limit };
        let after = scan.after_key(Store::name(self))?;
        let (first, last) = scan.begins_with.map_or(EVERY_KEY, |it| (it.first(), it.last()));
        let start = match after {
            Some(after) if after >= last => return Ok(Page::default()),
            Some(after) if after >= first => Bound::Excluded(after),
            _ => Bound::Included(first),
        };
        let mut listing = Listing::new(start, last, limit, EXAMINED_PER_PAGE);
        for shard in &self.inner.shards[shard_number(&after.unwrap_or(first).max(first))..] {
            if !lock(shard).list(&scan, now, &mut listing) {
                let next = listing.reached.map(|key| Cursor::after(Store::name(self), key));
                return Ok(Page::new(listing.records, next));
            }
        }
        Ok(Page::new(listing.records, None))
    }

    async fn census(&self, budget: CensusBudget) -> Result<Census, StoreError> {
        let clock = &self.inner.clock;
        let began = clock.monotonic();
        let (mut census, mut left) = (Census::new(), COUNTED_PER_LOCK);
        for (number, shard) in self.inner.shards.iter().enumerate() {
            let mut next = Some(first_of_shard(number));
            while let Some(first) = next {
                if left == 0 {
                    tokio::task::yield_now().await;
                    left = COUNTED_PER_LOCK;
                }
                if clock.monotonic().saturating_sub(began) >= budget.time {
                    return Ok(census.stopped_before(first));
                }
                next = lock(shard).count(first, &mut left, clock.now(), &mut census);
            }
        }
        Ok(census)
    }

    async fn purge(&self, limit: usize) -> Result<PurgeOutcome, StoreError> {
        let now = self.inner.clock.now();
        let mut removed = 0;
        let mut lag: Option<Duration> = None;
        for number in 0..SHARDS {
            self.inner.visit(number, |shard, usage| {
                removed += shard.remove_expired(limit - removed, now, usage);
                lag = lag.max(shard.lag(now));
            });
        }
        Ok(PurgeOutcome::new(removed, lag))
    }
}
