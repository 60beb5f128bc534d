//! RabbitMQ for the [inbox](idempotency::inbox) of `idempotency`: each message of a queue has its
//! effect once.
//!
//! [`RabbitMq`] connects to a queue, and [`Queue`] is the
//! [`Source`](idempotency::inbox::Source) of a [`Consumer`](idempotency::inbox::Consumer).
//!
//! ```no_run
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use idempotency::Idempotency;
//! use idempotency::inbox::{Consumer, Inbox};
//! use idempotency_rabbitmq::RabbitMq;
//! use idempotency_rabbitmq::lapin::{Connection, ConnectionProperties};
//!
//! # #[derive(serde::Deserialize)]
//! # struct Order;
//! # async fn book(_: &Order) -> Result<(), Box<dyn std::error::Error + Send + Sync>> { Ok(()) }
//! async fn consume(engine: Idempotency) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//!     let properties = ConnectionProperties::default().enable_auto_recover();
//!     let connection = Connection::connect("amqp://localhost/%2f", properties).await?;
//!     let orders = RabbitMq::new(&Arc::new(connection), "orders")
//!         .dead_letters("orders.dead")
//!         .connect()
//!         .await?;
//!     let inbox = Inbox::new(engine, "billing", Duration::from_secs(7 * 86_400));
//!     let stop = async { tokio::signal::ctrl_c().await.expect("there is a handler") };
//!     let consumer = Consumer::new(inbox, orders);
//!     consumer.run(stop, |message| async move { book(&message.json::<Order>()?).await }).await?;
//!     Ok(())
//! }
//! ```
//!
//! # The key
//!
//! The header [`idempotency-key`](idempotency::inbox::KEY_HEADER), a string or an integer; else the
//! property `message_id`; else, if there is neither, the message is a dead letter
//! ([`MissingKey`](idempotency::inbox::DeadReason::MissingKey)). An empty string is no key. The two
//! are kept apart: a header never equals an id. [`RabbitMq::with_key`] chooses another key.
//!
//! # The answers
//!
//! | [`Disposition`](idempotency::inbox::Disposition) | to the broker |
//! |---|---|
//! | `Ack` | `basic.ack` |
//! | `Retry`, `Postpone` | the message is held here, without an answer, for at most five minutes; then `basic.nack` with requeue |
//! | `DeadLetter` | a persistent copy is published to the queue of dead letters, mandatory; once the broker has confirmed it, `basic.ack` |
//!
//! A dead letter that does not arrive, or has no place, is not dropped: an error is logged, and the
//! message is held and returned, after pauses that grow to five minutes.
//!
//! # Dead letters
//!
//! A dead letter has the payload, the properties and the headers of its message, and is therefore
//! the same message to the inbox when it is moved back. What would keep it from staying in its queue
//! is set aside: the headers `CC`, `BCC` and `x-delivery-count` are dropped, and the properties
//! `expiration` and `user_id` become the headers `idempotency-expiration` and `idempotency-user-id`.
//! These headers are added:
//!
//! | header | value |
//! |---|---|
//! | `idempotency-reason` | [`DeadReason::as_str`](idempotency::inbox::DeadReason::as_str) |
//! | `idempotency-record` | the hash of the record, 64 hexadecimal digits, for [`record_by_hash`](idempotency::Idempotency::record_by_hash); none without a usable key |
//! | `idempotency-attempts` | the number of the last attempt, 0 if none was made in the last try |
//! | `idempotency-queue`, `idempotency-exchange`, `idempotency-routing-key` | where the message came from |
//! | `idempotency-time` | the time of this process, as a timestamp |
//!
//! # The connection
//!
//! A channel that the broker closes, or a consumer that it cancels, is opened again. A connection
//! that is lost ends the consumer with [`Error::ConnectionEnded`]: connect again, as the page about
//! RabbitMQ shows. With `enable_auto_recover`, `lapin` does it, and the queue goes on;
//! [`RabbitMq::with_recovery_within`] bounds that.
//!
//! In all of these cases the broker delivers again what was in hand. Handlers that run are not cut
//! off, their answers are dropped, and the redelivery meets the record.

mod connect;
mod dead_letter;
mod error;
mod held;
mod link;
mod message;
mod queue;

/// The example of the page about RabbitMQ is a program.
#[cfg(doctest)]
#[doc = include_str!("../../docs/rabbitmq.md")]
struct Page;

pub use connect::RabbitMq;
pub use error::Error;
pub use lapin;
pub use message::QueueMessage;
pub use queue::Queue;
