//! The server of all tests, the queues of one test, and what happens to their messages.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use idempotency_sqs::aws_sdk_sqs::config::{BehaviorVersion, Credentials, Region};
use idempotency_sqs::aws_sdk_sqs::operation::send_message::builders::SendMessageFluentBuilder;
use idempotency_sqs::aws_sdk_sqs::types::{
    Message, MessageAttributeValue, MessageSystemAttributeName, QueueAttributeName as Attribute,
};
use idempotency_sqs::aws_sdk_sqs::{self, Client};
use idempotency_sqs::{Sqs, SqsMessage, SqsQueue};
use idempotency_test_support::consuming::{self, Address, Broker};
pub use idempotency_test_support::consuming::{consume, engine, ids, inbox};
use idempotency_test_support::deadline::{eventually_async, within};
use idempotency_test_support::effects::EffectLog;
use idempotency_test_support::server::{MiniStackOptions, MiniStackServer};
use tempfile::TempDir;

use crate::wire::{Http, Wire};

/// The attribute of a dead letter.
pub const STORY: &str = "idempotency-dead-letter";

/// The server of all tests. It ends with this process.
pub async fn server() -> anyhow::Result<&'static MiniStackServer> {
    static SERVER: OnceLock<MiniStackServer> = OnceLock::new();
    consuming::shared(&SERVER, || MiniStackServer::start(MiniStackOptions::new())).await
}

const REGION: &str = "us-east-1";

/// A client for the server at this URL.
pub fn client(url: &str) -> Client {
    let config = aws_sdk_sqs::Config::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .region(Region::new(REGION))
        .credentials_provider(Credentials::new("test", "test", None, None, "test"))
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .endpoint_url(url);
    Client::from_conf(config.build())
}

fn sns(url: &str) -> aws_sdk_sns::Client {
    let config = aws_sdk_sns::Config::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .region(Region::new(REGION))
        .credentials_provider(Credentials::new("test", "test", None, None, "test"))
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .endpoint_url(url);
    aws_sdk_sns::Client::from_conf(config.build())
}

/// How a queue keeps its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Standard,
    Fifo,
}

/// A queue with its dead letters, and effects that are counted in a file.
pub struct Scene {
    pub kind: Kind,
    /// The name of the queue.
    pub queue: String,
    /// The name of the queue for dead letters.
    pub dead: String,
    pub effects: Arc<EffectLog>,
    url: String,
    pub client: Client,
    _directory: TempDir,
}

impl Scene {
    pub async fn new(kind: Kind) -> anyhow::Result<Self> {
        Self::with(kind, &[]).await
    }

    pub async fn with(kind: Kind, attributes: &[(Attribute, &str)]) -> anyhow::Result<Self> {
        Self::at(&server().await?.url(), kind, attributes).await
    }

    pub async fn at(
        url: &str,
        kind: Kind,
        attributes: &[(Attribute, &str)],
    ) -> anyhow::Result<Self> {
        let suffix = if kind == Kind::Fifo { ".fifo" } else { "" };
        let queue = format!("orders-{}", uuid::Uuid::new_v4());
        let (dead, queue) = (format!("{queue}-dead{suffix}"), format!("{queue}{suffix}"));
        let directory = tempfile::tempdir()?;
        let effects = Arc::new(EffectLog::open(directory.path().join("effects"))?);
        let (client, url) = (client(url), url.to_owned());
        let scene = Self { kind, queue, dead, effects, url, client, _directory: directory };
        scene.create(&scene.queue, attributes).await?;
        scene.create(&scene.dead, &[]).await?;
        Ok(scene)
    }

    /// Creates a queue, which delivers again after 3 seconds unless the attributes say otherwise.
    pub async fn create(&self, name: &str, attributes: &[(Attribute, &str)]) -> anyhow::Result<()> {
        let mut all = HashMap::from([(Attribute::VisibilityTimeout, "3".to_owned())]);
        if self.kind == Kind::Fifo {
            all.insert(Attribute::FifoQueue, "true".to_owned());
        }
        all.extend(attributes.iter().map(|(name, value)| (name.clone(), (*value).to_owned())));
        self.client.create_queue().queue_name(name).set_attributes(Some(all)).send().await?;
        Ok(())
    }

    pub async fn delete(&self, name: &str) -> anyhow::Result<()> {
        self.client.delete_queue().queue_url(self.url_of(name)).send().await?;
        Ok(())
    }

    pub fn url_of(&self, name: &str) -> String {
        url_of(&self.url, name)
    }

    /// Lets the queue move what it has delivered so often to the dead letters.
    pub async fn set_redrive_policy(&self, max_receive_count: u32) -> anyhow::Result<()> {
        let policy = serde_json::json!({
            "deadLetterTargetArn": arn_of(&self.dead),
            "maxReceiveCount": max_receive_count,
        });
        let set = self.client.set_queue_attributes().queue_url(self.url_of(&self.queue));
        set.attributes(Attribute::RedrivePolicy, policy.to_string()).send().await?;
        Ok(())
    }

    /// A message for the queue. In a FIFO queue it is the only one of its group.
    pub fn message(&self, payload: &str) -> SendMessageFluentBuilder {
        let message = self.client.send_message().queue_url(self.url_of(&self.queue));
        let message = message.message_body(payload);
        match self.kind {
            Kind::Standard => message,
            Kind::Fifo => message
                .message_group_id(uuid::Uuid::new_v4())
                .message_deduplication_id(uuid::Uuid::new_v4()),
        }
    }

    /// Sends a message with this key, and waits until the server has it.
    pub async fn publish(&self, key: &str, payload: &str) -> anyhow::Result<()> {
        let message = self.message(payload);
        message.message_attributes("idempotency-key", text(key)).send().await?;
        Ok(())
    }

    /// Sends what the payload of each says, under that key.
    pub async fn publish_all(&self, ids: impl IntoIterator<Item = String>) -> anyhow::Result<()> {
        let sent = ids.into_iter().map(|id| async move { self.publish(&id, &id).await });
        stream::iter(sent).buffered(16).try_collect().await
    }

    /// How many messages of a queue are visible, and how many are in a consumer's hand.
    pub async fn count(&self, name: &str) -> anyhow::Result<(usize, usize)> {
        let counts = self
            .client
            .get_queue_attributes()
            .queue_url(self.url_of(name))
            .attribute_names(Attribute::All);
        let counts = counts.send().await?.attributes.context("attributes")?;
        let count = |name| anyhow::Ok(counts.get(&name).context("a count")?.parse()?);
        Ok((
            count(Attribute::ApproximateNumberOfMessages)?,
            count(Attribute::ApproximateNumberOfMessagesNotVisible)?,
        ))
    }

    /// What the queue has: visible, and in hand.
    pub async fn pending(&self) -> anyhow::Result<(usize, usize)> {
        self.count(&self.queue).await
    }

    /// What is left: in the queue, and of dead letters.
    pub async fn left(&self) -> anyhow::Result<(usize, usize)> {
        let (visible, in_hand) = self.pending().await?;
        Ok((visible + in_hand, self.dead_letters().await?))
    }

    pub async fn dead_letters(&self) -> anyhow::Result<usize> {
        let (visible, in_hand) = self.count(&self.dead).await?;
        Ok(visible + in_hand)
    }

    /// Waits until all messages are deleted.
    pub async fn is_empty(&self) -> anyhow::Result<()> {
        self.has_none(&self.queue).await
    }

    pub async fn has_none(&self, name: &str) -> anyhow::Result<()> {
        eventually_async(format!("no message to be left in {name}"), async || {
            tokio::time::sleep(Duration::from_millis(20)).await;
            self.count(name).await.is_ok_and(|left| left == (0, 0))
        })
        .await
    }

    /// Takes a message out of a queue.
    pub async fn get(&self, name: &str) -> anyhow::Result<Option<Message>> {
        let url = self.url_of(name);
        let received = self
            .client
            .receive_message()
            .queue_url(&url)
            .message_system_attribute_names(MessageSystemAttributeName::All)
            .message_attribute_names("All");
        let received = received.send().await?.messages.unwrap_or_default();
        let Some(message) = received.into_iter().next() else { return Ok(None) };
        let delete = self.client.delete_message().queue_url(url);
        delete.set_receipt_handle(message.receipt_handle.clone()).send().await?;
        Ok(Some(message))
    }

    /// Waits for a dead letter, and takes it.
    pub async fn dead_letter(&self) -> anyhow::Result<Message> {
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
    pub async fn redrive(&self, letter: &Message) -> anyhow::Result<()> {
        self.redrive_to(&self.queue, letter).await
    }

    pub async fn redrive_to(&self, queue: &str, letter: &Message) -> anyhow::Result<()> {
        let mut message = self
            .client
            .send_message()
            .queue_url(self.url_of(queue))
            .message_body(letter.body().context("a body")?)
            .set_message_attributes(letter.message_attributes.clone());
        if self.kind == Kind::Fifo {
            let group = system(letter, &MessageSystemAttributeName::MessageGroupId);
            message =
                message.set_message_group_id(group).message_deduplication_id(uuid::Uuid::new_v4());
        }
        message.send().await?;
        Ok(())
    }

    /// A consumer with a client of its own.
    pub fn options(&self) -> Sqs {
        self.options_by(&self.url)
    }

    pub fn options_by(&self, url: &str) -> Sqs {
        Sqs::new(client(url), self.url_of(&self.queue))
    }

    pub async fn source(&self) -> anyhow::Result<SqsQueue> {
        self.source_by(&self.url).await
    }

    pub async fn source_by(&self, url: &str) -> anyhow::Result<SqsQueue> {
        let options = self.options_by(url).dead_letters(self.url_of(&self.dead));
        Ok(options.connect().await?)
    }

    /// Each of `ids` has one effect, and nothing else has any.
    pub fn assert_once(&self, ids: impl IntoIterator<Item = String>) -> anyhow::Result<()> {
        self.effects.assert_once(ids)
    }

    /// The handler of most tests: its effect is a line with the payload.
    pub fn handler(
        &self,
    ) -> impl Fn(Arc<SqsMessage>) -> std::future::Ready<Result<(), &'static str>> + Send + Sync + use<>
    {
        consuming::handler(self)
    }

    fn topic_arn(&self) -> String {
        format!("arn:aws:sns:{REGION}:000000000000:{}", self.topic())
    }

    fn topic(&self) -> String {
        self.queue.replace('.', "-")
    }

    pub fn queue_of(&self, subscriber: &str) -> String {
        format!("{subscriber}-{}", self.queue)
    }

    /// Subscribes a queue of this name to the topic of the scene. Without `raw`, each message is in
    /// an envelope.
    pub async fn subscribe_with(&self, name: &str, raw: bool) -> anyhow::Result<()> {
        let (sns, queue) = (sns(&self.url), self.queue_of(name));
        self.create(&queue, &[]).await?;
        sns.create_topic().name(self.topic()).send().await?;
        sns.subscribe()
            .topic_arn(self.topic_arn())
            .protocol("sqs")
            .endpoint(arn_of(&queue))
            .attributes("RawMessageDelivery", raw.to_string())
            .send()
            .await?;
        Ok(())
    }

    /// Publishes a message to the topic of the scene, with this key if there is one.
    pub async fn announce_with(&self, key: Option<&str>, payload: &str) -> anyhow::Result<()> {
        let mut message = sns(&self.url).publish().topic_arn(self.topic_arn()).message(payload);
        if let Some(key) = key {
            let value = aws_sdk_sns::types::MessageAttributeValue::builder();
            let value = value.data_type("String").string_value(key).build()?;
            message = message.message_attributes("idempotency-key", value);
        }
        message.send().await?;
        Ok(())
    }
}

fn arn_of(name: &str) -> String {
    format!("arn:aws:sqs:{REGION}:000000000000:{name}")
}

fn url_of(server: &str, name: &str) -> String {
    format!("{server}/000000000000/{name}")
}

pub fn append(effects: &EffectLog, message: &SqsMessage) {
    consuming::append_payload(effects, message.payload());
}

/// The value of an attribute.
pub fn text(value: &str) -> MessageAttributeValue {
    let text = MessageAttributeValue::builder().data_type("String").string_value(value);
    text.build().expect("it has a type")
}

pub fn system(message: &Message, name: &MessageSystemAttributeName) -> Option<String> {
    message.attributes.as_ref()?.get(name).cloned()
}

/// What a dead letter says.
pub fn story(letter: &Message) -> Option<serde_json::Value> {
    let text = letter.message_attributes.as_ref()?.get(STORY)?.string_value()?;
    serde_json::from_str(text).ok()
}

/// A part of what a dead letter says, if that is text.
pub fn said(letter: &Message, name: &str) -> Option<String> {
    Some(story(letter)?.get(name)?.as_str()?.to_owned())
}

impl Broker for Scene {
    type Source = SqsQueue;
    type Letter = Message;
    type Protocol = Http;

    const KINDS: usize = 2;
    const IS_IMPATIENT: bool = true;

    async fn create(number: usize) -> anyhow::Result<Self> {
        let kind = if number.is_multiple_of(Self::KINDS) { Kind::Standard } else { Kind::Fifo };
        Self::new(kind).await
    }

    async fn patient() -> anyhow::Result<Self> {
        Self::with(Kind::Standard, &[(Attribute::VisibilityTimeout, "300")]).await
    }

    fn address(&self) -> Address {
        let (messages, dead) = (self.queue.clone(), self.dead.clone());
        Address { url: self.url.clone(), messages, dead }
    }

    async fn connect(address: &Address) -> anyhow::Result<SqsQueue> {
        let Address { url, messages, dead } = address;
        let queue = Sqs::new(client(url), url_of(url, messages)).dead_letters(url_of(url, dead));
        Ok(queue.connect().await?)
    }

    async fn source(&self) -> anyhow::Result<SqsQueue> {
        self.source().await
    }

    async fn wire(&self) -> anyhow::Result<Wire> {
        Wire::to(server().await?.address()).await
    }

    fn payload(message: &SqsMessage) -> &[u8] {
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

    async fn are_in_hand(&self, count: usize) -> anyhow::Result<()> {
        let pending = self.pending().await?;
        ensure!(pending == (0, count), "{pending:?}: a message is in no hand");
        Ok(())
    }

    async fn are_back(&self, count: usize) -> anyhow::Result<()> {
        eventually_async(format!("{count} messages to be visible"), async || {
            self.pending().await.is_ok_and(|(visible, _)| visible == count)
        })
        .await
    }

    async fn is_empty(&self) -> anyhow::Result<()> {
        self.is_empty().await
    }

    async fn left(&self) -> anyhow::Result<(usize, usize)> {
        self.left().await
    }

    async fn dead_letters(&self) -> anyhow::Result<usize> {
        self.dead_letters().await
    }

    async fn dead_letter(&self) -> anyhow::Result<Message> {
        self.dead_letter().await
    }

    fn reason(letter: &Message) -> Option<String> {
        said(letter, "reason")
    }

    fn id(letter: &Message) -> Option<String> {
        said(letter, "message_id")
    }

    fn body(letter: &Message) -> Vec<u8> {
        letter.body().unwrap_or_default().as_bytes().to_vec()
    }

    async fn redrive(&self, letter: &Message) -> anyhow::Result<()> {
        self.redrive(letter).await
    }

    /// One with envelopes, and the other one without.
    async fn subscribe(&self, name: &str) -> anyhow::Result<()> {
        self.subscribe_with(name, name == "shipping").await
    }

    async fn announce(&self, id: &str) -> anyhow::Result<()> {
        self.announce_with(Some(id), id).await
    }

    async fn subscriber(&self, name: &str) -> anyhow::Result<SqsQueue> {
        let queue = Sqs::new(client(&self.url), self.url_of(&self.queue_of(name)));
        Ok(queue.connect().await?)
    }

    async fn has_read_all(&self, name: &str) -> anyhow::Result<()> {
        self.has_none(&self.queue_of(name)).await
    }
}
