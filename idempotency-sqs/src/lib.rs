//! Amazon SQS for the [inbox](idempotency::inbox) of `idempotency`: each message of a queue has its
//! effect once.
//!
//! [`Sqs`] connects to a standard or a FIFO queue, and [`SqsQueue`] is the
//! [`Source`](idempotency::inbox::Source) of a [`Consumer`](idempotency::inbox::Consumer).
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use idempotency::Idempotency;
//! use idempotency::inbox::{Consumer, Inbox};
//! use idempotency_sqs::Sqs;
//! use idempotency_sqs::aws_sdk_sqs::Client;
//!
//! # #[derive(serde::Deserialize)]
//! # struct Order;
//! # async fn charge(_: &Order) -> Result<(), Box<dyn std::error::Error + Send + Sync>> { Ok(()) }
//! async fn consume(
//!     engine: Idempotency,
//!     client: Client,
//! ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//!     let orders = Sqs::new(client, "https://sqs.eu-north-1.amazonaws.com/123456789012/orders")
//!         .dead_letters("https://sqs.eu-north-1.amazonaws.com/123456789012/orders-dead")
//!         .connect()
//!         .await?;
//!     let inbox = Inbox::new(engine, "billing", Duration::from_secs(14 * 86_400));
//!     let stop = async { tokio::signal::ctrl_c().await.expect("there is a handler") };
//!     let consumer = Consumer::new(inbox, orders);
//!     consumer.run(stop, |message| async move { charge(&message.json::<Order>()?).await }).await?;
//!     Ok(())
//! }
//! ```
//!
//! # The key
//!
//! The attribute [`idempotency-key`](idempotency::inbox::KEY_HEADER), of the message or in the
//! envelope of SNS; else the `MessageId` of that envelope; else the id that SQS gives to the message.
//! The three are kept apart: an attribute never equals an id. [`Sqs::with_key`] chooses another key.
//!
//! An id recognises what SQS delivers again. It does not recognise a message that its producer sends
//! twice: for that, it has to set the attribute. `MessageDeduplicationId` is not used: after five
//! minutes another message may have the same.
//!
//! # The answers
//!
//! | [`Disposition`](idempotency::inbox::Disposition) | to SQS |
//! |---|---|
//! | `Ack` | `DeleteMessageBatch` |
//! | `Retry`, `Postpone` | `ChangeMessageVisibilityBatch`, in whole seconds, rounded up |
//! | `DeadLetter` | a copy is sent to the queue for dead letters; once SQS has confirmed it, `DeleteMessageBatch` |
//!
//! All that is held, running or waiting, is kept with `ChangeMessageVisibilityBatch`, every third of
//! the visibility timeout, for 12 hours at most. Of a FIFO queue, each group is a
//! [lane](idempotency::inbox::Message::lane): when a message fails, those of its group that are in
//! hand go back with it.
//!
//! A dead letter that does not arrive, or has no queue, is not dropped: an error is logged, and the
//! message is delivered again, after pauses that grow to five minutes.
//!
//! # Dead letters
//!
//! A dead letter has the body and the attributes of its message, and is the same message to the inbox
//! when it is moved back with them. One attribute is added, `idempotency-dead-letter`, in JSON:
//!
//! | field | value |
//! |---|---|
//! | `reason` | [`DeadReason::as_str`](idempotency::inbox::DeadReason::as_str) |
//! | `record` | the hash of the record, 64 hexadecimal digits, for [`record_by_hash`](idempotency::Idempotency::record_by_hash); none without a usable key |
//! | `attempts` | the number of the last attempt, 0 if none was made in the last try |
//! | `key`, `key_origin` | the key that the message has unless [`with_key`](Sqs::with_key) chooses, and where it is from: `header`, `sns` or `message-id` |
//! | `message_id` | the id that SQS gave to the message first: [`SqsMessage::id`] |
//! | `queue` | where the message came from |
//! | `time` | the time of this process, as in RFC 3339 |
//! | `displaced` | the attributes that have no room beside this one: a message has ten at most |

mod connect;
mod dead_letter;
mod error;
mod message;
mod receives;
mod requests;
mod source;

/// The example of the page about SQS is a program.
#[cfg(doctest)]
#[doc = include_str!("../../docs/sqs.md")]
struct Page;

pub use aws_sdk_sqs;
pub use connect::Sqs;
pub use error::Error;
pub use message::SqsMessage;
pub use source::SqsQueue;
