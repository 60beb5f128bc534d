//! The way to a pull consumer.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{AckPolicy, Config, PullConsumer};
use async_nats::jetstream::context::GetStreamByNameErrorKind;
use idempotency::inbox::Delivery;
use idempotency::key::IntoKey;

use crate::dead_letter::DeadLetters;
use crate::error::Error;
use crate::message::{KeyOf, StreamMessage};
use crate::pulls::{Pulls, is_missing};
use crate::source::PullSource;

/// The attempts of an inbox, by its default. That of an inbox is not known here.
const MAX_ATTEMPTS: i64 = 10;
/// The server's patience where it names none.
const ACK_WAIT: Duration = Duration::from_secs(30);

/// The options of a [`PullSource`].
///
/// ```no_run
/// # use idempotency_nats::{JetStream, PullSource, Error};
/// # use idempotency_nats::async_nats::jetstream::{Context, consumer::PullConsumer};
/// # async fn consume(context: Context, consumer: PullConsumer) -> Result<PullSource, Error> {
/// let orders = JetStream::new(consumer)
///     .dead_letters(context, "dead.orders")
///     .with_key(|message| message.header("order-id").map(str::to_owned))
///     .connect()
///     .await?;
/// # Ok(orders)
/// # }
/// ```
#[must_use = "nothing is consumed before `connect`"]
pub struct JetStream {
    consumer: PullConsumer,
    dead_letters: Option<(Context, String)>,
    key: Option<KeyOf>,
}

impl JetStream {
    /// Creates options for this consumer: a durable one, with explicit acknowledgements.
    pub fn new(consumer: PullConsumer) -> Self {
        Self { consumer, dead_letters: None, key: None }
    }

    /// Sets the subject for dead letters, which a stream has already: best one of its own. They must
    /// not come back to this consumer.
    ///
    /// Without it nothing is dropped: such a message is delivered again and again, with an error in
    /// the log.
    pub fn dead_letters(self, context: Context, subject: impl Into<String>) -> Self {
        Self { dead_letters: Some((context, subject.into())), ..self }
    }

    /// Sets the key of a message, in place of its header `idempotency-key`, its `Nats-Msg-Id` and its
    /// position. A message whose key is `None` is a dead letter.
    ///
    /// A dead letter has a `Nats-Msg-Id` of its own, and may be moved back to another subject: choose
    /// a key from headers, from [`message_id`](StreamMessage::message_id) or from the payload.
    pub fn with_key<K, F>(self, key: F) -> Self
    where
        F: Fn(&StreamMessage) -> K + Send + Sync + 'static,
        K: IntoKey,
    {
        let key: KeyOf =
            Arc::new(move |message: &StreamMessage| Delivery::new(("own", key(message))));
        Self { key: Some(key), ..self }
    }

    /// Asks the server for the consumer and for the stream of the dead letters, and checks how the
    /// consumer is configured.
    ///
    /// A `max_deliver` of at most 10 is logged as a warning: 10 are the attempts of an inbox by its
    /// default, and the server **drops** what it has delivered so often. That of the inbox is not
    /// known here: if it is higher, so has `max_deliver` to be.
    ///
    /// # Errors
    /// - [`MissingConsumer`](Error::MissingConsumer),
    ///   [`MissingDeadLetters`](Error::MissingDeadLetters)
    /// - [`Push`](Error::Push), [`AckPolicy`](Error::AckPolicy), [`NotDurable`](Error::NotDurable),
    ///   [`HeadersOnly`](Error::HeadersOnly): the consumer has to be configured in another way
    /// - [`NoAnswer`](Error::NoAnswer): of the server
    pub async fn connect(mut self) -> Result<PullSource, Error> {
        let known = self.consumer.cached_info();
        let (stream, consumer) = (known.stream_name.clone(), known.name.clone());
        if let Err(source) = self.consumer.info().await {
            return Err(if is_missing(&source.kind()) {
                Error::MissingConsumer { stream, consumer, source }
            } else {
                Error::NoAnswer { consumer, source }
            });
        }
        let config = &self.consumer.cached_info().config;
        check(config, &consumer)?;
        if (1..=MAX_ATTEMPTS).contains(&config.max_deliver) {
            let max_deliver = config.max_deliver;
            tracing::warn!(
                %stream, %consumer, max_deliver,
                "the server drops messages that it has delivered `max_deliver` times: set it to -1, \
                 or well above the attempts of the inbox"
            );
        }
        if let Some((context, subject)) = &self.dead_letters {
            look_for(context, subject).await?;
        }
        let patience = patience(config);
        Ok(PullSource {
            pulls: Pulls::new(self.consumer, patience),
            stream: stream.into(),
            key: self.key,
            patience,
            dead_letters: DeadLetters { place: self.dead_letters, consumer },
        })
    }
}

fn check(config: &Config, consumer: &str) -> Result<(), Error> {
    let consumer = consumer.to_owned();
    if config.deliver_subject.is_some() {
        return Err(Error::Push { consumer });
    }
    if config.ack_policy != AckPolicy::Explicit {
        return Err(Error::AckPolicy { consumer });
    }
    if let Some(change) = forgotten(config) {
        return Err(Error::NotDurable { consumer, change });
    }
    if config.headers_only {
        return Err(Error::HeadersOnly { consumer });
    }
    Ok(())
}

/// The setting by which the server may forget the consumer.
fn forgotten(config: &Config) -> Option<&'static str> {
    if config.durable_name.is_none() {
        return Some("set its `durable_name`");
    }
    if !config.inactive_threshold.is_zero() {
        return Some("leave its `inactive_threshold` out");
    }
    config.memory_storage.then_some("set its `memory_storage` to false")
}

/// The shortest time after which the server delivers again. With a `backoff` it is one of those, and
/// `ack_wait` is not counted.
fn patience(config: &Config) -> Duration {
    let ack_wait = Some(config.ack_wait).filter(|wait| !wait.is_zero()).unwrap_or(ACK_WAIT);
    config.backoff.iter().copied().fold(ack_wait, Duration::min)
}

/// Fails if no stream has the subject. Other answers are left to the first dead letter: a client
/// may be allowed to publish, and not to ask.
async fn look_for(context: &Context, subject: &str) -> Result<(), Error> {
    let Err(source) = context.stream_by_subject(subject).await else { return Ok(()) };
    match source.kind() {
        GetStreamByNameErrorKind::NotFound | GetStreamByNameErrorKind::InvalidSubject => {
            Err(Error::MissingDeadLetters { subject: subject.to_owned(), source })
        }
        _ => {
            tracing::warn!(%subject, error = %source, "the stream of the dead letters is not known");
            Ok(())
        }
    }
}

impl fmt::Debug for JetStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let info = self.consumer.cached_info();
        f.debug_struct("JetStream")
            .field("stream", &info.stream_name)
            .field("consumer", &info.name)
            .field("dead_letters", &self.dead_letters.as_ref().map(|(_, subject)| subject))
            .finish_non_exhaustive()
    }
}
