//! Integration with axum: extractors and responses.

use std::convert::Infallible;

use axum_core::extract::{FromRequestParts, OptionalFromRequestParts};
use axum_core::response::{IntoResponse, IntoResponseParts, Response, ResponseParts};
use http::request::Parts;

use super::effects::NothingHappened;
use super::key::IdempotencyKey;
use super::problem::{Problem, ProblemKind};
use crate::error::{Error, ErrorKind};

/// Extracts the key that the layer found. Without the layer, or without a key, the request is
/// rejected (400); extract `Option<IdempotencyKey>` where that is allowed.
impl<S: Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts.extensions.get().cloned().ok_or(Problem::new(ProblemKind::Missing))
    }
}

impl<S: Sync> OptionalFromRequestParts<S> for IdempotencyKey {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Self::Rejection> {
        Ok(parts.extensions.get().cloned())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        self.to_response().into_response()
    }
}

/// The [`Problem`] that a client sees for the error, for handlers that return
/// `Result<_, idempotency::Error>`.
///
/// The extensions of the response show the
/// [layer](super::IdempotencyLayer#errors-of-guarded-calls-inside) around the handler which error it
/// is.
impl IntoResponse for Error {
    fn into_response(self) -> Response {
        Problem::of(&self).into_response()
    }
}

/// Adds the error to a response that a handler builds from it itself.
/// `(StatusCode::CONFLICT, error, "busy")` reports to the
/// [layer](super::IdempotencyLayer#errors-of-guarded-calls-inside) around the handler what happened
/// to the guarded call. The client gets nothing of it.
impl IntoResponseParts for Error {
    type Error = Infallible;

    fn into_response_parts(self, mut parts: ResponseParts) -> Result<ResponseParts, Infallible> {
        parts.extensions_mut().insert(self.kind());
        parts.extensions_mut().insert(self);
        Ok(parts)
    }
}

/// Adds the kind of an error to a response. It keeps the
/// [layer](super::IdempotencyLayer#errors-of-guarded-calls-inside) around the handler from storing
/// the response. The key is held, because the kind alone does not show whose error it is: add the
/// [`Error`] itself where it is that of a guarded call.
impl IntoResponseParts for ErrorKind {
    type Error = Infallible;

    fn into_response_parts(self, mut parts: ResponseParts) -> Result<ResponseParts, Infallible> {
        parts.extensions_mut().insert(self);
        Ok(parts)
    }
}

/// Marks a response: `(StatusCode::SERVICE_UNAVAILABLE, NothingHappened, "try again")`.
impl IntoResponseParts for NothingHappened {
    type Error = Infallible;

    fn into_response_parts(self, mut parts: ResponseParts) -> Result<ResponseParts, Infallible> {
        parts.extensions_mut().insert(self);
        Ok(parts)
    }
}

/// A response that is marked with [`NothingHappened`] as a whole, in particular an error.
///
/// ```
/// use axum_core::response::IntoResponse;
/// use http::StatusCode;
/// use idempotency::http::NotExecuted;
///
/// # fn connect() -> Result<(), StatusCode> { Err(StatusCode::SERVICE_UNAVAILABLE) }
/// # fn charge(_: ()) -> Result<&'static str, StatusCode> { Ok("paid") }
/// async fn pay() -> Result<impl IntoResponse, axum_core::response::ErrorResponse> {
///     // Without a connection nothing was charged: the key is released.
///     let bank = connect().map_err(NotExecuted)?;
///     // From here on the outcome is unknown: the key is held.
///     Ok(charge(bank)?)
/// }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NotExecuted<R>(pub R);

impl<R: IntoResponse> IntoResponse for NotExecuted<R> {
    fn into_response(self) -> Response {
        NothingHappened::mark(self.0.into_response())
    }
}
