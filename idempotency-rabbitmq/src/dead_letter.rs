//! Dead letters: what they say, and that they have arrived.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use idempotency::inbox::{DeadReason, Settled};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::error::Error;
use crate::link::create;
use crate::message::{ACQUIRED_COUNT, DELIVERY_COUNT, QueueMessage};

/// The time for the confirmation of a dead letter.
const CONFIRM_WITHIN: Duration = Duration::from_secs(10);
/// A message that is written to disk.
const PERSISTENT: u8 = 2;
const RECORD: &str = "idempotency-record";
/// Headers of a delivery by which a copy would go elsewhere, be counted wrongly, or name the record
/// of another one.
const DROPPED: [&str; 5] = ["CC", "BCC", DELIVERY_COUNT, ACQUIRED_COUNT, RECORD];

/// The reason why a dead letter is not known to have arrived.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Undelivered {
    #[error("there is no queue for dead letters: set one with `dead_letters`")]
    NoPlace,
    #[error("the broker has returned it ({0}): the queue for dead letters is gone")]
    Returned(String),
    #[error("the broker has not taken it: the queue for dead letters is full, or has failed")]
    Nack,
    #[error("the broker has not confirmed it within 10 seconds")]
    NoAnswer,
    #[error(transparent)]
    Broker(#[from] Error),
}

/// The place of the dead letters, with a channel of its own: an error there does not end the
/// deliveries.
pub(crate) struct DeadLetters {
    queue: Option<ShortString>,
    channel: Mutex<Option<Channel>>,
}

impl DeadLetters {
    pub(crate) fn new(queue: Option<ShortString>) -> Self {
        Self { queue, channel: Mutex::new(None) }
    }

    /// Publishes a copy of the message. `Ok`: the broker has it, in the queue for dead letters.
    pub(crate) async fn publish(
        &self,
        connection: &Connection,
        settled: &Settled<QueueMessage>,
        reason: DeadReason,
    ) -> Result<(), Undelivered> {
        let Some(queue) = &self.queue else { return Err(Undelivered::NoPlace) };
        let published = async {
            // One at a time: the client does not say which of several a return is about, and would
            // take one that the broker has returned for confirmed.
            let mut kept = self.channel.lock().await;
            let channel = open(&mut kept, connection).await?;
            let confirm = channel
                .basic_publish(
                    ShortString::default(),
                    queue.clone(),
                    BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() },
                    settled.message.payload(),
                    properties(settled, reason),
                )
                .await
                .map_err(Error::Refused)?;
            match confirm.await.map_err(Error::Refused)? {
                Confirmation::Ack(None) => Ok(()),
                Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) => {
                    Err(Undelivered::Returned(returned.reply_text.to_string()))
                }
                Confirmation::Nack(None) | Confirmation::NotRequested => Err(Undelivered::Nack),
            }
        };
        if let Ok(published) = timeout(CONFIRM_WITHIN, published).await {
            return published;
        }
        // What it is still to say belongs to no later one.
        *self.channel.lock().await = None;
        Err(Undelivered::NoAnswer)
    }
}

/// Returns the channel on which the broker confirms what it gets.
async fn open(kept: &mut Option<Channel>, connection: &Connection) -> Result<Channel, Error> {
    if let Some(channel) = kept
        && channel.status().connected()
    {
        return Ok(channel.clone());
    }
    let channel = create(connection).await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(Error::Refused)?;
    Ok(kept.insert(channel).clone())
}

fn properties(settled: &Settled<QueueMessage>, reason: DeadReason) -> BasicProperties {
    let message = &*settled.message;
    let original = message.properties();
    let mut headers = FieldTable::default();
    for (name, value) in message.headers().into_iter().flat_map(FieldTable::inner) {
        if !DROPPED.contains(&name.as_str()) {
            headers.insert(name.clone(), value.clone());
        }
    }
    let mut add = |name: &str, value: AMQPValue| {
        headers.insert(ShortString::from(name), value);
    };
    let text = |text: &str| AMQPValue::LongString(text.into());
    add("idempotency-reason", text(reason.as_str()));
    if let Some(record) = settled.record {
        add(RECORD, text(&record.to_hex()));
    }
    add("idempotency-attempts", AMQPValue::LongLongInt(settled.attempt.into()));
    // Of a message that was a dead letter before, they say where it came from first: a key may be
    // made of them.
    let origin = [
        ("idempotency-queue", idempotency::inbox::Message::label(message)),
        ("idempotency-exchange", message.exchange()),
        ("idempotency-routing-key", message.routing_key()),
    ];
    for (name, value) in origin {
        if message.header(name).is_none() {
            add(name, text(value));
        }
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    add("idempotency-time", AMQPValue::Timestamp(now));
    // With these, it would vanish after a time, or be refused on the connection of another user.
    if let Some(expiration) = original.expiration() {
        add("idempotency-expiration", text(expiration.as_str()));
    }
    if let Some(user) = original.user_id() {
        add("idempotency-user-id", text(user.as_str()));
    }
    let kept = BasicProperties::default().with_delivery_mode(PERSISTENT).with_headers(headers);
    with_text(with_numbers(kept, original), original)
}

fn with_numbers(mut copy: BasicProperties, original: &BasicProperties) -> BasicProperties {
    if let Some(priority) = original.priority() {
        copy = copy.with_priority(*priority);
    }
    if let Some(timestamp) = original.timestamp() {
        copy = copy.with_timestamp(*timestamp);
    }
    copy
}

fn with_text(copy: BasicProperties, original: &BasicProperties) -> BasicProperties {
    type Set = fn(BasicProperties, ShortString) -> BasicProperties;
    let kept: [(&Option<ShortString>, Set); 8] = [
        (original.content_type(), BasicProperties::with_content_type),
        (original.content_encoding(), BasicProperties::with_content_encoding),
        (original.correlation_id(), BasicProperties::with_correlation_id),
        (original.reply_to(), BasicProperties::with_reply_to),
        (original.message_id(), BasicProperties::with_message_id),
        (original.kind(), BasicProperties::with_type),
        (original.app_id(), BasicProperties::with_app_id),
        (original.cluster_id(), BasicProperties::with_cluster_id),
    ];
    kept.into_iter().fold(copy, |copy, (value, set)| match value {
        Some(value) => set(copy, value.clone()),
        None => copy,
    })
}
