//! A message of a stream.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use async_nats::HeaderMap;
use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream;
use idempotency::inbox::{Delivery, KEY_HEADER, Message};
use serde::de::DeserializeOwned;

/// The header of a dead letter with the position of its message: it has one of its own.
pub(crate) const POSITION: &str = "idempotency-position";
/// The header of a dead letter with the `Nats-Msg-Id` of its message: it has one of its own.
pub(crate) const MESSAGE_ID: &str = "idempotency-message-id";
/// The header that all dead letters have.
pub(crate) const REASON: &str = "idempotency-reason";

/// The key of a message, as the user chooses it.
pub(crate) type KeyOf = Arc<dyn for<'a> Fn(&'a StreamMessage) -> Delivery<'a> + Send + Sync>;

/// A message of a [`PullSource`](crate::PullSource).
pub struct StreamMessage {
    message: jetstream::Message,
    stream: Arc<str>,
    place: Option<Place>,
    key: Option<KeyOf>,
}

/// What the server says of a message beside its headers.
#[derive(Clone, Copy, Debug)]
struct Place {
    sequence: u64,
    /// In microseconds since 1970, which all systems can tell apart.
    published: u128,
    deliveries: u32,
}

impl StreamMessage {
    pub(crate) fn new(message: jetstream::Message, stream: Arc<str>, key: Option<KeyOf>) -> Self {
        let place = message.info().ok().map(|info| Place {
            sequence: info.stream_sequence,
            published: SystemTime::from(info.published)
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_micros(),
            deliveries: u32::try_from(info.delivered.max(1)).unwrap_or(u32::MAX),
        });
        Self { message, stream, place, key }
    }

    /// Returns the payload.
    pub fn payload(&self) -> &[u8] {
        &self.message.payload
    }

    /// Reads the payload as JSON.
    ///
    /// # Errors
    /// If it is no JSON, or not that of a `T`. Such a message does not get better by another try:
    /// see [`OnFailure::DeadLetter`](idempotency::inbox::OnFailure::DeadLetter).
    ///
    /// ```
    /// # use idempotency_nats::StreamMessage;
    /// #[derive(serde::Deserialize)]
    /// struct Order { id: u64 }
    ///
    /// fn id(message: &StreamMessage) -> serde_json::Result<u64> {
    ///     Ok(message.json::<Order>()?.id)
    /// }
    /// ```
    pub fn json<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_slice(self.payload())
    }

    /// Returns the subject to which the message was published.
    pub fn subject(&self) -> &str {
        self.message.subject.as_str()
    }

    /// Returns the headers, if there are any.
    pub fn headers(&self) -> Option<&HeaderMap> {
        self.message.headers.as_ref()
    }

    /// Returns the first value of a header. Upper and lower case of its name are different.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers()?.iter().find_map(|(given, values)| {
            let given: &str = given.as_ref();
            if given == name { Some(values.first()?.as_str()) } else { None }
        })
    }

    /// Returns the `Nats-Msg-Id` with which the message was published first: that of a dead letter
    /// that was moved back is its own, and no more than a detail of its way.
    pub fn message_id(&self) -> Option<&str> {
        let name = if self.was_dead() { MESSAGE_ID } else { NATS_MESSAGE_ID.as_ref() };
        self.header(name).filter(|id| !id.is_empty())
    }

    /// Returns the number of the message in its stream. `None` if the server does not say.
    pub fn sequence(&self) -> Option<u64> {
        Some(self.place?.sequence)
    }

    /// Returns how often the server has delivered it to this consumer, this time included. `None` if
    /// the server does not say.
    pub fn deliveries(&self) -> Option<u32> {
        Some(self.place?.deliveries)
    }

    pub(crate) fn message(&self) -> &jetstream::Message {
        &self.message
    }

    /// Where the message is, and since when: a stream of the same name that is created again has
    /// others there.
    pub(crate) fn position(&self) -> Option<String> {
        let Place { sequence, published, .. } = self.place?;
        Some(format!("{}:{sequence}:{published}", self.stream))
    }

    /// The position at which it was published first: that of a dead letter that was moved back is
    /// another one.
    pub(crate) fn first_position(&self) -> Option<Cow<'_, str>> {
        match self.header(POSITION) {
            Some(position) if self.was_dead() => Some(position.into()),
            _ => self.position().map(Cow::from),
        }
    }

    fn was_dead(&self) -> bool {
        self.header(REASON).is_some()
    }

    fn identified(&self) -> Delivery<'_> {
        if let Some(key) = &self.key {
            key(self)
        } else if let Some(text) = self.header(KEY_HEADER) {
            Delivery::new(("header", Some(text).filter(|text| !text.is_empty())))
        } else if let Some(id) = self.message_id() {
            Delivery::new(("message-id", id))
        } else {
            Delivery::new(("position", self.first_position().as_deref()))
        }
    }
}

impl Message for StreamMessage {
    fn delivery(&self) -> Delivery<'_> {
        let delivery = self.identified().payload(self.payload());
        match self.deliveries() {
            Some(count) => delivery.deliveries(count),
            None => delivery,
        }
    }

    /// The stream: subjects often name an order or a person.
    fn label(&self) -> &str {
        &self.stream
    }
}

/// Shows neither the key, the subject nor the payload.
impl fmt::Debug for StreamMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamMessage")
            .field("stream", &self.stream)
            .field("payload", &self.payload().len())
            .field("sequence", &self.sequence())
            .field("deliveries", &self.deliveries())
            .finish_non_exhaustive()
    }
}
