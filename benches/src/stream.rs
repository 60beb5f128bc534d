//! Streams of NATS JetStream, each of which is filled first and consumed then.

use std::future::{Future, pending};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use futures::TryStreamExt as _;
use futures::future::try_join_all;
use idempotency::inbox::{Consumer, Inbox};
use idempotency_nats::async_nats;
use idempotency_nats::async_nats::jetstream::consumer::{PullConsumer, pull};
use idempotency_nats::async_nats::jetstream::message::PublishMessage;
use idempotency_nats::async_nats::jetstream::{self, Context, stream};
use idempotency_nats::{JetStream, StreamMessage};
use idempotency_test_support::deadline::eventually_within;
use idempotency_test_support::server::{NatsOptions, NatsServer};

use crate::receipt::Order;

/// The handlers that run at the same time.
pub const AT_ONCE: usize = 32;
/// The messages in hand: that is how many a consumer holds for so many handlers.
const PREFETCH: usize = 2 * AT_ONCE;
/// The messages whose publication is confirmed together.
const PUBLISHED: usize = 1_000;
const CONSUMER: &str = "billing";
const PATIENCE: Duration = Duration::from_secs(120);

/// A server of streams.
pub struct Streams {
    _server: NatsServer,
    /// The connection that publishes and asks.
    producer: Context,
    /// The connection of all consumers.
    consumer: Context,
    count: AtomicU64,
}

/// A stream with the messages of one turn.
pub struct Filled<'s> {
    streams: &'s Streams,
    name: String,
    count: u32,
    consumer: PullConsumer,
}

impl Streams {
    pub async fn start() -> anyhow::Result<Self> {
        let server = NatsServer::start(NatsOptions::new().private()).await?;
        let producer = jetstream::new(async_nats::connect(server.url()).await?);
        let consumer = jetstream::new(async_nats::connect(server.url()).await?);
        Ok(Self { _server: server, producer, consumer, count: AtomicU64::default() })
    }

    /// Creates a stream with a message for each of these numbers, which is also its id.
    pub async fn fill(&self, numbers: Range<u64>) -> anyhow::Result<Filled<'_>> {
        let name = format!("orders-{}", self.count.fetch_add(1, Ordering::Relaxed));
        let config = stream::Config {
            name: name.clone(),
            subjects: vec![name.clone()],
            ..stream::Config::default()
        };
        self.producer.create_stream(config).await?;
        let config =
            pull::Config { durable_name: Some(CONSUMER.to_owned()), ..pull::Config::default() };
        self.producer.create_consumer_on_stream(config, &*name).await?;
        let count = u32::try_from(numbers.end - numbers.start)?;
        for first in numbers.clone().step_by(PUBLISHED) {
            let mut confirmations = Vec::new();
            for number in first..numbers.end.min(first + PUBLISHED as u64) {
                let message = PublishMessage::build()
                    .message_id(format!("order-{number}"))
                    .payload(serde_json::to_vec(&Order::new(number))?.into());
                let sent = self.producer.send_publish(name.clone(), message).await?;
                confirmations.push(sent.into_future());
            }
            for confirmation in try_join_all(confirmations).await? {
                ensure!(!confirmation.duplicate, "the stream takes it for a duplicate");
            }
        }
        let consumer = self.consumer.get_consumer_from_stream(CONSUMER, &*name).await?;
        Ok(Filled { streams: self, name, count, consumer })
    }
}

impl Filled<'_> {
    /// Acknowledges all messages, and returns how many that are in a second.
    pub async fn acknowledge(self) -> anyhow::Result<f64> {
        let messages = self.consumer.stream().max_messages_per_batch(PREFETCH).messages().await?;
        let consume = messages
            .map_err(Into::into)
            .try_for_each(async |message| message.ack().await.map_err(anyhow::Error::from_boxed));
        self.rate(consume).await
    }

    /// Does `work` for each message, acknowledges it, and returns how many that are in a second.
    pub async fn work<W, F>(self, work: W) -> anyhow::Result<f64>
    where
        W: Fn(u64) -> F + Send + 'static,
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let messages = self.consumer.stream().max_messages_per_batch(PREFETCH).messages().await?;
        let consume =
            messages.map_err(Into::into).try_for_each_concurrent(AT_ONCE, move |message| {
                let work = number(&message.payload).map(&work);
                async move {
                    work?.await?;
                    message.ack().await.map_err(anyhow::Error::from_boxed)
                }
            });
        self.rate(consume).await
    }

    /// Handles each message by `inbox`, and returns how many that are in a second.
    pub async fn handle<H, F>(self, inbox: Inbox, handler: H) -> anyhow::Result<f64>
    where
        H: Fn(Arc<StreamMessage>) -> F + Send + Sync + 'static,
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let source = JetStream::new(self.consumer.clone()).connect().await?;
        let consumer = Consumer::new(inbox, source).with_concurrency(AT_ONCE);
        // Boxed: it takes 28 kilobytes.
        let consume = Box::pin(async move {
            consumer.run(pending(), handler).await?;
            Ok(())
        });
        self.rate(consume).await
    }

    /// Consumes until the server has the acknowledgements of all messages.
    async fn rate<F>(self, consume: F) -> anyhow::Result<f64>
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let asking = self.streams.producer.get_consumer_from_stream(CONSUMER, &*self.name);
        let asking: PullConsumer = asking.await?;
        let start = Instant::now();
        let mut consuming = tokio::spawn(consume);
        tokio::select! {
            ended = &mut consuming => {
                ended??;
                bail!("the consumer has ended");
            }
            empty = is_empty(&asking) => empty?,
        }
        let time = start.elapsed();
        consuming.abort();
        self.streams.producer.delete_stream(&self.name).await?;
        Ok(f64::from(self.count) / time.as_secs_f64())
    }
}

/// Waits until no message is left, neither in the stream nor in hand. Longer than the server waits for
/// an acknowledgement: one that is lost costs its round, and not the run.
async fn is_empty(consumer: &PullConsumer) -> anyhow::Result<()> {
    eventually_within(PATIENCE, "all messages to be acknowledged", async || {
        let info = consumer.get_info().await;
        info.is_ok_and(|info| (info.num_pending, info.num_ack_pending) == (0, 0))
    })
    .await
}

/// The number of the message with this payload.
pub fn number(payload: &[u8]) -> anyhow::Result<u64> {
    Ok(serde_json::from_slice::<Order>(payload)?.id)
}
