//! The layer's types where axum meets them.

use axum_core::extract::{FromRequestParts, OptionalFromRequestParts};
use axum_core::response::{IntoResponse, Response};
use http::request::Parts;

use super::key::IdempotencyKey;
use super::problem::{Problem, ProblemKind};
use crate::error::Error;

/// The key that the layer has found. Without the layer, or without a key, the request is refused (400); extract
/// `Option<IdempotencyKey>` where that is allowed.
impl<S: Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts.extensions.get().cloned().ok_or(Problem::new(ProblemKind::Missing))
    }
}

impl<S: Sync> OptionalFromRequestParts<S> for IdempotencyKey {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Self::Rejection> {
        Ok(parts.extensions.get().cloned())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        self.to_response().into_response()
    }
}

/// The [`Problem`] that the error is to a client, for handlers that return `Result<_, idempotency::Error>`.
impl IntoResponse for Error {
    fn into_response(self) -> Response {
        Problem::of(&self).into_response()
    }
}
