//! A record as people see it.

use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use crate::clock::Timestamp;
use crate::key::KeyHash;
use crate::steps::{self, StepView};
use crate::store::{CrashPolicy, Reason, Record, State, Token};

/// The parts of a record that are shown to people: never its key, its body or its result.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RecordView {
    /// The name of the record.
    pub key: KeyHash,
    /// The operation's name.
    pub operation: Arc<str>,
    /// The [namespace](crate::Builder::namespace) of the call.
    pub namespace: Arc<str>,
    /// The state. A record whose lease has expired under the policy `hold` is shown as in doubt,
    /// which it is. Under the other policies it stays in progress until a call takes it over or an
    /// operator resolves it; `reason` shows that its owner is gone.
    pub state: State,
    /// The time of the first claim, in the store's time.
    pub created: Timestamp,
    /// The time from which the store may forget the record, in the store's time.
    pub expires: Timestamp,
    /// The number of times that the call was claimed.
    pub attempts: u32,
    /// A number that grows with every change of ownership.
    pub fence: u64,
    /// The size of the stored result or checkpoint in bytes.
    pub size: usize,
    /// The reason for the record's state, if there is more to say than the state. It is about the
    /// last attempt: a takeover replaces the reason of the one before.
    pub reason: Option<Reason>,
    /// What the next caller does if the owner is gone. The stricter of this and the caller's own
    /// policy applies.
    pub policy: CrashPolicy,
    /// The end of the owner's lease, in the store's time; for other states than in progress see
    /// [`Record::lease_until`].
    pub lease_until: Timestamp,
    /// The [process](crate::Builder::instance) that holds the claim, or held it last. A result
    /// keeps the one that produced it.
    pub holder: Arc<str>,
    /// The [trace](crate::Builder::trace_context) of the call that made the owner's claim (W3C
    /// `traceparent`), if there was any.
    pub trace: Option<Arc<str>>,
    /// The schema version of the stored result, or of the one to come.
    pub schema: u32,
    /// The number of checkpoints that the call has written in all attempts, one or two for each
    /// step.
    pub checkpoints: u32,
    /// Identifies exactly what was seen: [`resolve`](super::RecordHandle::resolve) rejects it if
    /// the record has changed since.
    pub revision: Revision,
    steps: Option<Vec<StepView>>,
}

/// Identifies the observed state of a record. Opaque.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Revision {
    owner: Token,
    state: State,
    reason: Option<Reason>,
    /// A hash, because a record may have megabytes of recorded steps.
    body: u64,
}

impl Revision {
    /// Returns true if `record` is as it was seen, or has only been marked in doubt since then, as
    /// the first part of an answer does.
    pub(super) fn shows(&self, record: &Record) -> bool {
        let is_in_doubt = record.state == State::InDoubt;
        Self::of(record, shown(record)) == *self
            || is_in_doubt && Self::of(record, (State::InProgress, record.reason)) == *self
    }

    /// The owner that was seen.
    pub(super) fn owner(&self) -> Token {
        self.owner
    }

    /// Renewals change nothing that is visible.
    fn of(record: &Record, (state, reason): (State, Option<Reason>)) -> Self {
        let mut body = DefaultHasher::new();
        record.body.hash(&mut body);
        Self { owner: record.owner, state, reason, body: body.finish() }
    }
}

/// The state and the reason as shown to people: a record whose owner is gone is in doubt if no
/// caller may take it over.
pub(super) fn shown(record: &Record) -> (State, Option<Reason>) {
    let is_orphaned = record.is_orphaned();
    let is_in_doubt = is_orphaned && !record.policy.allows_takeover();
    let state = if is_in_doubt { State::InDoubt } else { record.state };
    (state, record.reason.or(is_orphaned.then_some(Reason::Crashed)))
}

impl fmt::Debug for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Revision(…)")
    }
}

impl RecordView {
    pub(super) fn new(record: &Record) -> Self {
        let (state, reason) = shown(record);
        let is_unfinished = matches!(state, State::InProgress | State::InDoubt);
        Self {
            key: record.key,
            operation: record.operation.clone(),
            namespace: record.namespace.clone(),
            state,
            created: record.created,
            expires: record.expires,
            attempts: record.attempts,
            fence: record.fence,
            size: record.body.len(),
            reason,
            policy: record.policy,
            lease_until: record.lease_until,
            holder: record.holder.clone(),
            trace: record.trace.clone(),
            schema: record.schema,
            checkpoints: record.checkpoints,
            revision: Revision::of(record, (state, reason)),
            steps: if is_unfinished { steps::shown(&record.body) } else { Some(Vec::new()) },
        }
    }

    /// The recorded [steps](crate::Context::step) of a call that is in progress or in doubt, by
    /// name and index, without their results. They say how far the body came. `None` if another
    /// release has recorded them in a form that this one does not know, or they are damaged.
    pub fn steps(&self) -> Option<&[StepView]> {
        self.steps.as_deref()
    }
}
