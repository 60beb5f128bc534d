//! The list of records, for operators.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::sync::Arc;

use super::Inner;
use super::retry::Budget;
use super::view::shown;
use crate::clock::Timestamp;
use crate::error::{Error, ErrorKind};
use crate::key::KeyHash;
use crate::store::{CrashPolicy, Cursor, Page, Reason, Record, Scan, State, StoreError};

/// Records of an engine's store, one after the other. Created by
/// [`Idempotency::records`](crate::Idempotency::records).
///
/// A record that is created or removed while the list is read may be in it or not. One that is
/// there all the time is in it once: in the order of the names where the store
/// [lists in order](crate::store::Capabilities::lists_in_order), otherwise in any order, and then
/// the names of the records that were listed are kept in memory until the list is dropped.
pub struct Records {
    pages: Pages,
    found: VecDeque<Listed>,
    /// The place of the page whose records are being returned.
    page: Option<Cursor>,
    /// The records that were listed, if the store may list one twice.
    listed: Option<HashSet<KeyHash>>,
}

/// The pages of a list, each asked for with a time of its own.
pub(super) struct Pages {
    engine: Arc<Inner>,
    scan: Scan,
    has_more: bool,
}

impl Pages {
    pub(super) fn new(engine: Arc<Inner>, scan: Scan) -> Self {
        Self { engine, scan, has_more: true }
    }

    /// Returns the next page, or `None` after the last one. After an error, or if the future is
    /// dropped, the same page is asked for again.
    pub(super) async fn next(&mut self) -> Result<Option<Page>, Error> {
        if !self.has_more {
            return Ok(None);
        }
        self.engine.at_home()?;
        let budget = Budget::of(self.engine.settings.claim_timeout);
        let page = self.engine.store.scan(budget, &self.scan).await;
        let page = page.map_err(|error| self.failed(error))?;
        self.has_more = page.next.is_some();
        self.scan.after.clone_from(&page.next);
        Ok(Some(page))
    }

    fn failed(&self, error: StoreError) -> Error {
        let error = self.engine.store_error(error);
        match error.kind() {
            ErrorKind::StoreUnavailable => {
                error.with_text("the records could not be listed", "try again later")
            }
            ErrorKind::Unsupported => error.with_text(
                "the list cannot go on at this cursor",
                "list from the start, or from a cursor of this store",
            ),
            _ => error,
        }
    }
}

/// A record as a list shows it: without what depends on its body, which a list does not read.
/// [`record_by_hash`](crate::Idempotency::record_by_hash) inspects and resolves it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RecordSummary {
    /// The name of the record.
    pub key: KeyHash,
    /// The operation's name.
    pub operation: Arc<str>,
    /// The [namespace](crate::Builder::namespace) of the call.
    pub namespace: Arc<str>,
    /// The state, as [`RecordView::state`](super::RecordView::state) shows it.
    pub state: State,
    /// The reason for the record's state, if there is more to say than the state.
    pub reason: Option<Reason>,
    /// The time of the first claim, in the store's time.
    pub created: Timestamp,
    /// The time from which the store may forget the record, in the store's time.
    pub expires: Timestamp,
    /// The number of times that the call was claimed.
    pub attempts: u32,
    /// A number that grows with every change of ownership.
    pub fence: u64,
    /// What the next caller does if the owner is gone.
    pub policy: CrashPolicy,
    /// The end of the owner's lease, in the store's time.
    pub lease_until: Timestamp,
    /// The process that has claimed it last.
    pub holder: Arc<str>,
    /// The trace of the call that has claimed it last.
    pub trace: Option<Arc<str>>,
}

impl RecordSummary {
    fn new(record: &Record) -> Self {
        let (state, reason) = shown(record);
        Self {
            key: record.key,
            operation: record.operation.clone(),
            namespace: record.namespace.clone(),
            state,
            reason,
            created: record.created,
            expires: record.expires,
            attempts: record.attempts,
            fence: record.fence,
            policy: record.policy,
            lease_until: record.lease_until,
            holder: record.holder.clone(),
            trace: record.trace.clone(),
        }
    }
}

/// A record of a page, or the name of one that cannot be read.
enum Listed {
    Record(Box<RecordSummary>),
    Unreadable(KeyHash),
}

impl Records {
    pub(super) fn new(engine: Arc<Inner>, scan: Scan) -> Self {
        let listed = (!engine.store.capabilities().lists_in_order).then(HashSet::new);
        let page = scan.after.clone();
        Self { pages: Pages::new(engine, scan), found: VecDeque::new(), page, listed }
    }

    /// Returns the next record, or `None` after the last one. Sends a request for each page, whose
    /// size is [`Scan::limit`], and goes on through pages on which nothing is listed. If the future
    /// is dropped, nothing is left out.
    ///
    /// # Errors
    /// [`Decode`](ErrorKind::Decode), with the name of the record, for one that this release cannot
    /// read: the next call continues with the others. [`Unsupported`](ErrorKind::Unsupported) for a
    /// [`Scan::after`] of another store, or one that was altered. The store's errors: the next call
    /// asks for the same page again.
    pub async fn next(&mut self) -> Option<Result<RecordSummary, Error>> {
        loop {
            match self.found.pop_front() {
                Some(Listed::Record(record)) => return Some(Ok(*record)),
                Some(Listed::Unreadable(key)) => {
                    return Some(Err(Error::new(ErrorKind::Decode).of_record(None, &key)));
                }
                None => self.page.clone_from(&self.pages.scan.after),
            }
            match self.pages.next().await {
                Ok(Some(page)) => self.take(page),
                Ok(None) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// Returns the place at which another list can go on, with the same filters, as
    /// [`Scan::after`]: that of the current page, whose records are then listed again, or that
    /// after it if all of them have been returned. `None` on the first page and after the last one.
    pub fn cursor(&self) -> Option<&Cursor> {
        if self.found.is_empty() { self.pages.scan.after.as_ref() } else { self.page.as_ref() }
    }

    fn take(&mut self, page: Page) {
        let Page { records, unreadable, .. } = page;
        let records = records
            .iter()
            .map(|record| (record.key, Listed::Record(Box::new(RecordSummary::new(record)))));
        let unreadable = unreadable.into_iter().map(|key| (key, Listed::Unreadable(key)));
        for (key, listed) in records.chain(unreadable) {
            if self.listed.as_mut().is_none_or(|before| before.insert(key)) {
                self.found.push_back(listed);
            }
        }
    }
}

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Records").field("scan", &self.pages.scan).finish_non_exhaustive()
    }
}

#[cfg(all(test, feature = "memory"))]
mod tests {
    use std::collections::HashSet;

    use crate::engine::Idempotency;
    use crate::key::KeyHash;
    use crate::store::{MemoryStore, Page, Record, Scan, Token};

    #[test]
    fn a_record_that_a_store_lists_twice_is_listed_once() {
        let engine = Idempotency::new(MemoryStore::new());
        let mut records = engine.records(Scan::default());
        assert!(records.listed.is_none(), "a store that lists in order lists each once");
        records.listed = Some(HashSet::new());
        let [key, unreadable] = [[1; 32], [2; 32]].map(KeyHash::from_bytes);
        let record = Record::new(key, Token::from_bits(1), "payments.charge".into());
        for _ in 0..2 {
            let page = Page::new(vec![record.clone()], None);
            records.take(page.with_unreadable(vec![unreadable]));
        }
        assert_eq!(records.found.len(), 2);
    }
}
