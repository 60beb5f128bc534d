//! Options of the layer, and the policies of a service for statuses.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName};
use http::{Method, Request, Response, StatusCode, request, response};

use super::fingerprint::RequestFingerprint;
use super::headers::{self, Markers};
use super::hook;
use super::key::KeyRules;
use super::names::HeaderNames;
use super::problem::DOCUMENTATION;
use super::refusal::{BaseForm, Shape};
use super::scope::Scope;
use super::stored::FORMAT;
use crate::clock::Clock;
use crate::edge::{self, EdgeCall, Limits};
use crate::key::Key;
use crate::{Context, Idempotency, OnConflict, OnCrash, Verdict};

/// The decision about the key for a response with a certain status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnStatus {
    /// The response is the result: it is stored and replayed.
    Store,
    /// The response means that nothing happened: the next request with the key runs the handler
    /// again.
    Release,
    /// The response may hide an effect, as a timeout does, and is treated like a handler whose
    /// outcome is unknown. The record is held in doubt. Under [`OnCrash::Retry`] and
    /// [`OnCrash::Resume`] the next request runs the handler again; under
    /// [`with_verify`](super::IdempotencyLayer::with_verify) it calls the callback.
    Hold,
}

impl OnStatus {
    /// The default. 2xx, 3xx and 4xx are results and are stored, with these exceptions:
    /// - 401, 403, 413, 425 and 429 refuse a request before anything is done. They are released.
    /// - 408 and 5xx mean that it is unknown how far the handler got, whatever produced them: a
    ///   timeout, a panic catcher, the handler itself. They are held, and so is every status that
    ///   is not a final one in HTTP.
    pub fn standard(status: StatusCode) -> Self {
        match status {
            // R20.
            StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::TOO_EARLY
            | StatusCode::TOO_MANY_REQUESTS => Self::Release,
            // R63. 5xx are in the last arm.
            StatusCode::REQUEST_TIMEOUT => Self::Hold,
            // R19: a 4xx of the handler is a result too.
            status
                if status.is_success() || status.is_redirection() || status.is_client_error() =>
            {
                Self::Store
            }
            _ => Self::Hold,
        }
    }

    /// Decides when the service's function panicked: the default, except that no key is released
    /// without that function's decision.
    fn undecided(status: StatusCode) -> Self {
        match Self::standard(status) {
            Self::Release => Self::Hold,
            decided => decided,
        }
    }

    /// As [`standard`](Self::standard), but 500 is stored: a handler that failed does not run
    /// again, and every caller gets its response. 408, 502, 503 and 504 are held: a server that
    /// answers with them was waiting for another one, and does not know the outcome.
    pub fn stripe(status: StatusCode) -> Self {
        // R21.
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            Self::Store
        } else {
            Self::standard(status)
        }
    }

    /// As [`standard`](Self::standard), but 408 and 5xx are released: for services in which
    /// everything that answers with them has rolled back its work. See
    /// [`release_server_errors`](super::IdempotencyLayer::release_server_errors).
    pub fn releasing_server_errors(status: StatusCode) -> Self {
        if status == StatusCode::REQUEST_TIMEOUT || status.is_server_error() {
            Self::Release
        } else {
            Self::standard(status)
        }
    }
}

/// The record that a response leaves if it is to be stored but cannot be: it is larger than the
/// limit, has trailers or thousands of headers, or is an event stream.
///
/// The first caller gets it in any case. It counts as answered once the limit is exceeded or the
/// stream begins, whatever happens to the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unreplayable {
    /// A marker that the request was answered: the handler does not run again, and a retry gets
    /// 409, `not-kept`.
    #[default]
    Mark,
    /// None: a retry runs the handler again.
    Release,
}

type Question = dyn Fn(Context, Request<Bytes>) -> Pin<Box<dyn Future<Output = Verdict<Response<Bytes>>> + Send>>
    + Send
    + Sync;

/// The policy for a handler whose outcome is unknown.
#[derive(Clone)]
pub(super) enum Crash {
    Policy(OnCrash),
    Verify(Arc<Question>),
}

impl Crash {
    /// Returns true if another attempt may answer the request again after the handler's claim has
    /// ended.
    pub(super) fn may_be_answered_again(&self) -> bool {
        !matches!(self, Self::Policy(OnCrash::Hold))
    }
}

type Decide = dyn Fn(StatusCode, &request::Parts) -> OnStatus + Send + Sync;
type Lifetime = dyn Fn(&response::Parts) -> Duration + Send + Sync;

#[derive(Clone)]
pub(super) struct Options {
    pub(super) engine: Idempotency,
    pub(super) clock: Arc<dyn Clock>,
    limits: Limits,
    pub(super) scope: Scope,
    pub(super) operation: Arc<str>,
    pub(super) required: bool,
    pub(super) methods: Vec<Method>,
    pub(super) keys: KeyRules,
    pub(super) fingerprint: RequestFingerprint,
    pub(super) on_conflict: OnConflict,
    pub(super) crash: Crash,
    pub(super) settle: Option<Duration>,
    pub(super) on_status: Arc<Decide>,
    pub(super) replayed: Vec<HeaderName>,
    pub(super) request_limit: usize,
    pub(super) response_limit: usize,
    pub(super) ttl: Duration,
    pub(super) lifetime: Option<Arc<Lifetime>>,
    pub(super) after_expiry: Option<Duration>,
    pub(super) unreplayable: Unreplayable,
    pub(super) fail_open: bool,
    pub(super) documentation: Arc<str>,
    pub(super) markers: Markers,
    pub(super) form: BaseForm,
    /// The service's function that changes the form.
    pub(super) shape: Option<Arc<Shape>>,
}

impl Options {
    pub(super) fn new(engine: Idempotency, scope: Scope) -> Self {
        Self {
            clock: edge::clock(&engine),
            limits: edge::limits(&engine),
            engine,
            scope,
            operation: "http".into(),
            required: true,
            methods: vec![Method::POST, Method::PATCH],
            keys: KeyRules::default(),
            fingerprint: RequestFingerprint::default(),
            on_conflict: OnConflict::Reject,
            crash: Crash::Policy(OnCrash::Hold),
            settle: None,
            on_status: Arc::new(|status, _| OnStatus::standard(status)),
            replayed: headers::REPLAYED.to_vec(),
            request_limit: 2 * 1024 * 1024,
            response_limit: usize::MAX,
            ttl: Duration::from_secs(86_400),
            lifetime: None,
            after_expiry: None,
            unreplayable: Unreplayable::default(),
            fail_open: false,
            documentation: DOCUMENTATION.into(),
            markers: Markers::new(HeaderNames::new(), false),
            form: BaseForm::ProblemDetails,
            shape: None,
        }
    }

    /// Creates the call of a request with `key` in `scope`, with the options of the service.
    pub(super) fn call(&self, key: &str, scope: Option<Key>) -> EdgeCall {
        let call = EdgeCall::new(&self.engine, self.operation.clone(), Key::of(key), self.ttl)
            .scope(scope)
            .on_conflict(self.on_conflict)
            .version(FORMAT);
        let call = match self.settle {
            Some(delay) => call.settle(delay),
            None => call,
        };
        match self.after_expiry {
            Some(duration) => call.after_expiry(duration),
            None => call,
        }
    }

    pub(super) fn on_status(&self, status: StatusCode, request: &request::Parts) -> OnStatus {
        let decided = hook::call("with_on_status", || (self.on_status)(status, request));
        match decided.unwrap_or_else(|| OnStatus::undecided(status)) {
            // A status of 1xx announces a response, but is not one.
            OnStatus::Store if status.is_informational() => OnStatus::Hold,
            decided => decided,
        }
    }

    pub(super) fn replays(&self, name: &HeaderName) -> bool {
        self.replayed.contains(name) && !self.markers.contain(name)
    }

    /// The largest response that is stored, in bytes.
    pub(super) fn response_limit(&self) -> usize {
        self.response_limit.min(self.limits.max_result_size)
    }

    pub(super) fn ttl_of(&self, response: &response::Parts) -> Duration {
        let lifetime = self.lifetime.as_ref();
        let ttl = lifetime
            .and_then(|lifetime| hook::call("with_ttl_of", || lifetime(response)))
            .unwrap_or(self.ttl);
        ttl.clamp(Duration::from_millis(1), self.limits.max_ttl)
    }
}

/// Returns true if the response never ends by itself.
pub(super) fn is_endless(response: &response::Parts) -> bool {
    let content_type = response
        .headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    content_type
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .eq_ignore_ascii_case("text/event-stream")
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("engine", &self.engine)
            .field("operation", &self.operation)
            .field("scope", &self.scope)
            .field("required", &self.required)
            .field("methods", &self.methods)
            .field("ttl", &self.ttl)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::OnStatus;

    /// Returns all statuses for which `decide` returns this decision.
    fn with(decision: OnStatus, decide: fn(StatusCode) -> OnStatus) -> Vec<u16> {
        let all = (100..=999).filter_map(|status| StatusCode::from_u16(status).ok());
        all.filter(|status| decide(*status) == decision).map(|status| status.as_u16()).collect()
    }

    #[test]
    fn only_what_is_a_final_answer_is_stored_and_only_what_refuses_early_is_released() {
        let refusals = [401, 403, 413, 425, 429];
        assert_eq!(with(OnStatus::Release, OnStatus::standard), refusals);
        let results = (200..500).filter(|status| *status != 408 && !refusals.contains(status));
        assert_eq!(with(OnStatus::Store, OnStatus::standard), results.collect::<Vec<_>>());

        let stripe = with(OnStatus::Store, OnStatus::stripe);
        assert_eq!(stripe.iter().filter(|status| **status >= 500).collect::<Vec<_>>(), [&500]);
        assert_eq!(with(OnStatus::Release, OnStatus::stripe), refusals);

        let held = with(OnStatus::Hold, OnStatus::releasing_server_errors);
        assert_eq!(held, (100..200).chain(600..1000).collect::<Vec<_>>());
        let results = with(OnStatus::Store, OnStatus::standard);
        assert_eq!(with(OnStatus::Store, OnStatus::releasing_server_errors), results);
    }
}
