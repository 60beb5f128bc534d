//! The outcome of a request: the return type of the guarded call, and its encoding.

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

/// The end of one request.
pub(super) enum Handled<E> {
    /// The handler answered, and its response is on its way.
    Answered { fate: Fate },
    /// The service behind the layer failed.
    Failed { error: E, fate: Fate },
    /// The verification callback knows what happened, and this is its response.
    Vouched(Vouched),
    /// An earlier request was answered.
    Replayed(Arc<Record>),
    /// The handler did not run, or its response cannot be sent.
    Refused(Error),
    /// There was a response, and a marker of the engine is stored in its place.
    Lost(Error),
    /// The claim ended before the handler began.
    NotBegun,
}

/// The decision about the claim.
#[derive(Clone, Debug)]
pub(super) enum Fate {
    /// The record keeps this for the `ttl`.
    Store { state: State, record: Bytes, ttl: Duration },
    /// Nothing happened, as far as the key is concerned.
    Release,
    /// There may be an effect: the record's policy decides.
    Unknown,
}

impl Fate {
    /// Records that there was a response with this status which cannot be sent again.
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

/// A response that the verification callback returned for an earlier attempt.
#[derive(Clone, Debug)]
pub(super) struct Vouched {
    pub(super) state: State,
    pub(super) record: Bytes,
    pub(super) ttl: Duration,
}

impl<E> Handled<E> {
    /// Returns true if the handler's response is what every caller gets, or would get if it could
    /// be stored.
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

/// Returns true if the handler has done its work and only its response could not be stored: no
/// other response will be.
///
/// `NotStored`: the record could not be written, so the next attempt may produce another response
/// for every caller, unless the policy excludes that. `TooLarge`: the engine's limit is smaller
/// than even the marker of a response that is not stored, and the engine's own marker is in its
/// place.
pub(super) fn is_not_kept(error: &Error, crash: &Crash) -> bool {
    match error.kind() {
        ErrorKind::NotStored => !crash.may_be_answered_again(),
        kind => kind == ErrorKind::TooLarge,
    }
}

impl<E> Outcome for Handled<E> {
    type Value = Vouched;
    // A callback without an answer returns `Verdict::Unknown`, not an error.
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
            None => Handled::Refused(stored.unreadable("it is not a response of the HTTP layer")),
        },
    }
}
