//! The way to topics.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use idempotency::inbox::Delivery;
use idempotency::key::IntoKey;
use rdkafka::ClientConfig;
use rdkafka::client::{Client, ClientContext};
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::metadata::MetadataTopic;
use rdkafka::producer::Producer as _;
use rdkafka::types::RDKafkaErrorCode;
use regex::Regex;

use crate::dead_letter::DeadLetters;
use crate::error::Error;
use crate::group::Group;
use crate::message::{KeyOf, TopicMessage};
use crate::source::{Topics, drop_aside};

/// The time for the brokers to say whether a topic exists.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Begins a topic that is a pattern for names.
const PATTERN: char = '^';

/// The options of [`Topics`].
///
/// ```no_run
/// # use idempotency_kafka::{Error, Kafka, Topics, rdkafka::ClientConfig};
/// # async fn consume() -> Result<Topics, Error> {
/// let mut settings = ClientConfig::new();
/// settings.set("bootstrap.servers", "localhost:9092").set("group.id", "billing");
/// let orders = Kafka::new(settings, ["orders"])
///     .dead_letters("orders.dead")
///     .with_key(|message| message.header("order-id").map(str::to_owned))
///     .by_key()
///     .connect()
///     .await?;
/// # Ok(orders)
/// # }
/// ```
#[must_use = "nothing is consumed before `connect`"]
pub struct Kafka {
    settings: ClientConfig,
    topics: Vec<String>,
    dead_letters: Option<String>,
    by_key: bool,
    key: Option<KeyOf>,
}

impl Kafka {
    /// Creates options for these topics and a client with these settings, which need
    /// `bootstrap.servers` and `group.id`. A topic that begins with `^` is a pattern for names.
    ///
    /// What is not set is set here where messages would be lost otherwise: `enable.auto.commit` to
    /// true, `enable.auto.offset.store` to false, `auto.offset.reset` to `earliest`.
    pub fn new<T: Into<String>>(
        settings: ClientConfig,
        topics: impl IntoIterator<Item = T>,
    ) -> Self {
        let topics = topics.into_iter().map(Into::into).collect();
        Self { settings, topics, dead_letters: None, by_key: false, key: None }
    }

    /// Sets the topic for dead letters, which exists already. They are produced by a client of its
    /// own with the same settings, but for `acks=all` and those of a consumer.
    ///
    /// Without it nothing is dropped: the partition of such a message waits, and the message is
    /// handled again and again, with an error in the log.
    pub fn dead_letters(self, topic: impl Into<String>) -> Self {
        Self { dead_letters: Some(topic.into()), ..self }
    }

    /// Sets the key of a message, in place of its header `idempotency-key`, the headers of an event
    /// and its position. A message whose key is `None` is a dead letter.
    ///
    /// Do not choose the key by which Kafka chooses a partition
    /// ([`message_key`](TopicMessage::message_key)) if several messages have the same: one of them
    /// would be handled. A dead letter may be moved back to another place: choose from headers or
    /// from the payload.
    pub fn with_key<K, F>(self, key: F) -> Self
    where
        F: Fn(&TopicMessage) -> K + Send + Sync + 'static,
        K: IntoKey,
    {
        let key: KeyOf =
            Arc::new(move |message: &TopicMessage| Delivery::new(("own", key(message))));
        Self { key: Some(key), ..self }
    }

    /// Keeps the order of messages of one key within a partition, in place of that of the whole
    /// partition: those of different keys run side by side, and one that fails holds back its key
    /// alone. Messages without a key are in no order.
    ///
    /// The offset that is committed stays before the first unfinished message, and a restart receives
    /// again what is behind it: at most 10 000 messages for each partition, which are recognised by
    /// their records.
    pub fn by_key(self) -> Self {
        Self { by_key: true, ..self }
    }

    /// Checks the settings, looks for the topics, and joins the group.
    ///
    /// # Errors
    /// - [`NoTopic`](Error::NoTopic), [`NoGroup`](Error::NoGroup), [`Setting`](Error::Setting),
    ///   [`Client`](Error::Client), [`DeadLettersComeBack`](Error::DeadLettersComeBack): an option or
    ///   a setting is invalid. A pattern that matches the topic of the dead letters and is not seen to
    ///   here ends the consumer when a partition of that is assigned
    /// - [`MissingTopic`](Error::MissingTopic), [`MissingDeadLetters`](Error::MissingDeadLetters)
    /// - [`NoAnswer`](Error::NoAnswer): of the brokers, within ten seconds
    pub async fn connect(self) -> Result<Topics, Error> {
        let Self { mut settings, topics, dead_letters, by_key, key } = self;
        check(&mut settings)?;
        if topics.is_empty() {
            return Err(Error::NoTopic);
        }
        if let Some(topic) = dead_letters.as_ref().filter(|topic| are_consumed(topic, &topics)) {
            return Err(Error::DeadLettersComeBack { topic: topic.clone() });
        }
        let group = Group::new(by_key, key, dead_letters.clone());
        let dead_letters = match dead_letters {
            Some(topic) => DeadLetters::to(topic, &settings).map_err(Error::Client)?,
            None => DeadLetters::default(),
        };
        let client: StreamConsumer<Group> =
            settings.create_with_context(group).map_err(Error::Client)?;
        // To ask blocks, and so does to close what is not used.
        let asked = tokio::task::spawn_blocking(move || {
            let looked = look_for_all(&topics, &client, &dead_letters).and_then(|()| {
                let names: Vec<_> = topics.iter().map(String::as_str).collect();
                client.subscribe(&names).map_err(Error::Client)
            });
            match looked {
                Ok(()) => Ok(Topics::new(client, topics, dead_letters)),
                Err(error) => {
                    drop(drop_aside(Arc::new(client)));
                    Err(error)
                }
            }
        });
        match asked.await {
            Ok(connected) => connected,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime ends, and this future with it.
                Err(_) => std::future::pending().await,
            },
        }
    }
}

/// Other names of settings that are set, or looked at, here. Which of two names counts would be chance:
/// the client gets them in no order.
const ALIASES: [(&str, &str); 2] =
    [("request.required.acks", "acks"), ("delivery.timeout.ms", "message.timeout.ms")];

/// Gives each setting its first name.
fn rename(settings: &mut ClientConfig) {
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    let all: Vec<_> = settings.config_map().into_iter().map(owned).collect();
    for (given, value) in all {
        // The client takes those of topics with this prefix, too.
        let bare = given.strip_prefix("topic.").unwrap_or(&given);
        let alias = ALIASES.into_iter().find(|(alias, _)| *alias == bare);
        let name = alias.map_or(bare, |(_, name)| name);
        if name != given {
            settings.remove(&given);
            if settings.get(name).is_none() {
                settings.set(name, value);
            }
        }
    }
}

/// Completes the settings, and refuses those that would lose messages.
fn check(settings: &mut ClientConfig) -> Result<(), Error> {
    rename(settings);
    if settings.get("group.id").is_none_or(str::is_empty) {
        return Err(Error::NoGroup);
    }
    for (name, refused, why) in [
        (
            "enable.auto.offset.store",
            ["true", "t", "1"].as_slice(),
            "the offset of a message is stored once the message is finished; leave it out",
        ),
        (
            "enable.auto.commit",
            &["false", "f", "0"],
            "the client commits what is stored, and nothing else does; leave it out",
        ),
        (
            "auto.commit.interval.ms",
            &["0"],
            "nothing would be committed before the end; leave it out",
        ),
        (
            "auto.offset.reset",
            &["latest", "largest", "end"],
            "where nothing is committed yet, the messages in hand would be lost with their process; \
             leave it out, and let a new group begin at the end by setting its offsets before",
        ),
        (
            "offset.store.method",
            &["file", "none"],
            "another member of the group would not know what was consumed; leave it out",
        ),
    ] {
        let value = settings.get(name).map(str::to_lowercase);
        if let Some(value) = value.filter(|value| refused.contains(&&**value)) {
            return Err(Error::Setting { name, value, why });
        }
    }
    settings.set("enable.auto.offset.store", "false").set("enable.auto.commit", "true");
    if settings.get("auto.offset.reset").is_none() {
        settings.set("auto.offset.reset", "earliest");
    }
    Ok(())
}

/// Returns true if the topic of the dead letters is one of these, or is seen to match a pattern among
/// them. A pattern in the client's own dialect that cannot be read here matches when the partitions
/// are assigned.
fn are_consumed(dead_letters: &str, topics: &[String]) -> bool {
    topics.iter().any(|topic| {
        let matches = |pattern: Regex| pattern.is_match(dead_letters);
        topic == dead_letters || topic.starts_with(PATTERN) && Regex::new(topic).is_ok_and(matches)
    })
}

fn look_for_all(
    topics: &[String],
    client: &StreamConsumer<Group>,
    dead_letters: &DeadLetters,
) -> Result<(), Error> {
    for topic in topics.iter().filter(|topic| !topic.starts_with(PATTERN)) {
        if !exists(client.client(), topic)? {
            return Err(Error::MissingTopic { topic: topic.clone() });
        }
    }
    if let Some((producer, topic)) = dead_letters.place()
        && !exists(producer.client(), topic)?
    {
        return Err(Error::MissingDeadLetters { topic: topic.to_owned() });
    }
    Ok(())
}

/// Asks for a topic. Other answers than that it does not exist are left to its use.
fn exists<C: ClientContext>(client: &Client<C>, topic: &str) -> Result<bool, Error> {
    let metadata = client
        .fetch_metadata(Some(topic), ANSWER_WITHIN)
        .map_err(|source| Error::NoAnswer { topic: topic.to_owned(), source })?;
    let errors = metadata.topics().iter().filter_map(MetadataTopic::error);
    let mut codes = errors.map(RDKafkaErrorCode::from);
    Ok(!codes.any(|code| {
        matches!(
            code,
            RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::InvalidTopic
        )
    }))
}

/// Shows no settings: passwords are among them.
impl fmt::Debug for Kafka {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kafka")
            .field("topics", &self.topics)
            .field("dead_letters", &self.dead_letters)
            .field("by_key", &self.by_key)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_under_another_name_is_the_same_setting() {
        let given = [
            ("group.id", "billing"),
            ("request.required.acks", "1"),
            ("topic.delivery.timeout.ms", "7"),
            ("topic.auto.offset.reset", "latest"),
        ];
        let mut settings = ClientConfig::new();
        for (name, value) in given {
            settings.set(name, value);
        }
        let refused = check(&mut settings);
        assert!(matches!(refused, Err(Error::Setting { name: "auto.offset.reset", .. })));
        settings.remove("auto.offset.reset");
        check(&mut settings).unwrap();
        let of = |name: &str| settings.get(name);
        assert_eq!((of("acks"), of("message.timeout.ms")), (Some("1"), Some("7")));
        assert_eq!((of("request.required.acks"), of("topic.delivery.timeout.ms")), (None, None));
    }
}
