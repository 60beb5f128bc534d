//! What goes wrong between a consumer and its queue.

use crate::requests::described;

/// An error of a queue, or of the requests to it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The queue does not exist, or not any more. It is not created here: its attributes are a
    /// decision of its owner.
    #[error("the queue {url} does not exist: create it, or correct its URL, account and region")]
    MissingQueue {
        /// The URL of the queue.
        url: String,
    },
    /// The queue for dead letters does not exist.
    #[error(
        "the queue {url} for dead letters does not exist: create it, or leave `dead_letters` out"
    )]
    MissingDeadLetters {
        /// The URL of the queue for dead letters.
        url: String,
    },
    /// The dead letters would come back to their consumer.
    #[error("the queue {url} cannot have its own dead letters: set another one in `dead_letters`")]
    OwnDeadLetters {
        /// The URL of the queue.
        url: String,
    },
    /// One of the two queues is a FIFO queue, and the other one is not.
    #[error(
        "the queue {url} for dead letters is of the other type: set {wanted} queue in \
         `dead_letters`, as its messages come from one"
    )]
    OtherType {
        /// The URL of the queue for dead letters.
        url: String,
        /// The type that it has to have, with its article.
        wanted: &'static str,
    },
    /// The queue delivers messages again before they can be kept.
    #[error(
        "the queue {url} delivers again what has no answer after {seconds} s, which is too short \
         to keep it: set its `VisibilityTimeout` to 3 at least, better 30"
    )]
    VisibilityTimeout {
        /// The URL of the queue.
        url: String,
        /// Its visibility timeout.
        seconds: i32,
    },
    /// SQS does not let this client ask for the attributes of the queue, or has failed.
    #[error("SQS does not answer about the queue {url}: {}", described(&**source))]
    Refused {
        /// The URL of the queue.
        url: String,
        /// The answer of SQS, or of the client.
        source: Box<aws_sdk_sqs::Error>,
    },
    /// SQS has not answered in time.
    #[error("SQS does not answer about the queue {url} within 10 seconds")]
    NoAnswer {
        /// The URL of the queue.
        url: String,
    },
    /// Some messages of a batch are not known to be deleted, or to stay with this consumer. SQS
    /// delivers them again.
    #[error("SQS has not taken the answers to {failed} of {of} messages: {reason}")]
    Unanswered {
        /// How many there are.
        failed: usize,
        /// How many the batch had.
        of: usize,
        /// The answer of SQS to the first of them.
        reason: String,
    },
}
