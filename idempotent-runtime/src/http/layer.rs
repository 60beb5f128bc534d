//! The layer and its options.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderName;
use http::{Method, Request, Response, StatusCode, request, response};
use tower_layer::Layer;

use super::fingerprint::RequestFingerprint;
use super::headers::{self, Markers};
use super::key::KeyFormat;
use super::names::HeaderNames;
use super::options::{Crash, OnStatus, Options, Unreplayable};
use super::problem::Problem;
use super::scope::Scope;
use super::service::IdempotencyService;
use super::status::StatusService;
use super::stripe;
use crate::context::Context;
use crate::engine::Idempotency;
use crate::error::Error;
use crate::policy::{OnConflict, OnCrash, Verdict};

/// Answers each request with an `Idempotency-Key` once, and its retries from the record.
///
/// Give it the engine and say who is asking; everything else has a default. Authentication, rate
/// limits and what else may refuse a request belong in front of it.
///
/// # What a status says
/// Once the handler has begun, 408 and 5xx say that nobody knows what happened, whoever answers
/// with them: retries get 409, `uncertain`, until an operator, the [question](Self::with_verify) or
/// the [policy](Self::with_on_crash) decides. Where nothing happened, the handler says so with
/// [`NothingHappened`](super::NothingHappened), or the whole service with
/// [`release_server_errors`](Self::release_server_errors). [`OnStatus::standard`] has the other
/// statuses.
///
/// # Errors of guarded calls inside
/// A handler that passes on the error of a guarded call gives its kind along, in the extensions of
/// the response: with `IntoResponse` of [`Error`](crate::Error) (feature `axum`),
/// [`Problem::of`](super::Problem::of), or an [`ErrorKind`](crate::ErrorKind) that it inserts there
/// itself. Then the kind decides instead of the status, and the response is never stored:
/// - `InProgress`, `StoreUnavailable`, `Full`, `ShuttingDown`, `Mismatch`, `MissingKey` and
///   `InvalidKey` release the key: the guarded call did not run.
/// - All others hold it: an effect may stand behind them, or somebody has to look anyway.
///
/// The first kind says that the *call* did not run, not that the handler did nothing before. **What
/// a handler does before belongs into a guarded call or a [step](crate::Context::step) too, or it
/// is done again by the retry.** A handler that cannot have it so answers 500 without the kind,
/// which is held. The refusals of a layer inside of this one count in the same way, by their
/// [`ProblemKind`](super::ProblemKind).
///
/// Of `MissingKey` and `InvalidKey`, the client gets 500 `internal`: in a problem that was made of
/// them it would read of the key that it has sent.
///
/// A response that a handler makes of an error by itself, without the kind, is judged by its status
/// like any other.
///
/// # Examples
/// ```
/// # use std::time::Duration;
/// # use idempotent_runtime::{Idempotency, store::MemoryStore};
/// use idempotent_runtime::http::{IdempotencyLayer, RequestFingerprint, Scope};
///
/// # let engine = Idempotency::new(MemoryStore::new());
/// #[derive(Clone)]
/// struct Tenant(String);
///
/// let layer = IdempotencyLayer::new(engine, Scope::of(|request| {
///     request.extensions.get::<Tenant>().map(|tenant| tenant.0.clone())
/// }))
/// .with_fingerprint(RequestFingerprint::json())
/// .with_ttl(Duration::from_secs(7 * 86_400));
/// ```
///
/// With all that can be said:
///
/// ```
/// # use std::time::Duration;
/// # use http::{HeaderName, Method, StatusCode};
/// # use idempotent_runtime::{Idempotency, OnCrash, store::MemoryStore};
/// # use idempotent_runtime::http::{HeaderNames, IdempotencyLayer, KeyFormat, OnStatus, RequestFingerprint};
/// # use idempotent_runtime::http::{Scope, Unreplayable};
/// # let engine = Idempotency::new(MemoryStore::new());
/// let day = Duration::from_secs(86_400);
/// let layer = IdempotencyLayer::new(engine, Scope::global())
///     .with_operation("payments")
///     // Keys.
///     .with_optional_key()
///     .with_methods([Method::POST, Method::PATCH, Method::DELETE])
///     .with_key_format(KeyFormat::uuid())
///     .with_max_key_length(64)
///     .require_structured_field()
///     // Requests.
///     .with_fingerprint(RequestFingerprint::fields(["/amount", "/currency"]).without_query().version(10))
///     .with_max_request_body(16 * 1024)
///     .blocking(Duration::from_secs(5))
///     .with_on_crash(OnCrash::Retry)
///     .with_fail_open()
///     // Responses.
///     .with_on_status(|status, request| match status {
///         // These handlers write to one database, in one transaction.
///         StatusCode::SERVICE_UNAVAILABLE if request.uri.path().starts_with("/orders") => OnStatus::Release,
///         StatusCode::CONFLICT => OnStatus::Release,
///         _ => OnStatus::standard(status),
///     })
///     .with_replayed_headers([HeaderName::from_static("x-request-id")])
///     .with_max_response_body(64 * 1024)
///     .with_unreplayable(Unreplayable::Release)
///     .with_ttl_of(move |response| if response.status.is_success() { 30 * day } else { day })
///     .with_refusal_after_expiry(90 * day)
///     // Refusals and names.
///     .with_problem(|_problem, response| response)
///     .with_header_names(HeaderNames::new())
///     .with_documentation("https://example.com/idempotency");
/// ```
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it is around a service"]
pub struct IdempotencyLayer {
    options: Arc<Options>,
}

impl IdempotencyLayer {
    /// The layer on `engine`, whose records are kept apart by `scope`: [`Scope::of`] a function of
    /// the request's head, or [`Scope::global`].
    pub fn new(engine: Idempotency, scope: impl Into<Scope>) -> Self {
        Self { options: Arc::new(Options::new(engine, scope.into())) }
    }

    /// Looks at the options, of the engine as well. An option that cannot be kept otherwise shows
    /// at the first request, as its refusal (500, `internal`), and so with each one after it. A
    /// JSON pointer without its slash, which leads nowhere, otherwise shows as a key that is
    /// malformed in each body, and in a fingerprint as one of all of the body.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use idempotent_runtime::{ErrorKind, Idempotency, store::MemoryStore};
    /// # use idempotent_runtime::http::{IdempotencyLayer, Scope};
    /// # let engine = Idempotency::new(MemoryStore::new());
    /// let layer = IdempotencyLayer::new(engine, Scope::global()).with_ttl(Duration::MAX);
    /// assert_eq!(layer.checked().unwrap_err().kind(), ErrorKind::Config);
    /// ```
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) names the option and what it may be.
    pub fn checked(self) -> Result<Self, Error> {
        self.options.call("key").request.check()?;
        let in_body =
            self.options.keys.in_body.as_deref().map(|pointer| ("with_key_from_body", pointer));
        let mut pointers = in_body.into_iter().chain(self.options.fingerprint.pointers());
        match pointers.find(|(_, pointer)| !pointer.is_empty() && !pointer.starts_with('/')) {
            None => Ok(self),
            Some((option, pointer)) => Err(Error::config(format!(
                "`{option}` has {pointer:?}, which is no JSON pointer; one begins with a slash, as \"/{pointer}\" does"
            ))),
        }
    }

    fn set(mut self, change: impl FnOnce(&mut Options)) -> Self {
        change(Arc::make_mut(&mut self.options));
        self
    }

    /// The name under which the records are kept, as the operation of a call. Layers with one name
    /// on one engine share their records. The default is `"http"`.
    pub fn with_operation(self, name: impl Into<Arc<str>>) -> Self {
        self.set(|options| options.operation = name.into())
    }

    /// Lets requests without a key through: each of them runs, and leaves no record. The default is
    /// to refuse them (400).
    pub fn with_optional_key(self) -> Self {
        self.set(|options| options.required = false)
    }

    /// Whose requests have keys. The default is POST and PATCH; GET, HEAD, OPTIONS and TRACE never
    /// have.
    ///
    /// Case does not count: `patch`, which browsers send as it is written, is guarded where PATCH
    /// is. A method that is not of the standard, `CHARGE`, is guarded where there is a key, and
    /// needs none.
    pub fn with_methods(self, methods: impl IntoIterator<Item = Method>) -> Self {
        self.set(|options| options.methods = methods.into_iter().collect())
    }

    /// What is asked of keys, checked before anything is looked up. The default is nothing.
    pub fn with_key_format(self, format: KeyFormat) -> Self {
        self.set(|options| options.keys.format = Some(format))
    }

    /// How many octets a key may have. The default is 255. The engine has a
    /// [limit](crate::Builder::max_key_size) of its own.
    pub fn with_max_key_length(self, octets: usize) -> Self {
        self.set(|options| options.keys.longest = octets)
    }

    /// Takes keys only in quotes, as the draft of the standard has them: `Idempotency-Key: "abc"`.
    /// The default is to take `abc` without quotes too, which names the same record.
    pub fn require_structured_field(self) -> Self {
        self.set(|options| options.keys.structured_only = true)
    }

    /// Takes the key from the body instead of the header: from the string to which this JSON
    /// pointer (RFC 6901) leads, `"/request_id"` for example. Every body is then read into memory,
    /// also those without a key, and where keys are [optional](Self::with_optional_key) also those
    /// of nobody.
    ///
    /// A body that cannot be read for its key is refused (400), [optional](Self::with_optional_key)
    /// or not: the handler might read more of it and run unprotected. That is what is no JSON, or
    /// JSON that readers differ in: a member that is there more than once on the way, a number
    /// beyond the range of floats, half of a surrogate pair, more than 127 levels. And a body
    /// without the field that is compressed or has the type of something else, a form for example.
    /// So is a key in the header where there is none in the body.
    pub fn with_key_from_body(self, pointer: impl Into<Arc<str>>) -> Self {
        self.set(|options| options.keys.in_body = Some(pointer.into()))
    }

    /// What a retry must repeat. The default is [`RequestFingerprint::body`].
    pub fn with_fingerprint(self, fingerprint: RequestFingerprint) -> Self {
        self.set(|options| options.fingerprint = fingerprint)
    }

    /// Lets a request wait for the first one with its key, for at most `patience`, and then replays
    /// its answer. The default is to refuse it at once (409). How many may wait is bounded by
    /// [`max_waiters`](crate::Builder::max_waiters); more are refused at once.
    pub fn blocking(self, patience: Duration) -> Self {
        self.with_wait(patience)
    }

    /// The same as [`blocking`](Self::blocking).
    pub fn with_wait(self, patience: Duration) -> Self {
        self.set(|options| options.on_conflict = OnConflict::Wait(patience))
    }

    /// What follows when a handler began and nobody knows whether it finished. The default is
    /// [`OnCrash::Hold`]: a retry gets 409, `uncertain`, until an operator answers.
    pub fn with_on_crash(self, on_crash: OnCrash) -> Self {
        self.set(|options| options.crash = Crash::Policy(on_crash))
    }

    /// Lets the next request with the key ask the outside world when a handler began and nobody
    /// knows whether it finished: see [`Call::on_crash_verify`](crate::Call::on_crash_verify), also
    /// for when this is safe. The question gets the [`Context`] of the call and the request, and
    /// its answer is the response, lets the handler run, or leaves the record in doubt. So does a
    /// response with a status of 1xx, which none can have. One over the limit
    /// ([`with_max_response_body`](Self::with_max_response_body)) says that there was an answer,
    /// and is not kept: everybody gets 409, `not-kept`.
    ///
    /// ```
    /// # use idempotent_runtime::{Context, Idempotency, Verdict, store::MemoryStore};
    /// # use idempotent_runtime::http::{IdempotencyLayer, Scope};
    /// # use bytes::Bytes;
    /// # use http::{Request, Response};
    /// # async fn find_charge(_: &str) -> Option<String> { None }
    /// # let engine = Idempotency::new(MemoryStore::new());
    /// let layer = IdempotencyLayer::new(engine, Scope::global()).with_verify(
    ///     |context: Context, _request: Request<Bytes>| async move {
    ///         match find_charge(&context.derive_key("charge")).await {
    ///             Some(receipt) => Verdict::Completed(Response::new(Bytes::from(receipt))),
    ///             None => Verdict::NotExecuted,
    ///         }
    ///     },
    /// );
    /// ```
    pub fn with_verify<Q, F>(self, question: Q) -> Self
    where
        Q: Fn(Context, Request<Bytes>) -> F + Send + Sync + 'static,
        F: Future<Output = Verdict<Response<Bytes>>> + Send + 'static,
    {
        let question = move |context, request| Box::pin(question(context, request)) as _;
        self.set(|options| options.crash = Crash::Verify(Arc::new(question)))
    }

    /// How long to wait before the question of [`with_verify`](Self::with_verify). The default is
    /// one second.
    pub fn with_settle(self, delay: Duration) -> Self {
        self.set(|options| options.settle = Some(delay))
    }

    /// What becomes of the key when a response has a certain status, by a function of the status
    /// and the request. The default is [`OnStatus::standard`]. What a response says in its
    /// extensions goes before: see [`NothingHappened`](super::NothingHappened).
    ///
    /// Of this, [`stripe`](Self::stripe) and
    /// [`release_server_errors`](Self::release_server_errors), the last one counts.
    pub fn with_on_status(
        self,
        decide: impl Fn(StatusCode, &request::Parts) -> OnStatus + Send + Sync + 'static,
    ) -> Self {
        self.set(|options| options.on_status = Arc::new(decide))
    }

    /// Frees the key after 408 and 5xx: for services whose errors roll everything back, because
    /// each handler does what it does in one transaction of a database. The default is that they
    /// say nothing about what happened, and hold the key.
    ///
    /// **It is also said for everything else behind the layer that answers with such a status**: a
    /// time limit that drops the handler, something that catches its panics, a proxy. Have them in
    /// front of the layer, or be sure that what they end is rolled back. A panic that nobody
    /// catches, an error of the service in place of a response, and an error of a guarded call
    /// inside that may hide an effect are still held. [`OnStatus::releasing_server_errors`] is the
    /// same for one of several routes.
    pub fn release_server_errors(self) -> Self {
        self.with_on_status(|status, _| OnStatus::releasing_server_errors(status))
    }

    /// Makes the service one for the clients of Stripe's API: it stores what that stores, the
    /// [default](OnStatus::standard) and 500; its refusals have the form that those clients take
    /// for errors, with `Stripe-Should-Retry` where the status does not say it; and replays are
    /// marked `Idempotent-Replayed`. What is called after it goes before it:
    /// [`with_on_status`](Self::with_on_status), [`with_problem`](Self::with_problem) and
    /// [`with_header_names`](Self::with_header_names).
    pub fn stripe(self) -> Self {
        self.with_on_status(|status, _| OnStatus::stripe(status)).with_problem(stripe::refusal).set(
            |options| {
                options.markers = Markers::new(options.markers.names.clone().of_stripe(), true);
            },
        )
    }

    /// The form of refusals, by a function of the problem and of the response that would tell it.
    /// The default is that response: problem details (RFC 9457).
    ///
    /// ```
    /// # use idempotent_runtime::{Idempotency, store::MemoryStore};
    /// # use idempotent_runtime::http::{IdempotencyLayer, Problem, ProblemKind, Scope};
    /// # use bytes::Bytes;
    /// # use http::{Response, StatusCode};
    /// # let engine = Idempotency::new(MemoryStore::new());
    /// let layer = IdempotencyLayer::new(engine, Scope::global()).with_problem(
    ///     |problem: &Problem, mut response: Response<Bytes>| {
    ///         if problem.kind() == ProblemKind::Mismatch {
    ///             *response.status_mut() = StatusCode::CONFLICT;
    ///         }
    ///         let name = problem.kind().name();
    ///         response.map(|_| Bytes::from(format!(r#"{{"error": "{name}"}}"#)))
    ///     },
    /// );
    /// ```
    ///
    /// It changes how a refusal looks, not what is decided: no handler runs, nothing is recorded,
    /// and the response is a 4xx or 5xx with `Cache-Control: no-store` and the kind in
    /// `Idempotency-Problem`. Where it panics, gives another status or leaves no room for these
    /// headers, the response is the default's.
    pub fn with_problem(
        self,
        shape: impl Fn(&Problem, Response<Bytes>) -> Response<Bytes> + Send + Sync + 'static,
    ) -> Self {
        self.set(|options| options.shape = Some(Arc::new(shape)))
    }

    /// The names of the headers with the key and with what the layer tells. The default is those of
    /// the draft of the standard and [`HeaderNames::new`].
    pub fn with_header_names(self, names: HeaderNames) -> Self {
        self.set(|options| {
            options.keys.header = names.key().clone();
            options.markers = options.markers.renamed(names);
        })
    }

    /// Further headers that a replay has. The defaults are `Cache-Control`, `Content-Disposition`,
    /// `Content-Encoding`, `Content-Language`, `Content-Location`, `Content-Type`, `ETag`,
    /// `Last-Modified`, `Link`, `Location` and `Vary`.
    ///
    /// Credentials, cookies, `Date` and the headers of a connection are never replayed, also if
    /// they are named here.
    pub fn with_replayed_headers(self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        self.set(|options| {
            options.replayed.extend(names.into_iter().filter(headers::may_be_replayed))
        })
    }

    /// How many bytes the body of a request with a key may have; more are refused (413). The
    /// default is 2 MiB.
    pub fn with_max_request_body(self, bytes: usize) -> Self {
        self.set(|options| options.request_limit = bytes)
    }

    /// How many bytes of a response, its stored headers included, are kept. The default, and the
    /// most, is the engine's [`max_result_size`](crate::Builder::max_result_size). See
    /// [`with_unreplayable`](Self::with_unreplayable) for what becomes of larger ones.
    pub fn with_max_response_body(self, bytes: usize) -> Self {
        self.set(|options| options.response_limit = bytes)
    }

    /// What a response leaves that cannot be kept. The default is [`Unreplayable::Mark`].
    pub fn with_unreplayable(self, unreplayable: Unreplayable) -> Self {
        self.set(|options| options.unreplayable = unreplayable)
    }

    /// How long a response is replayed, counted from its end, and how long at least a record in
    /// doubt is kept. The default is 24 hours.
    pub fn with_ttl(self, ttl: Duration) -> Self {
        self.set(|options| options.ttl = ttl)
    }

    /// How long a certain response is replayed, from a millisecond up to the engine's
    /// [ceiling](crate::Builder::max_ttl). The default is the same for all.
    pub fn with_ttl_of(
        self,
        ttl: impl Fn(&response::Parts) -> Duration + Send + Sync + 'static,
    ) -> Self {
        self.set(|options| options.lifetime = Some(Arc::new(ttl)))
    }

    /// How long after a record has expired a late retry is told so (410) instead of running again.
    /// The default is not at all: it runs.
    pub fn with_refusal_after_expiry(self, duration: Duration) -> Self {
        self.set(|options| options.after_expiry = Some(duration))
    }

    /// Runs the handler without protection when the store does not answer, and marks its response
    /// with `Idempotency-Bypassed: true`. **A retry may then repeat the effect.** The default is to
    /// refuse the request (503), and so is one refused that has [waited](Self::blocking) for
    /// another with its key before the store went away, or was told of one.
    ///
    /// The mark keeps clients from sending the request again, and it is on responses of this layer
    /// alone. The response that something in front makes of an *error* of the service behind has
    /// none, and neither has the answer of a time limit in front: clients send such requests again,
    /// with a second effect. So make responses of errors behind the layer. The same holds for a
    /// [disabled](crate::Idempotency::disable) operation. A response that has no room for the mark,
    /// with tens of thousands of headers, is replaced by a 500 that has it.
    pub fn with_fail_open(self) -> Self {
        self.set(|options| options.fail_open = true)
    }

    /// The address of a page that explains the service's rules: the `type` of every problem is
    /// this, `#`, and the [name](super::ProblemKind::name) of its kind. The default is the
    /// documentation of this crate.
    pub fn with_documentation(self, address: impl Into<Arc<str>>) -> Self {
        self.set(|options| options.documentation = address.into())
    }

    /// A service that tells the state of a request by its key. See [`StatusService`].
    pub fn status_service(&self) -> StatusService {
        StatusService::new(self.options.clone())
    }
}

impl<S> Layer<S> for IdempotencyLayer {
    type Service = IdempotencyService<S>;

    fn layer(&self, service: S) -> IdempotencyService<S> {
        IdempotencyService::new(service, self.options.clone())
    }
}
