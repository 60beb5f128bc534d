//! Dead letters: what they say, and that they have arrived.

use std::time::{Duration, SystemTime};

use async_nats::header::{HeaderMap, HeaderName, HeaderValue};
use async_nats::jetstream::Context;
use async_nats::jetstream::context::PublishError;
use async_nats::jetstream::message::PublishMessage;
use idempotency::inbox::{DeadReason, Message as _, Settled};
use tokio::time::timeout;

use crate::message::{MESSAGE_ID, POSITION, REASON, StreamMessage};

/// The time for the confirmation of a dead letter.
const CONFIRM_WITHIN: Duration = Duration::from_secs(10);
/// The headers that are orders to the server: to refuse a message, to roll others up, to drop it
/// after a time. They were for the original.
const ORDERS: &str = "Nats-";
/// The headers of a dead letter that only the server's or the consumer's word makes: one that a
/// producer has set is not copied, or it would count for the original once it is moved back.
const OWN: [&str; 9] = [
    MESSAGE_ID,
    POSITION,
    REASON,
    RECORD,
    ATTEMPTS,
    "idempotency-stream",
    "idempotency-subject",
    "idempotency-sequence",
    "idempotency-time",
];
const RECORD: &str = "idempotency-record";
const ATTEMPTS: &str = "idempotency-attempts";

/// The reason why a dead letter is not known to have arrived.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Undelivered {
    #[error("there is no subject for dead letters: set one with `dead_letters`")]
    NoPlace,
    #[error("the server has not confirmed it within 10 seconds")]
    NoAnswer,
    #[error("{0}")]
    Refused(#[from] PublishError),
}

/// The place of the dead letters.
pub(crate) struct DeadLetters {
    pub(crate) place: Option<(Context, String)>,
    /// The name of the consumer. Those of one stream may share a place.
    pub(crate) consumer: String,
}

impl DeadLetters {
    /// Publishes a copy of the message. `Ok`: the server has it, in a stream.
    pub(crate) async fn publish(
        &self,
        settled: &Settled<StreamMessage>,
        reason: DeadReason,
    ) -> Result<(), Undelivered> {
        let Some((context, subject)) = &self.place else { return Err(Undelivered::NoPlace) };
        let mut letter = PublishMessage::build()
            .payload(settled.message.message().payload.clone())
            .headers(headers(settled, reason));
        // Its own: with that of the message, the stream would take a redrive for a duplicate of
        // the original. The same after a crash, and another one when a redrive dies.
        if let Some(position) = settled.message.position() {
            letter = letter.message_id(format!("dead/{}/{position}", self.consumer));
        }
        let published = async {
            context.send_publish(subject.clone(), letter).await?.await?;
            Ok(())
        };
        timeout(CONFIRM_WITHIN, published).await.unwrap_or(Err(Undelivered::NoAnswer))
    }
}

fn headers(settled: &Settled<StreamMessage>, reason: DeadReason) -> HeaderMap {
    let message = &*settled.message;
    let mut headers = HeaderMap::new();
    for (name, values) in message.headers().into_iter().flat_map(HeaderMap::iter) {
        let text: &str = name.as_ref();
        if !text.starts_with(ORDERS) && !OWN.contains(&text) {
            for value in values {
                headers.append(name.clone(), value.clone());
            }
        }
    }
    let mut add = |name: &'static str, value: &str| {
        // Each comes from a header, a subject or a name: there is no line break in it.
        if let Ok(value) = value.parse::<HeaderValue>() {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    // What the default key is made of, in headers that only the default key reads: it is the same
    // message to all consumers when it is moved back, whatever key this one has.
    if let Some(position) = message.first_position() {
        add(POSITION, &position);
    }
    if let Some(id) = message.message_id() {
        add(MESSAGE_ID, id);
    }
    add(REASON, reason.as_str());
    if let Some(record) = settled.record {
        add(RECORD, &record.to_hex());
    }
    add(ATTEMPTS, &settled.attempt.to_string());
    add("idempotency-stream", message.label());
    add("idempotency-subject", message.subject());
    if let Some(sequence) = message.sequence() {
        add("idempotency-sequence", &sequence.to_string());
    }
    add("idempotency-time", &humantime::format_rfc3339_seconds(SystemTime::now()).to_string());
    headers
}
