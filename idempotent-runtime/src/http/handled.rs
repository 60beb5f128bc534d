//! The end of a handler, and what its request is answered with.

use std::time::Duration;

use http::StatusCode;

use super::options::Crash;
use super::stored::{not_kept, result};
use crate::edge::{EdgeOutcome, End};
use crate::error::{Error, ErrorKind};

/// The end of a handler: `Ok` if its response is on its way, or the error of the service behind the
/// layer.
pub(super) type Handled<E> = (Result<(), E>, End);

/// The outcome of a request.
pub(super) type Outcome<E> = EdgeOutcome<Result<(), E>>;

/// Returns the end of a handler whose response has this status and cannot be sent again.
pub(super) fn end_not_kept(status: StatusCode, ttl: Duration) -> End {
    result(status, not_kept(status)).with_ttl(ttl).into()
}

/// Returns true if the handler's response is what every caller gets, or would get if it could be
/// stored.
pub(super) fn is_its_own<E>(outcome: &Outcome<E>, crash: &Crash) -> bool {
    match outcome {
        EdgeOutcome::Executed(handled) | EdgeOutcome::Unprotected(handled) => handled.is_ok(),
        EdgeOutcome::Refused { error, .. } => is_not_kept(error, crash),
        EdgeOutcome::Replayed { .. } | EdgeOutcome::Lost { .. } => false,
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
