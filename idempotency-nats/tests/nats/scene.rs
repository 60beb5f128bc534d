//! The server of all tests, the streams of one test, and what happens to their messages.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::ensure;
use idempotency_nats::async_nats::jetstream::consumer::{PullConsumer, pull};
use idempotency_nats::async_nats::jetstream::message::{PublishMessage, StreamMessage as Stored};
use idempotency_nats::async_nats::jetstream::{self, stream};
use idempotency_nats::async_nats::{self, HeaderMap};
use idempotency_nats::{JetStream, PullSource, StreamMessage};
use idempotency_test_support::consuming::{self, Address, Broker};
pub use idempotency_test_support::consuming::{consume, engine, ids, inbox};
use idempotency_test_support::deadline::{eventually_async, within};
use idempotency_test_support::effects::EffectLog;
use idempotency_test_support::server::{NatsOptions, NatsServer};
use tempfile::TempDir;

use crate::wire::{Nats, Wire};

/// The shortest time for which the server recognises an id by itself.
pub const WINDOW: Duration = Duration::from_millis(100);

/// The server of all tests. It ends with this process.
pub async fn server() -> anyhow::Result<&'static NatsServer> {
    static SERVER: OnceLock<NatsServer> = OnceLock::new();
    consuming::shared(&SERVER, || NatsServer::start(NatsOptions::new())).await
}

/// A stream with a consumer, a stream for its dead letters, and effects that are counted in a file.
pub struct Scene {
    /// The name of the stream, and of its subject.
    pub stream: String,
    /// The subject of the dead letters, which is that of another stream.
    pub dead: String,
    pub effects: Arc<EffectLog>,
    url: String,
    context: jetstream::Context,
    _directory: TempDir,
}

/// The consumer of most tests.
pub const CONSUMER: &str = "billing";

/// Its configuration.
pub fn durable() -> pull::Config {
    pull::Config {
        durable_name: Some(CONSUMER.to_owned()),
        ack_wait: Duration::from_secs(1),
        ..pull::Config::default()
    }
}

impl Scene {
    pub async fn new() -> anyhow::Result<Self> {
        Self::with(durable()).await
    }

    pub async fn with(consumer: pull::Config) -> anyhow::Result<Self> {
        Self::at(&server().await?.url(), consumer).await
    }

    pub async fn at(url: &str, consumer: pull::Config) -> anyhow::Result<Self> {
        let context = jetstream::new(async_nats::connect(url).await?);
        let stream = format!("orders-{}", uuid::Uuid::new_v4());
        let dead = format!("dead.{stream}");
        let directory = tempfile::tempdir()?;
        let effects = Arc::new(EffectLog::open(directory.path().join("effects"))?);
        let scene =
            Self { stream, dead, effects, url: url.to_owned(), context, _directory: directory };
        scene.create(WINDOW).await?.create_consumer(consumer).await?;
        let dead = stream::Config {
            name: scene.dead_stream(),
            subjects: vec![scene.dead.clone()],
            ..stream::Config::default()
        };
        scene.context.create_stream(dead).await?;
        Ok(scene)
    }

    /// Creates the stream, which recognises an id for this time by itself.
    pub async fn create(&self, window: Duration) -> anyhow::Result<stream::Stream> {
        let config = self.config(window);
        Ok(self.context.create_stream(config).await?)
    }

    /// Makes the stream recognise the ids of the whole test, as it does by its defaults.
    pub async fn recognise(&self) -> anyhow::Result<()> {
        self.context.update_stream(self.config(Duration::from_secs(120))).await?;
        Ok(())
    }

    fn config(&self, duplicate_window: Duration) -> stream::Config {
        stream::Config {
            name: self.stream.clone(),
            subjects: vec![self.stream.clone()],
            duplicate_window,
            ..stream::Config::default()
        }
    }

    pub fn dead_stream(&self) -> String {
        self.dead.replace('.', "-")
    }

    /// The context of the test.
    pub fn context(&self) -> &jetstream::Context {
        &self.context
    }

    /// Publishes a message, and waits until the server has it.
    pub async fn publish(&self, id: &str, payload: &str) -> anyhow::Result<()> {
        self.publish_with(PublishMessage::build().message_id(id), payload).await
    }

    /// Publishes a message, and again while the server takes it for a duplicate of its own.
    pub async fn publish_with(&self, message: PublishMessage, payload: &str) -> anyhow::Result<()> {
        let message = message.payload(payload.to_owned().into());
        let published = within("a message to be published", async {
            while self
                .context
                .send_publish(self.stream.clone(), message.clone())
                .await?
                .await?
                .duplicate
            {
                tokio::time::sleep(WINDOW / 4).await;
            }
            anyhow::Ok(())
        });
        published.await?
    }

    /// Publishes what the payload of each says, under that id.
    pub async fn publish_all(&self, ids: impl IntoIterator<Item = String>) -> anyhow::Result<()> {
        let mut acks = Vec::new();
        for id in ids {
            let message = PublishMessage::build().message_id(&id).payload(id.into());
            acks.push(self.context.send_publish(self.stream.clone(), message).await?.into_future());
        }
        for ack in acks {
            ensure!(!ack.await?.duplicate, "a duplicate");
        }
        Ok(())
    }

    pub async fn consumer(&self) -> anyhow::Result<PullConsumer> {
        self.consumer_by(&self.context, CONSUMER).await
    }

    pub async fn consumer_by(
        &self,
        context: &jetstream::Context,
        name: &str,
    ) -> anyhow::Result<PullConsumer> {
        let stream = context.get_stream_no_info(&self.stream).await?;
        stream.get_consumer(name).await.map_err(|error| anyhow::anyhow!(error))
    }

    /// What the consumer has left: in the stream, and in hand.
    pub async fn pending(&self) -> anyhow::Result<(u64, u64)> {
        let info = self.consumer().await?.cached_info().clone();
        Ok((info.num_pending, u64::try_from(info.num_ack_pending)?))
    }

    /// What is left: for the consumer, and of dead letters.
    pub async fn left(&self) -> anyhow::Result<(u64, u64)> {
        let (pending, in_hand) = self.pending().await?;
        Ok((pending + in_hand, self.dead_letters().await?))
    }

    pub async fn dead_letters(&self) -> anyhow::Result<u64> {
        Ok(self.context.get_stream(self.dead_stream()).await?.cached_info().state.messages)
    }

    /// Waits until all messages are acknowledged.
    pub async fn is_empty(&self) -> anyhow::Result<()> {
        eventually_async("no message to be left", async || {
            self.pending().await.is_ok_and(|left| left == (0, 0))
        })
        .await
    }

    /// Waits until there are so many dead letters.
    pub async fn has_dead_letters(&self, count: u64) -> anyhow::Result<()> {
        eventually_async(format!("{count} dead letters"), async || {
            self.dead_letters().await.is_ok_and(|letters| letters == count)
        })
        .await
    }

    /// Waits for a dead letter, and takes it.
    pub async fn dead_letter(&self) -> anyhow::Result<Stored> {
        let letter = within("a dead letter", async {
            loop {
                let stream = self.context.get_stream(self.dead_stream()).await?;
                let state = &stream.cached_info().state;
                if state.messages > 0 {
                    let letter = stream.get_raw_message(state.first_sequence).await?;
                    stream.delete_message(state.first_sequence).await?;
                    return anyhow::Ok(letter);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        letter.await?
    }

    /// Moves a dead letter back, as an operator's tool does: with all that it has.
    pub async fn redrive(&self, letter: &Stored) -> anyhow::Result<()> {
        let message = PublishMessage::build().headers(letter.headers.clone());
        let message = message.payload(letter.payload.clone());
        let ack = self.context.send_publish(self.stream.clone(), message).await?.await?;
        ensure!(!ack.duplicate, "the stream takes it for the original");
        Ok(())
    }

    /// A consumer with a client of its own.
    pub async fn options(&self) -> anyhow::Result<JetStream> {
        self.options_by(&self.url).await
    }

    pub async fn options_by(&self, url: &str) -> anyhow::Result<JetStream> {
        let context = jetstream::new(async_nats::connect(url).await?);
        Ok(JetStream::new(self.consumer_by(&context, CONSUMER).await?))
    }

    pub async fn source(&self) -> anyhow::Result<PullSource> {
        self.source_by(&self.url).await
    }

    pub async fn source_by(&self, url: &str) -> anyhow::Result<PullSource> {
        let options = self.options_by(url).await?;
        Ok(options.dead_letters(self.context.clone(), &*self.dead).connect().await?)
    }

    /// Waits until each of `ids` has an effect.
    pub async fn have_happened(&self, ids: impl IntoIterator<Item = String>) -> anyhow::Result<()> {
        self.effects.have_happened(ids).await
    }

    /// Each of `ids` has one effect, and nothing else has any.
    pub fn assert_once(&self, ids: impl IntoIterator<Item = String>) -> anyhow::Result<()> {
        self.effects.assert_once(ids)
    }

    /// The handler of most tests: its effect is a line with the payload.
    pub fn handler(
        &self,
    ) -> impl Fn(Arc<StreamMessage>) -> std::future::Ready<Result<(), &'static str>> + Send + Sync + use<>
    {
        consuming::handler(self)
    }
}

pub fn append(effects: &EffectLog, message: &StreamMessage) {
    consuming::append_payload(effects, message.payload());
}

/// A header of a stored message.
pub fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).map(async_nats::HeaderValue::as_str)
}

impl Broker for Scene {
    type Source = PullSource;
    type Letter = Stored;
    type Protocol = Nats;

    /// The stream of the dead letters recognises the second copy by its id.
    const COPIES: usize = 1;

    const IS_IMPATIENT: bool = true;

    async fn create(_: usize) -> anyhow::Result<Self> {
        Self::new().await
    }

    async fn patient() -> anyhow::Result<Self> {
        let ack_wait = Duration::from_secs(300);
        Self::with(pull::Config { ack_wait, ..durable() }).await
    }

    fn address(&self) -> Address {
        let (messages, dead) = (self.stream.clone(), self.dead.clone());
        Address { url: self.url.clone(), messages, dead }
    }

    async fn connect(address: &Address) -> anyhow::Result<PullSource> {
        let context = jetstream::new(async_nats::connect(&address.url).await?);
        let stream = context.get_stream_no_info(&address.messages).await?;
        let consumer = stream.get_consumer(CONSUMER).await;
        let consumer = consumer.map_err(|error| anyhow::anyhow!(error))?;
        Ok(JetStream::new(consumer).dead_letters(context, &*address.dead).connect().await?)
    }

    async fn source(&self) -> anyhow::Result<PullSource> {
        self.source_by(&self.url).await
    }

    async fn wire(&self) -> anyhow::Result<Wire> {
        Wire::to(server().await?.address()).await
    }

    fn payload(message: &StreamMessage) -> &[u8] {
        message.payload()
    }

    fn effects(&self) -> &Arc<EffectLog> {
        &self.effects
    }

    async fn publish(&self, id: &str, payload: &str) -> anyhow::Result<()> {
        self.publish(id, payload).await
    }

    async fn publish_all(&self, ids: impl IntoIterator<Item = String>) -> anyhow::Result<()> {
        self.publish_all(ids).await
    }

    /// By the header, of which the server makes nothing.
    async fn publish_repeatedly(&self, id: &str, times: usize) -> anyhow::Result<()> {
        for _ in 0..times {
            self.announce(id).await?;
        }
        Ok(())
    }

    async fn are_in_hand(&self, count: usize) -> anyhow::Result<()> {
        let pending = self.pending().await?;
        ensure!(pending == (0, u64::try_from(count)?), "{pending:?}: a message is in no hand");
        Ok(())
    }

    /// The server shows it when it delivers it again.
    async fn are_back(&self, _: usize) -> anyhow::Result<()> {
        Ok(())
    }

    async fn is_empty(&self) -> anyhow::Result<()> {
        self.is_empty().await
    }

    async fn left(&self) -> anyhow::Result<(usize, usize)> {
        let (left, dead) = self.left().await?;
        Ok((usize::try_from(left)?, usize::try_from(dead)?))
    }

    async fn dead_letters(&self) -> anyhow::Result<usize> {
        Ok(usize::try_from(self.dead_letters().await?)?)
    }

    async fn dead_letter(&self) -> anyhow::Result<Stored> {
        self.dead_letter().await
    }

    fn reason(letter: &Stored) -> Option<String> {
        header(&letter.headers, "idempotency-reason").map(str::to_owned)
    }

    fn id(letter: &Stored) -> Option<String> {
        header(&letter.headers, "Nats-Msg-Id").map(str::to_owned)
    }

    fn body(letter: &Stored) -> Vec<u8> {
        letter.payload.to_vec()
    }

    async fn redrive(&self, letter: &Stored) -> anyhow::Result<()> {
        self.redrive(letter).await
    }

    async fn subscribe(&self, name: &str) -> anyhow::Result<()> {
        let config = pull::Config { durable_name: Some(name.to_owned()), ..durable() };
        self.context.create_consumer_on_stream(config, &*self.stream).await?;
        Ok(())
    }

    async fn announce(&self, id: &str) -> anyhow::Result<()> {
        self.publish_with(PublishMessage::build().header("idempotency-key", id), id).await
    }

    async fn subscriber(&self, name: &str) -> anyhow::Result<PullSource> {
        let consumer = self.consumer_by(&self.context, name).await?;
        Ok(JetStream::new(consumer).connect().await?)
    }

    async fn has_read_all(&self, name: &str) -> anyhow::Result<()> {
        let consumer = self.consumer_by(&self.context, name).await?;
        eventually_async("the end", async || {
            let info = consumer.get_info().await;
            info.is_ok_and(|info| (info.num_pending, info.num_ack_pending) == (0, 0))
        })
        .await
    }
}
