//! The broker of a test: one of librdkafka's own that speaks the protocol on a real port and fails
//! on request, or the one that the environment names.

use std::sync::mpsc;

use anyhow::{Context as _, ensure};
use idempotency_kafka::rdkafka::ClientConfig;
use idempotency_kafka::rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use idempotency_kafka::rdkafka::client::DefaultClientContext;
use idempotency_kafka::rdkafka::error::KafkaResult;
use idempotency_kafka::rdkafka::mocking::MockCluster;
use idempotency_kafka::rdkafka::producer::DefaultProducerContext;

/// The variable that names a broker for the tests that need no faults of it.
pub const URL_VARIABLE: &str = "IDEMPOTENCY_KAFKA_URL";

type Mock = MockCluster<'static, DefaultProducerContext>;
type Command = Box<dyn FnOnce(&Mock) + Send>;

pub enum Cluster {
    /// It lives on a thread of its own, and ends with this value.
    Mock {
        url: String,
        commands: mpsc::Sender<Command>,
    },
    Given(String),
}

impl Cluster {
    /// The one that the environment names, or a new one.
    pub fn any() -> anyhow::Result<Self> {
        match std::env::var(URL_VARIABLE) {
            Ok(url) if !url.is_empty() => Ok(Self::Given(url)),
            _ => Self::mock(1),
        }
    }

    pub fn mock(brokers: i32) -> anyhow::Result<Self> {
        let (commands, received) = mpsc::channel::<Command>();
        let (started, has_started) = mpsc::channel();
        std::thread::spawn(move || {
            let Ok(mock) = Mock::new(brokers) else { return };
            let _ = started.send(mock.bootstrap_servers());
            while let Ok(command) = received.recv() {
                command(&mock);
            }
        });
        Ok(Self::Mock { url: has_started.recv()?, commands })
    }

    pub fn url(&self) -> &str {
        match self {
            Self::Mock { url, .. } | Self::Given(url) => url,
        }
    }

    pub fn is_mock(&self) -> bool {
        matches!(self, Self::Mock { .. })
    }

    /// Asks the broker to fail, or whatever else it can do.
    pub fn ask<T: Send + 'static>(
        &self,
        what: impl FnOnce(&Mock) -> T + Send + 'static,
    ) -> anyhow::Result<T> {
        let Self::Mock { commands, .. } = self else { anyhow::bail!("it fails not on request") };
        let (answer, answered) = mpsc::channel();
        commands
            .send(Box::new(move |mock| {
                let _ = answer.send(what(mock));
            }))
            .ok()
            .context("the broker has ended")?;
        Ok(answered.recv()?)
    }

    pub async fn create_topic(&self, topic: &str, partitions: i32) -> anyhow::Result<()> {
        if self.is_mock() {
            let topic = topic.to_owned();
            let created: KafkaResult<()> =
                self.ask(move |mock| mock.create_topic(&topic, partitions, 1))?;
            return Ok(created?);
        }
        let topic = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
        let created = self.admin()?.create_topics([&topic], &AdminOptions::new()).await?;
        ensure!(created.iter().all(Result::is_ok), "{created:?}");
        Ok(())
    }

    fn admin(&self) -> anyhow::Result<AdminClient<DefaultClientContext>> {
        Ok(ClientConfig::new().set("bootstrap.servers", self.url()).create()?)
    }
}
