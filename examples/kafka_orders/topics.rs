//! The world around the story: the topics of a run, and the processes that consume them.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use idempotency::inbox::KEY_HEADER;
use idempotency_kafka::rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use idempotency_kafka::rdkafka::client::DefaultClientContext;
use idempotency_kafka::rdkafka::consumer::{BaseConsumer, Consumer as _};
use idempotency_kafka::rdkafka::message::{Header, Headers as _, OwnedHeaders, OwnedMessage};
use idempotency_kafka::rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use idempotency_kafka::rdkafka::{ClientConfig, Message as _, Offset, TopicPartitionList};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::payments::Event;

/// The time for an answer of the brokers.
const PATIENCE: Duration = Duration::from_secs(30);

/// The settings of the members of the group, which has the name of the topic.
pub(crate) fn settings(brokers: &str, topic: &str) -> ClientConfig {
    let mut settings = ClientConfig::new();
    settings.set("bootstrap.servers", brokers).set("group.id", topic);
    // The partitions of the dead worker are soon another's. The default of 45 s fits a real service.
    settings.set("session.timeout.ms", "6000").set("auto.commit.interval.ms", "500");
    settings
}

/// Not all brokers answer those who are not allowed to ask.
fn admin_options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(Duration::from_secs(5)))
}

/// The topic of this run and its dead letters.
pub(crate) struct Topics {
    name: String,
    admin: AdminClient<DefaultClientContext>,
    producer: FutureProducer,
    /// Sees what the group has committed.
    group: BaseConsumer,
    /// Reads the dead letters.
    reader: BaseConsumer,
}

impl Topics {
    pub(crate) async fn create(brokers: &str, name: String) -> anyhow::Result<Self> {
        let producer: FutureProducer =
            ClientConfig::new().set("bootstrap.servers", brokers).create()?;
        let admin = ClientConfig::new().set("bootstrap.servers", brokers).create()?;
        let group = settings(brokers, &name).create()?;
        let reader: BaseConsumer = settings(brokers, &format!("{name}.reader"))
            .set("enable.auto.commit", "false")
            .create()?;
        let topics = Self { name, admin, producer, group, reader };
        let names = [topics.name.clone(), topics.dead()];
        let new = names.each_ref().map(|name| NewTopic::new(name, 4, TopicReplication::Fixed(-1)));
        let created = topics.admin.create_topics(&new, &admin_options()).await;
        let is_created = created.is_ok_and(|created| created.iter().all(Result::is_ok));
        let mut letters = TopicPartitionList::new();
        for name in &names {
            // Where clients may not create topics, the broker may do it for a producer that asks.
            let metadata = topics.producer.client().fetch_metadata(Some(name), PATIENCE);
            let partitions = metadata.context("no broker answers")?.topics()[0].partitions().len();
            ensure!(partitions > 0, "{name} is not created: {is_created}");
            if *name == topics.dead() {
                for partition in 0..i32::try_from(partitions)? {
                    letters.add_partition_offset(name, partition, Offset::Beginning)?;
                }
            }
        }
        topics.reader.assign(&letters)?;
        Ok(topics)
    }

    pub(crate) async fn delete(&self) {
        let dead = self.dead();
        let _ = self.admin.delete_topics(&[&self.name, &dead], &admin_options()).await;
    }

    fn dead(&self) -> String {
        format!("{}.dead", self.name)
    }

    /// Publishes events under the key of their payments: a repeat is the same message.
    pub(crate) async fn publish(&self, events: &[Event]) -> anyhow::Result<()> {
        for event in events {
            let key = &event.payment.id;
            let headers = OwnedHeaders::new().insert(Header { key: KEY_HEADER, value: Some(key) });
            let payload = serde_json::to_vec(&event.payment)?;
            let record = FutureRecord::to(&self.name).key(key.as_bytes()).payload(&*payload);
            self.send(record.headers(headers)).await?;
        }
        Ok(())
    }

    async fn send(&self, record: FutureRecord<'_, [u8], [u8]>) -> anyhow::Result<()> {
        let sent = self.producer.send(record, PATIENCE).await;
        sent.map(drop).map_err(|(error, _)| error).context("the brokers have not taken a message")
    }

    /// Returns the next dead letter, if there is one.
    pub(crate) fn dead_letter(&self) -> anyhow::Result<Option<OwnedMessage>> {
        loop {
            if let Some(letter) = self.reader.poll(Duration::from_millis(100)) {
                return Ok(Some(letter?.detach()));
            }
            let mut left = false;
            for element in self.reader.position()?.elements() {
                let (_, end) =
                    self.reader.fetch_watermarks(&self.dead(), element.partition(), PATIENCE)?;
                let at = match element.offset() {
                    Offset::Offset(offset) => offset,
                    _ => 0,
                };
                left |= at < end;
            }
            if !left {
                return Ok(None);
            }
        }
    }

    /// Moves a dead letter back, with its key and its headers: to the inbox it is the same message.
    pub(crate) async fn redrive(&self, letter: &OwnedMessage) -> anyhow::Result<()> {
        let headers = letter.headers().context("a dead letter has headers")?.clone();
        let mut record = FutureRecord::to(&self.name).headers(headers);
        (record.key, record.payload) = (letter.key(), letter.payload());
        self.send(record).await
    }

    /// Returns true if the group has committed all messages.
    fn is_done(&self) -> anyhow::Result<bool> {
        let metadata = self.group.fetch_metadata(Some(&self.name), PATIENCE)?;
        let partitions = i32::try_from(metadata.topics()[0].partitions().len())?;
        let mut all = TopicPartitionList::new();
        all.add_partition_range(&self.name, 0, partitions - 1);
        for element in self.group.committed_offsets(all, PATIENCE)?.elements() {
            let (_, end) =
                self.group.fetch_watermarks(&self.name, element.partition(), PATIENCE)?;
            if end > 0 && element.offset() != Offset::Offset(end) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The last value of a header of a dead letter.
pub(crate) fn header<'l>(letter: &'l OwnedMessage, name: &str) -> anyhow::Result<&'l str> {
    let headers = letter.headers().context("a dead letter has headers")?;
    let value = headers.iter().filter(|header| header.key == name).last();
    let value = value.and_then(|header| header.value).with_context(|| format!("no {name}"))?;
    Ok(str::from_utf8(value)?)
}

/// A worker: this program again, with arguments.
pub(crate) struct Worker {
    child: Child,
    /// The arguments, for the next one.
    brokers: String,
    directory: PathBuf,
}

impl Worker {
    pub(crate) fn start(brokers: &str, topics: &Topics, directory: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["worker", brokers, &topics.name]).arg(directory);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let child = command.spawn().context("cannot start a worker")?;
        Ok(Self { child, brokers: brokers.to_owned(), directory: directory.to_owned() })
    }

    pub(crate) async fn wait_for_lines(&mut self, count: usize) -> anyhow::Result<()> {
        let output = self.child.stdout.as_mut().context("a worker has an output")?;
        let mut lines = BufReader::new(output).lines();
        for _ in 0..count {
            lines.next_line().await?.context("a worker has ended early")?;
        }
        Ok(())
    }

    /// Kills it with SIGKILL: none of its code runs any more.
    pub(crate) async fn kill(mut self) -> anyhow::Result<()> {
        Ok(self.child.kill().await?)
    }

    /// Lets it work until all is committed, and ends it.
    pub(crate) async fn finish(mut self, topics: &Topics) -> anyhow::Result<()> {
        loop {
            // By itself it ends only for an error.
            while self.child.try_wait()?.is_none() && !topics.is_done()? {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            drop(self.child.stdin.take());
            let output = self.child.wait_with_output().await?;
            ensure!(output.status.success(), "a worker has failed: {}", output.status);
            if topics.is_done()? {
                return Ok(());
            }
            self = Self::start(&self.brokers, topics, &self.directory)?;
        }
    }
}
