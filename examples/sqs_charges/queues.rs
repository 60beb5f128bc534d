//! The world around the story: the queues of a run, and the processes that consume them.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use idempotency::inbox::KEY_HEADER;
use idempotency_sqs::aws_sdk_sqs::Client;
use idempotency_sqs::aws_sdk_sqs::config::{BehaviorVersion, Config, Credentials, Region};
use idempotency_sqs::aws_sdk_sqs::types::{Message, MessageAttributeValue, QueueAttributeName};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::payments::Event;

/// A client for an emulator. One for Amazon is `Client::new(&aws_config::load_from_env().await)`.
pub(crate) fn client(url: &str) -> Client {
    let config = Config::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new("test", "test", None, None, "an emulator"))
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .endpoint_url(url);
    Client::from_conf(config.build())
}

/// The URL of the queue for the dead letters of this one.
pub(crate) fn dead(queue_url: &str) -> String {
    format!("{queue_url}-dead")
}

/// The queue of this run and its dead letters.
pub(crate) struct Queues {
    client: Client,
    url: String,
}

impl Queues {
    pub(crate) async fn create(url: &str, name: &str) -> anyhow::Result<Self> {
        let client = client(url);
        let mut urls = Vec::new();
        for name in [name.to_owned(), dead(name)] {
            let queue = client.create_queue().queue_name(name);
            // Short, so that what the dead worker had in hand soon comes back. The default of 30 s
            // fits a real service.
            let queue = queue.attributes(QueueAttributeName::VisibilityTimeout, "3").send();
            let queue = queue.await.context("cannot create a queue")?;
            urls.push(queue.queue_url.context("a queue has a URL")?);
        }
        Ok(Self { client, url: urls.swap_remove(0) })
    }

    pub(crate) async fn delete(&self) -> anyhow::Result<()> {
        for url in [self.url.clone(), dead(&self.url)] {
            self.client.delete_queue().queue_url(url).send().await?;
        }
        Ok(())
    }

    /// Sends events under the key of their payments: a repeat is the same message.
    pub(crate) async fn publish(&self, events: &[Event]) -> anyhow::Result<()> {
        for event in events {
            let key = MessageAttributeValue::builder().data_type("String");
            let message = self
                .client
                .send_message()
                .queue_url(&self.url)
                .message_body(serde_json::to_string(&event.payment)?)
                .message_attributes(KEY_HEADER, key.string_value(&event.payment.id).build()?);
            message.send().await?;
        }
        Ok(())
    }

    pub(crate) async fn dead_letter(&self) -> anyhow::Result<Option<Message>> {
        let url = dead(&self.url);
        let received = self.client.receive_message().queue_url(url).message_attribute_names("All");
        let received = received.send().await?.messages.unwrap_or_default();
        Ok(received.into_iter().next())
    }

    /// Moves a dead letter back, with its attributes: to the inbox it is the same message.
    pub(crate) async fn redrive(&self, letter: &Message) -> anyhow::Result<()> {
        let message = self
            .client
            .send_message()
            .queue_url(&self.url)
            .message_body(letter.body().context("a body")?)
            .set_message_attributes(letter.message_attributes.clone());
        message.send().await?;
        Ok(())
    }

    pub(crate) async fn delete_dead(&self, letter: &Message) -> anyhow::Result<()> {
        let delete = self.client.delete_message().queue_url(dead(&self.url));
        delete.set_receipt_handle(letter.receipt_handle.clone()).send().await?;
        Ok(())
    }

    /// Returns true if no message waits for a consumer or is in the hand of one. At Amazon these
    /// counts are approximate.
    async fn is_empty(&self) -> anyhow::Result<bool> {
        let counts = self.client.get_queue_attributes().queue_url(&self.url);
        let counts = counts.attribute_names(QueueAttributeName::All).send().await?;
        let counts = counts.attributes.unwrap_or_default();
        let is_zero = |name| counts.get(&name).is_none_or(|count| count == "0");
        Ok(is_zero(QueueAttributeName::ApproximateNumberOfMessages)
            && is_zero(QueueAttributeName::ApproximateNumberOfMessagesNotVisible))
    }
}

/// A worker: this program again, with arguments.
pub(crate) struct Worker {
    child: Child,
}

impl Worker {
    pub(crate) fn start(url: &str, queues: &Queues, directory: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["worker", url, &queues.url]).arg(directory);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let child = command.spawn().context("cannot start a worker")?;
        Ok(Self { child })
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

    /// Lets it work until the queue is empty, and ends it.
    pub(crate) async fn finish(mut self, queues: &Queues) -> anyhow::Result<()> {
        // By itself it ends only for an error.
        while self.child.try_wait()?.is_none() && !queues.is_empty().await? {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        drop(self.child.stdin.take());
        let output = self.child.wait_with_output().await?;
        ensure!(output.status.success(), "a worker has failed: {}", output.status);
        Ok(())
    }
}
