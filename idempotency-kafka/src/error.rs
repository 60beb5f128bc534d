//! What goes wrong between a consumer and its topics.

use rdkafka::error::KafkaError;

pub use crate::dead_letter::Undelivered;

/// An error of the options, of the client, or of the group.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No topic is named.
    #[error("there is no topic to consume: name one")]
    NoTopic,
    /// The client has no group. Without one nothing remembers what was consumed.
    #[error(
        "`group.id` is missing: name the consumer group, which remembers what was consumed and \
         shares the partitions between its members"
    )]
    NoGroup,
    /// A setting of the client would lose messages.
    #[error("`{name}` is `{value}`: {why}")]
    Setting {
        /// The name of the setting.
        name: &'static str,
        /// Its value.
        value: String,
        /// The reason why it is refused, and what to do.
        why: &'static str,
    },
    /// The client refuses its settings.
    #[error("the client of Kafka refuses its settings: {0}")]
    Client(#[source] KafkaError),
    /// A topic does not exist.
    #[error("the topic `{topic}` does not exist: create it")]
    MissingTopic {
        /// The name of the topic.
        topic: String,
    },
    /// The topic of the dead letters does not exist. It is not created here: its partitions and its
    /// retention are a decision of its owner.
    #[error(
        "the topic `{topic}` for dead letters does not exist: create it, or leave `dead_letters` out"
    )]
    MissingDeadLetters {
        /// The name of the topic.
        topic: String,
    },
    /// The dead letters would come back to this consumer, by the name of a topic or by a pattern.
    #[error(
        "`{topic}` is consumed here, and its dead letters would come back: name another topic with \
         `dead_letters`, or a pattern that does not match it"
    )]
    DeadLettersComeBack {
        /// The name of the topic.
        topic: String,
    },
    /// No broker answers, or refuses to.
    #[error("Kafka does not answer about the topic `{topic}`: {source}")]
    NoAnswer {
        /// The name of the topic.
        topic: String,
        /// The answer of the client.
        source: KafkaError,
    },
    /// A dead letter has not arrived. It ends nothing: the message is handled again.
    #[error("a dead letter has not arrived: {0}")]
    Undelivered(#[source] Undelivered),
    /// The client cannot go on, for example because another member has its `group.instance.id`.
    #[error("the client of Kafka has ended: {0}")]
    Ended(#[source] KafkaError),
}
