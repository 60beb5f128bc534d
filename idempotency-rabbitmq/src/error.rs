//! What goes wrong between a consumer and its queue.

/// An error of a queue, or of the connection to it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name is longer than the 255 bytes that AMQP allows.
    #[error("the name of a queue has at most 255 bytes")]
    Name,
    /// The prefetch is 0, which the broker takes for no limit.
    #[error("with_prefetch(0) is no limit at all: set how many messages may be in hand")]
    Prefetch,
    /// The queue does not exist. It is not declared here: its kind and its arguments are decisions
    /// of its owner.
    #[error("the queue `{queue}` does not exist: declare it, durable and best as a quorum queue")]
    MissingQueue {
        /// The name.
        queue: String,
        /// The answer of the broker.
        source: lapin::Error,
    },
    /// The queue of the dead letters does not exist.
    #[error(
        "the queue `{queue}` for dead letters does not exist: declare it, durable, or leave \
         `dead_letters` out"
    )]
    MissingDeadLetters {
        /// The name.
        queue: String,
        /// The answer of the broker.
        source: lapin::Error,
    },
    /// The broker does not answer in time: it starts, has an alarm, or the quorum queue has no leader.
    #[error("RabbitMQ does not answer about the queue `{queue}`: try again")]
    NoAnswer {
        /// The name.
        queue: String,
    },
    /// The connection has ended and does not recover.
    #[error(
        "the connection to RabbitMQ has ended: connect again, and consume by the new connection"
    )]
    ConnectionEnded(#[source] lapin::Error),
    /// The client cannot read what the broker has sent, and has closed the connection: a message near
    /// the head of the queue has a property, a header's name or a routing key that is not UTF-8. It
    /// ends each consumer that gets it.
    #[error(
        "the client cannot read a message of the queue `{queue}` ({source}): take it off the queue \
         by another client, then connect again"
    )]
    Unreadable {
        /// The name.
        queue: String,
        /// The error of the client.
        source: lapin::Error,
    },
    /// The broker refuses, for another reason.
    #[error("RabbitMQ refuses: {0}")]
    Refused(#[source] lapin::Error),
    /// Answers are not known to have left this process: the broker reads nothing. The client sends
    /// them later; if it does not, the broker delivers their messages again.
    #[error("answers to RabbitMQ about the queue `{queue}` have not left this process in time")]
    NotSent {
        /// The name.
        queue: String,
    },
}
