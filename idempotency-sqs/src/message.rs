//! A message of a queue.

use std::collections::HashMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_sdk_sqs::types::{self, MessageAttributeValue, MessageSystemAttributeName};
use idempotency::inbox::{Delivery, KEY_HEADER, Message};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::dead_letter::Story;

/// The tags that keep keys of different origin apart.
const OF_HEADER: &str = "header";
const OF_SNS: &str = "sns";
const OF_ID: &str = "message-id";

/// The key of a message, as the user chooses it.
pub(crate) type KeyOf = Arc<dyn for<'a> Fn(&'a SqsMessage) -> Delivery<'a> + Send + Sync>;

/// A message of an [`SqsQueue`](crate::SqsQueue).
pub struct SqsMessage {
    message: types::Message,
    attributes: HashMap<String, MessageAttributeValue>,
    /// Present in a dead letter that was moved back.
    story: Option<Story>,
    envelope: Option<Envelope>,
    queue: Arc<str>,
    lane: Option<u64>,
    key: Option<KeyOf>,
    received: Instant,
    is_settled: AtomicBool,
}

/// The body of a message that SNS sends without raw delivery.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Envelope {
    r#type: String,
    message_id: String,
    topic_arn: String,
    message: String,
    #[serde(default)]
    message_attributes: serde_json::Value,
}

impl Envelope {
    fn of(body: &str) -> Option<Self> {
        // Most messages are none, and are not parsed for it.
        if !body.trim_start().starts_with('{') || !body.contains("\"TopicArn\"") {
            return None;
        }
        let envelope: Self = serde_json::from_str(body).ok()?;
        Some(envelope).filter(|envelope| envelope.r#type == "Notification")
    }
}

/// The default key of a message.
pub(crate) enum Key<'a> {
    Text(&'a str),
    Bytes(&'a [u8]),
    Missing,
}

impl SqsMessage {
    pub(crate) fn new(
        mut message: types::Message,
        queue: Arc<str>,
        is_fifo: bool,
        key: Option<KeyOf>,
    ) -> Self {
        let mut attributes = message.message_attributes.take().unwrap_or_default();
        let story = Story::take(&mut attributes);
        let envelope = message.body().and_then(Envelope::of);
        let system = message.attributes.as_ref();
        // A standard queue has groups too, and promises no order in them.
        let group = system.and_then(|all| all.get(&MessageSystemAttributeName::MessageGroupId));
        let lane = group.filter(|_| is_fifo).map(|group| {
            let mut hasher = DefaultHasher::new();
            group.hash(&mut hasher);
            hasher.finish()
        });
        let (received, is_settled) = (Instant::now(), AtomicBool::new(false));
        Self { message, attributes, story, envelope, queue, lane, key, received, is_settled }
    }

    /// Returns the payload: the body, or the `Message` of an SNS envelope.
    pub fn payload(&self) -> &[u8] {
        self.envelope.as_ref().map_or(self.body(), |envelope| &envelope.message).as_bytes()
    }

    /// Reads the payload as JSON.
    ///
    /// # Errors
    /// If it is no JSON, or not that of a `T`. Such a message does not get better by another try:
    /// see [`OnFailure::DeadLetter`](idempotency::inbox::OnFailure::DeadLetter).
    ///
    /// ```
    /// # use idempotency_sqs::SqsMessage;
    /// #[derive(serde::Deserialize)]
    /// struct Order { id: u64 }
    ///
    /// fn id(message: &SqsMessage) -> serde_json::Result<u64> {
    ///     Ok(message.json::<Order>()?.id)
    /// }
    /// ```
    pub fn json<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_slice(self.payload())
    }

    /// Returns the body as SQS delivered it, with the envelope of SNS if it has one.
    pub fn body(&self) -> &str {
        self.message.body().unwrap_or_default()
    }

    /// Returns the text of an attribute: of the message, or of the SNS envelope around it. `None` if
    /// there is none, or if it is binary.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        match self.attributes.get(name) {
            Some(value) => value.string_value(),
            None => self.envelope.as_ref()?.message_attributes.get(name)?.get("Value")?.as_str(),
        }
    }

    /// Returns the attributes of the message, without that of a dead letter that was moved back.
    pub fn attributes(&self) -> &HashMap<String, MessageAttributeValue> {
        &self.attributes
    }

    /// Returns the id that SQS gave to the message when it was sent first: a dead letter that was
    /// moved back has that of its original.
    pub fn id(&self) -> &str {
        let first = self.story.as_ref().map(|story| &*story.message_id);
        first.filter(|id| !id.is_empty()).unwrap_or(self.own_id())
    }

    /// Returns the group, which is the order of a FIFO queue.
    pub fn group(&self) -> Option<&str> {
        self.system(&MessageSystemAttributeName::MessageGroupId)
    }

    /// Returns the id by which a FIFO queue knows duplicates for five minutes. After that another
    /// message may have the same. A dead letter that was moved back has that of its original.
    pub fn deduplication_id(&self) -> Option<&str> {
        let first = self.story.as_ref().and_then(|story| story.deduplication_id.as_deref());
        first.or_else(|| self.system(&MessageSystemAttributeName::MessageDeduplicationId))
    }

    /// Returns the topic from which SNS sent it, where the envelope says so.
    pub fn topic(&self) -> Option<&str> {
        Some(&self.envelope.as_ref()?.topic_arn)
    }

    /// Returns how often SQS has delivered it from this queue, this time included. `None` if SQS
    /// does not say.
    pub fn deliveries(&self) -> Option<u32> {
        self.system(&MessageSystemAttributeName::ApproximateReceiveCount)?.parse().ok()
    }

    fn system(&self, name: &MessageSystemAttributeName) -> Option<&str> {
        self.message.attributes.as_ref()?.get(name).map(String::as_str)
    }

    /// The id of this copy: that of a dead letter which was moved back is its own.
    pub(crate) fn own_id(&self) -> &str {
        self.message.message_id().unwrap_or_default()
    }

    pub(crate) fn receipt(&self) -> &str {
        self.message.receipt_handle().unwrap_or_default()
    }

    /// How long it is here.
    pub(crate) fn held(&self) -> Duration {
        self.received.elapsed()
    }

    /// Notes that its answer is on its way: from now on it is not to be kept.
    pub(crate) fn settle(&self) {
        self.is_settled.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.is_settled.load(Ordering::SeqCst)
    }

    /// The key that it has unless the user chooses one, and its origin.
    pub(crate) fn default_key(&self) -> (&'static str, Key<'_>) {
        if let Some(value) = self.attributes.get(KEY_HEADER) {
            let key = match (value.string_value(), value.binary_value()) {
                (Some(text), _) => text_of(text),
                (None, Some(bytes)) => Key::Bytes(bytes.as_ref()),
                (None, None) => Key::Missing,
            };
            return (OF_HEADER, key);
        }
        if let Some(text) = self.attribute(KEY_HEADER) {
            return (OF_HEADER, text_of(text));
        }
        let known = [OF_HEADER, OF_SNS, OF_ID];
        if let Some((origin, key)) = self.story.as_ref().and_then(Story::key)
            && let Some(origin) = known.into_iter().find(|known| *known == origin)
        {
            return (origin, text_of(key));
        }
        match &self.envelope {
            Some(envelope) => (OF_SNS, text_of(&envelope.message_id)),
            None => (OF_ID, text_of(self.id())),
        }
    }
}

fn text_of(text: &str) -> Key<'_> {
    if text.is_empty() { Key::Missing } else { Key::Text(text) }
}

impl Message for SqsMessage {
    fn delivery(&self) -> Delivery<'_> {
        let identified = match (&self.key, self.default_key()) {
            (Some(key), _) => key(self),
            (None, (origin, Key::Text(text))) => Delivery::new((origin, Some(text))),
            (None, (origin, Key::Bytes(bytes))) => Delivery::new((origin, bytes)),
            (None, (_, Key::Missing)) => Delivery::new(None::<&str>),
        };
        let delivery = identified.payload(self.payload());
        match self.deliveries() {
            Some(count) => delivery.deliveries(count),
            None => delivery,
        }
    }

    /// The group, in a FIFO queue.
    fn lane(&self) -> Option<u64> {
        self.lane
    }

    fn label(&self) -> &str {
        &self.queue
    }
}

/// Shows neither the key, the group, the attributes nor the payload.
impl fmt::Debug for SqsMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqsMessage")
            .field("queue", &self.queue)
            .field("payload", &self.payload().len())
            .field("deliveries", &self.deliveries())
            .finish_non_exhaustive()
    }
}
