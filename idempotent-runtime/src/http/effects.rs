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

/// An extension of a problem that was made of an error with this kind: the body ran in a
/// transaction of the user, and nothing that it wrote there is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RolledBack(pub(super) ErrorKind);

/// Returns the decision that the extensions of a response contain. `None`: the status decides.
pub(super) fn told(extensions: &Extensions) -> Option<OnStatus> {
    if extensions.get::<NothingHappened>().is_some() {
        return Some(OnStatus::Release);
    }
    // A problem built from an error has both kinds, and the error's is more precise.
    let of_error = extensions.get().map(|&kind| {
        // A kind that the handler has set since is about another call.
        let is_rolled_back = extensions.get() == Some(&RolledBack(kind));
        if is_rolled_back { OnStatus::Release } else { of_error(kind) }
    });
    of_error.or_else(|| extensions.get().copied().map(of_problem))
}

/// Returns the kind of an error about the key of a guarded call inside the handler, if the client
/// would relate the response's problem to the key that it sent. A layer inside has checked the
/// request's own key, and puts its whole error into the extensions. The problem is logged, because
/// the response that replaces it does not name it.
pub(super) fn blames_the_key(extensions: &Extensions) -> Option<ErrorKind> {
    let kind = *extensions.get::<ErrorKind>()?;
    let is_about_a_key = matches!(kind, ErrorKind::MissingKey | ErrorKind::InvalidKey);
    let says_so = matches!(extensions.get(), Some(ProblemKind::Missing | ProblemKind::Malformed));
    if !is_about_a_key || !says_so || extensions.get::<Error>().is_some() {
        return None;
    }
    tracing::error!(?kind, "a guarded call inside a handler has no valid key");
    Some(kind)
}

/// Returns the decision for a response that passes on this error of a guarded call inside the
/// handler (R65). It is never `Store`: the error was true of the call for a moment, and would be
/// replayed for as long as the record is kept.
const fn of_error(kind: ErrorKind) -> OnStatus {
    match kind {
        // The call did not run, or ran in a transaction that was rolled back: it has left nothing,
        // and can run later or for another request. Other kinds do not show that by themselves
        // (`RolledBack`).
        ErrorKind::InProgress
        | ErrorKind::StoreUnavailable
        | ErrorKind::Full
        | ErrorKind::ShuttingDown
        | ErrorKind::Mismatch
        | ErrorKind::MissingKey
        | ErrorKind::InvalidKey => OnStatus::Release,
        // There may be an effect of this call or of an earlier one.
        ErrorKind::InDoubt
        | ErrorKind::NotStored
        | ErrorKind::TooLarge
        | ErrorKind::Encode
        | ErrorKind::Decode
        | ErrorKind::Superseded
        | ErrorKind::StepInterrupted
        | ErrorKind::Expired
        // The service is at fault, and an operator has to look in any case.
        | ErrorKind::Reentrant
        | ErrorKind::Config
        | ErrorKind::Unsupported
        | ErrorKind::NotInstalled => OnStatus::Hold,
    }
}

/// Returns the decision for the refusal of a layer inside this one.
const fn of_problem(kind: ProblemKind) -> OnStatus {
    match kind {
        ProblemKind::Missing
        | ProblemKind::Malformed
        | ProblemKind::NoPrincipal
        | ProblemKind::Mismatch
        | ProblemKind::InProgress
        | ProblemKind::TooLarge
        | ProblemKind::Unreadable
        | ProblemKind::Unavailable => OnStatus::Release,
        ProblemKind::Uncertain
        | ProblemKind::Expired
        | ProblemKind::NotKept
        | ProblemKind::Internal => OnStatus::Hold,
    }
}

#[cfg(test)]
mod tests {
    use http::{Extensions, Response};

    use super::{NothingHappened, blames_the_key, told};
    use crate::error::{Error, ErrorKind};
    use crate::http::options::OnStatus;
    use crate::http::problem::{Problem, ProblemKind};

    #[test]
    fn an_error_knows_more_than_the_problem_that_was_made_of_it() {
        for (kind, problem, expected) in [
            (ErrorKind::InProgress, ProblemKind::InProgress, OnStatus::Release),
            (ErrorKind::Superseded, ProblemKind::InProgress, OnStatus::Hold),
        ] {
            let response = Problem::of(&Error::new(kind)).to_response();
            assert_eq!(response.extensions().get(), Some(&problem));
            assert_eq!(told(response.extensions()), Some(expected), "{kind:?}");
        }
    }

    #[test]
    fn an_error_whose_transaction_was_rolled_back_releases_whatever_its_kind() {
        for kind in [ErrorKind::TooLarge, ErrorKind::Encode] {
            let rolled_back = Error::new(kind).rolled_back(false);
            let mut response = Problem::of(&rolled_back).to_response();
            assert_eq!(told(response.extensions()), Some(OnStatus::Release), "{kind:?}");
            // Of another call.
            response.extensions_mut().insert(ErrorKind::InDoubt);
            assert_eq!(told(response.extensions()), Some(OnStatus::Hold), "{kind:?}");
            // Without a transaction.
            let response = Problem::of(&Error::new(kind)).to_response();
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
            (ProblemKind::NotKept, OnStatus::Hold),
            (ProblemKind::Internal, OnStatus::Hold),
        ] {
            assert_eq!(
                told(Problem::new(kind).to_response().extensions()),
                Some(expected),
                "{kind:?}"
            );
        }
    }
}
