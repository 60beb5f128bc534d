//! Refusals as problem details (RFC 9457).

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_EXPOSE_HEADERS, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER,
};
use http::{Response, StatusCode};
use http_body_util::Full;
use serde::Serialize;

use super::effects::LeftNothing;
use super::headers::IDEMPOTENCY_PROBLEM;
use super::key::IdempotencyKey;
use crate::error::{Error, ErrorKind};
use crate::store::{Operation, StoreError};

/// The default address of the page that explains the types of problems.
pub(super) const DOCUMENTATION: &str =
    "https://docs.rs/idempotency/latest/idempotency/http/index.html";

/// The reason for a refusal. Each kind has a `type` of its own: the documentation's address, `#`,
/// and the kind's [name](Self::name).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ProblemKind {
    /// The request has no key, but requires one.
    Missing,
    /// The key cannot be used.
    Malformed,
    /// The request has no principal.
    NoPrincipal,
    /// The key was used for another request.
    Mismatch,
    /// The first request with this key is still running.
    InProgress,
    /// The first request with this key started, and its outcome is not known.
    Uncertain,
    /// The response for this key has expired.
    Expired,
    /// The first request with this key was answered, but its response was not stored.
    NotKept,
    /// The body of the request is larger than the limit.
    TooLarge,
    /// The body of the request could not be read.
    Unreadable,
    /// The store of records is not available, or the service is shutting down. The handler, or the
    /// guarded call inside it, did not run, or its transaction was rolled back.
    Unavailable,
    /// The service is at fault.
    Internal,
}

impl ProblemKind {
    /// The last part of the `type`.
    pub const fn name(self) -> &'static str {
        match self {
            // R49: every kind has a name of its own.
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::NoPrincipal => "no-principal",
            Self::Mismatch => "mismatch",
            Self::InProgress => "in-progress",
            Self::Uncertain => "uncertain",
            Self::Expired => "expired",
            Self::NotKept => "not-kept",
            Self::TooLarge => "too-large",
            Self::Unreadable => "unreadable",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }

    /// The status of the refusal.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::Missing | Self::Malformed | Self::Unreadable => StatusCode::BAD_REQUEST,
            Self::NoPrincipal => StatusCode::UNAUTHORIZED,
            Self::Mismatch => StatusCode::UNPROCESSABLE_ENTITY,
            Self::InProgress | Self::Uncertain | Self::NotKept => StatusCode::CONFLICT,
            Self::Expired => StatusCode::GONE,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Title and advice: the problem, and the action that a client can take.
    const fn text(self) -> (&'static str, &'static str) {
        match self {
            Self::Missing => (
                "The request has no Idempotency-Key",
                "Send a key that is new for each request, and the same one with each retry of it.",
            ),
            Self::Malformed => (
                "The Idempotency-Key cannot be used",
                "Send one key as a quoted string, for example a UUID.",
            ),
            Self::NoPrincipal => (
                "The request cannot be attributed to a caller",
                "Authenticate, then send it again.",
            ),
            Self::Mismatch => (
                "The Idempotency-Key was used for another request",
                "Use a new key for a new request, or repeat the first request unchanged.",
            ),
            Self::InProgress => (
                "A request with this Idempotency-Key is being processed",
                "Retry later with the same key to get its response.",
            ),
            Self::Uncertain => (
                "The outcome of the request with this Idempotency-Key is not known",
                "Do not send it with another key. Retry with the same one later, or ask the operator of the service.",
            ),
            Self::Expired => (
                "The Idempotency-Key is too old",
                "Its response is no longer stored. Find out what became of the first request \
                 before you send another.",
            ),
            Self::NotKept => (
                "The request was processed, but its response was not stored",
                "It will not run again. Read the state of the resource instead.",
            ),
            Self::TooLarge => ("The body of the request is too large", "Send a smaller one."),
            Self::Unreadable => {
                ("The body of the request could not be read", "Send it again, with the same key.")
            }
            Self::Unavailable => ("The service cannot process the request now", RETRY_LATER),
            Self::Internal => (
                "The service failed",
                "Retry with the same key to learn the outcome; do not send the request with another key.",
            ),
        }
    }

    const fn retry_after(self) -> Option<Duration> {
        match self {
            Self::InProgress | Self::Unavailable => Some(Duration::from_secs(1)),
            _ => None,
        }
    }
}

const RETRY_LATER: &str = "Retry later with the same key.";

/// The call that an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    /// The request itself.
    Request,
    /// A call of a service that has no layer. Its key may be the client's.
    Call,
    /// A call, or something else, in a handler behind a layer. The handler may have done something
    /// before it, under keys that are derived from the request's.
    Inside,
}

impl Subject {
    /// The advice if the call was refused before it ran. An earlier attempt may have run it.
    const fn not_run(self) -> &'static str {
        match self {
            Self::Request => "It was not run this time. Retry later with the same key.",
            Self::Call | Self::Inside => "The call was not run. Retry later with the same key.",
        }
    }
}

/// A refusal, as `application/problem+json`. It contains neither keys nor any part of a request or
/// a result.
///
/// The layer creates these itself. Without the layer, an [`Error`] is converted into one:
///
/// ```
/// use idempotency::http::{Problem, ProblemKind};
/// use idempotency::Error;
///
/// fn refusal(error: &Error) -> http::Response<http_body_util::Full<bytes::Bytes>> {
///     Problem::of(error).with_documentation("https://example.com/idempotency").to_response()
/// }
///
/// let problem = Problem::new(ProblemKind::Mismatch);
/// assert_eq!(problem.to_response().status(), 422);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    kind: ProblemKind,
    /// The kind of the error that it was created from.
    error: Option<ErrorKind>,
    /// It is the error of a guarded call that left nothing.
    left_nothing: bool,
    /// A retry runs the handler again, and ends in the same way.
    would_recur: bool,
    /// The action that the client can take, where that of the kind would be wrong.
    advice: Option<&'static str>,
    detail: Option<&'static str>,
    documentation: Cow<'static, str>,
    retry_after: Option<Duration>,
}

/// An extension of a response that is the plain form of this problem: problem details. A layer
/// around the handler gives it the form of the layer's own refusals (R66).
#[derive(Clone)]
pub(super) struct Plain(pub(super) Problem);

/// The media type of problem details.
pub(super) const PROBLEM_JSON: &str = "application/problem+json";

#[derive(Serialize)]
struct Document<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: String,
}

impl Problem {
    /// Creates a refusal of this kind.
    pub const fn new(kind: ProblemKind) -> Self {
        Self {
            kind,
            error: None,
            left_nothing: false,
            would_recur: false,
            advice: None,
            detail: None,
            documentation: Cow::Borrowed(DOCUMENTATION),
            retry_after: kind.retry_after(),
        }
    }

    /// Returns the refusal that reports `error` to a client. It does not contain the store's
    /// message.
    ///
    /// In a handler behind a [layer](super::IdempotencyLayer), the error is that of a call inside,
    /// and says nothing of the whole request: [`TooLarge`](ErrorKind::TooLarge) is
    /// [`Uncertain`](ProblemKind::Uncertain) there, and [`NotKept`](ProblemKind::NotKept) elsewhere,
    /// and no text recommends another key, with which the handler would do everything again.
    pub fn of(error: &Error) -> Self {
        let is_inside = IdempotencyKey::current().is_some();
        Self::made_of(error, if is_inside { Subject::Inside } else { Subject::Call })
    }

    /// Returns the refusal of a request whose own call ended with `error`: what did not run is all
    /// of the request. A handler may have done something before the call of which [`of`](Self::of)
    /// speaks.
    pub(super) fn of_request(error: &Error) -> Self {
        Self::made_of(error, Subject::Request)
    }

    fn made_of(error: &Error, subject: Subject) -> Self {
        let kind = match error.kind() {
            // The next request would run the handler again.
            ErrorKind::Superseded if !error.is_retryable() => ProblemKind::Uncertain,
            ErrorKind::InProgress | ErrorKind::Superseded => ProblemKind::InProgress,
            ErrorKind::Mismatch => ProblemKind::Mismatch,
            ErrorKind::InDoubt | ErrorKind::NotStored | ErrorKind::StepInterrupted => {
                ProblemKind::Uncertain
            }
            // Nothing of it is kept, not even a marker.
            ErrorKind::TooLarge if error.is_rolled_back() => ProblemKind::Internal,
            // The database refuses the transaction as long as the data are as they are, and 503
            // would invite a retry.
            ErrorKind::StoreUnavailable if !error.is_retryable() => ProblemKind::Internal,
            ErrorKind::MissingKey => ProblemKind::Missing,
            ErrorKind::InvalidKey => ProblemKind::Malformed,
            ErrorKind::StoreUnavailable | ErrorKind::Full | ErrorKind::ShuttingDown => {
                ProblemKind::Unavailable
            }
            // The handler has not ended, whatever became of what it called.
            ErrorKind::TooLarge if subject == Subject::Inside => ProblemKind::Uncertain,
            ErrorKind::TooLarge => ProblemKind::NotKept,
            ErrorKind::Expired => ProblemKind::Expired,
            ErrorKind::Encode
            | ErrorKind::Decode
            | ErrorKind::Reentrant
            | ErrorKind::Config
            | ErrorKind::Unsupported
            | ErrorKind::NotInstalled => ProblemKind::Internal,
        };
        let mut problem = Self::new(kind);
        problem.error = Some(error.kind());
        problem.left_nothing = error.left_nothing();
        problem.would_recur = error.is_rolled_back() && !error.is_retryable();
        problem.advice = advice_of(error, kind, subject);
        // R36: the rest of the lease says nothing about the end of the handler, after which a retry
        // succeeds.
        if kind != ProblemKind::InProgress {
            problem.retry_after = error.retry_after().or(problem.retry_after);
        }
        problem
    }

    /// Returns the refusal that takes the place of one about a key that is not the request's. A
    /// layer around this one still learns from it whether a guarded call `left_nothing`.
    pub(super) fn of_another_key(kind: ErrorKind, left_nothing: bool) -> Self {
        let mut problem = Self::new(ProblemKind::Internal);
        problem.error = Some(kind);
        problem.left_nothing = left_nothing;
        problem.would_recur = true;
        problem
    }

    /// The kind of the error that this was created from.
    pub(super) fn error_kind(&self) -> Option<ErrorKind> {
        self.error
    }

    /// The kind of the error, if it is that of a guarded call that left nothing.
    pub(super) fn left_nothing(&self) -> Option<LeftNothing> {
        self.error.filter(|_| self.left_nothing).map(LeftNothing)
    }

    /// Returns true if a retry runs the handler again, and ends in the same way.
    pub(super) fn would_recur(&self) -> bool {
        self.would_recur
    }

    /// Adds a detail about a key that cannot be used.
    pub(super) fn because(mut self, detail: &'static str) -> Self {
        self.detail = Some(detail);
        self
    }

    /// Sets the address at which the service explains its problems: the `type` is this address,
    /// `#`, and the kind's [name](ProblemKind::name). A [layer](super::IdempotencyLayer) around the
    /// handler leaves it as it is.
    #[must_use]
    pub fn with_documentation(mut self, address: impl Into<Cow<'static, str>>) -> Self {
        self.documentation = address.into();
        self
    }

    /// Sets that address unless another one than the default is set.
    pub(super) fn or_documentation(self, address: &str) -> Self {
        if self.documentation == DOCUMENTATION {
            self.with_documentation(address.to_owned())
        } else {
            self
        }
    }

    /// The reason for the refusal.
    pub fn kind(&self) -> ProblemKind {
        self.kind
    }

    /// A short description of the problem.
    pub fn title(&self) -> &'static str {
        self.kind.text().0
    }

    /// The action that the client can take.
    pub fn detail(&self) -> String {
        let advice = self.advice.unwrap_or(self.kind.text().1);
        self.detail.map_or_else(|| advice.to_owned(), |detail| format!("{advice} Here {detail}."))
    }

    /// The `type`: the address at which the kind of problem is explained.
    pub fn address(&self) -> String {
        format!("{}#{}", self.documentation, self.kind.name())
    }

    /// Returns the response, with `Cache-Control: no-store`, and with `Retry-After` if a retry
    /// helps.
    ///
    /// Its extensions contain the [`ProblemKind`], and the [`ErrorKind`] of the error that it was
    /// created from. They show a [layer](super::IdempotencyLayer#errors-of-guarded-calls-inside)
    /// around the handler that this is not a result, and whether it is the error of a guarded call
    /// that [left nothing](Error::left_nothing). That layer also gives it the form of its own
    /// refusals.
    pub fn to_response(&self) -> Response<Full<Bytes>> {
        self.response().map(Full::new)
    }

    pub(super) fn response(&self) -> Response<Bytes> {
        let document = Document {
            r#type: self.address(),
            title: self.title(),
            status: self.kind.status().as_u16(),
            detail: self.detail(),
        };
        // Strings and a number: this is always serializable.
        let body = serde_json::to_vec(&document).unwrap_or_default();
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = self.kind.status();
        response.extensions_mut().insert(Plain(self.clone()));
        response.extensions_mut().insert(self.kind);
        if let Some(error) = self.error {
            response.extensions_mut().insert(error);
        }
        if let Some(left_nothing) = self.left_nothing() {
            response.extensions_mut().insert(left_nothing);
        }
        let headers = response.headers_mut();
        // R48.
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(IDEMPOTENCY_PROBLEM, HeaderValue::from_static(self.kind.name()));
        if let Some(retry_after) = self.retry_after {
            // R36: at least one second.
            let seconds = retry_after.as_millis().div_ceil(1000).max(1);
            let seconds = u64::try_from(seconds).unwrap_or(u64::MAX);
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("Retry-After"));
        }
        response
    }
}

/// Returns the advice about `error` where that of the problem's kind would be wrong, or says less.
fn advice_of(error: &Error, kind: ProblemKind, subject: Subject) -> Option<&'static str> {
    // With a new key, what the handler has done before would be done again.
    if subject == Subject::Inside && matches!(kind, ProblemKind::Mismatch | ProblemKind::Expired) {
        return Some(
            "It is that of a call which the service has made for this request. Do not send the \
             request with another key.",
        );
    }
    if error.is_rolled_back() {
        return Some(if error.is_retryable() {
            "The call was run, and its transaction was rolled back. Retry later with the same key."
        } else {
            "The call was run, and its transaction was rolled back."
        });
    }
    // Not known of a call that waited for that of another caller.
    let store_error = std::error::Error::source(error).and_then(|error| error.downcast_ref());
    let is_of_its_claim = store_error.is_none_or(|error: &StoreError| {
        matches!(error.operation(), Operation::Claim | Operation::Transaction | Operation::Connect)
    });
    (kind == ProblemKind::Unavailable && error.left_nothing() && is_of_its_claim)
        .then_some(subject.not_run())
}

impl From<&Error> for Problem {
    fn from(error: &Error) -> Self {
        Self::of(error)
    }
}

#[cfg(test)]
mod tests {
    use super::{Problem, ProblemKind, Subject};
    use crate::error::{Error, ErrorKind};
    use crate::store::{Operation, StoreError, StoreErrorKind};

    #[test]
    fn what_did_not_run_is_said_only_of_the_call_whose_claim_failed() {
        let failed = |operation| {
            let error = StoreError::new(StoreErrorKind::Unavailable, operation);
            Problem::of(&Error::from(error).of_call()).detail()
        };
        assert_eq!(
            failed(Operation::Claim),
            "The call was not run. Retry later with the same key."
        );
        // Of a record, or of a call that another caller makes.
        for operation in [Operation::Read, Operation::Watch, Operation::Resolve] {
            assert_eq!(failed(operation), "Retry later with the same key.", "{operation:?}");
        }
        let claimed = StoreError::new(StoreErrorKind::Unavailable, Operation::Claim);
        let of_request = Problem::of_request(&Error::from(claimed).of_call()).detail();
        assert_eq!(of_request, "It was not run this time. Retry later with the same key.");
        let shutting_down = Problem::of(&Error::new(ErrorKind::ShuttingDown).of_call());
        assert_eq!(shutting_down.detail(), failed(Operation::Claim));
    }

    #[test]
    fn the_error_of_a_call_inside_asks_for_no_other_key_and_says_nothing_of_the_whole_request() {
        for kind in [ErrorKind::Mismatch, ErrorKind::Expired] {
            let inside = Problem::made_of(&Error::new(kind), Subject::Inside).detail();
            assert!(inside.contains("Do not send the request with another key"), "{inside}");
            for own in [Problem::of_request(&Error::new(kind)), Problem::of(&Error::new(kind))] {
                let own = own.detail();
                assert!(!own.contains("Do not send the request with another key"), "{own}");
            }
        }
        let too_large = Error::new(ErrorKind::TooLarge);
        let inside = Problem::made_of(&too_large, Subject::Inside).kind();
        assert_eq!(inside, ProblemKind::Uncertain);
        assert_eq!(Problem::of(&too_large).kind(), ProblemKind::NotKept);
        assert_eq!(Problem::of_request(&too_large).kind(), ProblemKind::NotKept);
    }
}
