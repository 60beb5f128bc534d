//! What goes wrong between a consumer and its stream.

use async_nats::jetstream::consumer::pull::BatchError;
use async_nats::jetstream::context::{ConsumerInfoError, GetStreamByNameError};

/// An error of a pull consumer, or of the connection to it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The consumer, or its stream, does not exist. It is not created here: its configuration is a
    /// decision of its owner.
    #[error("the consumer `{consumer}` of the stream `{stream}` does not exist: create it")]
    MissingConsumer {
        /// The name of the stream.
        stream: String,
        /// The name of the consumer.
        consumer: String,
        /// The answer of the server.
        source: ConsumerInfoError,
    },
    /// The consumer is a push consumer, which keeps sending where there is no room.
    #[error("`{consumer}` is a push consumer: create a pull consumer, without `deliver_subject`")]
    Push {
        /// The name of the consumer.
        consumer: String,
    },
    /// The server does not wait for the acknowledgement of each message, as with an ordered consumer.
    #[error(
        "the consumer `{consumer}` does not wait for the acknowledgement of each message: set its \
         `ack_policy` to `AckPolicy::Explicit`"
    )]
    AckPolicy {
        /// The name of the consumer.
        consumer: String,
    },
    /// The server forgets the consumer, and with it what was acknowledged.
    #[error("the consumer `{consumer}` is forgotten when it is not in use: set its `durable_name`")]
    NotDurable {
        /// The name of the consumer.
        consumer: String,
    },
    /// The server leaves the payloads out.
    #[error(
        "the consumer `{consumer}` gets no payloads, and its dead letters would have none: set its \
         `headers_only` to false"
    )]
    HeadersOnly {
        /// The name of the consumer.
        consumer: String,
    },
    /// No stream has the subject of the dead letters.
    #[error(
        "no stream has the subject `{subject}` for dead letters: add it to the subjects of one, or \
         leave `dead_letters` out"
    )]
    MissingDeadLetters {
        /// The subject.
        subject: String,
        /// The answer of the server.
        source: GetStreamByNameError,
    },
    /// The server does not answer about the consumer, or refuses to.
    #[error("NATS does not answer about the consumer `{consumer}`: {source}")]
    NoAnswer {
        /// The name of the consumer.
        consumer: String,
        /// The answer of the server, or of the client.
        source: ConsumerInfoError,
    },
    /// The connection has ended and does not come back: it was closed, or the client has reached its
    /// `max_reconnects`.
    #[error("the connection to NATS has ended: connect again, and consume by the new connection")]
    ConnectionEnded(#[source] BatchError),
}
