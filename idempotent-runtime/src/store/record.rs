//! The record that a store keeps for one key.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::fingerprint::Fingerprint;
use crate::key::KeyHash;

/// The owner of a claim: 128 random bits, new for each attempt. It guards every write of the owner.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(u128);

impl Token {
    /// The token with these bits.
    pub const fn from_bits(bits: u128) -> Self {
        Self(bits)
    }

    /// The bits of the token.
    pub const fn bits(self) -> u128 {
        self.0
    }
}

impl fmt::Debug for Token {
    /// Shows the first eight characters: a whole token is the right to write.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({:08x}…)", self.0 >> 96)
    }
}

/// The state of a record. An absent record has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// A caller owns the claim (P). [`Record::lease_until`] says until when its lease runs.
    InProgress,
    /// The body started, and it is unknown whether it finished (X).
    InDoubt,
    /// The result is stored (C). Never changes until it expires, unless an operator corrects an
    /// operator's answer.
    Completed,
    /// An error that counts as the result is stored (F). Never changes until it expires, with the
    /// same exception.
    Failed,
    /// Released by an operation that counts attempts (R). Can be claimed again.
    Released,
    /// The record is gone and must not come back for a while (G).
    Tombstone,
}

impl State {
    /// Returns true if the record holds a result that is replayed: completed or failed.
    pub const fn is_answer(self) -> bool {
        matches!(self, Self::Completed | Self::Failed)
    }
}

/// The policy of a claim towards a record whose owner is gone. The derived order is by strictness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum CrashPolicy {
    /// The next caller takes the claim over and runs the body again.
    Retry,
    /// The next caller takes the claim over with the checkpoint and continues from there.
    Resume,
    /// The next caller takes the claim over and queries the outside world.
    Verify,
    /// The record is in doubt until it is resolved.
    Hold,
}

impl CrashPolicy {
    /// Returns true if a claim may take over from a dead owner.
    pub const fn allows_takeover(self) -> bool {
        !matches!(self, Self::Hold)
    }
}

/// The reason for a record's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// The lease expired: the process died, hung or lost the store. Also the reason of a record
    /// that was taken over, for whatever reason, by a call that then released its claim.
    Crashed,
    /// The future of the body was dropped.
    Dropped,
    /// The body panicked.
    Panicked,
    /// The owner could not renew its lease, and gave up.
    LeaseLost,
    /// The body returned an error that may hide an effect, or said itself that its outcome is
    /// unknown.
    Error,
    /// The body finished, but its result could not be stored.
    NotStored,
    /// The engine was shut down while the body ran.
    ShutDown,
    /// The body finished; its result was larger than the limit and is not kept.
    TooLarge,
    /// The body finished; its result could not be encoded and is not kept.
    NotEncodable,
    /// An operator settled the record on the owner's behalf, or removed it and left a tombstone.
    Resolved,
    /// An earlier attempt crashed, and the query of the outside world returned no answer.
    Unverified,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Crashed => "its process died, hung or lost the store, and its lease expired",
            Self::Dropped => "its future was dropped while the body ran",
            Self::Panicked => "the body panicked",
            Self::LeaseLost => "it lost its lease while the body ran",
            Self::Error => "the body returned an error that may hide an effect",
            Self::NotStored => "the body finished, and its result could not be stored",
            Self::ShutDown => "the engine was shut down while the body ran",
            Self::TooLarge => "its result was larger than the limit",
            Self::NotEncodable => "its result could not be encoded",
            Self::Resolved => "it was resolved by hand",
            Self::Unverified => {
                "it crashed, and the question whether it had happened was not answered"
            }
        })
    }
}

/// One record, as a store returns it. Bodies are opaque bytes to a store.
///
/// All times are the store's. `Debug` shows the size of the body instead of the body: results do
/// not belong in logs.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// The name of the record.
    pub key: KeyHash,
    /// The state.
    pub state: State,
    /// The token that owns the claim, or owned it last.
    pub owner: Token,
    /// A number that grows with every change of ownership while the record exists.
    pub fence: u64,
    /// The operation's name.
    pub operation: Arc<str>,
    /// The namespace of the engine that made the first claim. A part of the key's hash, kept for
    /// people and to list the records of one service in a shared store.
    pub namespace: Arc<str>,
    /// The process that holds the claim, or held it last. A result keeps the one that produced it.
    pub holder: Arc<str>,
    /// The fingerprint that a retry must repeat, if the operation has one.
    pub fingerprint: Option<Fingerprint>,
    /// The policy for when the owner is gone.
    pub policy: CrashPolicy,
    /// The time of the first claim.
    pub created: Timestamp,
    /// The number of times that the call was claimed, this claim included.
    pub attempts: u32,
    /// The reason for the state, if there is more to say than the state.
    pub reason: Option<Reason>,
    /// The time for which an unfinished record is kept after its lease (`in_doubt_retention`), in
    /// whole milliseconds.
    pub linger: Duration,
    /// The time for which a tombstone rejects late retries after expiry, in whole milliseconds; zero
    /// leaves none.
    pub after_expiry: Duration,
    /// The end of the lease, or another time that depends on the state. In progress: the end of the
    /// lease, zero once the owner has given it up. In doubt under [`CrashPolicy::Verify`]: the time
    /// from which the outside world may be queried again. Tombstone: the end of the lease of the
    /// owner whose running record was removed, otherwise zero. An answer: the end of its owner's
    /// lease, or zero where the store does not keep that.
    pub lease_until: Timestamp,
    /// The time from which the store may forget the record.
    pub expires: Timestamp,
    /// The store's time when it read the record.
    pub read_at: Timestamp,
    /// The schema version of the stored result, or of the one to come.
    pub schema: u32,
    /// The number of checkpoints accepted so far, from all owners.
    pub checkpoints: u32,
    /// The state in which the previous owner left the record, if the claim was taken over (T5,
    /// T5b). `None` again once the owner has said that nothing had begun before
    /// ([`Checkpoint::nothing_began`](crate::store::Checkpoint::nothing_began)).
    pub taken_over: Option<State>,
    /// Trace context of the call that made the claim of the last owner (W3C `traceparent`), if there
    /// was any.
    pub trace: Option<Arc<str>>,
    /// The encoded result of a completed or failed record, or the last checkpoint of one that is in
    /// progress or in doubt. Otherwise empty.
    pub body: Bytes,
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("key", &self.key)
            .field("state", &self.state)
            .field("owner", &self.owner)
            .field("fence", &self.fence)
            .field("operation", &self.operation)
            .field("namespace", &self.namespace)
            .field("holder", &self.holder)
            .field("fingerprint", &self.fingerprint)
            .field("policy", &self.policy)
            .field("created", &self.created)
            .field("attempts", &self.attempts)
            .field("reason", &self.reason)
            .field("linger", &self.linger)
            .field("after_expiry", &self.after_expiry)
            .field("lease_until", &self.lease_until)
            .field("expires", &self.expires)
            .field("read_at", &self.read_at)
            .field("schema", &self.schema)
            .field("checkpoints", &self.checkpoints)
            .field("taken_over", &self.taken_over)
            .field("trace", &self.trace)
            .field("body", &format_args!("{} bytes", self.body.len()))
            .finish()
    }
}

impl Record {
    /// A record in progress with nothing else set, as a first claim writes it. Stores fill in the
    /// rest.
    pub fn new(key: KeyHash, owner: Token, operation: Arc<str>) -> Self {
        Self {
            key,
            state: State::InProgress,
            owner,
            fence: 0,
            operation,
            namespace: Arc::default(),
            holder: Arc::default(),
            fingerprint: None,
            policy: CrashPolicy::Hold,
            created: Timestamp::default(),
            attempts: 1,
            reason: None,
            linger: Duration::ZERO,
            after_expiry: Duration::ZERO,
            lease_until: Timestamp::default(),
            expires: Timestamp::default(),
            read_at: Timestamp::default(),
            schema: 0,
            checkpoints: 0,
            taken_over: None,
            trace: None,
            body: Bytes::new(),
        }
    }

    /// Returns true if the record is in progress and its lease still runs.
    pub fn is_running(&self) -> bool {
        self.state == State::InProgress && self.lease_until > self.read_at
    }

    /// Returns true if the record is in progress and its lease has expired.
    pub fn is_orphaned(&self) -> bool {
        self.state == State::InProgress && self.lease_until <= self.read_at
    }
}
