//! The topics of one test, and what happens to their messages.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use idempotency_kafka::rdkafka::consumer::{BaseConsumer, Consumer as _};
use idempotency_kafka::rdkafka::message::{Header, Headers as _, OwnedHeaders, OwnedMessage};
use idempotency_kafka::rdkafka::producer::{FutureProducer, FutureRecord};
use idempotency_kafka::rdkafka::{ClientConfig, Message as _, Offset, TopicPartitionList};
use idempotency_kafka::{Kafka, TopicMessage, Topics};
use idempotency_test_support::consuming::{self, Address, Broker};
pub use idempotency_test_support::consuming::{DAY, consume, engine, ids, inbox};
use idempotency_test_support::deadline::{DEADLINE, eventually_async, within};
use idempotency_test_support::effects::EffectLog;
use tempfile::TempDir;

use crate::cluster::Cluster;
use crate::wire::{Protocol, Wire};

/// Begins the name of a topic whose lanes are keys. The others have a lane for each partition.
const BY_KEY: &str = "keys";

/// A topic, a topic for its dead letters, and effects that are counted in a file.
pub struct Scene {
    pub topic: String,
    pub dead: String,
    pub effects: Arc<EffectLog>,
    partitions: i32,
    producer: FutureProducer,
    /// Sees what the group has committed, and is no member of it.
    watcher: BaseConsumer,
    /// Reads the dead letters.
    reader: BaseConsumer,
    /// The ends of the partitions.
    ends: Mutex<BTreeMap<i32, i64>>,
    /// Those that were read and not taken.
    read: Mutex<VecDeque<OwnedMessage>>,
    /// How many dead letters were taken.
    taken: Mutex<i64>,
    _directory: TempDir,
    /// The last: clients do not close without it.
    pub cluster: Cluster,
}

/// The settings of a member of the group of this topic.
pub fn settings(url: &str, group: &str) -> ClientConfig {
    // The least that a real broker allows by its defaults. That of the tests takes three seconds for
    // the first member, and forgets one whose session is shorter.
    let session =
        if std::env::var_os(crate::cluster::URL_VARIABLE).is_some() { "6000" } else { "4500" };
    let mut settings = ClientConfig::new();
    settings
        .set("bootstrap.servers", url)
        .set("group.id", group)
        .set("session.timeout.ms", session)
        .set("heartbeat.interval.ms", "200")
        .set("auto.commit.interval.ms", "100")
        .set("reconnect.backoff.max.ms", "500");
    settings
}

fn options(address: &Address, group: &str) -> Kafka {
    let mut settings = settings(&address.url, group);
    if address.messages.starts_with(BY_KEY) {
        // Partitions move one by one, in place of all at once.
        settings.set("partition.assignment.strategy", "cooperative-sticky");
    }
    let options = Kafka::new(settings, [&*address.messages]);
    let options = options.dead_letters(&*address.dead);
    if address.messages.starts_with(BY_KEY) { options.by_key() } else { options }
}

impl Scene {
    pub async fn new() -> anyhow::Result<Self> {
        Self::with("partitions", 4).await
    }

    /// A topic whose lanes are keys.
    pub async fn by_key(partitions: i32) -> anyhow::Result<Self> {
        Self::with(BY_KEY, partitions).await
    }

    pub async fn with(kind: &str, partitions: i32) -> anyhow::Result<Self> {
        Self::at(Cluster::any()?, kind, partitions).await
    }

    pub async fn at(cluster: Cluster, kind: &str, partitions: i32) -> anyhow::Result<Self> {
        let topic = format!("{kind}-{}", uuid::Uuid::new_v4());
        Self::named(cluster, &topic, partitions).await
    }

    pub async fn named(cluster: Cluster, topic: &str, partitions: i32) -> anyhow::Result<Self> {
        let (topic, dead) = (topic.to_owned(), format!("{topic}.dead"));
        cluster.create_topic(&topic, partitions).await?;
        cluster.create_topic(&dead, 1).await?;
        let directory = tempfile::tempdir()?;
        let effects = Arc::new(EffectLog::open(directory.path().join("effects"))?);
        let of = |group: &str| settings(cluster.url(), group);
        let reader: BaseConsumer = of("reader").set("enable.auto.commit", "false").create()?;
        let mut letters = TopicPartitionList::new();
        letters.add_partition_offset(&dead, 0, Offset::Beginning)?;
        reader.assign(&letters)?;
        Ok(Self {
            producer: ClientConfig::new()
                .set("bootstrap.servers", cluster.url())
                .set("message.max.bytes", "10000000")
                .create()?,
            watcher: of(&topic).create()?,
            reader,
            cluster,
            topic,
            dead,
            effects,
            partitions,
            ends: Mutex::default(),
            read: Mutex::default(),
            taken: Mutex::default(),
            _directory: directory,
        })
    }

    /// Publishes a message with these headers, and waits until the broker has it.
    pub async fn publish_with(
        &self,
        partition: i32,
        key: &str,
        headers: &[(&str, &str)],
        payload: &str,
    ) -> anyhow::Result<()> {
        let record =
            FutureRecord::to(&self.topic).partition(partition).headers(self::headers(headers));
        self.send(record.key(key).payload(payload)).await
    }

    pub async fn send(&self, record: FutureRecord<'_, str, str>) -> anyhow::Result<()> {
        let sent = self.producer.send(record, DEADLINE).await.map_err(|(error, _)| error)?;
        self.ends.lock().unwrap().insert(sent.partition, sent.offset + 1);
        Ok(())
    }

    /// A partition that follows from an id.
    fn partition(&self, id: &str) -> i32 {
        id.bytes().fold(0_i32, |sum, byte| (sum * 31 + i32::from(byte)) % self.partitions)
    }

    /// What the group has committed of a partition. `None`: nothing.
    pub fn committed(&self) -> anyhow::Result<BTreeMap<i32, i64>> {
        self.committed_by(&self.watcher)
    }

    fn committed_by(&self, watcher: &BaseConsumer) -> anyhow::Result<BTreeMap<i32, i64>> {
        let mut partitions = TopicPartitionList::new();
        partitions.add_partition_range(&self.topic, 0, self.partitions - 1);
        let committed = watcher.committed_offsets(partitions, DEADLINE)?;
        let elements = committed.elements().into_iter();
        let offsets = elements.filter_map(|element| match element.offset() {
            Offset::Offset(offset) => Some((element.partition(), offset)),
            _ => None,
        });
        Ok(offsets.collect())
    }

    fn left_by(&self, watcher: &BaseConsumer) -> anyhow::Result<usize> {
        let committed = self.committed_by(watcher)?;
        let ends = self.ends.lock().unwrap();
        let left = ends.iter().map(|(partition, end)| {
            let committed = committed.get(partition).copied().unwrap_or_default();
            assert!(committed <= *end, "{committed} is committed of {end}");
            end - committed
        });
        Ok(usize::try_from(left.sum::<i64>())?)
    }

    /// How many messages are not committed.
    pub fn not_committed(&self) -> anyhow::Result<usize> {
        self.left_by(&self.watcher)
    }

    pub async fn is_empty(&self) -> anyhow::Result<()> {
        eventually_async("no message to be left", async || {
            tokio::time::sleep(Duration::from_millis(20)).await;
            self.not_committed().is_ok_and(|left| left == 0)
        })
        .await
    }

    /// Waits until another group has read all.
    pub async fn has_read_all_as(&self, group: &str) -> anyhow::Result<()> {
        let watcher: BaseConsumer = settings(self.cluster.url(), group).create()?;
        eventually_async("the end", async || {
            tokio::time::sleep(Duration::from_millis(20)).await;
            self.left_by(&watcher).is_ok_and(|left| left == 0)
        })
        .await
    }

    /// How many dead letters there are that were not taken.
    pub fn letters(&self) -> anyhow::Result<usize> {
        let mut read = self.read.lock().unwrap();
        if self.cluster.is_mock() {
            let (_, end) = self.reader.fetch_watermarks(&self.dead, 0, DEADLINE)?;
            return Ok(usize::try_from(end - *self.taken.lock().unwrap())?);
        }
        // Not all brokers know their ends at once.
        while let Some(letter) = self.reader.poll(Duration::from_millis(200)) {
            read.push_back(letter?.detach());
        }
        Ok(read.len())
    }

    /// Waits for a dead letter, and takes it.
    pub async fn letter(&self) -> anyhow::Result<OwnedMessage> {
        let letter = within("a dead letter", async {
            loop {
                let read = self.read.lock().unwrap().pop_front();
                if let Some(letter) = read {
                    return Ok(letter);
                }
                if let Some(letter) = self.reader.poll(Duration::ZERO) {
                    return letter.map(|letter| letter.detach());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let letter = letter.await??;
        *self.taken.lock().unwrap() += 1;
        Ok(letter)
    }

    /// Moves a dead letter back, as an operator's tool does: with all that it has.
    pub async fn redrive(&self, letter: &OwnedMessage) -> anyhow::Result<()> {
        let mut record = FutureRecord::to(&self.topic)
            .partition(0)
            .headers(letter.headers().context("headers")?.clone());
        record.key = letter.key().map(str::from_utf8).transpose()?;
        record.payload = letter.payload().map(str::from_utf8).transpose()?;
        self.send(record).await
    }

    pub fn options(&self) -> Kafka {
        options(&self.address(), &self.topic)
    }

    pub async fn source(&self) -> anyhow::Result<Topics> {
        Ok(self.options().connect().await?)
    }

    pub async fn have_happened(&self, ids: impl IntoIterator<Item = String>) -> anyhow::Result<()> {
        self.effects.have_happened(ids).await
    }

    pub fn assert_once(&self, ids: impl IntoIterator<Item = String>) -> anyhow::Result<()> {
        self.effects.assert_once(ids)
    }

    /// The handler of most tests: its effect is a line with the payload.
    pub fn handler(
        &self,
    ) -> impl Fn(Arc<TopicMessage>) -> std::future::Ready<Result<(), &'static str>> + Send + Sync + use<>
    {
        consuming::handler(self)
    }
}

pub fn append(effects: &EffectLog, message: &TopicMessage) {
    consuming::append_payload(effects, message.payload().unwrap_or_default());
}

pub fn headers(headers: &[(&str, &str)]) -> OwnedHeaders {
    let insert = |all: OwnedHeaders, (key, value): &(&str, &str)| {
        all.insert(Header { key, value: Some(*value) })
    };
    headers.iter().fold(OwnedHeaders::new(), insert)
}

/// The last value of a header.
pub fn header<'m>(message: &'m OwnedMessage, name: &str) -> Option<&'m str> {
    let values = message.headers()?.iter().filter(|header| header.key == name);
    str::from_utf8(values.last()?.value?).ok()
}

impl Broker for Scene {
    type Source = Topics;
    type Letter = OwnedMessage;
    type Protocol = Protocol;

    /// Lanes that are partitions and keys that are headers; lanes that are keys and keys that are
    /// positions.
    const KINDS: usize = 2;

    /// That of a process which is past the first message of a partition that runs.
    const UNCOUNTED_DEATHS: usize = 1;

    const IS_IMPATIENT: bool = false;

    async fn create(number: usize) -> anyhow::Result<Self> {
        if number.is_multiple_of(2) { Self::new().await } else { Self::by_key(2).await }
    }

    /// One that has as many lanes as handlers run.
    async fn patient() -> anyhow::Result<Self> {
        Self::with("partitions", 16).await
    }

    fn address(&self) -> Address {
        let (messages, dead) = (self.topic.clone(), self.dead.clone());
        Address { url: self.cluster.url().to_owned(), messages, dead }
    }

    async fn connect(address: &Address) -> anyhow::Result<Topics> {
        Ok(options(address, &address.messages).connect().await?)
    }

    async fn source(&self) -> anyhow::Result<Topics> {
        self.source().await
    }

    async fn wire(&self) -> anyhow::Result<Wire> {
        Wire::to(self.cluster.url().to_owned()).await
    }

    fn payload(message: &TopicMessage) -> &[u8] {
        message.payload().unwrap_or_default()
    }

    fn effects(&self) -> &Arc<EffectLog> {
        &self.effects
    }

    async fn publish(&self, id: &str, payload: &str) -> anyhow::Result<()> {
        let key = [("idempotency-key", id)];
        let headers = if self.topic.starts_with(BY_KEY) { [].as_slice() } else { &key };
        self.publish_with(self.partition(id), id, headers, payload).await
    }

    /// Under one key, to all partitions.
    async fn publish_repeatedly(&self, id: &str, times: usize) -> anyhow::Result<()> {
        for number in 0..times {
            let partition = i32::try_from(number)? % self.partitions;
            self.publish_with(partition, id, &[("idempotency-key", id)], id).await?;
        }
        Ok(())
    }

    /// The broker shows what is committed alone.
    async fn are_in_hand(&self, count: usize) -> anyhow::Result<()> {
        let left = self.not_committed()?;
        ensure!(left == count, "{left} are not committed, of {count} that are in hand");
        Ok(())
    }

    async fn are_back(&self, _: usize) -> anyhow::Result<()> {
        Ok(())
    }

    async fn is_empty(&self) -> anyhow::Result<()> {
        self.is_empty().await
    }

    async fn left(&self) -> anyhow::Result<(usize, usize)> {
        Ok((self.not_committed()?, self.letters()?))
    }

    async fn dead_letters(&self) -> anyhow::Result<usize> {
        self.letters()
    }

    async fn dead_letter(&self) -> anyhow::Result<OwnedMessage> {
        self.letter().await
    }

    fn reason(letter: &OwnedMessage) -> Option<String> {
        header(letter, "idempotency-reason").map(str::to_owned)
    }

    fn id(letter: &OwnedMessage) -> Option<String> {
        header(letter, "idempotency-record").map(str::to_owned)
    }

    fn body(letter: &OwnedMessage) -> Vec<u8> {
        letter.payload().unwrap_or_default().to_vec()
    }

    async fn redrive(&self, letter: &OwnedMessage) -> anyhow::Result<()> {
        self.redrive(letter).await
    }

    async fn subscribe(&self, _: &str) -> anyhow::Result<()> {
        Ok(())
    }

    async fn announce(&self, id: &str) -> anyhow::Result<()> {
        self.publish_with(self.partition(id), id, &[("idempotency-key", id)], id).await
    }

    async fn subscriber(&self, name: &str) -> anyhow::Result<Topics> {
        let group = format!("{name} of {}", self.topic);
        Ok(options(&self.address(), &group).connect().await?)
    }

    async fn has_read_all(&self, name: &str) -> anyhow::Result<()> {
        self.has_read_all_as(&format!("{name} of {}", self.topic)).await
    }
}
