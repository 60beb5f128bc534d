//! The `Idempotency-Key` header: a [`tower`](https://docs.rs/tower) layer that runs the handler
//! once per key and replays its response to retries.
//!
//! A client sends `Idempotency-Key: "…"` with a request, and the same key with every retry of it.
//! The layer runs the handler for the first request and stores its response in the
//! [engine](crate::Idempotency)'s store. Retries are answered from there: the same status, the same
//! bytes, the headers that describe them, and `Idempotency-Replayed: true`.
//!
//! ```
//! # use idempotency::{Idempotency, store::MemoryStore};
//! # use idempotency::http::{IdempotencyLayer, Scope};
//! # use tower_layer::Layer as _;
//! let engine = Idempotency::new(MemoryStore::new());
//! let layer = IdempotencyLayer::new(engine, Scope::of(|request| {
//!     let principal = request.headers.get("x-principal")?;
//!     principal.to_str().ok().map(str::to_owned)
//! }));
//! # let _ = layer.layer(());
//! ```
//!
//! With axum: `Router::new().route("/payments", post(pay)).layer(layer)`. Add the authentication
//! layer after it, so that it runs before.
//!
//! - The handler runs in a task of its own: a client that disconnects neither cancels it nor loses
//!   its response, and [`shutdown`](crate::Idempotency::shutdown) waits for it.
//! - Once a handler has begun, 408 and 5xx mean an unknown outcome. A retry then gets 409, unless
//!   the response carries [`NothingHappened`]: see [what a status
//!   says](IdempotencyLayer#what-a-status-says).
//! - Handlers find the key as [`IdempotencyKey`] in the request's extensions; functions that they
//!   call find it with [`IdempotencyKey::current`].
//!   [`Context::derive_key`](crate::Context::derive_key) works in handlers.
//! - The body of a request with a key is read into memory, up to a limit. A request without a key
//!   is passed on untouched, unless keys are in [bodies](IdempotencyLayer::with_key_from_body).
//! - A response of known length is sent once its record is written. A response of unknown length is
//!   streamed as it is produced, and its end is held back until the record is written.
//!
//! - gRPC requests (`application/grpc…`) pass through untouched: guard the functions behind them.
//!   One whose type ends in `+json` is guarded if it has a key.
//! - [`stripe`](IdempotencyLayer::stripe) adapts the service to the official clients of Stripe's
//!   API.
//!
//! # Problems
//!
//! A request that the layer refuses is answered with `application/problem+json` (RFC 9457), or in
//! the form that [`with_problem`](IdempotencyLayer::with_problem) gives it. The name of the problem
//! is in `Idempotency-Problem`. The `type` is the address of this page, or the one set by
//! [`with_documentation`](IdempotencyLayer::with_documentation), followed by `#` and one of these
//! names:
//!
//! ## missing
//! Status 400. The request has no key, but requires one.
//!
//! ## malformed
//! Status 400. The key is blank, too long, or does not have the format that the service requires,
//! or there is more than one key. Or keys are in the body, and no key can be read from it.
//!
//! ## no-principal
//! Status 401. The layer's scope finds no principal to which the key could belong.
//!
//! ## mismatch
//! Status 422. The key was used for a different request: another method, path, query, precondition
//! or body, or the same bytes as a body of another type. Or another release of the service computed
//! its fingerprint in another way.
//!
//! ## in-progress
//! Status 409 with `Retry-After`. The first request with the key is still running.
//!
//! ## uncertain
//! Status 409. The first request started and its outcome is not known, or it was answered with 408
//! or 5xx. An operator decides with [`RecordHandle::resolve`](crate::record::RecordHandle::resolve) and
//! [`resolution`].
//!
//! ## expired
//! Status 410. The key was used long ago, and the response is no longer stored.
//!
//! ## not-kept
//! Status 409. The request was processed, but its response was not stored: it was too large, had
//! too many headers, or was a stream.
//!
//! ## too-large
//! Status 413. The body of the request is larger than the limit. The key can be used again.
//!
//! ## unreadable
//! Status 400. The body of the request ended early. The key can be used again.
//!
//! ## unavailable
//! Status 503 with `Retry-After`. The store is not available, or the service is shutting down. The
//! handler, or a guarded call inside it, did not run, or its transaction was rolled back.
//!
//! ## internal
//! Status 500. The handler panicked, or the record cannot be read. Or a guarded call inside it was
//! run in a transaction that was rolled back, and a retry would end in the same way; or it has no
//! valid key.

#[cfg(feature = "axum")]
mod axum;
mod buffer;
mod canonical_json;
pub mod client;
mod content;
mod decimal;
mod effects;
mod fingerprint;
mod guard;
mod handled;
mod handler;
mod headers;
mod hook;
mod json;
mod key;
mod layer;
mod method;
mod names;
mod options;
mod problem;
mod refusal;
mod request_body;
mod response_body;
mod scope;
mod service;
mod status;
mod stored;
mod stripe;
mod unprotected;

#[cfg(feature = "axum")]
pub use axum::NotExecuted;
pub use effects::NothingHappened;
pub use fingerprint::RequestFingerprint;
pub use headers::{
    IDEMPOTENCY_BYPASSED, IDEMPOTENCY_KEY_EXPIRES, IDEMPOTENCY_PROBLEM, IDEMPOTENCY_REPLAYED,
};
pub use key::{IDEMPOTENCY_KEY, IdempotencyKey, KeyFormat, RequestScope};
pub use layer::IdempotencyLayer;
pub use names::HeaderNames;
pub use options::{OnStatus, Unreplayable};
pub use problem::{Problem, ProblemKind};
pub use request_body::RequestBody;
pub use response_body::ResponseBody;
pub use scope::Scope;
pub use service::{IdempotencyService, ResponseFuture};
pub use status::StatusService;
pub use stored::resolution;

/// An error that a body reports.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
