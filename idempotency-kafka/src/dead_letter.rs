//! Dead letters: what they say, and that they have arrived.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use idempotency::inbox::{DeadReason, Settled};
use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use tokio::time::timeout;

use crate::message::{PLACE, REASON, TopicMessage};
use crate::source::drop_aside;

/// The time after which the client gives a dead letter up, in milliseconds.
const ARRIVES_WITHIN: &str = "10000";
/// The time for the confirmation of a dead letter. Longer: the client says why.
const CONFIRM_WITHIN: Duration = Duration::from_secs(12);
/// The largest message: the broker decides, and not the client, whose default is a megabyte.
const LARGEST: (&str, &str) = ("message.max.bytes", "1000000000");
/// Settings of a consumer, of which a producer warns that it makes nothing of them.
const OF_CONSUMERS: [&str; 16] = [
    "auto.commit.interval.ms",
    "auto.offset.reset",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.partition.eof",
    "group.id",
    "group.instance.id",
    "group.protocol",
    "group.remote.assignor",
    "heartbeat.interval.ms",
    "isolation.level",
    "max.poll.interval.ms",
    "partition.assignment.strategy",
    "queued.max.messages.kbytes",
    "queued.min.messages",
    "session.timeout.ms",
];

const RECORD: &str = "idempotency-record";
const ATTEMPTS: &str = "idempotency-attempts";
const TIME: &str = "idempotency-time";

/// The reason why a dead letter is not known to have arrived.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Undelivered {
    /// The consumer has no topic for dead letters.
    #[error("there is no topic for dead letters: set one with `dead_letters`")]
    NoPlace,
    /// No broker has confirmed it within 12 seconds.
    #[error("no broker has confirmed it within 12 seconds")]
    NoAnswer,
    /// The client, or a broker, has refused it.
    #[error("{0}")]
    Refused(#[from] KafkaError),
}

/// The place of the dead letters.
#[derive(Default)]
pub(crate) struct DeadLetters {
    place: Option<(Arc<FutureProducer>, String)>,
}

impl DeadLetters {
    /// Creates a producer for this topic, which the consumer's settings lead to.
    pub(crate) fn to(topic: String, settings: &ClientConfig) -> Result<Self, KafkaError> {
        let mut settings = settings.clone();
        for name in OF_CONSUMERS {
            settings.remove(name);
        }
        settings
            .remove("transactional.id")
            .set("acks", "all")
            .set("message.timeout.ms", ARRIVES_WITHIN)
            .set("allow.auto.create.topics", "false");
        if settings.get(LARGEST.0).is_none() {
            settings.set(LARGEST.0, LARGEST.1);
        }
        let producer: FutureProducer = settings.create()?;
        Ok(Self { place: Some((Arc::new(producer), topic)) })
    }

    pub(crate) fn place(&self) -> Option<(&Arc<FutureProducer>, &str)> {
        self.place.as_ref().map(|(producer, topic)| (producer, &**topic))
    }

    /// Produces a copy of the message. `Ok`: all replicas that are in sync have it.
    pub(crate) async fn publish(
        &self,
        settled: &Settled<TopicMessage>,
        reason: DeadReason,
    ) -> Result<(), Undelivered> {
        let Some((producer, topic)) = &self.place else { return Err(Undelivered::NoPlace) };
        let message = &settled.message;
        let mut letter = FutureRecord::<[u8], [u8]>::to(topic).headers(headers(settled, reason));
        letter.key = message.message_key();
        letter.payload = message.payload();
        match timeout(CONFIRM_WITHIN, producer.send(letter, Duration::ZERO)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err((error, _))) => Err(error.into()),
            Err(_) => Err(Undelivered::NoAnswer),
        }
    }
}

/// What is on its way is given up.
impl Drop for DeadLetters {
    fn drop(&mut self) {
        if let Some((producer, _)) = self.place.take() {
            drop(drop_aside(producer));
        }
    }
}

fn headers(settled: &Settled<TopicMessage>, reason: DeadReason) -> OwnedHeaders {
    let message = &*settled.message;
    let mut ours = vec![
        (REASON, reason.as_str().to_owned()),
        (ATTEMPTS, settled.attempt.to_string()),
        (TIME, humantime::format_rfc3339_seconds(SystemTime::now()).to_string()),
    ];
    if let Some(record) = settled.record {
        ours.push((RECORD, record.to_hex()));
    }
    // One that dies again says where it came from first. The default key can be made of that, also
    // for consumers of other groups.
    if message.origin().is_none() {
        let time = message.timestamp().map(|time| time.to_string()).unwrap_or_default();
        let (partition, offset) = (message.partition().to_string(), message.offset().to_string());
        ours.extend(PLACE.into_iter().zip([message.topic().to_owned(), partition, offset, time]));
    }
    // That of an earlier death says nothing of this one.
    let is_kept = |name: &str| name != RECORD && ours.iter().all(|(of_ours, _)| *of_ours != name);
    let mut headers = OwnedHeaders::new();
    for header in message.readable_headers() {
        if is_kept(header.key) {
            headers = headers.insert(header);
        }
    }
    for (key, value) in &ours {
        headers = headers.insert(Header { key, value: Some(value) });
    }
    headers
}
