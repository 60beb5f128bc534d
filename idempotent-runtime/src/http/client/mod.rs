//! The client side of the header: a [`tower`](https://docs.rs/tower) layer around an HTTP client.
//!
//! It assigns one `Idempotency-Key` to each request, retries the request with the same key while
//! that can help, and returns the first response that settles it:
//!
//! ```
//! # use std::{convert::Infallible, future::{Ready, ready}, task::{Context, Poll}, time::Duration};
//! # use http::{Request, Response};
//! # use tower_layer::Layer as _;
//! # use tower_service::Service;
//! # #[derive(Clone)]
//! # struct Transport;
//! # impl Service<Request<String>> for Transport {
//! #     type Response = Response<()>;
//! #     type Error = Infallible;
//! #     type Future = Ready<Result<Response<()>, Infallible>>;
//! #     fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> { Poll::Ready(Ok(())) }
//! #     fn call(&mut self, request: Request<String>) -> Self::Future {
//! #         assert!(request.headers().contains_key("idempotency-key"));
//! #         ready(Ok(Response::new(())))
//! #     }
//! # }
//! use idempotency::http::client::{ClientLayer, Sent};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let transport = Transport;
//! let mut client = ClientLayer::new().with_deadline(Duration::from_secs(20)).layer(transport);
//!
//! let request = Request::post("https://example.com/payments").body(r#"{"amount": 100}"#.to_owned())?;
//! let answer = client.call(request).await?;
//! assert_eq!(answer.extensions().get::<Sent>().map(Sent::attempts), Some(1));
//! # Ok(())
//! # }
//! ```
//!
//! The service at the other end must support the header. **To a service that does not, a retry is a
//! second request.**
//!
//! # Which key
//!
//! The first of these that is present:
//!
//! 1. the header, if the request already has it; it is sent unchanged, and a blank one is refused;
//! 2. a [`RequestKey`] in the request's extensions;
//! 3. inside a guarded call, where a request must have the same key in every attempt of the body:
//!    the key that [`Context::derive_key`](crate::Context::derive_key) returns for the
//!    [`RequestLabel`] in the request's extensions, or, without one, for its method and address, as
//!    in `"POST https://example.com/payments"`;
//! 4. a UUID of version 7.
//!
//! The last two apply only to the layer's methods, POST and PATCH by default. A request without a
//! key is passed on untouched and sent once. So is a gRPC request (`application/grpc…`), whose
//! service does not know the header.
//!
//! A UUID is lost with the process that generated it. If a request may have to be repeated after a
//! crash, send it from a guarded call, or write its key down first.
//!
//! ## Two requests in one body
//!
//! Two requests with the same label are the same request, and have the same key. Without a label,
//! only method and address distinguish them: not their order, which a later attempt need not
//! repeat, and not their body.
//!
//! So the second request to an address is **refused** ([`ClientError::NotSent`]) while the first is
//! in flight and after it was answered, because a later attempt could mean either of them. Give
//! each a label that describes its purpose, `"charge"` or `"refund-7"`. If the first ended without
//! a response, or with a response after which a request is retried, the next one is the same
//! request and has the same key. Each [step](crate::Context::step) has keys of its own. A further
//! try of a step ([`retry`](crate::step::Step::retry)) repeats the requests of the one before, with
//! their keys: a service that has stored its answer gives it again.
//!
//! A request with a query needs a label: without one it is **refused** ([`ClientError::NotSent`]).
//! A query that is signed or has a time is another one in the next attempt, and so would the key be.
//! The host and the path count as well. Where they may differ in the next attempt, add a label.
//!
//! In the callback of [`on_crash_verify`](crate::Call::on_crash_verify), and in that of the layer
//! for services, a request without a label is refused as well: its key would be the same in every
//! attempt, so a lookup by POST would be answered with the response to an earlier lookup. Give it
//! the label of the request whose outcome it looks up, or a [`RequestKey`] that no other lookup
//! has.
//!
//! The callback runs outside of every step, and a request that a step sends has a key of that step.
//! Simplest: derive the key outside of the steps, in the body as in the callback, and pass it into
//! the step as a [`RequestKey`]. Or name the step in both places, with [`RequestLabel::of_step`]. In
//! a call with such a callback a label inside a step that does not name it is refused: the callback,
//! with the same label, would send another request.
//!
//! The running call is determined where [`call`] is called: in the
//! body, and in tasks that run [`in_current_call`](crate::InCurrentCall::in_current_call). Put a
//! buffer or a queue behind the layer, and everything that retries on its own as well. In front of
//! it, each retry is a request of its own, with a new key unless it has one of the first two.
//!
//! # When a request is sent again
//!
//! | result | |
//! |---|---|
//! | client error: no connection or no response on it | retried unless [`with_errors`] forbids it |
//! | no response within [`with_attempt_timeout`] | retried |
//! | `Idempotency-Replayed` or `Idempotency-Bypassed`, whatever the status | returned |
//! | `Idempotency-Problem: uncertain`, `not-kept`, `expired` or `mismatch` | returned |
//! | `Stripe-Should-Retry: false` | returned |
//! | `Stripe-Should-Retry: true`, on an error | retried |
//! | 408, 409, 425, 429, 502, 503, 504 | retried |
//! | all else, including 400, 422, 500 | returned, unless [`with_retried_answers`] says otherwise |
//!
//! [`with_errors`]: ClientLayer::with_errors
//! [`with_attempt_timeout`]: ClientLayer::with_attempt_timeout
//! [`with_retried_answers`]: ClientLayer::with_retried_answers
//!
//! The first matching line applies. A 409 may mean that the first request is still running. If it
//! is a result instead, the service replays it to the next attempt, and that response is then
//! returned.
//!
//! The pause between two attempts has a random length, up to a bound that doubles each time, and at
//! least the length that `Retry-After` requires: a number of seconds, or a date, which is compared
//! with the response's own `Date` if it has one. If the pause would not end before the
//! [deadline](ClientLayer::with_deadline), the last response or error is returned at once.
//!
//! A body is copied before it is sent. A body that [cannot be copied](ClientLayer::with_body_copy)
//! is sent once.
//!
//! A response counts as received once its headers arrive. If its body breaks off, the caller that
//! reads it can send the request again with its key.
//!
//! # When the future is dropped
//!
//! No further attempt is sent. The outcome of the last one is not known: it may take effect. The
//! same request with the same key finds out. So `timeout(…)` around a request whose key was
//! generated here loses the key; [`with_deadline`](ClientLayer::with_deadline) returns the key with
//! its error.
//!
//! [`call`]: https://docs.rs/tower-service/latest/tower_service/trait.Service.html#tymethod.call

mod answer;
mod error;
mod key;
mod layer;
mod pauses;
mod service;
mod transport;
mod unlabelled;

pub use error::{ClientError, Sent};
pub use key::{RequestKey, RequestLabel};
pub use layer::ClientLayer;
pub use service::{ClientFuture, ClientService};
pub use transport::{AnyError, BodyCopy, ClonedBody, PassingError};
