//! A service that reports the state of a request by its key.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode, request};
use http_body_util::Full;
use serde::Serialize;
use tower_service::Service;

use super::options::Options;
use super::problem::{Problem, ProblemKind};
use super::{headers, hook, scope};
use crate::clock::Timestamp;
use crate::record::RecordView;
use crate::store::State;

/// A service that reports the state of a request with a key, for a route of its own.
///
/// Send `GET` with the key in `Idempotency-Key`, as the same principal as the request itself. The
/// response is JSON:
///
/// ```json
/// {"state": "succeeded", "since": "2026-01-31T12:00:00Z", "expires": "2026-02-01T12:00:00Z"}
/// ```
///
/// `state` is `processing` (its handler is running, its response is being stored, or a verification
/// callback is looking for its outcome), `succeeded`, `failed` (the response had a
/// status of 4xx or 5xx), `uncertain` (its handler has ended or its process is gone, and the
/// outcome is not known) or `expired`.
///
/// The policy decides what follows `uncertain`. Under [`OnCrash::Hold`](crate::OnCrash::Hold)
/// nothing runs until an operator decides. Under `Retry` and `Resume` the next request with the key
/// runs the handler again. With a verification callback the next request calls it.
///
/// `since` is the time of the first request, `expires` the time until which the record is kept. The
/// response itself is never shown. The status is 404 if there is no record. Send the key in the
/// header even if the layer reads it from the body.
///
/// ```
/// # use idempotency::{Idempotency, store::MemoryStore};
/// # use idempotency::http::{IdempotencyLayer, Scope};
/// let layer = IdempotencyLayer::new(Idempotency::new(MemoryStore::new()), Scope::global());
/// let status = layer.status_service(); // axum: `.route_service("/requests/status", status)`
/// ```
#[derive(Clone)]
pub struct StatusService {
    options: Arc<Options>,
}

#[derive(Serialize)]
struct Status {
    state: &'static str,
    since: String,
    expires: String,
}

impl StatusService {
    pub(super) fn new(options: Arc<Options>) -> Self {
        Self { options }
    }

    async fn answer(self, request: request::Parts) -> Response<Full<Bytes>> {
        if request.method != Method::GET && request.method != Method::HEAD {
            let mut response = status(StatusCode::METHOD_NOT_ALLOWED);
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        let refuse = |problem| self.options.refusal(problem, None);
        let key = match hook::call("with_key_format", || {
            self.options.keys.of_headers(&request.headers)
        }) {
            Some(Ok(Some(key))) => key,
            Some(Ok(None)) => return refuse(Problem::new(ProblemKind::Missing)),
            Some(Err(malformed)) => {
                return refuse(Problem::new(ProblemKind::Malformed).because(malformed.0));
            }
            None => return refuse(Problem::new(ProblemKind::Internal)),
        };
        let scope = match hook::call("Scope::of", || self.options.scope.of_request(&request)) {
            Some(Ok(scope)) => scope,
            Some(Err(scope::Nobody)) => return refuse(Problem::new(ProblemKind::NoPrincipal)),
            None => return refuse(Problem::new(ProblemKind::Internal)),
        };
        match self.options.call(&key, scope).record().inspect().await {
            Ok(view) => {
                view.as_ref().and_then(describe).unwrap_or_else(|| status(StatusCode::NOT_FOUND))
            }
            Err(error) => self.options.refusal(Problem::of(&error), Some(&error)),
        }
    }
}

fn status(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Returns `None` if the record only counts attempts.
fn describe(record: &RecordView) -> Option<Response<Full<Bytes>>> {
    let state = match record.state {
        // Only a record whose owner is gone has a reason. Under some policies it remains in
        // progress for the next request.
        State::InProgress if record.reason.is_some() => "uncertain",
        State::InProgress => "processing",
        State::Completed => "succeeded",
        State::Failed => "failed",
        State::InDoubt => "uncertain",
        State::Tombstone => "expired",
        State::Released => return None,
    };
    let text =
        |time: Timestamp| humantime::format_rfc3339_seconds(headers::nameable(time)).to_string();
    let document = Status { state, since: text(record.created), expires: text(record.expires) };
    let mut response = status(StatusCode::OK);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // Three strings: this is always serializable.
    *response.body_mut() = Full::from(serde_json::to_vec(&document).unwrap_or_default());
    Some(response)
}

impl<B> Service<Request<B>> for StatusService {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (head, _) = request.into_parts();
        let service = self.clone();
        Box::pin(async move { Ok(service.answer(head).await) })
    }
}

impl fmt::Debug for StatusService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusService").field("options", &self.options).finish()
    }
}
