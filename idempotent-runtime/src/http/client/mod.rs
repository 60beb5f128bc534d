//! The other side of the header: a [`tower`](https://docs.rs/tower) layer around an HTTP client.
//!
//! It gives each request one `Idempotency-Key`, sends the request again with the same key while
//! that can help, and gives back the first answer that settles it:
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
//! use idempotent_runtime::http::client::{ClientLayer, Sent};
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
//! The service at the other end must honour the header. **To one that does not, a request that is
//! sent again is a second request.**
//!
//! # Which key
//!
//! The first of these that there is:
//!
//! 1. the header, if the request has it already; it is sent as it is;
//! 2. a [`RequestKey`] in the request's extensions;
//! 3. inside of a guarded call, where a request has to have the same key in every attempt of the
//!    body: the key that [`Context::derive_key`](crate::Context::derive_key) gives for the
//!    [`RequestLabel`] in the request's extensions, or, without one, for its method and address, as
//!    in `"POST https://example.com/payments"`;
//! 4. a UUID of version 7.
//!
//! A request gets a key by the last two if its method is one of the layer's, POST and PATCH by
//! default. A request without a key is passed on untouched, and sent once; so is a request of gRPC
//! (`application/grpc…`), whose service knows nothing of the header.
//!
//! A UUID is gone with the process that drew it. Where a request may have to be repeated after a
//! crash, it is sent from a guarded call, or its key is written down first.
//!
//! ## Two requests in one body
//!
//! Two requests with one label are one request, and so have one key. Without a label they are told
//! apart by method and address alone: not by their order, which a later attempt need not repeat,
//! and not by their body. So the second request to one address is **refused**
//! ([`ClientError::NotSent`]) while the first is on its way and after it was answered: nobody can
//! say which of the two a later attempt means. The error is a [`Config`](crate::ErrorKind::Config),
//! which holds the key of a handler that passes it on. Give each a label that says what it is for,
//! `"charge"` or `"refund-7"`. Where the first ended without an answer, or with one after which a
//! request is sent again, the next one is the same request and has the same key. Each
//! [step](crate::Context::step) has keys of its own.
//!
//! In the question of [`on_crash_verify`](crate::Call::on_crash_verify), and in that of the layer
//! for services, a request without a label is refused as well: with a key that is the same in every
//! attempt, a lookup by POST would be answered with what the service said to the question before.
//! Give it the label of the request that it repeats, to learn what became of that one, or a
//! [`RequestKey`] that no other question has.
//!
//! The running call is looked for where [`call`](tower_service::Service::call) is called: in the
//! body, and in tasks that have it [`in_current_scope`](crate::InCurrentScope::in_current_scope). A
//! buffer or a queue belongs behind the layer, and so does what repeats requests by itself: in
//! front of it, each repetition is a request of its own, with a new key unless it has one of the
//! first two.
//!
//! # When a request is sent again
//!
//! | what came | |
//! |---|---|
//! | an error of the client: no connection, or no answer on it | again, unless [`with_errors`](ClientLayer::with_errors) says that it is final |
//! | no answer within [`with_attempt_timeout`](ClientLayer::with_attempt_timeout) | again |
//! | `Idempotency-Replayed` or `Idempotency-Bypassed`, whatever the status | given back |
//! | `Idempotency-Problem: uncertain`, `not-kept`, `expired` or `mismatch` | given back |
//! | `Stripe-Should-Retry: false` | given back |
//! | `Stripe-Should-Retry: true`, on an error | again |
//! | 408, 409, 425, 429, 502, 503, 504 | again |
//! | everything else, 400 and 422 and 500 among it | given back, unless [`with_retried_answers`](ClientLayer::with_retried_answers) says otherwise |
//!
//! The first line that fits counts. A 409 may say that the first request still runs. Where it is a
//! result instead, the service replays it to the next attempt, which is then given back.
//!
//! Between two attempts there is a pause of a random length, up to a bound that doubles each time,
//! and at least what `Retry-After` asks for: a number of seconds, or a date, which is compared with
//! the answer's own `Date` where it has one. When the pause would not end before the
//! [deadline](ClientLayer::with_deadline), the last answer or error is given back at once.
//!
//! A body is copied before it is sent. One that [cannot be copied](ClientLayer::with_body_copy) is
//! sent once.
//!
//! An answer is there when its head is. What breaks off in the body of an answer is for the one who
//! reads it, who can send the request again with its key.
//!
//! # When the future is dropped
//!
//! No further attempt is sent. What the last one does at the other end is not known: it may take
//! effect. The same request with the same key finds out. So `timeout(…)` around a request whose key
//! was drawn here gives that up; [`with_deadline`](ClientLayer::with_deadline) gives the key back
//! with its error.

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
pub(crate) use unlabelled::Unlabelled;
