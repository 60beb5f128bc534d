//! A message of a queue.

use std::fmt;
use std::sync::Arc;

use idempotency::inbox::{Delivery, KEY_HEADER, Message};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use serde::de::DeserializeOwned;

/// The header with which a quorum queue says how often it has delivered a message before.
pub(crate) const DELIVERY_COUNT: &str = "x-delivery-count";

/// The header with which RabbitMQ from 4.3 on counts deliveries that ended without a failure, too.
pub(crate) const ACQUIRED_COUNT: &str = "x-acquired-count";

/// The key of a message, as the user chooses it.
pub(crate) type KeyOf = Arc<dyn for<'a> Fn(&'a QueueMessage) -> Delivery<'a> + Send + Sync>;

/// A message of a [`Queue`](crate::Queue).
pub struct QueueMessage {
    delivered: lapin::message::Delivery,
    queue: Arc<str>,
    key: Option<KeyOf>,
}

impl QueueMessage {
    pub(crate) fn new(
        delivered: lapin::message::Delivery,
        queue: Arc<str>,
        key: Option<KeyOf>,
    ) -> Self {
        Self { delivered, queue, key }
    }

    /// Returns the payload.
    pub fn payload(&self) -> &[u8] {
        &self.delivered.data
    }

    /// Reads the payload as JSON.
    ///
    /// # Errors
    /// If it is no JSON, or not that of a `T`. Such a message does not get better by another try:
    /// see [`OnFailure::DeadLetter`](idempotency::inbox::OnFailure::DeadLetter).
    ///
    /// ```
    /// # use idempotency_rabbitmq::QueueMessage;
    /// #[derive(serde::Deserialize)]
    /// struct Order { id: u64 }
    ///
    /// fn id(message: &QueueMessage) -> serde_json::Result<u64> {
    ///     Ok(message.json::<Order>()?.id)
    /// }
    /// ```
    pub fn json<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_slice(self.payload())
    }

    /// Returns the properties: content type, message id, correlation id and others.
    pub fn properties(&self) -> &BasicProperties {
        &self.delivered.properties
    }

    /// Returns the headers, if there are any.
    pub fn headers(&self) -> Option<&FieldTable> {
        self.properties().headers().as_ref()
    }

    /// Returns the text of a header. `None` if there is none, or if it is no text.
    pub fn header(&self, name: &str) -> Option<&str> {
        match self.value(name)? {
            AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
            AMQPValue::ShortString(text) => Some(text.as_str()),
            _ => None,
        }
    }

    /// Returns the exchange by which the message came. Empty for the default exchange.
    pub fn exchange(&self) -> &str {
        self.delivered.exchange.as_str()
    }

    /// Returns the routing key with which it was published.
    pub fn routing_key(&self) -> &str {
        self.delivered.routing_key.as_str()
    }

    /// Returns true if the broker has delivered it before, to any consumer.
    pub fn is_redelivered(&self) -> bool {
        self.delivered.redelivered
    }

    /// Returns how often the broker has delivered it, this time included. `None` if it does not
    /// say: classic queues do not count, and a quorum queue does not on the first delivery.
    pub fn deliveries(&self) -> Option<u32> {
        if !self.is_redelivered() {
            // A count that came with the message is that of another queue.
            return None;
        }
        let counts = [DELIVERY_COUNT, ACQUIRED_COUNT];
        let before = counts.iter().filter_map(|name| integer(self.value(name)?)).max()?;
        Some(u32::try_from(before.max(0)).unwrap_or(u32::MAX).saturating_add(1))
    }

    pub(crate) fn delivered(&self) -> &lapin::message::Delivery {
        &self.delivered
    }

    fn value(&self, name: &str) -> Option<&AMQPValue> {
        self.headers()?.inner().get(name)
    }

    fn identified(&self) -> Delivery<'_> {
        if let Some(key) = &self.key {
            return key(self);
        }
        match self.value(KEY_HEADER) {
            Some(AMQPValue::LongString(text)) => of_header(text.as_bytes()),
            Some(AMQPValue::ShortString(text)) => of_header(text.as_str().as_bytes()),
            Some(other) => Delivery::new(("header", integer(other))),
            None => {
                let id = self.properties().message_id().as_ref().map(ShortString::as_str);
                Delivery::new(("message-id", id.filter(|id| !id.is_empty())))
            }
        }
    }
}

/// The key in a header. One that is no UTF-8 is used as it is.
fn of_header<'a>(bytes: &[u8]) -> Delivery<'a> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Delivery::new(("header", Some(text).filter(|text| !text.is_empty()))),
        Err(_) => Delivery::new(("header", bytes)),
    }
}

fn integer(value: &AMQPValue) -> Option<i64> {
    match value {
        AMQPValue::ShortShortInt(number) => Some(i64::from(*number)),
        AMQPValue::ShortShortUInt(number) => Some(i64::from(*number)),
        AMQPValue::ShortInt(number) => Some(i64::from(*number)),
        AMQPValue::ShortUInt(number) => Some(i64::from(*number)),
        AMQPValue::LongInt(number) => Some(i64::from(*number)),
        AMQPValue::LongUInt(number) => Some(i64::from(*number)),
        AMQPValue::LongLongInt(number) => Some(*number),
        _ => None,
    }
}

impl Message for QueueMessage {
    fn delivery(&self) -> Delivery<'_> {
        let delivery = self.identified().payload(self.payload());
        // A classic queue says that it delivers again, and not how often: a count beside that may have
        // come with the message.
        let delivery = if self.is_redelivered() { delivery.redelivered() } else { delivery };
        match self.deliveries() {
            Some(count) => delivery.deliveries(count),
            None => delivery,
        }
    }

    fn label(&self) -> &str {
        &self.queue
    }
}

/// Shows neither the key nor the payload.
impl fmt::Debug for QueueMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueMessage")
            .field("queue", &self.queue)
            .field("payload", &self.payload().len())
            .field("is_redelivered", &self.is_redelivered())
            .field("deliveries", &self.deliveries())
            .finish_non_exhaustive()
    }
}
