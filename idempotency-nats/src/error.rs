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
    /// The server may forget the consumer, and with it what was acknowledged: all that is in the
    /// stream is delivered again, also what the inbox does not recognise any more.
    #[error("the server may forget the consumer `{consumer}`: {change}")]
    NotDurable {
        /// The name of the consumer.
        consumer: String,
        /// The setting to change.
        change: &'static str,
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
    /// The client refuses to request messages, as for a consumer with a pinned client.
    #[error("the client cannot request messages of the consumer `{consumer}`: {source}")]
    NotRequested {
        /// The name of the consumer.
        consumer: String,
        /// The answer of the client.
        source: BatchError,
    },
    /// Answers are not known to have left this process. The client may send them later; if it does
    /// not, the server delivers their messages again.
    #[error("answers to NATS are not known to have left this process: {0}")]
    NotSent(#[source] async_nats::Error),
}
