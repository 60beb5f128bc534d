//! What becomes of a request: the return type of the guarded call, in bytes and back.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;

use super::options::Crash;
use super::stored::{FORMAT, not_kept, state};
use crate::error::{Error, ErrorKind};
use crate::outcome::{Answer, Codec, Ending, ErrorPolicy, Outcome, Upgrades};
use crate::store::{Record, State};

/// How one request ended.
pub(super) enum Handled<E> {
    /// The handler answered, and its response is on its way.
    Answered { fate: Fate },
    /// The service behind the layer failed.
    Failed { error: E, fate: Fate },
    /// What happened is known from somebody else, whose response this is.
    Vouched(Vouched),
    /// An earlier request was answered.
    Replayed(Arc<Record>),
    /// The handler did not run, or its answer cannot be given.
    Refused(Error),
    /// There was an answer, and a marker of the engine stands in its place.
    Lost(Error),
    /// The claim was over before the handler began.
    NotBegun,
}

/// What becomes of the claim.
#[derive(Clone, Debug)]
pub(super) enum Fate {
    /// The record keeps this, for so long.
    Store { state: State, record: Bytes, ttl: Duration },
    /// Nothing happened, as far as the key is concerned.
    Release,
    /// There may be an effect: the policy of the record decides.
    Unknown,
}

impl Fate {
    /// There was a response with this status, and it cannot be sent again.
    pub(super) fn not_kept(status: StatusCode, ttl: Duration) -> Self {
        Self::Store { state: state(status), record: not_kept(status), ttl }
    }

    fn ending(&self) -> Ending {
        match self {
            Self::Store { state, record, ttl } => {
                Ending::Answer { state: *state, body: Ok(record.clone()), ttl: Some(*ttl) }
            }
            Self::Release => Ending::Release,
            Self::Unknown => Ending::GiveUp,
        }
    }
}

/// A response that the question about an earlier attempt brought back.
#[derive(Clone, Debug)]
pub(super) struct Vouched {
    pub(super) state: State,
    pub(super) record: Bytes,
    pub(super) ttl: Duration,
}

impl<E> Handled<E> {
    /// Whether what the handler answered is what every caller gets, or would get if it could be
    /// kept.
    pub(super) fn is_its_own(&self, crash: &Crash) -> bool {
        match self {
            Self::Answered { .. } => true,
            Self::Refused(error) => is_not_kept(error, crash),
            Self::Failed { .. }
            | Self::Vouched(_)
            | Self::Replayed(_)
            | Self::Lost(_)
            | Self::NotBegun => false,
        }
    }
}

/// Whether the handler has done its work, and its answer alone could not be stored: no other answer
/// will be.
///
/// Where the record cannot be written, the next attempt may have an answer of its own for
/// everybody, unless the policy has none. Where the engine keeps less than the mark of an answer
/// that is not kept, a marker of its own is there.
pub(super) fn is_not_kept(error: &Error, crash: &Crash) -> bool {
    match error.kind() {
        ErrorKind::NotStored => !crash.may_be_answered_again(),
        kind => kind == ErrorKind::TooLarge,
    }
}

impl<E> Outcome for Handled<E> {
    type Value = Vouched;
    // A question without an answer says so.
    type Failure = Infallible;

    fn completed(value: Vouched) -> Self {
        Self::Vouched(value)
    }

    fn failed(error: Infallible) -> Self {
        match error {}
    }

    fn codec<P: ErrorPolicy<Infallible>>(policy: P) -> Codec<Self, P> {
        Codec::of(policy, ending, answer)
    }
}

fn ending<E, P>(handled: Handled<E>, _: P) -> (Handled<E>, Ending) {
    let ending = match &handled {
        Handled::Answered { fate } | Handled::Failed { fate, .. } => fate.ending(),
        Handled::Vouched(Vouched { state, record, ttl, .. }) => {
            Ending::Answer { state: *state, body: Ok(record.clone()), ttl: Some(*ttl) }
        }
        Handled::NotBegun => Ending::NotBegun,
        // No handler returns these.
        Handled::Replayed(_) | Handled::Refused(_) | Handled::Lost(_) => Ending::GiveUp,
    };
    (handled, ending)
}

fn answer<E>(answer: Answer, _: &Upgrades<Handled<E>>) -> Handled<E> {
    match answer {
        Answer::Refused(error) => Handled::Refused(error),
        Answer::Stored(stored) => match stored.marker() {
            Some(error) => Handled::Lost(error),
            None if stored.record.schema == FORMAT => Handled::Replayed(stored.record),
            None => Handled::Refused(stored.unreadable("it is no response of the HTTP layer")),
        },
    }
}
