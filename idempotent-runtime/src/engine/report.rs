//! Reports of what a call did, for tests and diagnostics.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use super::task_state::TaskState;
use crate::error::Error;
use crate::events::{Outcome, Source};
use crate::key::KeyHash;
use crate::lock::Mutex;

/// A report of what one guarded call did. Created by [`with_report`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[expect(clippy::struct_excessive_bools, reason = "each answers a question of its own")]
pub struct Report {
    /// The operation's name.
    pub operation: Arc<str>,
    /// The name of the record. All zeros if the call was refused before it had one, because its key
    /// or its configuration is invalid.
    pub key: KeyHash,
    /// True if the answer came from the record, and is another call's or an operator's: this call
    /// did not run the body, or it was overtaken and its own result is not the answer.
    pub replayed: bool,
    /// True if this call waited for another caller that had claimed it, in this process or
    /// elsewhere. A call in a transaction that waited for another transaction does not notice it if
    /// that one rolled back, and then reports false.
    pub waited: bool,
    /// True if the answer was shared by another call in this process, without querying the store.
    pub joined: bool,
    /// True if the answer came from the near cache of this process, without querying the store.
    pub near_cached: bool,
    /// The number of times that the call has been claimed, including the attempt that produced the
    /// answer. Zero if no claim is known.
    pub attempt: u32,
    /// True if the operation was disabled: the body ran without any protection.
    pub bypassed: bool,
    /// How the call ended.
    pub outcome: Outcome,
}

const NO_RECORD: KeyHash = KeyHash::from_bytes([0; 32]);

impl Report {
    pub(crate) fn new(operation: Arc<str>, key: KeyHash) -> Self {
        Self {
            operation,
            key,
            replayed: false,
            waited: false,
            joined: false,
            near_cached: false,
            attempt: 0,
            bypassed: false,
            outcome: Outcome::Dropped,
        }
    }

    /// Creates the report of a call that was refused with `error` before it had a record.
    pub(super) fn of_refusal(error: &Error) -> Self {
        Self::new(error.operation().unwrap_or_default().into(), NO_RECORD)
    }

    /// Returns false if the call was refused before it had a record.
    pub(super) fn has_record(&self) -> bool {
        self.key != NO_RECORD
    }

    pub(super) fn ended(&mut self, outcome: Outcome) {
        self.outcome = outcome;
        self.replayed |= matches!(outcome, Outcome::Replayed(_));
        self.joined = outcome == Outcome::Replayed(Source::Joined);
        self.near_cached = outcome == Outcome::Replayed(Source::Near);
        self.bypassed = outcome == Outcome::Bypassed;
    }
}

/// The receiver of reports from the calls of a future.
#[derive(Clone, Default)]
pub(crate) struct Receiver(Arc<Mutex<Option<Report>>>);

impl Receiver {
    pub(crate) fn report(&self, report: Report) {
        *self.0.lock() = Some(report);
    }

    fn take(&self) -> Option<Report> {
        self.0.lock().take()
    }
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Receiver")
    }
}

/// Runs `future` and returns a report of the last guarded call it made, or `None` if it made none.
/// Refused calls count too. Calls made by the body of a guarded call do not.
///
/// ```
/// # use std::time::Duration;
/// # use idempotency::{Error, Idempotency, with_report, store::MemoryStore};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Error> {
/// let engine = Idempotency::new(MemoryStore::new());
/// let charge = || engine.call("payments.charge", 7).ttl(Duration::from_secs(60)).run(|| async { Ok::<_, Error>("paid".to_owned()) });
///
/// let (first, report) = with_report(charge()).await;
/// assert!(!report.unwrap().replayed);
/// let (second, report) = with_report(charge()).await;
/// assert!(report.unwrap().replayed);
/// assert_eq!(first?, second?);
/// # Ok(())
/// # }
/// ```
pub async fn with_report<F: Future>(future: F) -> (F::Output, Option<Report>) {
    let receiver = Receiver::default();
    let output = TaskState::current().with_receiver(receiver.clone()).wrap(future).await;
    (output, receiver.take())
}
