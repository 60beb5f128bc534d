//! What follows from an error of a handler.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

/// The decision about a message whose handler has returned an error.
///
/// `Retry`, `RetryAfter` and `DeadLetter` say that **nothing happened** that must not happen twice:
/// the claim is released, and the next delivery runs the handler from its beginning. Return `Hold`
/// for an error that may hide an effect, such as a provider's timeout.
///
/// A handler that has recorded a [step](crate::Context::step) contradicts them: something happened.
/// Its record is left to the [policy](super::Inbox::with_on_crash). Under `resume` the next delivery
/// continues after the step; under `hold`, the default, it is a dead letter in doubt. Set `resume`
/// for handlers with steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnFailure {
    /// Try again, after a time that grows with the attempts.
    Retry,
    /// Try again after this time.
    RetryAfter(Duration),
    /// Another attempt will not help: the message is a dead letter. Nothing is on record, and a
    /// redrive runs.
    DeadLetter,
    /// The error may hide an effect: the record is in doubt, and the message a dead letter.
    Hold,
    /// The error is the result, for example a declined card: the message is handled.
    Done,
}

/// The function of an inbox that decides about errors of type `E`. It is [`RetryAll`] or what
/// [`with_on_failure`](super::Inbox::with_on_failure) was given.
pub trait FailurePolicy<E>: sealed::Sealed {
    /// Returns what follows from `error`.
    fn decide(&self, error: &E) -> OnFailure;
}

/// The default: every error is [retried](OnFailure::Retry).
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct RetryAll;

impl<E> FailurePolicy<E> for RetryAll {
    fn decide(&self, _: &E) -> OnFailure {
        OnFailure::Retry
    }
}

/// A function over errors of type `E`.
pub struct Decide<E, F>(Arc<F>, PhantomData<fn(&E)>);

impl<E, F> Decide<E, F> {
    pub(super) fn by(decide: F) -> Self {
        Self(Arc::new(decide), PhantomData)
    }
}

impl<E, F: Fn(&E) -> OnFailure> FailurePolicy<E> for Decide<E, F> {
    fn decide(&self, error: &E) -> OnFailure {
        (self.0)(error)
    }
}

impl<E, F> Clone for Decide<E, F> {
    fn clone(&self) -> Self {
        Self(self.0.clone(), PhantomData)
    }
}

impl<E, F> fmt::Debug for Decide<E, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Decide")
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::RetryAll {}
    impl<E, F> Sealed for super::Decide<E, F> {}
}
