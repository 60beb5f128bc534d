//! NATS JetStream for the [inbox](idempotency::inbox) of `idempotency`: each message of a stream has
//! its effect once.
//!
//! [`JetStream`] connects to a pull consumer, and [`PullSource`] is the
//! [`Source`](idempotency::inbox::Source) of a [`Consumer`](idempotency::inbox::Consumer).
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use idempotency::Idempotency;
//! use idempotency::inbox::{Consumer, Inbox};
//! use idempotency_nats::JetStream;
//! use idempotency_nats::async_nats::{self, jetstream};
//!
//! # #[derive(serde::Deserialize)]
//! # struct Order;
//! # async fn send(_: &Order) -> Result<(), Box<dyn std::error::Error + Send + Sync>> { Ok(()) }
//! async fn consume(engine: Idempotency) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//!     let client = async_nats::connect("nats://localhost").await?;
//!     let context = jetstream::new(client);
//!     let stream = context.get_stream("orders").await?;
//!     let orders = JetStream::new(stream.get_consumer("mail").await?)
//!         .dead_letters(context, "dead.orders")
//!         .connect()
//!         .await?;
//!     let inbox = Inbox::new(engine, "mail", Duration::from_secs(7 * 86_400));
//!     let stop = async { tokio::signal::ctrl_c().await.expect("there is a handler") };
//!     let consumer = Consumer::new(inbox, orders);
//!     consumer.run(stop, |message| async move { send(&message.json::<Order>()?).await }).await?;
//!     Ok(())
//! }
//! ```
//!
//! # The key
//!
//! The header [`idempotency-key`](idempotency::inbox::KEY_HEADER); else the header `Nats-Msg-Id`; else
//! the position: the stream, the number of the message in it, and the time at which the server got
//! it. The three are kept apart: a header never equals an id. An empty `idempotency-key` is no key,
//! and its message a dead letter ([`MissingKey`](idempotency::inbox::DeadReason::MissingKey)).
//! [`JetStream::with_key`] chooses another key.
//!
//! A position recognises what the server delivers again. It does not recognise a message that its
//! producer publishes twice: for that, it has to set one of the headers.
//!
//! # The answers
//!
//! | [`Disposition`](idempotency::inbox::Disposition) | to the server |
//! |---|---|
//! | `Ack` | `+ACK` |
//! | `Retry`, `Postpone` | `-NAK` with the delay |
//! | `DeadLetter` | a copy is published to the subject of dead letters; once a stream has confirmed it, `+ACK` |
//!
//! All that is held, running or waiting, is kept with `+WPI`, every third of the shortest of
//! `ack_wait` and `backoff`. An acknowledgement is not confirmed by the server: if one is lost, its
//! message comes again, is recognised by its record, and is acknowledged again. A confirmation would
//! cost a round trip, and could be lost in the same way.
//!
//! A dead letter that does not arrive, or has no place, is not dropped: an error is logged, and the
//! message is delivered again, after pauses that grow to five minutes.
//!
//! # Dead letters
//!
//! A dead letter has the payload and the headers of its message, and is the same message to the
//! inbox when it is moved back with its headers. Headers that begin with `Nats-` are orders to the
//! server and are not copied. These are added:
//!
//! | header | value |
//! |---|---|
//! | `idempotency-message-id` | its `Nats-Msg-Id`, if it has one: [`StreamMessage::message_id`] |
//! | `idempotency-position` | its position |
//! | `idempotency-reason` | [`DeadReason::as_str`](idempotency::inbox::DeadReason::as_str) |
//! | `idempotency-record` | the hash of the record, 64 hexadecimal digits, for [`record_by_hash`](idempotency::Idempotency::record_by_hash); none without a usable key |
//! | `idempotency-attempts` | the number of the last attempt, 0 if none was made in the last try |
//! | `idempotency-stream`, `idempotency-subject`, `idempotency-sequence` | where the message came from |
//! | `idempotency-time` | the time of this process, as in RFC 3339 |
//! | `Nats-Msg-Id` | its own, from the consumer and the position of the message |
//!
//! # The connection
//!
//! The client connects again by itself, and the consumer goes on a few seconds later. A consumer or
//! stream that is deleted ends it with [`Error::MissingConsumer`], and a client that is closed with
//! [`Error::ConnectionEnded`].

mod connect;
mod dead_letter;
mod error;
mod message;
mod pulls;
mod source;

/// The example of the page about NATS is a program.
#[cfg(doctest)]
#[doc = include_str!("../../docs/nats.md")]
struct Page;

pub use async_nats;
pub use connect::JetStream;
pub use error::Error;
pub use message::StreamMessage;
pub use source::PullSource;
