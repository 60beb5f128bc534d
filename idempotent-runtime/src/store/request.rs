//! What the engine asks of a store, and what a store answers.
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

use super::record::{CrashPolicy, Reason, Record, State, Token};
use crate::clock::Timestamp;
use crate::fingerprint::Fingerprint;
use crate::key::KeyHash;

/// Asks for the right to run.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Claim {
    /// The name of the record.
    pub key: KeyHash,
    /// Who asks. The same claim is sent again with the same token.
    pub token: Token,
    /// The operation's name, kept on the record for people.
    pub operation: Arc<str>,
    /// What a retry must repeat.
    pub fingerprint: Option<Fingerprint>,
    /// What this caller does to a dead owner's claim. The stricter of this and the record's wins.
    pub policy: CrashPolicy,
    /// The schema version of the result to come, kept on the record: an operator's answer has it
    /// too.
    pub schema: u32,
    /// How long the claim lives without renewal.
    pub lease: Duration,
    /// How long an unfinished record is kept after its lease.
    pub linger: Duration,
    /// How long a tombstone refuses late retries after the record expired; zero leaves none.
    pub after_expiry: Duration,
    /// How long the result will be kept, as far as the caller knows. The [commit](Commit::ttl)
    /// decides; a store that plans ahead when it removes a record goes by this.
    pub ttl: Duration,
    /// Tell with a result when its record expires, also where that costs the store more. Without
    /// it, [`Record::expires`] of a result may be zero.
    pub tell_expiry: bool,
    /// Trace context to keep on the record.
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
pub enum Claimed {
    /// The caller owns the claim, and nobody else does.
    Mine(Grant),
    /// The caller does not; this is what stands in the way. The body of a record that is no answer
    /// may be left out.
    Held(Record),
}

/// A claim that was granted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Grant {
    /// The record as it is now, owned by the caller. Its body is the last checkpoint.
    pub record: Record,
    /// The state in which an earlier owner left the record, if the claim was taken over (T5) or is
    /// asked again (T5b).
    pub taken_over: Option<State>,
}

impl Grant {
    /// The claim of the owner that stands on `record`. [`Record::taken_over`] tells whether it was
    /// taken over, also when a lost answer is given again.
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
    /// How long the claim lives from now.
    pub lease: Duration,
}

impl Renewal {
    /// Prolongs the lease of `token` to `lease` from now.
    pub const fn new(key: KeyHash, token: Token, lease: Duration) -> Self {
        Self { key, token, lease }
    }
}

/// What became of an owner's write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Written {
    /// The write took effect now.
    Applied,
    /// The same write took effect before: its answer was lost.
    AlreadyApplied,
    /// The record was gone and has been written anew (T9).
    Adopted,
    /// The record is somebody else's, or in a state that allows the write no more. Nothing changed.
    Lost,
    /// There is no record, or only a tombstone. Nothing changed.
    Gone,
    /// Nothing is known and nothing changed: the record is locked by somebody else, or could not be
    /// reached, and has to be asked for again. Only one of many renewals is answered so, because it
    /// must not cost the others theirs; a request about one record fails instead.
    Unanswered,
}

impl Written {
    /// Whether the store now holds what the owner wrote.
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
    /// Why there is no body, where that is so.
    pub reason: Option<Reason>,
    /// How long the record is kept from now.
    pub ttl: Duration,
    /// Write the record anew if it is gone: only set while the owner's own view of its lease holds.
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

/// What is needed to write a record anew that vanished under its living owner.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Adoption {
    /// The claim that made the record.
    pub claim: Claim,
    /// The record's fence when it was last seen.
    pub fence: u64,
    /// The record's attempts when it was last seen.
    pub attempts: u32,
    /// When the record was created.
    pub created: Timestamp,
    /// The store's time from which nothing is written anew: the owner's lease may be over by then,
    /// and so may the retention of what an earlier try of the same commit has stored.
    pub ends: Timestamp,
}

impl Adoption {
    /// Of the record that `grant` returned to `claim`. Ends with the lease that was granted.
    pub fn new(claim: Claim, grant: &Grant) -> Self {
        let Record { fence, attempts, created, lease_until, .. } = grant.record;
        Self { claim, fence, attempts, created, ends: lease_until }
    }
}

/// Gives the claim back: nothing happened under it (T10).
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Release {
    /// The name of the record.
    pub key: KeyHash,
    /// The owner.
    pub token: Token,
    /// Leave [`State::Released`] with the attempts instead of nothing.
    pub keep_attempts: bool,
    /// Nothing began under the claim: it counts as no attempt, and the attempts before it stay
    /// counted.
    pub unused: bool,
}

impl Release {
    /// Gives the claim of `token` back and leaves nothing.
    pub const fn new(key: KeyHash, token: Token) -> Self {
        Self { key, token, keep_attempts: false, unused: false }
    }

    /// Gives back the claim of `token` under which nothing began: the record is as it was before
    /// the claim.
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
    /// Why.
    pub reason: Reason,
}

impl Abandon {
    /// Ends the lease of `token`.
    pub const fn new(key: KeyHash, token: Token, reason: Reason) -> Self {
        Self { key, token, reason }
    }
}

/// Makes the record in doubt (T6, T6b).
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Park {
    /// The name of the record.
    pub key: KeyHash,
    /// The owner: the caller itself, or the one that an observer saw.
    pub token: Token,
    /// Why.
    pub reason: Reason,
    /// Only if the lease is over: set by everybody who is not the owner.
    pub only_orphaned: bool,
    /// How long until the outside world may be asked again, under [`CrashPolicy::Verify`].
    pub ask_again_after: Duration,
}

impl Park {
    /// The owner parks its own record.
    pub const fn own(key: KeyHash, token: Token, reason: Reason) -> Self {
        Self { key, token, reason, only_orphaned: false, ask_again_after: Duration::ZERO }
    }

    /// An observer parks the record of a dead owner.
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

/// Replaces the record's checkpoint. Checkpoints of one record are numbered from zero, over all its
/// owners.
#[derive(Clone)]
#[non_exhaustive]
pub struct Checkpoint {
    /// The name of the record.
    pub key: KeyHash,
    /// The owner.
    pub token: Token,
    /// The number of this checkpoint: how many the record has accepted before.
    pub sequence: u32,
    /// The whole checkpoint.
    pub body: Bytes,
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint")
            .field("key", &self.key)
            .field("token", &self.token)
            .field("sequence", &self.sequence)
            .field("body", &format_args!("{} bytes", self.body.len()))
            .finish()
    }
}

impl Checkpoint {
    /// Checkpoint number `sequence`.
    pub const fn new(key: KeyHash, token: Token, sequence: u32, body: Bytes) -> Self {
        Self { key, token, sequence, body }
    }
}

/// Answers for an owner that cannot, or corrects such an answer (T12).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Resolve {
    /// The name of the record.
    pub key: KeyHash,
    /// The owner that was seen on the record. Any change since then makes the answer
    /// [`Changed::Conflict`].
    pub observed: Token,
    /// Takes the owner's place, so that a late owner finds itself replaced.
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
    /// It happened: [`State::Completed`] or [`State::Failed`] with this body, kept for `ttl` from
    /// now.
    Finished {
        /// [`State::Completed`] or [`State::Failed`].
        state: State,
        /// The encoded result.
        body: Bytes,
        /// The schema version of the result.
        schema: u32,
        /// How long the record is kept from now.
        ttl: Duration,
    },
    /// It did not happen: the record is removed and the next call runs the body.
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
    /// Also while its owner runs.
    pub force: bool,
    /// How long a tombstone stays in the record's place; zero leaves none, and takes away one that
    /// is there. Where the owner runs, one stays for at least the rest of its lease.
    pub tombstone: Duration,
}

impl Remove {
    /// Removes the record on which `observed` was seen, unless its owner runs.
    pub const fn new(key: KeyHash, observed: Token) -> Self {
        Self { key, observed, force: false, tombstone: Duration::ZERO }
    }
}

/// What became of [`Resolve`] and [`Remove`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Changed {
    /// It took effect.
    Applied,
    /// The record's owner runs. Nothing changed.
    Running,
    /// The record is not as it was seen, or its state does not allow this. Nothing changed.
    Conflict,
    /// There is no record; for [`Resolve`], or only a tombstone. Nothing changed.
    Absent,
}

/// Lists records, page by page.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Scan {
    /// The [`Page::next`] of the page before; `None` for the first.
    pub after: Option<KeyHash>,
    /// How many records at most; zero is the store's own choice.
    pub limit: usize,
    /// Only records in this state.
    pub state: Option<State>,
    /// Only records of this operation.
    pub operation: Option<Arc<str>>,
}

impl Scan {
    /// Whether `record` is of the state and the operation that are asked for.
    pub fn includes(&self, record: &Record) -> bool {
        self.state.is_none_or(|state| state == record.state)
            && self.operation.as_ref().is_none_or(|operation| *operation == record.operation)
    }
}

/// One page of records, in the order of their keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Page {
    /// The records, with empty bodies.
    pub records: Vec<Record>,
    /// Where the next page starts; `None` when this is the last.
    pub next: Option<KeyHash>,
    /// The keys of what is in between and cannot be read: records of a newer release, or what
    /// somebody else has put there.
    pub unreadable: Vec<KeyHash>,
}

impl Page {
    /// A page of `records`.
    pub const fn new(records: Vec<Record>, next: Option<KeyHash>) -> Self {
        Self { records, next, unreadable: Vec::new() }
    }

    /// The same page, with what cannot be read.
    #[must_use]
    pub fn with_unreadable(self, unreadable: Vec<KeyHash>) -> Self {
        Self { unreadable, ..self }
    }
}

/// What a purge did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Purged {
    /// How many expired records were removed.
    pub removed: usize,
    /// How long ago the oldest expired record that remains expired; `None` when none remains.
    pub lag: Option<Duration>,
    /// How many other records it looked at that are not over yet, and put off until they are.
    pub put_off: usize,
}

impl Purged {
    /// `removed` records removed, the oldest remaining one expired `lag` ago.
    pub const fn new(removed: usize, lag: Option<Duration>) -> Self {
        Self { removed, lag, put_off: 0 }
    }

    /// And `records` put off.
    #[must_use]
    pub const fn with_put_off(mut self, records: usize) -> Self {
        self.put_off = records;
        self
    }
}

/// A record, and a future that resolves when it may have changed. Made by
/// [`Store::watch`](super::Store::watch).
#[non_exhaustive]
pub struct Watch {
    /// The record, read after the interest in its changes was registered.
    pub record: Option<Record>,
    changed: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Watch {
    /// `changed` resolves at the first change after `record` was read; it may resolve too often.
    /// What it owns is kept until the watch is dropped: a registration deregisters itself then.
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
