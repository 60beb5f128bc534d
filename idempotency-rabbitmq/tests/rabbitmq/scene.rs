//! The broker of all tests, the queues of one test, and what happens to its messages.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures::future::LocalBoxFuture;
use idempotency::inbox::{Consumer, FailurePolicy, Inbox};
use idempotency::store::MemoryStore;
use idempotency::{Idempotency, inbox::ConsumeError};
use idempotency_rabbitmq::lapin::message::Delivery;
use idempotency_rabbitmq::lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use idempotency_rabbitmq::lapin::types::{AMQPValue, FieldTable};
use idempotency_rabbitmq::lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use idempotency_rabbitmq::{Error, Queue, QueueMessage, RabbitMq};
use idempotency_test_support::deadline::{eventually_async, within};
use idempotency_test_support::effects::EffectLog;
use idempotency_test_support::server::{RabbitMqOptions, RabbitMqServer};
use tempfile::TempDir;

pub const DAY: Duration = Duration::from_secs(86_400);

/// The broker of all tests. It ends with this process, and is waited for outside of the runtime of
/// the test that happens to start it.
pub async fn broker() -> anyhow::Result<&'static RabbitMqServer> {
    static BROKER: OnceLock<RabbitMqServer> = OnceLock::new();
    let start = || {
        BROKER.get_or_init(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let start = RabbitMqServer::start(RabbitMqOptions::new());
            runtime.expect("a runtime").block_on(start).expect("the broker starts")
        })
    };
    Ok(tokio::task::spawn_blocking(start).await?)
}

/// How a queue keeps its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Classic,
    Quorum,
    /// A quorum queue that drops a message after so many returns.
    Limited(i64),
}

/// A queue with its dead letters, and effects that are counted in a file.
pub struct Scene {
    pub queue: String,
    pub dead: String,
    pub effects: Arc<EffectLog>,
    url: String,
    channel: Channel,
    /// Those of consumers.
    connections: Mutex<Vec<Arc<Connection>>>,
    _directory: Option<TempDir>,
}

impl Scene {
    pub async fn new(kind: Kind) -> anyhow::Result<Self> {
        Self::at(&broker().await?.url(), kind).await
    }

    pub async fn at(url: &str, kind: Kind) -> anyhow::Result<Self> {
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let queue = format!("orders-{}", uuid::Uuid::new_v4());
        let dead = format!("{queue}.dead");
        let directory = tempfile::tempdir()?;
        let effects = Arc::new(EffectLog::open(directory.path().join("effects"))?);
        let connections = Mutex::default();
        let url = url.to_owned();
        let scene =
            Self { queue, dead, effects, url, channel, connections, _directory: Some(directory) };
        scene.declare(&scene.queue, kind).await?;
        scene.declare(&scene.dead, Kind::Classic).await?;
        Ok(scene)
    }

    /// The same queues and effects, by another connection.
    pub async fn again_at(&self, url: &str) -> anyhow::Result<Self> {
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        Ok(Self {
            queue: self.queue.clone(),
            dead: self.dead.clone(),
            effects: self.effects.clone(),
            url: url.to_owned(),
            channel,
            connections: Mutex::default(),
            _directory: None,
        })
    }

    pub async fn declare(&self, queue: &str, kind: Kind) -> anyhow::Result<()> {
        let mut arguments = FieldTable::default();
        if kind != Kind::Classic {
            arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        }
        if let Kind::Limited(returns) = kind {
            arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(returns));
        }
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.channel.queue_declare(queue.into(), options, arguments).await?;
        Ok(())
    }

    pub async fn delete(&self, queue: &str) -> anyhow::Result<()> {
        self.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
        Ok(())
    }

    /// The channel of the test.
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Publishes a message, and waits until the broker has it.
    pub async fn publish(&self, id: &str, payload: &str) -> anyhow::Result<()> {
        self.publish_with(BasicProperties::default().with_message_id(id.into()), payload).await
    }

    pub async fn publish_with(
        &self,
        properties: BasicProperties,
        payload: &str,
    ) -> anyhow::Result<()> {
        self.publish_to(&self.queue, properties, payload.as_bytes()).await
    }

    pub async fn publish_to(
        &self,
        queue: &str,
        properties: BasicProperties,
        payload: &[u8],
    ) -> anyhow::Result<()> {
        let properties = properties.with_delivery_mode(2);
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let confirm =
            self.channel.basic_publish("".into(), queue.into(), options, payload, properties);
        let confirmation = confirm.await?.await?;
        ensure!(confirmation.is_ack() && confirmation.take_message().is_none(), "not published");
        Ok(())
    }

    /// Publishes what the payload of each says, under that id.
    pub async fn publish_all(&self, ids: impl IntoIterator<Item = String>) -> anyhow::Result<()> {
        let published = ids.into_iter().map(async |id| self.publish(&id, &id).await);
        futures::future::try_join_all(published).await?;
        Ok(())
    }

    /// How many messages are in a queue that no consumer has in hand.
    pub async fn ready(&self, queue: &str) -> anyhow::Result<u32> {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declared = self.channel.queue_declare(queue.into(), options, FieldTable::default());
        Ok(declared.await?.message_count())
    }

    /// Waits until so many messages are in the queue, and in no consumer's hand.
    pub async fn is_ready(&self, queue: &str, count: u32) -> anyhow::Result<()> {
        let ready = within(format!("{count} messages in {queue}"), async {
            while self.ready(queue).await? != count {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            anyhow::Ok(())
        });
        ready.await?
    }

    /// Takes a message out of a queue.
    pub async fn get(&self, queue: &str) -> anyhow::Result<Option<Delivery>> {
        let options = BasicGetOptions { no_ack: true };
        Ok(self.channel.basic_get(queue.into(), options).await?.map(|message| message.delivery))
    }

    /// Waits for a dead letter, and takes it.
    pub async fn dead_letter(&self) -> anyhow::Result<Delivery> {
        let letter = within("a dead letter", async {
            loop {
                if let Some(letter) = self.get(&self.dead).await? {
                    return anyhow::Ok(letter);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        letter.await?
    }

    /// Moves a dead letter back, as an operator's tool does: with all that it has.
    pub async fn redrive(&self, letter: &Delivery) -> anyhow::Result<()> {
        self.publish_to(&self.queue, letter.properties.clone(), &letter.data).await
    }

    /// Ends the connections of consumers, and returns what is left: in the queue, and among the dead
    /// letters. What was not acknowledged is back in the queue then.
    pub async fn left(&self) -> anyhow::Result<(u32, u32)> {
        let connections = std::mem::take(&mut *self.connections.lock().expect("no holder panics"));
        for connection in connections {
            // One that a test has cut is closed.
            let _ = connection.close(200, "the end".into()).await;
        }
        // A quorum queue takes a moment to notice.
        for _ in 0..4 {
            self.ready(&self.queue).await?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok((self.ready(&self.queue).await?, self.ready(&self.dead).await?))
    }

    /// A connection for a consumer.
    pub async fn connection(&self) -> anyhow::Result<Arc<Connection>> {
        self.connection_by(&self.url, ConnectionProperties::default()).await
    }

    pub async fn connection_by(
        &self,
        url: &str,
        properties: ConnectionProperties,
    ) -> anyhow::Result<Arc<Connection>> {
        let connection = Arc::new(Connection::connect(url, properties).await?);
        self.connections.lock().expect("no holder panics").push(connection.clone());
        Ok(connection)
    }

    pub async fn source(&self) -> anyhow::Result<Queue> {
        let source = RabbitMq::new(&self.connection().await?, &*self.queue);
        Ok(source.dead_letters(&*self.dead).connect().await?)
    }

    /// Waits until each of `ids` has an effect.
    pub async fn have_happened(&self, ids: impl IntoIterator<Item = String>) -> anyhow::Result<()> {
        let ids: Vec<_> = ids.into_iter().collect();
        eventually_async(format!("{} effects", ids.len()), async || {
            let counts = self.effects.count_by_key().unwrap_or_default();
            ids.iter().all(|id| counts.contains_key(id))
        })
        .await
    }

    /// Each of `ids` has one effect, and nothing else has any.
    pub fn assert_once(&self, ids: impl IntoIterator<Item = String>) -> anyhow::Result<()> {
        let expected: BTreeMap<_, _> = ids.into_iter().map(|id| (id, 1)).collect();
        let counts = self.effects.count_by_key()?;
        let differ = counts.iter().filter(|(id, count)| expected.get(*id) != Some(*count));
        let differ: Vec<_> = differ.collect();
        ensure!(differ.is_empty() && counts.len() == expected.len(), "{differ:?}, {counts:?}");
        Ok(())
    }

    /// The handler of most tests: its effect is a line with the payload.
    pub fn handler(
        &self,
    ) -> impl Fn(Arc<QueueMessage>) -> std::future::Ready<Result<(), &'static str>> + Send + Sync + use<>
    {
        let effects = self.effects.clone();
        move |message| {
            append(&effects, &message);
            std::future::ready(Ok(()))
        }
    }
}

pub fn append(effects: &EffectLog, message: &QueueMessage) {
    let payload = String::from_utf8_lossy(message.payload());
    effects.append(&payload).expect("the effect is written");
}

pub fn engine() -> Idempotency {
    Idempotency::new(MemoryStore::new())
}

/// An inbox whose pauses are short.
pub fn inbox(engine: &Idempotency) -> Inbox {
    Inbox::new(engine.clone(), "billing", DAY)
        .with_backoff(Duration::from_millis(100), Duration::from_secs(1))
}

/// Consumes until `until` is done, and returns how that was.
pub fn consume<'u, P, H, F>(
    inbox: Inbox<P>,
    source: Queue,
    handler: H,
    until: impl Future<Output = anyhow::Result<()>> + 'u,
) -> LocalBoxFuture<'u, anyhow::Result<Result<(), ConsumeError<Error>>>>
where
    P: FailurePolicy<&'static str> + Send + Sync + 'static,
    H: Fn(Arc<QueueMessage>) -> F + Send + Sync + 'static,
    F: Future<Output = Result<(), &'static str>> + Send + 'static,
{
    Box::pin(async move {
        let mut result = Ok(());
        let stop = async { result = until.await };
        let consumer = Consumer::new(inbox, source);
        let ended = within("the consumer to end", consumer.run(stop, handler)).await?;
        result.context("while consuming")?;
        Ok(ended.map(|drained| assert_eq!(drained.left, 0)))
    })
}

/// Consumes until nothing is left: what a consumer had in hand when it stopped, and what it has
/// acknowledged just before. A quorum queue can learn of the end of a channel first.
pub async fn finish(scene: &Scene, engine: &Idempotency) -> anyhow::Result<()> {
    finish_by(scene, || async { Ok(inbox(engine)) }).await
}

pub async fn finish_by<F>(scene: &Scene, inbox: impl Fn() -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<Inbox>>,
{
    let finished = within("the queue to be empty", async {
        while scene.left().await?.0 > 0 {
            let until = scene.is_ready(&scene.queue, 0);
            consume(inbox().await?, scene.source().await?, scene.handler(), until).await??;
        }
        anyhow::Ok(())
    });
    finished.await?
}

/// The ids `first-0`, `first-1`, and so on.
pub fn ids(first: &str, count: usize) -> impl Iterator<Item = String> + Clone + use<> {
    let first = first.to_owned();
    (0..count).map(move |number| format!("{first}-{number}"))
}
