//! Effects of a handler, as its response reports them in addition to the status (R64, R65).

use http::{Extensions, Response};

use super::options::OnStatus;
use super::problem::ProblemKind;
use crate::error::{Error, ErrorKind};

/// An extension of a response by which the handler declares that nothing happened, whatever the
/// status. The key is released, and the next request with it runs the handler again.
///
/// Without it, a handler that has begun and answers 408 or 5xx leaves an unknown outcome
/// ([`OnStatus::standard`]). **Use it only for work that was not begun or was rolled back**: a
/// provider that did not answer may have charged. It is ignored if [steps](crate::Context::step) of
/// the handler are on the record: they have happened.
///
/// With the feature `axum` it can be part of a response,
/// `(StatusCode::SERVICE_UNAVAILABLE, NothingHappened, "try again")`, and `NotExecuted` wraps a
/// whole response.
///
/// ```
/// use http::{Response, StatusCode};
/// use idempotency::http::NothingHappened;
///
/// /// The pool has no connection: nothing was charged.
/// fn busy() -> Response<String> {
///     let mut response = NothingHappened::mark(Response::new("try again".to_owned()));
///     *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
///     response
/// }
/// # assert!(busy().extensions().get::<NothingHappened>().is_some());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NothingHappened;

impl NothingHappened {
    /// Adds this to the extensions of `response`.
    pub fn mark<B>(mut response: Response<B>) -> Response<B> {
        response.extensions_mut().insert(Self);
        response
    }
}

/// An extension of a problem that was made of an error with this kind, whose guarded call
/// [left nothing](Error::left_nothing).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LeftNothing(pub(super) ErrorKind);

/// An extension of the refusal of a layer: its handler did not run, or its call ended with an error.
#[derive(Clone, Copy, Debug)]
pub(super) struct OfLayer;

/// Returns the decision that the extensions of a response contain. `None`: the status decides.
///
/// A response that passes on an error (R65) is never stored: the error was true for a moment, and
/// would be replayed for as long as the record is kept. It releases the key only if it is the error
/// of a guarded call that left nothing. Every other one may come after an effect of the handler.
pub(super) fn told(extensions: &Extensions) -> Option<OnStatus> {
    if extensions.get::<NothingHappened>().is_some() {
        return Some(OnStatus::Release);
    }
    let kind = extensions.get::<ErrorKind>().copied();
    // A problem built from an error has both kinds, and the error's is more precise.
    let left_nothing = match (extensions.get::<Error>(), kind) {
        // A kind that the handler has set since is about something else.
        (Some(error), kind) => error.left_nothing() && kind.is_none_or(|kind| kind == error.kind()),
        (None, Some(kind)) => extensions.get() == Some(&LeftNothing(kind)),
        (None, None) => return of_problem(extensions),
    };
    Some(if left_nothing { OnStatus::Release } else { OnStatus::Hold })
}

/// Returns the kind of an error about a key that is not the request's, if the client would relate
/// the response's problem to the key that it sent. A layer inside has checked the request's own key.
/// The problem is logged, because the response that replaces it does not name it.
pub(super) fn blames_the_key(extensions: &Extensions) -> Option<ErrorKind> {
    let kind = *extensions.get::<ErrorKind>()?;
    let is_about_a_key = matches!(kind, ErrorKind::MissingKey | ErrorKind::InvalidKey);
    let says_so = matches!(extensions.get(), Some(ProblemKind::Missing | ProblemKind::Malformed));
    if !is_about_a_key || !says_so || extensions.get::<OfLayer>().is_some() {
        return None;
    }
    tracing::error!(?kind, "a handler failed because of a key that is not its request's");
    Some(kind)
}

/// Returns the decision for a problem without an error: the refusal of a layer inside this one, which
/// knows whether its handler ran, or a problem that the handler has made, which may have had effects
/// before.
fn of_problem(extensions: &Extensions) -> Option<OnStatus> {
    let is_of_layer = extensions.get::<OfLayer>().is_some();
    Some(match *extensions.get::<ProblemKind>()? {
        ProblemKind::Uncertain
        | ProblemKind::Expired
        | ProblemKind::NotKept
        | ProblemKind::Internal => OnStatus::Hold,
        // A handler answers so when another service was not available, also after an effect.
        ProblemKind::InProgress | ProblemKind::Unavailable if !is_of_layer => OnStatus::Hold,
        ProblemKind::Missing
        | ProblemKind::Malformed
        | ProblemKind::NoPrincipal
        | ProblemKind::Mismatch
        | ProblemKind::InProgress
        | ProblemKind::TooLarge
        | ProblemKind::Unreadable
        | ProblemKind::Unavailable => OnStatus::Release,
    })
}

#[cfg(test)]
mod tests {
    use http::{Extensions, Response};

    use super::{NothingHappened, OfLayer, blames_the_key, told};
    use crate::error::{Error, ErrorKind};
    use crate::http::options::OnStatus;
    use crate::http::problem::{Problem, ProblemKind};

    #[test]
    fn an_error_knows_more_than_the_problem_that_was_made_of_it() {
        for (kind, problem, expected) in [
            (ErrorKind::InProgress, ProblemKind::InProgress, OnStatus::Release),
            (ErrorKind::Superseded, ProblemKind::InProgress, OnStatus::Hold),
        ] {
            let response = Problem::of(&Error::new(kind).of_call()).to_response();
            assert_eq!(response.extensions().get(), Some(&problem));
            assert_eq!(told(response.extensions()), Some(expected), "{kind:?}");
        }
    }

    #[test]
    fn only_the_error_of_a_guarded_call_releases() {
        let kind = ErrorKind::StoreUnavailable;
        let of_a_call = Error::new(kind).of_call();
        for (error, expected) in
            [(of_a_call.clone(), OnStatus::Release), (Error::new(kind), OnStatus::Hold)]
        {
            let mut whole = Response::new(());
            whole.extensions_mut().insert(error.clone());
            for extensions in [whole.extensions(), Problem::of(&error).to_response().extensions()] {
                assert_eq!(told(extensions), Some(expected), "{error}");
            }
            // In words of the handler's own, and about something else.
            whole.extensions_mut().insert(ErrorKind::Full);
            assert_eq!(told(whole.extensions()), Some(OnStatus::Hold), "{error}");
        }
        let mut alone = Response::new(());
        alone.extensions_mut().insert(kind);
        assert_eq!(told(alone.extensions()), Some(OnStatus::Hold));
    }

    #[test]
    fn an_error_whose_transaction_was_rolled_back_releases_whatever_its_kind() {
        for kind in [ErrorKind::TooLarge, ErrorKind::Encode] {
            let rolled_back = Error::new(kind).rolled_back(false).of_call();
            let mut response = Problem::of(&rolled_back).to_response();
            assert_eq!(told(response.extensions()), Some(OnStatus::Release), "{kind:?}");
            // Of another call.
            response.extensions_mut().insert(ErrorKind::InDoubt);
            assert_eq!(told(response.extensions()), Some(OnStatus::Hold), "{kind:?}");
            // Without a transaction.
            let response = Problem::of(&Error::new(kind).of_call()).to_response();
            assert_eq!(told(response.extensions()), Some(OnStatus::Hold), "{kind:?}");
        }
    }

    #[test]
    fn the_handlers_own_word_goes_first_and_a_status_alone_says_nothing_here() {
        let doubtful = Problem::of(&Error::new(ErrorKind::InDoubt)).to_response();
        assert_eq!(told(NothingHappened::mark(doubtful).extensions()), Some(OnStatus::Release));
        assert_eq!(told(Response::new(()).extensions()), None);
        assert_eq!(told(&Extensions::new()), None);
    }

    #[test]
    fn only_a_layer_inside_speaks_of_the_key_of_the_request() {
        let error = Error::new(ErrorKind::InvalidKey);
        let mut response = Problem::of(&error).to_response();
        assert_eq!(blames_the_key(response.extensions()), Some(ErrorKind::InvalidKey));
        response.extensions_mut().insert(error);
        assert_eq!(blames_the_key(response.extensions()), Some(ErrorKind::InvalidKey));
        response.extensions_mut().insert(OfLayer);
        assert_eq!(blames_the_key(response.extensions()), None);
        // In words of the handler's own.
        let mut response = Response::new(());
        response.extensions_mut().insert(ErrorKind::MissingKey);
        assert_eq!(blames_the_key(response.extensions()), None);
        let refusal = Problem::new(ProblemKind::Missing).to_response();
        assert_eq!(blames_the_key(refusal.extensions()), None);
    }

    #[test]
    fn the_refusal_of_a_layer_inside_releases_what_was_refused_before_the_handler() {
        for (kind, expected) in [
            (ProblemKind::NoPrincipal, OnStatus::Release),
            (ProblemKind::TooLarge, OnStatus::Release),
            (ProblemKind::Unavailable, OnStatus::Release),
            (ProblemKind::NotKept, OnStatus::Hold),
            (ProblemKind::Internal, OnStatus::Hold),
        ] {
            let mut refusal = Problem::new(kind).to_response();
            refusal.extensions_mut().insert(OfLayer);
            assert_eq!(told(refusal.extensions()), Some(expected), "{kind:?}");
        }
    }

    #[test]
    fn a_problem_that_a_handler_has_made_releases_only_what_is_about_the_request() {
        for (kind, expected) in [
            (ProblemKind::Unavailable, OnStatus::Hold),
            (ProblemKind::InProgress, OnStatus::Hold),
            (ProblemKind::Uncertain, OnStatus::Hold),
            (ProblemKind::Mismatch, OnStatus::Release),
            (ProblemKind::Missing, OnStatus::Release),
        ] {
            let made = Problem::new(kind).to_response();
            assert_eq!(told(made.extensions()), Some(expected), "{kind:?}");
        }
    }
}
