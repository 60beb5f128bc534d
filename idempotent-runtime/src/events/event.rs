//! The events.

use std::sync::Arc;
use std::time::Duration;

use crate::error::ErrorKind;
use crate::key::KeyHash;
use crate::store::{Operation, Reason, State, StoreErrorKind};

/// Something that happened in an engine.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Event<'a> {
    /// The [namespace](crate::Builder::namespace) of the engine.
    pub namespace: &'a str,
    /// The operation of the call; `None` for what concerns no call, and where an operator has only
    /// the name of a record.
    pub operation: Option<&'a Arc<str>>,
    /// The name of the record; `None` for what concerns no record, or many.
    pub key: Option<&'a KeyHash>,
    /// What happened.
    pub what: What<'a>,
}

/// What happened.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum What<'a> {
    /// A call has ended. Reported once for each call whose future was polled and that has an engine.
    #[non_exhaustive]
    Finished {
        /// How it ended.
        outcome: Outcome,
        /// The time since the call turned to the store. `None` if the answer was at hand, or the call
        /// was refused or let through before it could turn to the store. A valid call with a
        /// window, or in a transaction, turns to the store in any case.
        duration: Option<Duration>,
        /// The number of times that the call has been claimed, including the attempt that produced
        /// the answer, or for which the call was refused. Zero if no claim is known.
        attempt: u32,
        /// True if it waited for another caller.
        waited: bool,
    },
    /// A caller was granted the claim, and its body, or its verification, may begin.
    #[non_exhaustive]
    Claimed {
        /// The number of this attempt, from 1.
        attempt: u32,
        /// The fence of the claim.
        fence: u64,
        /// The state of the record that was taken over, if there was one.
        taken_over: Option<State>,
    },
    /// An attempt of this process has left its record in doubt. Not reported for what an operator
    /// or the transaction of a user does.
    #[non_exhaustive]
    InDoubt {
        /// Why.
        reason: Reason,
    },
    /// A body finished after its call had been taken over, or after its record had been removed: its
    /// effect may have happened twice.
    Duplicate,
    /// A renewal was refused before the body had ended: another caller may own the claim. A lease that
    /// ends because the store does not answer is reported when a renewal gets an answer, and one
    /// that ends because of [`max_run`](crate::Builder::max_run) is not reported.
    LeaseLost,
    /// A record had vanished and was written again: the store loses records.
    Adopted,
    /// A result was stored in the background, after its caller had got
    /// [`NotStored`](ErrorKind::NotStored).
    #[non_exhaustive]
    StoredLate {
        /// The time since its caller got that error.
        after: Duration,
    },
    /// A result was never stored: the record is left to its policy, as after a crash, or another
    /// party has decided the call.
    NeverStored,
    /// The store has answered a request, after as many tries as it took, or the request was given up.
    #[non_exhaustive]
    Store {
        /// The name of the store.
        store: &'a str,
        /// What was asked of it.
        request: Operation,
        /// The kind of its error, if it failed.
        result: Result<(), StoreErrorKind>,
        /// The time from the first try to the last answer.
        duration: Duration,
        /// The number of tries.
        tries: u32,
    },
    /// Leases were due, and were sent to the store together.
    #[non_exhaustive]
    Renewed {
        /// The number of leases.
        leases: usize,
        /// The number of those that were not answered, and are tried again.
        unanswered: usize,
    },
    /// A batch of expired records was removed.
    #[non_exhaustive]
    Purged {
        /// The name of the store.
        store: &'a str,
        /// The number of records.
        removed: u64,
        /// The time by which the oldest record that is left is overdue.
        lag: Option<Duration>,
    },
    /// Expired records could not be removed.
    PurgeFailed,
    /// An operator has answered for a record, or has removed it.
    #[non_exhaustive]
    Operated {
        /// [`Operation::Resolve`] or [`Operation::Remove`].
        action: Operation,
        /// The kind of the error that the operator got, if it was refused or is not known.
        result: Result<(), ErrorKind>,
    },
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// The body ran here, or the outside world knew the result, and it is stored. In the user's own
    /// transaction it is stored once that is committed.
    Executed,
    /// The body ran here, or the outside world knew that it had failed, and the error is stored as
    /// the result.
    Failed,
    /// The body ran here and its error releases the claim, or the body of an edge never had its turn:
    /// nothing of this attempt keeps the next call from running. If the store does not answer, the
    /// background goes on releasing it.
    Released,
    /// The body ran here, or the outside world was asked, and the record is left in doubt or to the
    /// next attempt: because of the error, of the steps, or of an answer that is not known yet.
    Held,
    /// The body ran here, or the outside world knew the result, and it could not be kept: it is too
    /// large, or cannot be encoded.
    Unkept,
    /// The call got the answer of another one.
    Replayed(Source),
    /// The call was refused, and its body did not run.
    Refused(ErrorKind),
    /// The body ran here, or the outside world was asked, and another party decided the call
    /// meanwhile.
    Superseded,
    /// The body ran here, or the outside world knew the result, and it could not be stored. The background continues if it has a
    /// place for it: [`What::StoredLate`] or [`What::NeverStored`] follows, except in a
    /// transaction, where nothing can be stored later.
    NotStored,
    /// The future of the call was dropped before its body, or its verification, had ended, or a
    /// destructor or the store's client panicked.
    Dropped,
    /// The body panicked. In a transaction that is [`Dropped`](Self::Dropped).
    Panicked,
    /// The body runs without protection, because the operation is disabled. Reported before the body
    /// begins: nothing else is known about the call.
    Bypassed,
}

impl Outcome {
    /// The name of the outcome, for metrics: `executed`, `replayed`, …
    pub const fn name(self) -> &'static str {
        match self {
            Self::Executed => "executed",
            Self::Failed => "failed",
            Self::Released => "released",
            Self::Held => "held",
            Self::Unkept => "unkept",
            Self::Replayed(_) => "replayed",
            Self::Refused(_) => "refused",
            Self::Superseded => "superseded",
            Self::NotStored => "not_stored",
            Self::Dropped => "dropped",
            Self::Panicked => "panicked",
            Self::Bypassed => "bypassed",
        }
    }
}

/// Where a replayed answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Source {
    /// The near cache of this process.
    Near,
    /// A store in the memory of this process, read without a claim.
    Memory,
    /// The store.
    Store,
    /// Another call in this process, which asked the store for both.
    Joined,
}

impl Source {
    /// The name of the source, for metrics: `near`, `memory`, `store`, `joined`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Near => "near",
            Self::Memory => "memory",
            Self::Store => "store",
            Self::Joined => "joined",
        }
    }
}
