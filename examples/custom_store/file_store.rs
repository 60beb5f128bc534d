//! A complete store, for one process at a time. The rules of the protocol are in [`transition`]; a
//! store only has to apply each of them as one step.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use idempotency::clock::Clock;
use idempotency::key::KeyHash;
use idempotency::store::{
    Abandon, AdminOutcome, Capabilities, Census, CensusBudget, Checkpoint, Claim, ClaimOutcome,
    Commit, Cursor, Facets, Operation, Page, Park, PurgeOutcome, Record, Release, Remove, Renewal,
    Resolve, Scan, Store, StoreError, StoreErrorKind, Token, Watch, WriteOutcome, transition,
};

use super::directory::Directory;

#[derive(Debug)]
pub(crate) struct FileStore(Directory);

impl FileStore {
    pub(crate) fn open(directory: impl Into<PathBuf>, clock: impl Clock) -> io::Result<Self> {
        Directory::open(directory.into(), clock).map(Self)
    }
}

impl Store for FileStore {
    fn name(&self) -> &'static str {
        "file"
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::in_process();
        (capabilities.durable, capabilities.push) = (true, false);
        capabilities.needs_purging = true;
        capabilities
    }

    fn facets(&self) -> Facets<'_> {
        Facets::none()
    }

    async fn claim(&self, claim: Claim) -> Result<ClaimOutcome, StoreError> {
        self.0.step_above(Operation::Claim, claim.key, |slot, now, gone| {
            transition::claim_above(slot, &claim, now, gone)
        })
    }

    async fn renew(&self, renewals: Vec<Renewal>) -> Result<Vec<WriteOutcome>, StoreError> {
        let renew = |one: &Renewal| {
            self.0.step(Operation::Renew, one.key, |slot, now| transition::renew(slot, one, now))
        };
        renewals.iter().map(renew).collect()
    }

    async fn complete(&self, commit: Commit) -> Result<WriteOutcome, StoreError> {
        self.0.step(Operation::Complete, commit.key, |slot, now| {
            transition::complete(slot, &commit, now)
        })
    }

    async fn release(&self, release: Release) -> Result<WriteOutcome, StoreError> {
        self.0.step(Operation::Release, release.key, |slot, now| {
            transition::release(slot, &release, now)
        })
    }

    async fn abandon(&self, abandon: Abandon) -> Result<WriteOutcome, StoreError> {
        self.0.step(Operation::Abandon, abandon.key, |slot, now| {
            transition::abandon(slot, &abandon, now)
        })
    }

    async fn park(&self, park: Park) -> Result<WriteOutcome, StoreError> {
        self.0.step(Operation::Park, park.key, |slot, now| transition::park(slot, &park, now))
    }

    async fn checkpoint(&self, checkpoint: Checkpoint) -> Result<WriteOutcome, StoreError> {
        self.0.step(Operation::Checkpoint, checkpoint.key, |slot, now| {
            transition::checkpoint(slot, &checkpoint, now)
        })
    }

    async fn fence(&self, key: KeyHash, token: Token) -> Result<Option<u64>, StoreError> {
        self.0.step(Operation::Fence, key, |slot, now| transition::fence(slot, token, now))
    }

    async fn read(&self, key: KeyHash) -> Result<Option<Record>, StoreError> {
        self.0.step(Operation::Read, key, transition::read)
    }

    /// Files do not notify: waiting callers poll.
    async fn watch(&self, key: KeyHash) -> Result<Watch, StoreError> {
        Ok(Watch::new(self.read(key).await?, tokio::time::sleep(Duration::from_millis(20))))
    }

    async fn resolve(&self, resolve: Resolve) -> Result<AdminOutcome, StoreError> {
        self.0.step(Operation::Resolve, resolve.key, |slot, now| {
            transition::resolve(slot, &resolve, now)
        })
    }

    async fn remove(&self, remove: Remove) -> Result<AdminOutcome, StoreError> {
        self.0
            .step(Operation::Remove, remove.key, |slot, now| transition::remove(slot, &remove, now))
    }

    async fn scan(&self, scan: Scan) -> Result<Page, StoreError> {
        let (mut page, mut reached) = (Page::default(), scan.after_key(self.name())?);
        let limit = if scan.limit == 0 { 100 } else { scan.limit };
        let mut keys = self.0.keys(Operation::Scan)?;
        keys.retain(|key| {
            Some(*key) > reached && scan.begins_with.is_none_or(|prefix| prefix.includes(key))
        });
        // A page reads a bounded number of files, whatever the scan lists.
        for (read, key) in keys.into_iter().enumerate() {
            if page.records.len() == limit || read == 1_000 {
                page.next = reached.map(|key| Cursor::after(self.name(), key));
                break;
            }
            reached = Some(key);
            let record = self.read(key).await?.filter(|record| scan.includes(record));
            page.records.extend(record.map(|mut record| {
                record.body = Bytes::new();
                record
            }));
        }
        Ok(page)
    }

    async fn census(&self, budget: CensusBudget) -> Result<Census, StoreError> {
        let (mut census, began) = (Census::new(), Instant::now());
        for key in self.0.keys(Operation::Census)? {
            if began.elapsed() >= budget.time {
                return Ok(census.stopped_before(key));
            }
            match self.0.step(Operation::Census, key, transition::read) {
                Ok(Some(record)) => census.add(&record),
                Ok(None) => {}
                Err(error) if error.kind() == StoreErrorKind::Corrupt => census.unreadable += 1,
                Err(error) => return Err(error),
            }
        }
        Ok(census)
    }

    async fn purge(&self, limit: usize) -> Result<PurgeOutcome, StoreError> {
        let mut purged = PurgeOutcome::default();
        for key in self.0.keys(Operation::Purge)? {
            let room = purged.removed < limit;
            let (gone, overdue) = self.0.step(Operation::Purge, key, |slot, now| {
                if room {
                    transition::expire(slot, now);
                }
                let expired = slot.as_ref().filter(|record| record.expires <= now);
                (
                    slot.is_none(),
                    expired.map(|record| now.saturating_duration_since(record.expires)),
                )
            })?;
            purged.removed += usize::from(gone);
            purged.lag = purged.lag.max(overdue);
        }
        Ok(purged)
    }
}
