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
use super::refusal::BaseForm;
use super::scope::Scope;
use super::service::IdempotencyService;
use super::status::StatusService;
use crate::error::Error;
use crate::{Context, Idempotency, OnConflict, OnCrash, Verdict};

/// A layer that runs the handler once per `Idempotency-Key` and answers retries from the record.
///
/// It requires the engine and the [scope](Scope) of the keys; everything else has a default. Put
/// authentication, rate limits and everything else that may refuse a request in front of it.
///
/// # What a status says
/// Once the handler has begun, 408 and 5xx mean that the outcome is unknown, no matter which layer
/// produced them. Retries get 409, `uncertain`, until an operator, the
/// [callback](Self::with_verify) or the [policy](Self::with_on_crash) decides. If nothing happened,
/// the handler says so with [`NothingHappened`](super::NothingHappened), or the whole service does
/// with [`release_server_errors`](Self::release_server_errors). [`OnStatus::standard`] lists the
/// other statuses.
///
/// # Errors of guarded calls inside
/// A handler that returns an error of this crate passes it on in the extensions of the response:
/// through `IntoResponse` of [`Error`](crate::Error) (feature `axum`), through
/// [`Problem::of`](super::Problem::of), or by inserting the [`Error`](crate::Error) itself. It then
/// decides instead of the status, and the response is never stored:
/// - The error of a guarded call that [left nothing](crate::Error::left_nothing) releases the key:
///   `InProgress`, `StoreUnavailable`, `Full`, `ShuttingDown`, `Mismatch`, `MissingKey` and
///   `InvalidKey`, because the call did not run, and every kind whose transaction
///   [was rolled back](crate::Error::is_rolled_back), so `TooLarge` and `Encode` too.
/// - Everything else holds it. Other kinds may hide an effect, or an operator has to look in any
///   case. An error that is not that of a guarded call, of a
///   [look](crate::record::RecordHandle::inspect) at a record, of a [step](crate::Context::step), of
///   a [`RequestKey`](super::client::RequestKey) for example, says nothing about the handler,
///   whatever its kind is. Neither does an [`ErrorKind`](crate::ErrorKind) in the extensions without
///   its error.
///
/// That a call left nothing does not mean that the handler did nothing before it. **Whatever a
/// handler does before must go through a guarded call or a [step](crate::Context::step) too, or the
/// retry does it again.** A handler that cannot do this answers 500 without the error, which is
/// held. Refusals of a layer inside this one count in the same way, by their
/// [`ProblemKind`](super::ProblemKind).
///
/// A problem made of `MissingKey` or `InvalidKey` becomes 500 `internal`: the client would relate it
/// to the key that it sent. All problems get the form of the layer's refusals, which
/// [`stripe`](Self::stripe) and [`with_problem`](Self::with_problem) set. What the handler and
/// other layers have added to them or changed in them stays: headers, and the status.
///
/// A response that a handler builds from an error itself, without the error in its extensions, is
/// judged by its status like any other.
///
/// # Examples
/// ```
/// # use std::time::Duration;
/// # use idempotency::{Idempotency, store::MemoryStore};
/// use idempotency::http::{IdempotencyLayer, RequestFingerprint, Scope};
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
/// Every option:
///
/// ```
/// # use std::time::Duration;
/// # use http::{HeaderName, Method, StatusCode};
/// # use idempotency::{Idempotency, OnCrash, store::MemoryStore};
/// # use idempotency::http::{HeaderNames, IdempotencyLayer, KeyFormat, OnStatus, RequestFingerprint};
/// # use idempotency::http::{Scope, Unreplayable};
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
    /// Creates a layer on `engine` whose records are kept apart by `scope`: [`Scope::of`] a
    /// function of the request's head, or [`Scope::global`].
    pub fn new(engine: Idempotency, scope: impl Into<Scope>) -> Self {
        Self { options: Arc::new(Options::new(engine, scope.into())) }
    }

    /// Checks the options, including those of the engine.
    ///
    /// Without this check, an invalid option is reported when the first request arrives: that
    /// request and every later one is refused (500, `internal`). A JSON pointer without its leading
    /// slash leads nowhere. Without this check, such a pointer to the key leaves every body with a
    /// malformed key, and in a fingerprint the whole body counts.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use idempotency::{ErrorKind, Idempotency, store::MemoryStore};
    /// # use idempotency::http::{IdempotencyLayer, Scope};
    /// # let engine = Idempotency::new(MemoryStore::new());
    /// let layer = IdempotencyLayer::new(engine, Scope::global()).with_ttl(Duration::MAX);
    /// assert_eq!(layer.checked().unwrap_err().kind(), ErrorKind::Config);
    /// ```
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) names the option and what it may be.
    pub fn checked(self) -> Result<Self, Error> {
        let call = self.options.call("key", None);
        match self.options.crash {
            // The bounds of a call that asks are others.
            Crash::Verify(_) => call.on_crash_verify(async |_| Verdict::Unknown).check()?,
            Crash::Policy(_) => call.check()?,
        }
        let in_body =
            self.options.keys.in_body.as_deref().map(|pointer| ("with_key_from_body", pointer));
        let mut pointers = in_body.into_iter().chain(self.options.fingerprint.pointers());
        match pointers.find(|(_, pointer)| !pointer.is_empty() && !pointer.starts_with('/')) {
            None => Ok(self),
            Some((option, pointer)) => Err(Error::config(format!(
                "`{option}` has {pointer:?}, which is not a JSON pointer; one begins with a slash, \
                 as \"/{pointer}\" does"
            ))),
        }
    }

    fn set(mut self, change: impl FnOnce(&mut Options)) -> Self {
        change(Arc::make_mut(&mut self.options));
        self
    }

    /// The operation name under which the records are stored. Layers with the same name on one
    /// engine share their records. The default is `"http"`.
    pub fn with_operation(self, name: impl Into<Arc<str>>) -> Self {
        self.set(|options| options.operation = name.into())
    }

    /// Lets requests without a key through: each of them runs and leaves no record. By default they
    /// are refused (400).
    ///
    /// A request whose key is in another place than this layer looks in is refused too: its client
    /// believes that it is protected. Such is one with an `Idempotency-Key` where the header has
    /// [another name](Self::with_header_names) or the key is
    /// [in the body](Self::with_key_from_body), unless a layer in front has found its key.
    pub fn with_optional_key(self) -> Self {
        self.set(|options| options.required = false)
    }

    /// The methods that the layer guards. The default is POST and PATCH; GET, HEAD, OPTIONS and
    /// TRACE are never guarded.
    ///
    /// Case is ignored: `patch`, which browsers send as written, is guarded wherever PATCH is. A
    /// non-standard method such as `CHARGE` is guarded if the request has a key, and does not
    /// require one.
    pub fn with_methods(self, methods: impl IntoIterator<Item = Method>) -> Self {
        self.set(|options| options.methods = methods.into_iter().collect())
    }

    /// The format that keys must match, checked before any lookup. By default every key is
    /// accepted.
    pub fn with_key_format(self, format: KeyFormat) -> Self {
        self.set(|options| options.keys.format = Some(format))
    }

    /// The longest key that is accepted, in octets. The default is 255. The engine has a
    /// [limit](crate::Builder::max_key_size) of its own.
    pub fn with_max_key_length(self, octets: usize) -> Self {
        self.set(|options| options.keys.longest = octets)
    }

    /// Accepts keys only in quotes, as the draft standard requires: `Idempotency-Key: "abc"`. By
    /// default `abc` without quotes is accepted too, and names the same record.
    pub fn require_structured_field(self) -> Self {
        self.set(|options| options.keys.structured_only = true)
    }

    /// Takes the key from the body instead of the header: from the string at this JSON pointer (RFC
    /// 6901), for example `"/request_id"`.
    ///
    /// Every body is then read into memory, including those without a key. Where keys are
    /// [optional](Self::with_optional_key), this includes the bodies of requests without a
    /// principal.
    ///
    /// A body from which no key can be read is refused (400), even where keys are
    /// [optional](Self::with_optional_key): the handler might read more of it and run unprotected.
    /// This applies to a body that is not JSON, or is JSON that readers interpret differently: a
    /// repeated member on the way to the key, a number beyond the range of floats, half of a
    /// surrogate pair, or more than 127 levels. It also applies to a body without the field that is
    /// compressed or has another type, for example a form. A key in the header is refused as well
    /// if there is none in the body.
    pub fn with_key_from_body(self, pointer: impl Into<Arc<str>>) -> Self {
        self.set(|options| options.keys.in_body = Some(pointer.into()))
    }

    /// The parts of a request that a retry must repeat. The default is
    /// [`RequestFingerprint::body`].
    pub fn with_fingerprint(self, fingerprint: RequestFingerprint) -> Self {
        self.set(|options| options.fingerprint = fingerprint)
    }

    /// Lets a request wait up to `patience` for the first one with its key, and then replays its
    /// response. By default it is refused at once (409). The number of waiting requests is limited
    /// by [`max_waiters`](crate::Builder::max_waiters); any more are refused at once.
    pub fn blocking(self, patience: Duration) -> Self {
        self.with_wait(patience)
    }

    /// The same as [`blocking`](Self::blocking).
    pub fn with_wait(self, patience: Duration) -> Self {
        self.set(|options| options.on_conflict = OnConflict::Wait(patience))
    }

    /// The policy for a handler that began and whose outcome is unknown. The default is
    /// [`OnCrash::Hold`]: a retry gets 409, `uncertain`, until an operator decides.
    pub fn with_on_crash(self, on_crash: OnCrash) -> Self {
        self.set(|options| options.crash = Crash::Policy(on_crash))
    }

    /// Lets the next request with the key call `question` when a handler began and its outcome is
    /// unknown. See [`Call::on_crash_verify`](crate::Call::on_crash_verify), also for when this is
    /// safe.
    ///
    /// The callback receives the [`Context`] of the call and the request. Its verdict provides the
    /// response, lets the handler run, or leaves the record in doubt. A response with a status of
    /// 1xx, which no final response can have, leaves it in doubt too. A response over the limit
    /// ([`with_max_response_body`](Self::with_max_response_body)) records that the request was
    /// answered, but is not stored: every caller gets 409, `not-kept`.
    ///
    /// ```
    /// # use idempotency::{Context, Idempotency, Verdict, store::MemoryStore};
    /// # use idempotency::http::{IdempotencyLayer, Scope};
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

    /// The delay before the callback of [`with_verify`](Self::with_verify) is called. The default
    /// is one second.
    pub fn with_settle(self, delay: Duration) -> Self {
        self.set(|options| options.settle = Some(delay))
    }

    /// Decides what happens to the key, by a function of the response's status and the request. The
    /// default is [`OnStatus::standard`]. The response's extensions take precedence: see
    /// [`NothingHappened`](super::NothingHappened).
    ///
    /// If this, [`stripe`](Self::stripe) and [`release_server_errors`](Self::release_server_errors)
    /// are combined, the last call wins.
    pub fn with_on_status(
        self,
        decide: impl Fn(StatusCode, &request::Parts) -> OnStatus + Send + Sync + 'static,
    ) -> Self {
        self.set(|options| options.on_status = Arc::new(decide))
    }

    /// Releases the key after 408 and 5xx: for services whose errors roll everything back, because
    /// each handler does its work in one database transaction. By default such a status means that
    /// the outcome is unknown, and the key is held.
    ///
    /// **This also covers everything else behind the layer that answers with such a status**: a
    /// timeout that drops the handler, a panic catcher, a proxy. Put them in front of the layer, or
    /// make sure that whatever they cut off is rolled back. Three outcomes are still held: a panic
    /// that is not caught, an error of the service in place of a response, and an error of a
    /// guarded call inside that may hide an effect. [`OnStatus::releasing_server_errors`] is the
    /// same rule for single routes.
    pub fn release_server_errors(self) -> Self {
        self.with_on_status(|status, _| OnStatus::releasing_server_errors(status))
    }

    /// Adapts the service to the clients of Stripe's API.
    ///
    /// It stores what Stripe's API stores: the [default](OnStatus::standard) and 500. Refusals have
    /// the form that those clients treat as errors, with `Stripe-Should-Retry` where the status
    /// alone does not decide. Replays are marked `Idempotent-Replayed`.
    ///
    /// It replaces earlier calls of [`with_on_status`](Self::with_on_status) and
    /// [`with_problem`](Self::with_problem). Later calls of `with_on_status` and
    /// [`with_header_names`](Self::with_header_names) override it. A later `with_problem` receives
    /// refusals in this form, which is also sent where that function's response cannot be used.
    pub fn stripe(self) -> Self {
        self.with_on_status(|status, _| OnStatus::stripe(status)).set(|options| {
            (options.form, options.shape) = (BaseForm::Stripe, None);
            options.markers = Markers::new(options.markers.names.clone().of_stripe(), true);
        })
    }

    /// The form of refusals, as a function of the problem and its standard response. By default
    /// that response is sent: problem details (RFC 9457), or, after [`stripe`](Self::stripe), an
    /// error in the form of Stripe's API.
    ///
    /// Problems that a handler answers with get this form too: a [`Problem`], the error of a guarded
    /// call, and the rejection of the extractor [`IdempotencyKey`](super::IdempotencyKey). If
    /// something behind the layer has given such a response another `Content-Type`, it stays as it
    /// is.
    ///
    /// ```
    /// # use idempotency::{Idempotency, store::MemoryStore};
    /// # use idempotency::http::{IdempotencyLayer, Problem, ProblemKind, Scope};
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
    /// It changes the form of a refusal, not the decision: no handler runs, nothing is recorded,
    /// and the response is a 4xx or 5xx with `Cache-Control: no-store` and the kind in
    /// `Idempotency-Problem`. If the function panics, returns another status or leaves no room for
    /// these headers, the standard response is sent.
    pub fn with_problem(
        self,
        shape: impl Fn(&Problem, Response<Bytes>) -> Response<Bytes> + Send + Sync + 'static,
    ) -> Self {
        self.set(|options| options.shape = Some(Arc::new(shape)))
    }

    /// The names of the key header and of the headers that the layer writes. The default is those
    /// of the draft standard and [`HeaderNames::new`].
    pub fn with_header_names(self, names: HeaderNames) -> Self {
        self.set(|options| {
            options.keys.header = names.key().clone();
            options.markers = options.markers.renamed(names);
        })
    }

    /// Additional headers to replay. The defaults are `Cache-Control`, `Content-Disposition`,
    /// `Content-Encoding`, `Content-Language`, `Content-Location`, `Content-Type`, `ETag`,
    /// `Last-Modified`, `Link`, `Location` and `Vary`.
    ///
    /// Credentials, cookies, `Date` and connection headers are never replayed, even if they are
    /// named here.
    pub fn with_replayed_headers(self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        self.set(|options| {
            options.replayed.extend(names.into_iter().filter(headers::may_be_replayed));
        })
    }

    /// The largest body of a request with a key, in bytes. Larger ones are refused (413). The
    /// default is 2 MiB.
    pub fn with_max_request_body(self, bytes: usize) -> Self {
        self.set(|options| options.request_limit = bytes)
    }

    /// The largest response that is stored, in bytes, including its stored headers. The default,
    /// and the maximum, is the engine's [`max_result_size`](crate::Builder::max_result_size). See
    /// [`with_unreplayable`](Self::with_unreplayable) for larger responses.
    pub fn with_max_response_body(self, bytes: usize) -> Self {
        self.set(|options| options.response_limit = bytes)
    }

    /// The record that a response leaves if it cannot be stored. The default is
    /// [`Unreplayable::Mark`].
    pub fn with_unreplayable(self, unreplayable: Unreplayable) -> Self {
        self.set(|options| options.unreplayable = unreplayable)
    }

    /// The time for which a response is replayed, counted from its end. A record in doubt is kept
    /// at least that long. The default is 24 hours.
    pub fn with_ttl(self, ttl: Duration) -> Self {
        self.set(|options| options.ttl = ttl)
    }

    /// The time for which a response is replayed, as a function of its head: from one millisecond
    /// up to the engine's [maximum](crate::Builder::max_ttl). By default it is the same for all
    /// responses.
    pub fn with_ttl_of(
        self,
        ttl: impl Fn(&response::Parts) -> Duration + Send + Sync + 'static,
    ) -> Self {
        self.set(|options| options.lifetime = Some(Arc::new(ttl)))
    }

    /// The time after a record's expiry during which a late retry is refused (410) instead of
    /// running again. By default there is none: the retry runs.
    pub fn with_refusal_after_expiry(self, duration: Duration) -> Self {
        self.set(|options| options.after_expiry = Some(duration))
    }

    /// Runs the handler without protection if the store is not available, and marks its response
    /// with `Idempotency-Bypassed: true`. **A retry may then repeat the effect.**
    ///
    /// By default the request is refused (503). It is refused even with this option if it has
    /// [waited](Self::blocking) for another request with its key before the store failed, or
    /// already knows of one.
    ///
    /// The marker keeps clients from sending the request again, but only responses of this layer
    /// carry it. A response that something in front builds from an *error* of the service behind
    /// has no marker, and neither has the response of a timeout in front. Clients retry such
    /// requests, with a second effect, so turn errors into responses behind the layer. The same
    /// holds for a [disabled](crate::Idempotency::disable) operation. A response that has no room
    /// for the marker, with tens of thousands of headers, is replaced by a 500 that carries it.
    pub fn with_fail_open(self) -> Self {
        self.set(|options| options.fail_open = true)
    }

    /// The address of a page that explains the service's problems. The `type` of every problem is
    /// this address, `#`, and the [name](super::ProblemKind::name) of its kind. The default is the
    /// documentation of this crate.
    pub fn with_documentation(self, address: impl Into<Arc<str>>) -> Self {
        self.set(|options| options.documentation = address.into())
    }

    /// Returns a service that reports the state of a request by its key. See [`StatusService`].
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
