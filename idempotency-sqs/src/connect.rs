//! The way to a queue.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::QueueAttributeName;
use idempotency::inbox::Delivery;
use idempotency::key::IntoKey;
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::error::Error;
use crate::message::{KeyOf, SqsMessage};
use crate::receives::{Open, Receives};
use crate::requests::{ANSWER_WITHIN, Queue, described};
use crate::source::SqsQueue;

/// The attempts of an inbox, by its default. That of an inbox is not known here.
const MAX_ATTEMPTS: u32 = 10;
/// The shortest visibility timeout that can be kept, in seconds.
const SHORTEST: i32 = 3;

/// The options of an [`SqsQueue`].
///
/// ```no_run
/// # use idempotency_sqs::{Error, Sqs, SqsQueue};
/// # async fn consume(client: idempotency_sqs::aws_sdk_sqs::Client) -> Result<SqsQueue, Error> {
/// let orders = Sqs::new(client, "https://sqs.eu-north-1.amazonaws.com/123456789012/orders")
///     .dead_letters("https://sqs.eu-north-1.amazonaws.com/123456789012/orders-dead")
///     .with_key(|message| message.attribute("order-id").map(str::to_owned))
///     .connect()
///     .await?;
/// # Ok(orders)
/// # }
/// ```
#[must_use = "nothing is consumed before `connect`"]
pub struct Sqs {
    queue: Queue,
    dead_letters: Option<Queue>,
    key: Option<KeyOf>,
}

impl Sqs {
    /// Creates options for the queue with this URL: a standard or a FIFO queue.
    pub fn new(client: Client, queue_url: impl Into<String>) -> Self {
        let queue = Queue { client, url: Arc::from(queue_url.into()) };
        Self { queue, dead_letters: None, key: None }
    }

    /// Sets the URL of the queue for dead letters, of the same type. They must not come back to this
    /// consumer.
    ///
    /// Without it nothing is dropped: such a message is delivered again after growing pauses, with an
    /// error in the log, until the redrive policy of its queue moves it.
    pub fn dead_letters(self, queue_url: impl Into<String>) -> Self {
        let (client, url) = (self.queue.client.clone(), Arc::from(queue_url.into()));
        Self { dead_letters: Some(Queue { client, url }), ..self }
    }

    /// Sets the key of a message, in place of its attribute `idempotency-key`, the `MessageId` of its
    /// SNS envelope and its own id. A message whose key is `None` is a dead letter.
    ///
    /// Choose a key from the payload, from attributes, or from [`SqsMessage::id`]: they are the same
    /// in a dead letter that is moved back.
    pub fn with_key<K, F>(self, key: F) -> Self
    where
        F: Fn(&SqsMessage) -> K + Send + Sync + 'static,
        K: IntoKey,
    {
        let key: KeyOf = Arc::new(move |message: &SqsMessage| Delivery::new(("own", key(message))));
        Self { key: Some(key), ..self }
    }

    /// Asks SQS for the attributes of both queues, and checks them.
    ///
    /// A redrive policy with a `maxReceiveCount` of at most 10 is logged as a warning: 10 are the
    /// attempts of an inbox by its default, and SQS moves what it has delivered so often, also what
    /// was postponed. That of the inbox is not known here: if it is higher, so has the count to be.
    ///
    /// # Errors
    /// - [`MissingQueue`](Error::MissingQueue), [`MissingDeadLetters`](Error::MissingDeadLetters)
    /// - [`OwnDeadLetters`](Error::OwnDeadLetters), [`OtherType`](Error::OtherType): another queue
    ///   has to be set for dead letters
    /// - [`VisibilityTimeout`](Error::VisibilityTimeout): the queue has to be configured in another
    ///   way
    /// - [`Refused`](Error::Refused), [`NoAnswer`](Error::NoAnswer): of SQS
    pub async fn connect(self) -> Result<SqsQueue, Error> {
        let Self { queue, dead_letters, key } = self;
        let name: Arc<str> = queue.url.rsplit('/').next().unwrap_or_default().into();
        let attributes = attributes(&queue).await?;
        let attribute = |name| attributes.get(&name).map(String::as_str);
        let seconds = attribute(QueueAttributeName::VisibilityTimeout);
        let seconds = seconds.and_then(|text| text.parse().ok()).unwrap_or(30);
        if seconds < SHORTEST {
            return Err(Error::VisibilityTimeout { url: queue.url.to_string(), seconds });
        }
        let policy = attribute(QueueAttributeName::RedrivePolicy);
        if let Some(count) = policy.and_then(max_receive_count)
            && count <= MAX_ATTEMPTS
        {
            tracing::warn!(
                queue = &*name,
                max_receive_count = count,
                "the redrive policy moves messages that were delivered `maxReceiveCount` times, also \
                 those that were postponed: set it well above the attempts of the inbox"
            );
        }
        if let Some(dead_letters) = &dead_letters {
            let arn = attribute(QueueAttributeName::QueueArn);
            check(dead_letters, &queue, arn).await?;
        }
        let patience = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
        let open = Mutex::new(Open::default());
        let receives = Receives { queue, name, key, patience, open };
        Ok(SqsQueue { receives, dead_letters, turn: Mutex::new(()) })
    }
}

/// Fails if the queue for dead letters is not one. A client may be allowed to send, and not to ask:
/// then it is left to the first dead letter.
async fn check(dead_letters: &Queue, queue: &Queue, arn: Option<&str>) -> Result<(), Error> {
    let url = || dead_letters.url.to_string();
    if dead_letters.is_fifo() != queue.is_fifo() {
        let wanted = if queue.is_fifo() { "a FIFO" } else { "a standard" };
        return Err(Error::OtherType { url: url(), wanted });
    }
    let is_own = match attributes(dead_letters).await {
        Ok(attributes) => {
            let theirs = attributes.get(&QueueAttributeName::QueueArn).map(String::as_str);
            theirs.is_some() && theirs == arn
        }
        Err(Error::MissingQueue { url }) => return Err(Error::MissingDeadLetters { url }),
        Err(error) => {
            let error = described(&error);
            tracing::warn!(queue = url(), error, "the queue for dead letters is not known");
            false
        }
    };
    if is_own || dead_letters.url == queue.url {
        return Err(Error::OwnDeadLetters { url: url() });
    }
    Ok(())
}

async fn attributes(queue: &Queue) -> Result<HashMap<QueueAttributeName, String>, Error> {
    let url = || queue.url.to_string();
    let request = queue
        .client
        .get_queue_attributes()
        .queue_url(&*queue.url)
        .attribute_names(QueueAttributeName::QueueArn)
        .attribute_names(QueueAttributeName::RedrivePolicy)
        .attribute_names(QueueAttributeName::VisibilityTimeout);
    match timeout(ANSWER_WITHIN, request.send()).await {
        Ok(Ok(answer)) => Ok(answer.attributes.unwrap_or_default()),
        Ok(Err(error)) => {
            let service = error.as_service_error();
            let is_missing = service
                .is_some_and(|error| error.is_queue_does_not_exist() || error.is_invalid_address());
            Err(if is_missing {
                Error::MissingQueue { url: url() }
            } else {
                Error::Refused { url: url(), source: Box::new(error.into()) }
            })
        }
        Err(_) => Err(Error::NoAnswer { url: url() }),
    }
}

/// The count in a redrive policy, which is a number or its text.
fn max_receive_count(policy: &str) -> Option<u32> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Count {
        Number(u32),
        Text(String),
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Policy {
        max_receive_count: Count,
    }
    match serde_json::from_str::<Policy>(policy).ok()?.max_receive_count {
        Count::Number(number) => Some(number),
        Count::Text(text) => text.parse().ok(),
    }
}

impl fmt::Debug for Sqs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sqs")
            .field("queue", &self.queue.url)
            .field("dead_letters", &self.dead_letters.as_ref().map(|queue| &queue.url))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::max_receive_count;

    #[test]
    fn the_count_of_a_redrive_policy_is_a_number_or_its_text() {
        assert_eq!(
            max_receive_count(r#"{"deadLetterTargetArn":"a","maxReceiveCount":5}"#),
            Some(5)
        );
        assert_eq!(max_receive_count(r#"{"maxReceiveCount":"50"}"#), Some(50));
        assert_eq!(max_receive_count("{}"), None);
    }
}
