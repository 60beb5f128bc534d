//! Amazon SQS for the [inbox](idempotency::inbox) of `idempotency`: each message of a queue has its
//! effect once.
mod connect;
mod dead_letter;
mod error;
mod message;
mod receives;
mod requests;
mod source;

pub use aws_sdk_sqs;
pub use connect::Sqs;
pub use error::Error;
pub use message::SqsMessage;
pub use source::SqsQueue;
