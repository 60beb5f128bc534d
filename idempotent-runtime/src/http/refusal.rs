//! The answer to a request that is refused: what is decided, in the form that the service wants.

use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, HeaderValue, TRANSFER_ENCODING};
use http_body_util::Full;

use super::hook;
use super::options::Options;
use super::problem::Problem;
use crate::error::Error;

/// Makes another response of a refusal.
pub(super) type Shape = dyn Fn(&Problem, Response<Bytes>) -> Response<Bytes> + Send + Sync;

impl Options {
    /// The answer that tells `problem`, and the `error` behind it to the layers in front.
    ///
    /// The form is the service's. That it is a refusal, that nobody keeps it, and which one it is, are ours.
    pub(super) fn refusal(&self, problem: Problem, error: Option<&Error>) -> Response<Full<Bytes>> {
        let problem = problem.with_documentation(self.documentation.to_string());
        let mut response = self.shaped(&problem).unwrap_or_else(|| problem.response());
        let headers = response.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        // They are the server's, which knows the body.
        headers.remove(CONTENT_LENGTH);
        headers.remove(TRANSFER_ENCODING);
        self.markers.refused(headers, problem.kind());
        response.extensions_mut().insert(problem.kind());
        if let Some(error) = error {
            response.extensions_mut().insert(error.clone());
        }
        response.map(Full::new)
    }

    /// `None` where our own form is the one that is wanted, or the only one that can be had.
    fn shaped(&self, problem: &Problem) -> Option<Response<Bytes>> {
        let shape: &Arc<Shape> = self.shape.as_ref()?;
        let shaped = hook::call("with_problem", || shape(problem, problem.response()))?;
        if !shaped.status().is_client_error() && !shaped.status().is_server_error() {
            tracing::error!(
                status = shaped.status().as_u16(),
                "`with_problem` gave a refusal a status that is not an error's, and is not asked"
            );
            return None;
        }
        Some(shaped)
    }
}
