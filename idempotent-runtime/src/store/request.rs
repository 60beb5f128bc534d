//! Requests of the engine to a store, and the store's answers.
//!
//! The structs are `#[non_exhaustive]`: they grow without breaking stores. A store reads the
//! fields; the engine and tests build them with `new` and assign the optional fields.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;

use super::cursor::Cursor;
use super::error::StoreError;
use super::record::{CrashPolicy, Reason, Record, State, Token};
use crate::clock::Timestamp;
use crate::fingerprint::Fingerprint;
use crate::key::{HashPrefix, KeyHash};

/// Requests the right to run.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Claim {
    /// The name of the record.
    pub key: KeyHash,
    /// The caller. A claim that is sent again has the same token.
    pub token: Token,
    /// The operation's name, kept on the record for people to read.
    pub operation: Arc<str>,
    /// The caller's namespace, at most 64 bytes. Kept on the record that the claim creates; a claim
    /// that takes over leaves it as it is.
    pub namespace: Arc<str>,
    /// The process that makes the claim, at most 64 bytes. Kept on the record with every owner.
    pub holder: Arc<str>,
    /// The fingerprint that a retry must repeat.
    pub fingerprint: Option<Fingerprint>,
    /// The policy for the claim of a dead owner. The stricter of this and the record's applies.
    pub policy: CrashPolicy,
    /// The schema version of the result to come, kept on the record because an operator's answer
    /// has it too.
    pub schema: u32,
    /// The time for which the claim lives without renewal.
    pub lease: Duration,
    /// The time for which an unfinished record is kept after its lease.
    pub linger: Duration,
    /// The time for which a tombstone rejects late retries after the record expired; zero leaves
    /// none.
    pub after_expiry: Duration,
    /// The time for which the result will be kept, as far as the caller knows. The
    /// [commit](Commit::ttl) decides; a store that schedules removals in advance uses this value.
    pub ttl: Duration,
    /// True to return a result with the time at which its record expires, even if that costs the
    /// store more. Without it, [`Record::expires`] of a result may be zero.
    pub tell_expiry: bool,
    /// Trace context of the caller (W3C `traceparent`), at most 64 bytes. Kept on the record with
    /// every owner, like the holder.
    pub trace: Option<Arc<str>>,
}

impl Claim {
    /// A claim with the policy [`CrashPolicy::Hold`], a lease of 15 seconds, a linger of 30 days
    /// and a `ttl` of one.
    pub fn new(key: KeyHash, token: Token, operation: Arc<str>) -> Self {
        Self {
            key,
            token,
            operation,
            namespace: Arc::default(),
            holder: Arc::default(),
            fingerprint: None,
            policy: CrashPolicy::Hold,
            schema: 0,
            lease: Duration::from_secs(15),
            linger: Duration::from_secs(30 * 86_400),
            after_expiry: Duration::ZERO,
            ttl: Duration::from_secs(86_400),
            tell_expiry: false,
            trace: None,
        }
    }
}

/// The answer to a [`Claim`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClaimOutcome {
    /// The caller owns the claim, and no other caller does.
    Granted(Grant),
    /// The caller does not own the claim; this record stands in the way. The body of a record that
    /// is not an answer may be left out.
    Existing(Record),
}

/// A claim that was granted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Grant {
    /// The record as it is now, owned by the caller. Its body is the last checkpoint.
    pub record: Record,
    /// The state in which an earlier owner left the record, if the claim was taken over (T5), or
    /// taken over from in doubt to verify again (T5b).
    pub taken_over: Option<State>,
}

impl Grant {
    /// The claim of the current owner of `record`. [`Record::taken_over`] says whether it was taken
    /// over, even if this repeats an answer that was lost.
    pub fn new(record: Record) -> Self {
        Self { taken_over: record.taken_over, record }
    }
}

/// Prolongs a lease (T7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Renewal {
    /// The name of the record.
    pub key: KeyHash,
    /// The owner.
    pub token: Token,
    /// The lifetime of the claim, counted from now.
    pub lease: Duration,
}

impl Renewal {
    /// Prolongs the lease of `token` to `lease` from now.
    pub const fn new(key: KeyHash, token: Token, lease: Duration) -> Self {
        Self { key, token, lease }
    }
}

/// The outcome of an owner's write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WriteOutcome {
    /// The write took effect now.
    Applied,
    /// The same write took effect before: its answer was lost.
    AlreadyApplied,
    /// The record was gone and has been written again (T9).
    Adopted,
    /// The record belongs to another owner, or its state no longer allows the write. Nothing
    /// changed.
    Lost,
    /// There is no record, or only a tombstone. Nothing changed.
    Gone,
    /// The state of the record is unknown and nothing changed: the record is locked by another
    /// transaction or could not be reached, so the request must be repeated. Only one of several
    /// renewals gets this answer, because it must not cost the others theirs; a request about one
    /// record fails instead.
    Unanswered,
}

impl WriteOutcome {
    /// Returns true if the store now holds what the owner wrote.
    pub const fn is_done(self) -> bool {
        matches!(self, Self::Applied | Self::AlreadyApplied | Self::Adopted)
    }
}

/// Stores a result (T8, T9). `Debug` shows the size of the body in its place.
#[derive(Clone)]
#[non_exhaustive]
pub struct Commit {
    /// The name of the record.
    pub key: KeyHash,
    /// The owner.
    pub token: Token,
    /// [`State::Completed`] or [`State::Failed`].
    pub state: State,
    /// The encoded result.
    pub body: Bytes,
    /// The schema version of the result.
    pub schema: u32,
    /// The reason why there is no body, if there is none.
    pub reason: Option<Reason>,
    /// The time for which the record is kept, counted from now.
    pub ttl: Duration,
    /// The data to write the record again if it is gone. Set only while the owner still believes in
    /// its lease.
    pub adopt: Option<Arc<Adoption>>,
}

impl fmt::Debug for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Commit")
            .field("key", &self.key)
            .field("token", &self.token)
            .field("state", &self.state)
            .field("body", &format_args!("{} bytes", self.body.len()))
            .field("schema", &self.schema)
            .field("reason", &self.reason)
            .field("ttl", &self.ttl)
            .field("adopt", &self.adopt)
            .finish()
    }
}

impl Commit {
    /// Stores `body` as a completed result for `ttl`.
    pub fn new(key: KeyHash, token: Token, body: Bytes, ttl: Duration) -> Self {
        Self {
            key,
            token,
            state: State::Completed,
            body,
            schema: 0,
            reason: None,
            ttl,
            adopt: None,
        }
    }
}

/// The data needed to write a record again that vanished while its owner was alive.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Adoption {
    /// The claim that created the record.
    pub claim: Arc<Claim>,
    /// The record's fence when it was last seen.
    pub fence: u64,
    /// The record's attempts when it was last seen.
    pub attempts: u32,
    /// The time at which the record was created.
    pub created: Timestamp,
    /// The store's time from which nothing is written again: the owner's lease may have expired by
    /// then, and so may the retention of what an earlier try of the same commit stored.
    pub ends: Timestamp,
}

impl Adoption {
    /// The adoption of the record that `grant` returned to `claim`. Ends with the lease that was
    /// granted.
    pub fn new(claim: impl Into<Arc<Claim>>, grant: &Grant) -> Self {
        let Record { fence, attempts, created, lease_until, .. } = grant.record;
        Self { claim: claim.into(), fence, attempts, created, ends: lease_until }
    }
}

/// Releases the claim: nothing happened under it (T10).
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Release {
    /// The name of the record.
    pub key: KeyHash,
    /// The owner.
    pub token: Token,
    /// True to leave [`State::Released`] with the attempts instead of removing the record.
    pub keep_attempts: bool,
    /// True if nothing began under the claim: it does not count as an attempt, and the attempts
    /// before it stay counted.
    pub unused: bool,
}

impl Release {
    /// Releases the claim of `token` and leaves nothing.
    pub const fn new(key: KeyHash, token: Token) -> Self {
        Self { key, token, keep_attempts: false, unused: false }
    }

    /// Releases the claim of `token` under which nothing began: the record is as it was before the
    /// claim.
    pub const fn unused(key: KeyHash, token: Token) -> Self {
        Self { unused: true, ..Self::new(key, token) }
    }
}

/// Ends the lease at once and leaves the record to the next caller (T11).
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Abandon {
    /// The name of the record.
    pub key: KeyHash,
    /// The owner.
    pub token: Token,
    /// The reason for ending the lease.
    pub reason: Reason,
}

impl Abandon {
    /// Ends the lease of `token`.
    pub const fn new(key: KeyHash, token: Token, reason: Reason) -> Self {
        Self { key, token, reason }
    }
}

/// Marks the record as in doubt (T6, T6b).
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Park {
    /// The name of the record.
    pub key: KeyHash,
    /// The owner: the caller itself, or the one that an observer saw.
    pub token: Token,
    /// The reason for the doubt.
    pub reason: Reason,
    /// True to apply only if the lease has expired: set by every caller that is not the owner.
    pub only_orphaned: bool,
    /// The time after which the outside world may be queried again, under [`CrashPolicy::Verify`].
    pub ask_again_after: Duration,
}

impl Park {
    /// Puts the caller's own record in doubt.
    pub const fn own(key: KeyHash, token: Token, reason: Reason) -> Self {
        Self { key, token, reason, only_orphaned: false, ask_again_after: Duration::ZERO }
    }

    /// Puts the record of a dead owner in doubt, on behalf of an observer.
    pub const fn orphan(key: KeyHash, observed: Token) -> Self {
        Self {
            key,
            token: observed,
            reason: Reason::Crashed,
            only_orphaned: true,
            ask_again_after: Duration::ZERO,
        }
    }
}

/// Replaces the record's checkpoint. Checkpoints of one record are numbered from zero across all
/// its owners.
#[derive(Clone)]
#[non_exhaustive]
pub struct Checkpoint {
    /// The name of the record.
    pub key: KeyHash,
    /// The owner.
    pub token: Token,
    /// The number of this checkpoint: the count of checkpoints that the record accepted before.
    pub sequence: u32,
    /// The whole checkpoint.
    pub body: Bytes,
    /// True if nothing had begun under the claims before this owner's: the record then counts as not
    /// taken over.
    pub nothing_began: bool,
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint")
            .field("key", &self.key)
            .field("token", &self.token)
            .field("sequence", &self.sequence)
            .field("body", &format_args!("{} bytes", self.body.len()))
            .field("nothing_began", &self.nothing_began)
            .finish()
    }
}

impl Checkpoint {
    /// Checkpoint number `sequence`.
    pub const fn new(key: KeyHash, token: Token, sequence: u32, body: Bytes) -> Self {
        Self { key, token, sequence, body, nothing_began: false }
    }
}

/// Settles an in-doubt record on an operator's behalf (T12), or corrects such an answer (T12b).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Resolve {
    /// The name of the record.
    pub key: KeyHash,
    /// The owner that was seen on the record. Any change since then turns the answer into
    /// [`AdminOutcome::Conflict`].
    pub observed: Token,
    /// The token that replaces the owner's, so that a late owner finds itself replaced.
    pub token: Token,
    /// The answer.
    pub answer: ResolveAnswer,
}

impl Resolve {
    /// Resolves the record on which `observed` was seen.
    pub const fn new(key: KeyHash, observed: Token, token: Token, answer: ResolveAnswer) -> Self {
        Self { key, observed, token, answer }
    }
}

/// The answer of an operator or a verdict.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResolveAnswer {
    /// The body took effect: [`State::Completed`] or [`State::Failed`] with this body, kept for
    /// `ttl` from now.
    Finished {
        /// [`State::Completed`] or [`State::Failed`].
        state: State,
        /// The encoded result.
        body: Bytes,
        /// The schema version of the result.
        schema: u32,
        /// The time for which the record is kept, counted from now.
        ttl: Duration,
    },
    /// The body did not take effect: the record is removed and the next call runs the body.
    NotExecuted,
}

impl fmt::Debug for ResolveAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Finished { state, body, schema, ttl } => f
                .debug_struct("Finished")
                .field("state", state)
                .field("body", &format_args!("{} bytes", body.len()))
                .field("schema", schema)
                .field("ttl", ttl)
                .finish(),
            Self::NotExecuted => f.write_str("NotExecuted"),
        }
    }
}

/// Removes a record (T14).
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Remove {
    /// The name of the record.
    pub key: KeyHash,
    /// The owner that was seen on the record.
    pub observed: Token,
    /// True to remove the record even while its owner runs.
    pub force: bool,
    /// The time for which a tombstone replaces the record. Zero leaves none, and removes one that
    /// exists. If the owner runs, a tombstone stays for at least the rest of its lease.
    pub tombstone: Duration,
}

impl Remove {
    /// Removes the record on which `observed` was seen, unless its owner runs.
    pub const fn new(key: KeyHash, observed: Token) -> Self {
        Self { key, observed, force: false, tombstone: Duration::ZERO }
    }
}

/// The outcome of [`Resolve`] and [`Remove`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AdminOutcome {
    /// The request took effect.
    Applied,
    /// The record's owner runs. Nothing changed.
    Running,
    /// The record is not as it was seen, or its state does not allow this. Nothing changed.
    Conflict,
    /// There is no record; for [`Resolve`], there may also be a tombstone. Nothing changed.
    Absent,
}

/// Lists records, page by page.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Scan {
    /// The [`Page::next`] of the previous page; `None` for the first.
    pub after: Option<Cursor>,
    /// The maximum number of records of the page; zero lets the store choose.
    pub limit: usize,
    /// The first digits of the keys of the records to list; `None` lists every key.
    pub begins_with: Option<HashPrefix>,
    /// The state of the records to list; `None` lists every state.
    pub state: Option<State>,
    /// The operation of the records to list; `None` lists every operation.
    pub operation: Option<Arc<str>>,
    /// The namespace of the records to list; `None` lists every namespace.
    pub namespace: Option<Arc<str>>,
    /// The records that require a decision.
    pub only: Only,
    /// Lists the records whose first claim was before this time, in the store's time.
    pub created_before: Option<Timestamp>,
}

impl Scan {
    /// Returns the key after which the page starts, in a store named `store` that lists in the order
    /// of the keys and whose cursors are [`Cursor::after`] a key.
    ///
    /// # Errors
    /// [`Unsupported`](super::StoreErrorKind::Unsupported) if the cursor is of another store, or is
    /// not of this form.
    pub fn after_key(&self, store: &str) -> Result<Option<KeyHash>, StoreError> {
        self.after.as_ref().map(|cursor| cursor.key(store)).transpose()
    }

    /// Returns true if this scan lists `record`.
    pub fn includes(&self, record: &Record) -> bool {
        self.state.is_none_or(|state| state == record.state)
            && self.only.includes(record)
            && self.is_about(record)
    }

    /// The part of [`includes`](Self::includes) that does not change with time: a record which is
    /// not included by it need not be read as it is now.
    pub(crate) fn is_about(&self, record: &Record) -> bool {
        self.begins_with.is_none_or(|prefix| prefix.includes(&record.key))
            && self.operation.as_ref().is_none_or(|operation| *operation == record.operation)
            && self.namespace.as_ref().is_none_or(|namespace| *namespace == record.namespace)
            && self.created_before.is_none_or(|before| record.created < before)
    }
}

/// The records that a [`Scan`] lists, by what a person has to do about them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Only {
    /// All records.
    #[default]
    Any,
    /// Those in doubt, also where no caller has noticed it yet: the owner's lease has expired, and
    /// the policy is [`CrashPolicy::Hold`].
    InDoubt,
    /// Those in progress whose lease has expired, under every policy: they do not run.
    Orphaned,
}

impl Only {
    pub(crate) fn includes(self, record: &Record) -> bool {
        match self {
            Self::Any => true,
            Self::InDoubt => {
                record.state == State::InDoubt
                    || record.is_orphaned() && record.policy == CrashPolicy::Hold
            }
            Self::Orphaned => record.is_orphaned(),
        }
    }
}

/// One page of records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Page {
    /// The records, with empty bodies.
    pub records: Vec<Record>,
    /// The place at which the next page starts; `None` on the last page. A page without records that
    /// has a `next` is progress.
    pub next: Option<Cursor>,
    /// The keys among them that cannot be read: records of a newer release, or values written by
    /// other software.
    pub unreadable: Vec<KeyHash>,
}

impl Page {
    /// A page of `records`.
    pub const fn new(records: Vec<Record>, next: Option<Cursor>) -> Self {
        Self { records, next, unreadable: Vec::new() }
    }

    /// Adds the keys that cannot be read.
    #[must_use]
    pub fn with_unreadable(self, unreadable: Vec<KeyHash>) -> Self {
        Self { unreadable, ..self }
    }
}

/// The outcome of a purge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PurgeOutcome {
    /// The number of expired records that were removed.
    pub removed: usize,
    /// The time since the oldest remaining expired record expired; `None` if none remains.
    pub lag: Option<Duration>,
    /// The number of other records that were checked, had not expired yet, and were put off until
    /// they do.
    pub put_off: usize,
}

impl PurgeOutcome {
    /// A purge that removed `removed` records; the oldest remaining one expired `lag` ago.
    pub const fn new(removed: usize, lag: Option<Duration>) -> Self {
        Self { removed, lag, put_off: 0 }
    }

    /// Adds the number of records that were put off.
    #[must_use]
    pub const fn with_put_off(mut self, records: usize) -> Self {
        self.put_off = records;
        self
    }
}

/// A record, and a future that resolves when the record may have changed. Returned by
/// [`Store::watch`](super::Store::watch).
#[non_exhaustive]
pub struct Watch {
    /// The record, read after registering for its changes.
    pub record: Option<Record>,
    changed: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Watch {
    /// A watch whose `changed` resolves at the first change after `record` was read; spurious
    /// wake-ups are allowed. Everything that `changed` owns is kept until the watch is dropped: a
    /// registration deregisters itself then.
    pub fn new(record: Option<Record>, changed: impl Future<Output = ()> + Send + 'static) -> Self {
        Self { record, changed: Box::pin(changed) }
    }
}

/// Resolves when the record may have changed.
impl Future for Watch {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.changed.as_mut().poll(cx)
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("record", &self.record).finish_non_exhaustive()
    }
}
