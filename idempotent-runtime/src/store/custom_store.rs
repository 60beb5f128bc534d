use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use idempotency::clock::{Clock, Timestamp};
use idempotency::key::KeyHash;
use idempotency::store::{
    Abandon, AdminOutcome, Capabilities, Census, CensusBudget, Checkpoint, Claim, ClaimOutcome,
    Commit, Cursor, Facets, Operation, Page, Park, PurgeOutcome, Record, Release, Remove, Renewal,
    Resolve, Scan, Store, StoreError, StoreErrorKind, Token, Watch, WriteOutcome, envelope,
    transition,
};
use tokio::sync::Notify;

/// Keeps each record as one value of bytes, as a key-value database does.
#[derive(Debug)]
pub struct CustomStore {
    values: Mutex<BTreeMap<KeyHash, Vec<u8>>>,
    /// The largest fence of all. A store that outlives the process keeps it with the values.
    last_fence: AtomicU64,
    changed: Arc<Notify>,
    clock: Arc<dyn Clock>,
}

impl CustomStore {
    pub fn new(clock: impl Clock) -> Self {
        Self {
            values: Mutex::default(),
            last_fence: AtomicU64::new(0),
            changed: Arc::default(),
            clock: Arc::new(clock),
        }
    }

    /// Reads, changes and writes one value. The store is correct because no other caller sees or
    /// writes the value between the read and the write.
    fn change<R>(
        &self,
        operation: Operation,
        key: KeyHash,
        transition: impl FnOnce(&mut Option<Record>, Timestamp) -> R,
    ) -> Result<R, StoreError> {
        let now = self.clock.now();
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        let read = values
            .get(&key)
            .map(|bytes| envelope::decode(key, bytes.clone().into(), now))
            .transpose();
        let before = read.map_err(|error| error.during(operation))?;
        let mut slot = before.clone();
        let answer = transition(&mut slot, now);
        if slot != before {
            match &slot {
                Some(record) => values.insert(key, envelope::encode(record)),
                None => values.remove(&key),
            };
            self.changed.notify_waiters();
        }
        Ok(answer)
    }

    fn keys(&self) -> Vec<KeyHash> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }
}

impl Store for CustomStore {
    fn name(&self) -> &'static str {
        "custom"
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::in_process();
        capabilities.needs_purging = true;
        capabilities
    }

    fn facets(&self) -> Facets<'_> {
        Facets::none()
    }

    async fn claim(&self, claim: Claim) -> Result<ClaimOutcome, StoreError> {
        self.change(Operation::Claim, claim.key, |slot, now| {
            let claimed =
                transition::claim_above(slot, &claim, now, self.last_fence.load(Ordering::Relaxed));
            if let ClaimOutcome::Granted(grant) = &claimed {
                self.last_fence.fetch_max(grant.record.fence, Ordering::Relaxed);
            }
            claimed
        })
    }

    async fn renew(&self, renewals: Vec<Renewal>) -> Result<Vec<WriteOutcome>, StoreError> {
        let renew = |renewal: &Renewal| {
            self.change(Operation::Renew, renewal.key, |slot, now| {
                transition::renew(slot, renewal, now)
            })
        };
        renewals.iter().map(renew).collect()
    }

    async fn complete(&self, commit: Commit) -> Result<WriteOutcome, StoreError> {
        self.change(Operation::Complete, commit.key, |slot, now| {
            transition::complete(slot, &commit, now)
        })
    }

    async fn release(&self, release: Release) -> Result<WriteOutcome, StoreError> {
        self.change(Operation::Release, release.key, |slot, now| {
            transition::release(slot, &release, now)
        })
    }

    async fn abandon(&self, abandon: Abandon) -> Result<WriteOutcome, StoreError> {
        self.change(Operation::Abandon, abandon.key, |slot, now| {
            transition::abandon(slot, &abandon, now)
        })
    }

    async fn park(&self, park: Park) -> Result<WriteOutcome, StoreError> {
        self.change(Operation::Park, park.key, |slot, now| transition::park(slot, &park, now))
    }

    async fn checkpoint(&self, checkpoint: Checkpoint) -> Result<WriteOutcome, StoreError> {
        self.change(Operation::Checkpoint, checkpoint.key, |slot, now| {
            transition::checkpoint(slot, &checkpoint, now)
        })
    }

    async fn fence(&self, key: KeyHash, token: Token) -> Result<Option<u64>, StoreError> {
        self.change(Operation::Fence, key, |slot, now| transition::fence(slot, token, now))
    }

    async fn read(&self, key: KeyHash) -> Result<Option<Record>, StoreError> {
        self.change(Operation::Read, key, transition::read)
    }

    async fn watch(&self, key: KeyHash) -> Result<Watch, StoreError> {
        // Register first, then read. The watch resolves by itself after a second, which covers
        // expiry.
        let (changed, second) =
            (self.changed.clone().notified_owned(), self.clock.sleep(Duration::from_secs(1)));
        let record = self.change(Operation::Watch, key, transition::read)?;
        Ok(Watch::new(record, async {
            tokio::select! {
                () = changed => {}
                () = second => {}
            }
        }))
    }

    async fn resolve(&self, resolve: Resolve) -> Result<AdminOutcome, StoreError> {
        self.change(Operation::Resolve, resolve.key, |slot, now| {
            transition::resolve(slot, &resolve, now)
        })
    }

    async fn remove(&self, remove: Remove) -> Result<AdminOutcome, StoreError> {
        self.change(Operation::Remove, remove.key, |slot, now| {
            transition::remove(slot, &remove, now)
        })
    }

    async fn scan(&self, scan: Scan) -> Result<Page, StoreError> {
        let limit = if scan.limit == 0 { 100 } else { scan.limit };
        let (mut records, mut reached) = (Vec::new(), scan.after_key(self.name())?);
        let keys = self.keys().into_iter().filter(|key| reached.is_none_or(|after| *key > after));
        // A page examines a bounded number of records, whatever the scan lists.
        for (examined, key) in keys.collect::<Vec<_>>().into_iter().enumerate() {
            if records.len() == limit || examined == 1_000 {
                let next = reached.map(|key| Cursor::after(self.name(), key));
                return Ok(Page::new(records, next));
            }
            reached = Some(key);
            let record = self.change(Operation::Scan, key, transition::read)?;
            if let Some(mut record) = record.filter(|record| scan.includes(record)) {
                record.body.clear();
                records.push(record);
            }
        }
        Ok(Page::new(records, None))
    }

    async fn census(&self, budget: CensusBudget) -> Result<Census, StoreError> {
        let (mut census, began) = (Census::new(), self.clock.monotonic());
        for key in self.keys() {
            if self.clock.monotonic().saturating_sub(began) >= budget.time {
                return Ok(census.stopped_before(key));
            }
            match self.change(Operation::Census, key, transition::read) {
                Ok(Some(record)) => census.add(&record),
                Ok(None) => {}
                Err(error) if error.kind() == StoreErrorKind::Corrupt => census.unreadable += 1,
                Err(error) => return Err(error),
            }
        }
        Ok(census)
    }

    async fn purge(&self, limit: usize) -> Result<PurgeOutcome, StoreError> {
        let mut removed = 0;
        for key in self.keys() {
            let expired = self.change(Operation::Purge, key, |slot, now| {
                let expired =
                    removed < limit && slot.as_ref().is_some_and(|record| record.expires <= now);
                if expired {
                    transition::expire(slot, now);
                }
                expired
            })?;
            removed += usize::from(expired);
        }
        Ok(PurgeOutcome::new(removed, None))
    }
}
