//! The list of records, for operators.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use super::Inner;
use super::retry::Budget;
use super::view::shown;
use crate::clock::Timestamp;
use crate::error::{Error, ErrorKind};
use crate::key::KeyHash;
use crate::store::{CrashPolicy, Page, Reason, Record, Scan, State};

/// Records of an engine's store, one after the other. Created by
/// [`Idempotency::records`](crate::Idempotency::records).
///
/// A record that is created or removed while the list is read may be in it or not. One that is
/// there all the time is in it once; a store that cannot promise that says so.
pub struct Records {
    engine: Arc<Inner>,
    scan: Scan,
    found: VecDeque<Listed>,
    has_more: bool,
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
        Self { engine, scan, found: VecDeque::new(), has_more: true }
    }

    /// Returns the next record, or `None` after the last one. Sends a request for each page, whose
    /// size is [`Scan::limit`]. If the future is dropped, nothing is left out.
    ///
    /// # Errors
    /// [`Decode`](ErrorKind::Decode), with the name of the record, for one that this release cannot
    /// read: the next call continues with the others. The store's errors: the next call asks for
    /// the same page again.
    pub async fn next(&mut self) -> Option<Result<RecordSummary, Error>> {
        loop {
            match self.found.pop_front() {
                Some(Listed::Record(record)) => return Some(Ok(*record)),
                Some(Listed::Unreadable(key)) => {
                    return Some(Err(Error::new(ErrorKind::Decode).of_record(None, &key)));
                }
                None if !self.has_more => return None,
                None => {}
            }
            if let Err(error) = self.turn_the_page().await {
                return Some(Err(error));
            }
        }
    }

    async fn turn_the_page(&mut self) -> Result<(), Error> {
        self.engine.at_home()?;
        let budget = Budget::of(self.engine.settings.claim_timeout);
        let answer = self.engine.store.scan(budget, &self.scan).await;
        let Page { records, unreadable, next, .. } = answer.map_err(|error| {
            let error = self.engine.store_error(error);
            match error.kind() {
                ErrorKind::StoreUnavailable => {
                    error.with_text("the records could not be listed", "try again later")
                }
                _ => error,
            }
        })?;
        let records =
            records.iter().map(|record| Listed::Record(Box::new(RecordSummary::new(record))));
        self.found.extend(records.chain(unreadable.into_iter().map(Listed::Unreadable)));
        self.has_more = next.is_some();
        self.scan.after = next;
        Ok(())
    }
}

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Records").field("scan", &self.scan).finish_non_exhaustive()
    }
}
