//! Dead letters: what they say, and that they have arrived.

use std::collections::HashMap;
use std::time::SystemTime;

use aws_sdk_sqs::primitives::Blob;
use aws_sdk_sqs::types::MessageAttributeValue;
use idempotency::inbox::{DeadReason, KEY_HEADER, Message as _, Settled};
use serde::{Deserialize, Serialize};

use crate::message::{Key, SqsMessage};
use crate::requests::{Queue, in_time};

/// The attribute of a dead letter. One for all that it says: a message can have ten.
const ATTRIBUTE: &str = "idempotency-dead-letter";
/// How many attributes a message can have.
const MOST_ATTRIBUTES: usize = 10;

/// The longest key that it repeats, in bytes. No record has a longer one.
const LONGEST_KEY: usize = 1_024;

/// What a dead letter says, in JSON.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Story {
    /// The key that the message has by default, and its origin.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    key_origin: String,
    /// The id that SQS gave to the message when it was sent first.
    pub(crate) message_id: String,
    /// The id by which a FIFO queue knew its duplicates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) deduplication_id: Option<String>,
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    record: Option<String>,
    attempts: u32,
    queue: String,
    time: String,
    /// Attributes for which there is no room beside this one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    displaced: Vec<Displaced>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Displaced {
    name: String,
    data_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bytes: Option<Vec<u8>>,
}

impl Story {
    /// Takes the attribute of a dead letter out of those of a message, and puts the attributes back
    /// that had no room beside it.
    pub(crate) fn take(attributes: &mut HashMap<String, MessageAttributeValue>) -> Option<Self> {
        let mut story: Self =
            serde_json::from_str(attributes.get(ATTRIBUTE)?.string_value()?).ok()?;
        attributes.remove(ATTRIBUTE);
        for displaced in std::mem::take(&mut story.displaced) {
            let value = MessageAttributeValue::builder()
                .data_type(displaced.data_type)
                .set_string_value(displaced.text)
                .set_binary_value(displaced.bytes.map(Blob::new));
            if let Ok(value) = value.build() {
                attributes.entry(displaced.name).or_insert(value);
            }
        }
        Some(story)
    }

    pub(crate) fn key(&self) -> Option<(&str, &str)> {
        Some((&self.key_origin, self.key.as_deref()?))
    }

    fn of(settled: &Settled<SqsMessage>, reason: DeadReason) -> Self {
        let message = &*settled.message;
        let (origin, key) = message.default_key();
        let key = match key {
            Key::Text(text) if text.len() <= LONGEST_KEY => Some(text.to_owned()),
            // It is in its attribute, and stays there.
            Key::Text(_) | Key::Bytes(_) | Key::Missing => None,
        };
        Self {
            key,
            key_origin: origin.to_owned(),
            message_id: message.id().to_owned(),
            deduplication_id: message.deduplication_id().map(str::to_owned),
            reason: reason.as_str().to_owned(),
            record: settled.record.map(|record| record.to_hex()),
            attempts: settled.attempt,
            queue: message.label().to_owned(),
            time: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            displaced: Vec::new(),
        }
    }

    /// Adds itself to the attributes of its message. Those that have no room beside it are in it.
    fn add_to(
        mut self,
        mut attributes: HashMap<String, MessageAttributeValue>,
    ) -> Result<HashMap<String, MessageAttributeValue>, String> {
        attributes.remove(ATTRIBUTE);
        while attributes.len() >= MOST_ATTRIBUTES {
            let others = attributes.iter().filter(|(name, _)| *name != KEY_HEADER);
            let Some((name, _)) = others.min_by_key(|(_, value)| size_in_text(value)) else {
                break;
            };
            let name = name.clone();
            let Some(value) = attributes.remove(&name) else { break };
            self.displaced.push(Displaced {
                name,
                data_type: value.data_type,
                text: value.string_value,
                bytes: value.binary_value.map(Blob::into_inner),
            });
        }
        let text = serde_json::to_string(&self).map_err(|error| error.to_string())?;
        let value = MessageAttributeValue::builder().data_type("String").string_value(text);
        let value = value.build().map_err(|error| error.to_string())?;
        attributes.insert(ATTRIBUTE.to_owned(), value);
        Ok(attributes)
    }
}

/// How long the value of an attribute is in JSON, about: a byte is a number there.
fn size_in_text(value: &MessageAttributeValue) -> usize {
    let bytes = value.binary_value().map_or(0, |bytes| bytes.as_ref().len().saturating_mul(4));
    value.string_value().map_or(bytes, str::len)
}

/// Sends a copy of the message. `Ok`: SQS has it, in the queue for dead letters.
pub(crate) async fn send(
    place: &Queue,
    settled: &Settled<SqsMessage>,
    reason: DeadReason,
) -> Result<(), String> {
    let message = &*settled.message;
    let attributes = Story::of(settled, reason).add_to(message.attributes().clone())?;
    let mut request = place
        .client
        .send_message()
        .queue_url(&*place.url)
        .message_body(message.body())
        .set_message_attributes(Some(attributes))
        .set_message_group_id(message.group().map(str::to_owned));
    if place.is_fifo() {
        // An id of its own: the same after a crash, and another one when a redrive dies.
        request = request.message_deduplication_id(format!("dead-{}", message.own_id()));
    }
    in_time(request.send()).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_attributes_make_room_and_a_large_one_stays_what_it_is() {
        let value = |text: Option<String>, bytes: Option<Blob>| {
            let value = MessageAttributeValue::builder().data_type("any");
            value.set_string_value(text).set_binary_value(bytes).build().unwrap()
        };
        let mut attributes: HashMap<_, _> = (0..9)
            .map(|number| (format!("a-{number}"), value(Some("x".repeat(20 + number)), None)))
            .collect();
        attributes.insert("z-blob".to_owned(), value(None, Some(Blob::new(vec![200; 100_000]))));
        let mut letter = Story::default().add_to(attributes.clone()).unwrap();
        let size = letter[ATTRIBUTE].string_value().unwrap().len();
        assert!(letter.len() == 10 && letter.contains_key("z-blob") && size < 1_000, "{size}");
        Story::take(&mut letter).unwrap();
        assert_eq!(letter, attributes);
    }
}
