//! The decisions that are the user's: conflicts, crashes, errors.

use std::time::Duration;

/// The behaviour of a call that another caller is already running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnConflict {
    /// Waits at most this long for the other caller's result, then fails with
    /// [`InProgress`](crate::ErrorKind::InProgress).
    Wait(Duration),
    /// Fails with [`InProgress`](crate::ErrorKind::InProgress) at once.
    Reject,
}

/// The behaviour of the next call if an earlier one started and it is not known whether it
/// finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnCrash {
    /// Fails with [`InDoubt`](crate::ErrorKind::InDoubt) until an operator resolves the record:
    /// effects at most once.
    Hold,
    /// Runs the body again: effects at least once. For bodies whose effect may happen twice. A body
    /// with steps goes on as under [`Resume`](Self::Resume).
    Retry,
    /// Runs the body again with the recorded [steps](crate::Context::step): those that finished are
    /// replayed, and the first unfinished one runs. Each step's effect happens at least once, or
    /// [at most once](crate::step::Step::at_most_once).
    Resume,
}

/// The state of an earlier attempt according to the outside world: the return value of the
/// verification callback of `on_crash = verify`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict<T> {
    /// The effect happened, and this is its result. It is stored, and every caller gets it.
    Completed(T),
    /// The effect did not happen and will not happen. The body runs now.
    NotExecuted,
    /// It is not known yet. The record stays in doubt and is verified again after a delay: 5
    /// seconds for the second attempt of the call, doubled for every attempt since, whether it
    /// verified or ran the body, up to 10 minutes.
    Unknown,
}

/// The fate of the claim when the body returns an `Err`. `Store` requires serde traits of the error
/// type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnError {
    /// The error means that nothing happened: the claim is released, and the next call runs the
    /// body.
    Release,
    /// The error is the result, for example a declined card: it is stored and replayed.
    ///
    /// For errors of the operation's own. Leave out the variant that holds [`Error`](crate::Error): the
    /// body gets it from a guarded call that it makes, for example, and
    /// [`InProgress`](crate::ErrorKind::InProgress) or
    /// [`ShuttingDown`](crate::ErrorKind::ShuttingDown), which pass, would be the answer for the
    /// whole `ttl`. The engine cannot see that in an error that only has to be stored.
    ///
    /// It does see where it has cut the body itself short: a [step](crate::Context::step) or a
    /// [fence](crate::Context::fence) was refused because the claim is lost or the engine has shut
    /// down, or the store has not confirmed it. Whatever error such a body returns, it is not stored:
    /// the record is left to the next call or in doubt, by the policy, and the caller gets the error.
    /// So an error that does not follow from that is found again by the next attempt, and stored by
    /// it.
    Store,
    /// The error may hide an effect, for example a provider's timeout: the record is held in doubt.
    Hold,
}

/// [`OnError`] without `Store`. Requires nothing of the error type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorAction {
    /// The error means that nothing happened: the claim is released, and the next call runs the
    /// body.
    Release,
    /// The error may hide an effect, for example a provider's timeout: the record is held in doubt.
    Hold,
}
