//! A message of a topic.

use std::borrow::Cow;
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use idempotency::inbox::{Delivery, KEY_HEADER, Message};
use rdkafka::message::{Header, Headers, Message as _, OwnedHeaders, OwnedMessage};
use serde::de::DeserializeOwned;

/// The headers of a dead letter that say where its message came from first.
pub(crate) const PLACE: [&str; 4] =
    ["idempotency-topic", "idempotency-partition", "idempotency-offset", "idempotency-timestamp"];
/// The header that all dead letters have.
pub(crate) const REASON: &str = "idempotency-reason";
/// The headers that identify a cloud event together.
const EVENT: [&str; 2] = ["ce_source", "ce_id"];

/// The tags that keep keys of different origin apart.
const OF_HEADER: &str = "header";
const OF_EVENT: &str = "event";
const OF_POSITION: &str = "position";
/// The tag of the place under which deliveries are counted.
const OF_PLACE: &str = "place";

/// The key of a message, as the user chooses it.
pub(crate) type KeyOf = Arc<dyn for<'a> Fn(&'a TopicMessage) -> Delivery<'a> + Send + Sync>;

/// A message of [`Topics`](crate::Topics).
pub struct TopicMessage {
    message: OwnedMessage,
    /// The places of the headers whose names are text.
    readable: Vec<usize>,
    key: Option<KeyOf>,
    pub(crate) place: Place,
    /// Whether the delivery is a suspect. It stays what it was at the first try.
    is_suspect: OnceLock<bool>,
}

/// Where a message was received.
pub(crate) struct Place {
    /// The assignment of the partition. A partition that comes back has another one.
    pub(crate) assignment: u64,
    pub(crate) lane: u64,
    /// No later message of the assignment is a suspect.
    pub(crate) has_proof: Arc<AtomicBool>,
}

/// The key of a message without one that the user chooses.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Key<'m> {
    Text(&'static str, Cow<'m, str>),
    /// A header that is no text.
    Bytes(&'m [u8]),
    Event(&'m str, &'m str),
    Missing,
}

impl TopicMessage {
    pub(crate) fn new(message: OwnedMessage, place: Place, key: Option<KeyOf>) -> Self {
        let headers = message.headers();
        // The client panics at a name that is not text.
        let is_readable = |at: &usize| {
            let read = || headers.is_some_and(|headers| headers.try_get(*at).is_some());
            catch_unwind(AssertUnwindSafe(read)).unwrap_or(false)
        };
        let readable = (0..headers.map_or(0, Headers::count)).filter(is_readable).collect();
        Self { message, readable, key, place, is_suspect: OnceLock::new() }
    }

    /// Returns the payload. `None`: the message is a tombstone.
    pub fn payload(&self) -> Option<&[u8]> {
        self.message.payload()
    }

    /// Reads the payload as JSON. A tombstone is none.
    ///
    /// # Errors
    /// If it is no JSON, or not that of a `T`. Such a message does not get better by another try:
    /// see [`OnFailure::DeadLetter`](idempotency::inbox::OnFailure::DeadLetter).
    ///
    /// ```
    /// # use idempotency_kafka::TopicMessage;
    /// #[derive(serde::Deserialize)]
    /// struct Order { id: u64 }
    ///
    /// fn id(message: &TopicMessage) -> serde_json::Result<u64> {
    ///     Ok(message.json::<Order>()?.id)
    /// }
    /// ```
    pub fn json<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_slice(self.payload().unwrap_or_default())
    }

    /// Returns the key by which Kafka chooses a partition. It is no identity: many messages have the
    /// same.
    pub fn message_key(&self) -> Option<&[u8]> {
        self.message.key()
    }

    /// Returns the topic.
    pub fn topic(&self) -> &str {
        self.message.topic()
    }

    /// Returns the number of the partition.
    pub fn partition(&self) -> i32 {
        self.message.partition()
    }

    /// Returns the offset within the partition.
    pub fn offset(&self) -> i64 {
        self.message.offset()
    }

    /// Returns the time of the message in milliseconds since 1970: that of its producer, or that at
    /// which the broker got it, as the topic is configured. `None` if it has none.
    pub fn timestamp(&self) -> Option<i64> {
        self.message.timestamp().to_millis()
    }

    /// Returns the headers, if there are any.
    pub fn headers(&self) -> Option<&OwnedHeaders> {
        self.message.headers()
    }

    /// Returns the last value of a header. `None` if there is none, or if it is no text.
    pub fn header(&self, name: &str) -> Option<&str> {
        str::from_utf8(self.last(name)?.value?).ok()
    }

    /// The last header of this name.
    fn last(&self, name: &str) -> Option<Header<'_, &[u8]>> {
        self.readable_headers().rev().find(|header| header.key == name)
    }

    /// How many bytes it takes here.
    pub(crate) fn size(&self) -> usize {
        let header =
            |header: Header<'_, &[u8]>| header.key.len() + header.value.map_or(0, <[u8]>::len);
        let parts = [self.payload(), self.message_key()];
        let parts: usize = parts.into_iter().flatten().map(<[u8]>::len).sum();
        parts + self.readable_headers().map(header).sum::<usize>()
    }

    /// The headers whose names are text.
    pub(crate) fn readable_headers(&self) -> impl DoubleEndedIterator<Item = Header<'_, &[u8]>> {
        let headers = self.headers();
        self.readable.iter().filter_map(move |at| headers?.try_get(*at))
    }

    /// Where the message was published first, and when: a topic that is deleted and created again
    /// begins with the same offsets. Of a dead letter that was moved back, its headers say it.
    fn position(&self) -> String {
        if let Some([topic, partition, offset, time]) = self.origin() {
            return format!("{topic}:{partition}:{offset}:{time}");
        }
        let time = self.timestamp().map(|time| time.to_string()).unwrap_or_default();
        format!("{}:{}:{}:{time}", self.topic(), self.partition(), self.offset())
    }

    /// Where a dead letter that was moved back came from first. `None` if it is none, or does not say
    /// it in whole: dead letters of other brokers do not.
    pub(crate) fn origin(&self) -> Option<[&str; 4]> {
        self.last(REASON)?;
        let [topic, partition, offset, time] = PLACE.map(|name| self.header(name));
        Some([topic?, partition?, offset?, time?])
    }

    /// The key that it has unless the user chooses one.
    fn default_key(&self) -> Key<'_> {
        if let Some(header) = self.last(KEY_HEADER) {
            let value = header.value.unwrap_or_default();
            return match str::from_utf8(value) {
                Ok("") => Key::Missing,
                Ok(text) => Key::Text(OF_HEADER, text.into()),
                Err(_) => Key::Bytes(value),
            };
        }
        match EVENT.map(|name| self.header(name).filter(|value| !value.is_empty())) {
            [Some(source), Some(id)] => Key::Event(source, id),
            _ => Key::Text(OF_POSITION, self.position().into()),
        }
    }
}

impl Message for TopicMessage {
    fn delivery(&self) -> Delivery<'_> {
        let identified = match (&self.key, self.default_key()) {
            (Some(key), _) => key(self),
            (None, Key::Text(origin, text)) => Delivery::new((origin, &*text)),
            (None, Key::Bytes(bytes)) => Delivery::new((OF_HEADER, bytes)),
            (None, Key::Event(source, id)) => Delivery::new((OF_EVENT, source, id)),
            (None, Key::Missing) => Delivery::new(None::<&str>),
        };
        let delivery = identified.payload(self.payload().unwrap_or_default());
        let has_proof = || self.place.has_proof.load(Ordering::Relaxed);
        if !*self.is_suspect.get_or_init(|| !has_proof()) {
            return delivery;
        }
        // Not where it came from first: a dead letter that was moved back is counted from one.
        let position = (self.topic(), self.partition(), self.offset(), self.timestamp());
        delivery.suspect_at((OF_PLACE, position))
    }

    fn lane(&self) -> Option<u64> {
        Some(self.place.lane)
    }

    /// The topic.
    fn label(&self) -> &str {
        self.topic()
    }
}

/// Shows neither the keys nor the payload.
impl fmt::Debug for TopicMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TopicMessage")
            .field("topic", &self.topic())
            .field("partition", &self.partition())
            .field("offset", &self.offset())
            .field("payload", &self.payload().map(<[u8]>::len))
            .finish_non_exhaustive()
    }
}

/// The lane of a partition.
pub(crate) fn lane_of_partition(topic: &str, partition: i32) -> u64 {
    hash(|hash| (topic, partition).hash(hash))
}

/// The lane of a key within its partition. A message without a key has one of its own.
pub(crate) fn lane_of_key(message: &impl rdkafka::Message) -> u64 {
    hash(|hash| {
        (message.topic(), message.partition()).hash(hash);
        match message.key() {
            Some(key) => ("key", key).hash(hash),
            None => ("offset", message.offset()).hash(hash),
        }
    })
}

fn hash(of: impl FnOnce(&mut DefaultHasher)) -> u64 {
    let mut hasher = DefaultHasher::new();
    of(&mut hasher);
    hasher.finish()
}
