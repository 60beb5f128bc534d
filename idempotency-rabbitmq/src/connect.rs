//! The way to a queue.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use idempotency::inbox::Delivery;
use idempotency::key::IntoKey;
use lapin::Connection;
use lapin::types::ShortString;

use crate::error::Error;
use crate::link::{Link, LinkOptions, is_not_found, look_for};
use crate::message::{KeyOf, QueueMessage};
use crate::queue::Queue;

/// Twice the concurrency of a consumer, by its default.
const PREFETCH: u16 = 32;
/// The time for a recovery and for the beginning, by default.
const RECOVERY: Duration = Duration::from_secs(60);

/// The options of a [`Queue`].
///
/// ```no_run
/// # use std::sync::Arc;
/// # use idempotency_rabbitmq::{RabbitMq, lapin::Connection};
/// # async fn consume(connection: Arc<Connection>) -> Result<(), idempotency_rabbitmq::Error> {
/// let orders = RabbitMq::new(&connection, "orders")
///     .dead_letters("orders.dead")
///     .with_prefetch(64)
///     .with_key(|message| message.header("order-id").map(str::to_owned))
///     .connect()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is consumed before `connect`"]
pub struct RabbitMq {
    connection: Arc<Connection>,
    queue: String,
    dead_letters: Option<String>,
    prefetch: u16,
    recovery: Duration,
    key: Option<KeyOf>,
}

impl RabbitMq {
    /// Creates options for this queue, which exists already.
    pub fn new(connection: &Arc<Connection>, queue: impl Into<String>) -> Self {
        Self {
            connection: connection.clone(),
            queue: queue.into(),
            dead_letters: None,
            prefetch: PREFETCH,
            recovery: RECOVERY,
            key: None,
        }
    }

    /// Sets the queue for dead letters, which exists already. They are published by the default
    /// exchange, on a channel of their own.
    ///
    /// Without it nothing is dropped: such a message is returned to its queue again and again,
    /// with an error in the log.
    pub fn dead_letters(self, queue: impl Into<String>) -> Self {
        Self { dead_letters: Some(queue.into()), ..self }
    }

    /// Sets how many messages the broker delivers before it has answers (`basic.qos`). The default
    /// is 32: twice the concurrency of a consumer, by its default.
    ///
    /// Messages that wait for their next try count too: where many fail at the same time, they leave
    /// no room for others until they are returned.
    pub fn with_prefetch(self, messages: u16) -> Self {
        Self { prefetch: messages, ..self }
    }

    /// Sets how long [`connect`](Self::connect) may take, a channel that is opened again, and a lost
    /// connection that recovers (`ConnectionProperties::enable_auto_recover`). The default is a
    /// minute. Then the consumer ends with an error: a recovery that is interrupted itself can hang in
    /// the client for ever.
    pub fn with_recovery_within(self, recovery: Duration) -> Self {
        Self { recovery, ..self }
    }

    /// Sets the key of a message, in place of its header `idempotency-key` and its `message_id`. A
    /// message whose key is `None` is a dead letter.
    pub fn with_key<K, F>(self, key: F) -> Self
    where
        F: Fn(&QueueMessage) -> K + Send + Sync + 'static,
        K: IntoKey,
    {
        let key: KeyOf =
            Arc::new(move |message: &QueueMessage| Delivery::new(("own", key(message))));
        Self { key: Some(key), ..self }
    }

    /// Opens the channels, looks for the queues, and begins to consume.
    ///
    /// # Errors
    /// - [`MissingQueue`](Error::MissingQueue), [`MissingDeadLetters`](Error::MissingDeadLetters)
    /// - [`Name`](Error::Name), [`Prefetch`](Error::Prefetch): an option is invalid
    /// - [`NoAnswer`](Error::NoAnswer): not within [a minute](Self::with_recovery_within)
    /// - [`ConnectionEnded`](Error::ConnectionEnded), [`Refused`](Error::Refused): of the broker
    pub async fn connect(self) -> Result<Queue, Error> {
        if self.prefetch == 0 {
            return Err(Error::Prefetch);
        }
        let named = |name: String| ShortString::try_new(name).map_err(|_| Error::Name);
        let queue = named(self.queue)?;
        let dead_letters = self.dead_letters.map(named).transpose()?;
        let (within, no_answer) = (self.recovery, Error::NoAnswer { queue: queue.to_string() });
        let connected = async {
            if let Some(name) = &dead_letters {
                look_for(&self.connection, name).await.map_err(|error| match error {
                    Error::Refused(source) if is_not_found(&source) => {
                        Error::MissingDeadLetters { queue: name.to_string(), source }
                    }
                    error => error,
                })?;
            }
            let name = queue.to_string().into();
            let options = LinkOptions { queue, prefetch: self.prefetch, recovery: self.recovery };
            let link = Link::open(self.connection, options).await?;
            Ok(Queue::new(link, name, dead_letters, self.key))
        };
        tokio::time::timeout(within, connected).await.unwrap_or(Err(no_answer))
    }
}

impl fmt::Debug for RabbitMq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitMq")
            .field("queue", &self.queue)
            .field("dead_letters", &self.dead_letters)
            .field("prefetch", &self.prefetch)
            .finish_non_exhaustive()
    }
}
