//! Refusals in the form that clients of Stripe's API expect (R66).

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use serde::Serialize;

use super::headers::STRIPE_SHOULD_RETRY;
use super::problem::{Plain, Problem, ProblemKind};

#[derive(Serialize)]
struct Document<'a> {
    error: Described<'a>,
}

#[derive(Serialize)]
struct Described<'a> {
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    message: String,
    doc_url: &'a str,
}

/// The form of a kind of refusal.
struct Form {
    status: StatusCode,
    r#type: &'static str,
    code: Option<&'static str>,
    /// True if a repetition with the same key helps, false if not. `None` where the status alone
    /// shows it.
    repeat: Option<bool>,
}

impl Form {
    /// Returns the form of a problem. Those clients take a body without `error` for a result,
    /// whatever its status. They map 400 with `idempotency_error` to the error of that name. They
    /// retry 409 and 5xx unless `Stripe-Should-Retry` forbids it.
    fn of(problem: &Problem) -> Self {
        const API: &str = "api_error";
        const IDEMPOTENCY: &str = "idempotency_error";
        const REQUEST: &str = "invalid_request_error";
        let (r#type, code, repeat) = match problem.kind() {
            ProblemKind::Missing
            | ProblemKind::Malformed
            | ProblemKind::Unreadable
            | ProblemKind::TooLarge => (REQUEST, None, None),
            ProblemKind::NoPrincipal => (REQUEST, None, Some(false)),
            ProblemKind::Mismatch | ProblemKind::Expired | ProblemKind::NotKept => {
                (IDEMPOTENCY, None, Some(false))
            }
            ProblemKind::InProgress => (IDEMPOTENCY, Some("idempotency_key_in_use"), Some(true)),
            ProblemKind::Uncertain => (API, None, Some(false)),
            ProblemKind::Unavailable => (API, None, Some(true)),
            ProblemKind::Internal => (API, None, problem.would_recur().then_some(false)),
        };
        let status = match problem.kind() {
            ProblemKind::Mismatch | ProblemKind::Expired => StatusCode::BAD_REQUEST,
            kind => kind.status(),
        };
        Self { status, r#type, code, repeat }
    }
}

/// Returns `problem` in the form of Stripe's API, for [`stripe`](super::IdempotencyLayer::stripe).
pub(super) fn response(problem: &Problem) -> Response<Bytes> {
    let form = Form::of(problem);
    let address = problem.address();
    let error = Described {
        r#type: form.r#type,
        code: form.code,
        message: format!("{}. {}", problem.title(), problem.detail()),
        doc_url: &address,
    };
    // Only text: this is always serializable.
    let body = serde_json::to_vec(&Document { error }).unwrap_or_default();
    let mut response = problem.response().map(|_| Bytes::from(body));
    response.extensions_mut().remove::<Plain>();
    *response.status_mut() = form.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(repeat) = form.repeat {
        headers.insert(
            STRIPE_SHOULD_RETRY,
            HeaderValue::from_static(if repeat { "true" } else { "false" }),
        );
    }
    if form.repeat == Some(false) {
        headers.remove(RETRY_AFTER);
    }
    response
}
