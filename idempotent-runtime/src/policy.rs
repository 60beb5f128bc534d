//! What the user decides: conflicts, crashes, errors.

use std::time::Duration;

/// What a call does when another caller is already running it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnConflict {
    /// Waits for the other caller's result at most this long, then fails with
    /// [`InProgress`](crate::ErrorKind::InProgress).
    Wait(Duration),
    /// Fails with [`InProgress`](crate::ErrorKind::InProgress) at once.
    Reject,
}

/// What the next call does when an earlier one started and nobody knows whether it finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnCrash {
    /// Fails with [`InDoubt`](crate::ErrorKind::InDoubt) until somebody resolves the record:
    /// effects at most once.
    Hold,
    /// Runs the body again: effects at least once. For bodies whose effect may happen twice.
    Retry,
    /// Runs the body again with the [steps](crate::Context::step) that are recorded: those that
    /// finished are replayed, and the first unfinished one runs. Each step's effect happens at
    /// least once, or [at most once](crate::Step::at_most_once).
    Resume,
}

/// What the outside world says about an earlier attempt: the answer to the question of
/// `on_crash = verify`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict<T> {
    /// The effect happened, and this is its result: it is stored, and every caller gets it.
    Completed(T),
    /// The effect did not happen and will not: the body runs now.
    NotExecuted,
    /// It cannot be told yet: the record stays in doubt, and is asked about again after a rest: 5
    /// seconds for the second attempt of the call, doubled by every attempt since, whether it asked
    /// or ran the body, up to 10 minutes.
    Unknown,
}

/// What happens to the claim when the body returns an `Err`. Storing asks serde of the error type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnError {
    /// The error says that nothing happened: the claim is released, the next call runs the body.
    Release,
    /// The error is the result, a declined card for example: it is stored and replayed.
    Store,
    /// The error may hide an effect, a provider's timeout for example: the record is held in doubt.
    Hold,
}

/// [`OnError`] without `Store`: asks nothing of the error type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unstored {
    /// The error says that nothing happened: the claim is released, the next call runs the body.
    Release,
    /// The error may hide an effect, a provider's timeout for example: the record is held in doubt.
    Hold,
}
