//! The broker of all tests, the queues of one test, and what happens to its messages.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use anyhow::ensure;
use idempotency::Idempotency;
use idempotency_rabbitmq::lapin::message::Delivery;
use idempotency_rabbitmq::lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
    QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use idempotency_rabbitmq::lapin::types::{AMQPValue, FieldTable};
use idempotency_rabbitmq::lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind,
};
use idempotency_rabbitmq::{Queue, QueueMessage, RabbitMq};
use idempotency_test_support::consuming::{self, Address, Broker};
pub use idempotency_test_support::consuming::{consume, engine, ids, inbox};
use idempotency_test_support::deadline::within;
use idempotency_test_support::effects::EffectLog;
use idempotency_test_support::server::{RabbitMqOptions, RabbitMqServer};
use tempfile::TempDir;

use crate::wire::{Amqp, Wire};

/// The broker of all tests. It ends with this process.
pub async fn broker() -> anyhow::Result<&'static RabbitMqServer> {
    static BROKER: OnceLock<RabbitMqServer> = OnceLock::new();
    consuming::shared(&BROKER, || RabbitMqServer::start(RabbitMqOptions::new())).await
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
        self.effects.have_happened(ids).await
    }

    /// Each of `ids` has one effect, and nothing else has any.
    pub fn assert_once(&self, ids: impl IntoIterator<Item = String>) -> anyhow::Result<()> {
        self.effects.assert_once(ids)
    }

    /// The handler of most tests: its effect is a line with the payload.
    pub fn handler(
        &self,
    ) -> impl Fn(Arc<QueueMessage>) -> std::future::Ready<Result<(), &'static str>> + Send + Sync + use<>
    {
        consuming::handler(self)
    }

    /// The exchange of what is announced.
    fn events(&self) -> String {
        format!("{}.events", self.queue)
    }

    fn queue_of(&self, subscriber: &str) -> String {
        format!("{}.{subscriber}", self.queue)
    }
}

pub fn append(effects: &EffectLog, message: &QueueMessage) {
    consuming::append_payload(effects, message.payload());
}

/// Consumes until nothing is left. A quorum queue can learn of the end of a channel first, and of
/// what was acknowledged just before it later.
pub async fn finish(scene: &Scene, engine: &Idempotency) -> anyhow::Result<()> {
    consuming::finish(scene, &inbox(engine)).await
}

impl Broker for Scene {
    type Source = Queue;
    type Letter = Delivery;
    type Protocol = Amqp;

    const KINDS: usize = 2;

    const IS_IMPATIENT: bool = false;

    async fn create(number: usize) -> anyhow::Result<Self> {
        let kind = if number.is_multiple_of(Self::KINDS) { Kind::Quorum } else { Kind::Classic };
        Self::new(kind).await
    }

    fn address(&self) -> Address {
        let (messages, dead) = (self.queue.clone(), self.dead.clone());
        Address { url: self.url.clone(), messages, dead }
    }

    async fn connect(address: &Address) -> anyhow::Result<Queue> {
        let connection = Connection::connect(&address.url, ConnectionProperties::default()).await?;
        let source = RabbitMq::new(&Arc::new(connection), &*address.messages);
        Ok(source.dead_letters(&*address.dead).connect().await?)
    }

    async fn source(&self) -> anyhow::Result<Queue> {
        self.source().await
    }

    async fn wire(&self) -> anyhow::Result<Wire> {
        Wire::to(broker().await?.address()).await
    }

    fn payload(message: &QueueMessage) -> &[u8] {
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

    async fn publish_repeatedly(&self, id: &str, times: usize) -> anyhow::Result<()> {
        self.publish_all((0..times).map(|_| id.to_owned())).await
    }

    async fn are_in_hand(&self, _: usize) -> anyhow::Result<()> {
        ensure!(self.ready(&self.queue).await? == 0, "a message is in no hand");
        Ok(())
    }

    async fn notices_a_death(&self) -> anyhow::Result<()> {
        self.are_back(1).await
    }

    async fn are_back(&self, count: usize) -> anyhow::Result<()> {
        self.is_ready(&self.queue, u32::try_from(count)?).await
    }

    async fn is_empty(&self) -> anyhow::Result<()> {
        self.is_ready(&self.queue, 0).await
    }

    async fn left(&self) -> anyhow::Result<(usize, usize)> {
        let (ready, dead) = self.left().await?;
        Ok((usize::try_from(ready)?, usize::try_from(dead)?))
    }

    async fn dead_letters(&self) -> anyhow::Result<usize> {
        Ok(usize::try_from(self.ready(&self.dead).await?)?)
    }

    async fn dead_letter(&self) -> anyhow::Result<Delivery> {
        self.dead_letter().await
    }

    fn reason(letter: &Delivery) -> Option<String> {
        match letter.properties.headers().as_ref()?.inner().get("idempotency-reason")? {
            AMQPValue::LongString(reason) => Some(reason.to_string()),
            _ => None,
        }
    }

    fn id(letter: &Delivery) -> Option<String> {
        letter.properties.message_id().as_ref().map(ToString::to_string)
    }

    fn body(letter: &Delivery) -> Vec<u8> {
        letter.data.clone()
    }

    async fn redrive(&self, letter: &Delivery) -> anyhow::Result<()> {
        self.redrive(letter).await
    }

    /// With a queue that is bound to an exchange.
    async fn subscribe(&self, name: &str) -> anyhow::Result<()> {
        let (exchange, queue) = (self.events(), self.queue_of(name));
        let (options, table) = (ExchangeDeclareOptions::default(), FieldTable::default);
        let kind = ExchangeKind::Fanout;
        self.channel.exchange_declare((&*exchange).into(), kind, options, table()).await?;
        self.declare(&queue, Kind::Quorum).await?;
        let options = QueueBindOptions::default();
        self.channel
            .queue_bind((&*queue).into(), (&*exchange).into(), "".into(), options, table())
            .await?;
        Ok(())
    }

    async fn announce(&self, id: &str) -> anyhow::Result<()> {
        let properties = BasicProperties::default().with_message_id(id.into());
        let (exchange, options) = (self.events(), BasicPublishOptions::default());
        let (exchange, key) = ((&*exchange).into(), "".into());
        let published =
            self.channel.basic_publish(exchange, key, options, id.as_bytes(), properties).await?;
        published.await?;
        Ok(())
    }

    async fn subscriber(&self, name: &str) -> anyhow::Result<Queue> {
        Ok(RabbitMq::new(&self.connection().await?, self.queue_of(name)).connect().await?)
    }

    async fn has_read_all(&self, name: &str) -> anyhow::Result<()> {
        self.is_ready(&self.queue_of(name), 0).await
    }
}
