//! Kafka for the [inbox](idempotency::inbox) of `idempotency`: each message of a topic has its effect
//! once.
//!
//! [`Kafka`] connects to topics, and [`Topics`] is the [`Source`](idempotency::inbox::Source) of a
//! [`Consumer`](idempotency::inbox::Consumer).
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use idempotency::Idempotency;
//! use idempotency::inbox::{Consumer, Inbox};
//! use idempotency_kafka::Kafka;
//! use idempotency_kafka::rdkafka::ClientConfig;
//!
//! # #[derive(serde::Deserialize)]
//! # struct Order;
//! # async fn book(_: &Order) -> Result<(), Box<dyn std::error::Error + Send + Sync>> { Ok(()) }
//! async fn consume(engine: Idempotency) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//!     let mut settings = ClientConfig::new();
//!     settings.set("bootstrap.servers", "localhost:9092").set("group.id", "billing");
//!     let orders = Kafka::new(settings, ["orders"]).dead_letters("orders.dead").connect().await?;
//!     let inbox = Inbox::new(engine, "billing", Duration::from_secs(14 * 86_400));
//!     let stop = async { tokio::signal::ctrl_c().await.expect("there is a handler") };
//!     let consumer = Consumer::new(inbox, orders);
//!     consumer.run(stop, |message| async move { book(&message.json::<Order>()?).await }).await?;
//!     Ok(())
//! }
//! ```
//!
//! # The key
//!
//! The header [`idempotency-key`](idempotency::inbox::KEY_HEADER); else the headers `ce_source` and
//! `ce_id` of a cloud event; else the position: the topic, the partition, the offset and the time of
//! the message. The three are kept apart: a header never equals a position. The last value of a
//! header counts. An empty `idempotency-key` is no key, and its message a dead letter
//! ([`MissingKey`](idempotency::inbox::DeadReason::MissingKey)). [`Kafka::with_key`] chooses another
//! key. The key by which Kafka chooses a partition is none.
//!
//! A position recognises what is received again. It does not recognise a message that its producer
//! sends twice: for that, it has to set the header.
//!
//! # The answers
//!
//! | [`Disposition`](idempotency::inbox::Disposition) | here |
//! |---|---|
//! | `Ack` | the message is finished. The offset behind the last one that is finished without a gap is stored, and the client commits it |
//! | `Retry`, `Postpone` | tried again in place, while its lane waits |
//! | `DeadLetter` | a copy is produced with `acks=all`; once the brokers have confirmed it, the message is finished |
//!
//! A lane is a partition, or a key within a partition with [`Kafka::by_key`]. A dead letter that does
//! not arrive, or has no place, is not dropped: an error is logged, its lane waits, and the message is
//! handled again, after pauses that grow to five minutes. Other lanes go on.
//!
//! Each partition has bounds of its own for what is in hand: 1 000 unfinished messages, and 4 MiB.
//! At these it is paused, and the others go on.
//!
//! Kafka counts no deliveries. Those after an assignment of a partition are
//! [suspects](idempotency::inbox::Delivery::suspect) until it is known that no later message was
//! begun before: after the first one that runs and succeeds, or the first 1 000 by key. They are
//! counted under their places.
//!
//! # Dead letters
//!
//! A dead letter has the payload, the key and the headers of its message, and is the same message to
//! the inbox when it is moved back with them. These headers are added, in place of those of the same
//! name:
//!
//! | header | value |
//! |---|---|
//! | `idempotency-reason` | [`DeadReason::as_str`](idempotency::inbox::DeadReason::as_str) |
//! | `idempotency-record` | the hash of the record, 64 hexadecimal digits, for [`record_by_hash`](idempotency::Idempotency::record_by_hash); none without a usable key |
//! | `idempotency-attempts` | the number of the last attempt, 0 if none was made in the last try |
//! | `idempotency-topic`, `idempotency-partition`, `idempotency-offset`, `idempotency-timestamp` | where the message came from first, in Kafka |
//! | `idempotency-time` | the time of this process, as in RFC 3339 |
//!
//! # The group
//!
//! When a partition goes to another member, what is stored is committed and what was not handed out
//! is dropped. Handlers that run are not waited for: the next member receives their messages, and
//! meets the records. An answer of an earlier assignment stores nothing.
//!
//! The client connects again by itself. The consumer ends with [`Error::Ended`] if the client cannot
//! go on, for example because another member has its `group.instance.id`.

mod connect;
mod dead_letter;
mod error;
mod group;
mod message;
mod source;
mod suspects;

/// The example of the page about Kafka is a program.
#[cfg(doctest)]
#[doc = include_str!("../../docs/kafka.md")]
struct Page;

pub use connect::Kafka;
pub use error::{Error, Undelivered};
pub use message::TopicMessage;
pub use rdkafka;
pub use source::Topics;
