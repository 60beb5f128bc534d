//! The world around the story: the queues of a run, and the processes that consume them.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use idempotency::inbox::KEY_HEADER;
use idempotency_rabbitmq::lapin::message::Delivery;
use idempotency_rabbitmq::lapin::options::{
    BasicGetOptions, BasicNackOptions, BasicPublishOptions, ConfirmSelectOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use idempotency_rabbitmq::lapin::types::{AMQPValue, FieldTable};
use idempotency_rabbitmq::lapin::{BasicProperties, Channel, Connection};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::payments::Event;

/// The queue of this run and its dead letters.
pub(crate) struct Queues {
    name: String,
    channel: Channel,
}

impl Queues {
    pub(crate) async fn declare(connection: &Connection, name: String) -> anyhow::Result<Self> {
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let queues = Self { name, channel };
        for queue in [queues.name.clone(), queues.dead()] {
            let mut arguments = FieldTable::default();
            arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
            let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
            queues.channel.queue_declare(queue.into(), options, arguments).await?;
        }
        Ok(queues)
    }

    pub(crate) async fn delete(&self) -> anyhow::Result<()> {
        for queue in [self.name.clone(), self.dead()] {
            self.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
        }
        Ok(())
    }

    fn dead(&self) -> String {
        format!("{}.dead", self.name)
    }

    /// Publishes events under the key of their payments: a repeat is the same message.
    pub(crate) async fn publish(&self, events: &[Event]) -> anyhow::Result<()> {
        for event in events {
            let mut headers = FieldTable::default();
            headers.insert(KEY_HEADER.into(), AMQPValue::LongString((&*event.payment.id).into()));
            let properties = BasicProperties::default().with_headers(headers);
            self.send(&serde_json::to_vec(&event.payment)?, properties).await?;
        }
        Ok(())
    }

    async fn send(&self, payload: &[u8], properties: BasicProperties) -> anyhow::Result<()> {
        let (queue, options) = (self.name.clone().into(), BasicPublishOptions::default());
        let properties = properties.with_delivery_mode(2);
        let sent = self.channel.basic_publish("".into(), queue, options, payload, properties);
        ensure!(sent.await?.await?.is_ack(), "the broker has not taken a message");
        Ok(())
    }

    pub(crate) async fn dead_letter(&self) -> anyhow::Result<Option<Delivery>> {
        let letter = self.channel.basic_get(self.dead().into(), BasicGetOptions::default());
        Ok(letter.await?.map(|message| message.delivery))
    }

    /// Moves a dead letter back, with its properties: to the inbox it is the same message.
    pub(crate) async fn redrive(&self, letter: &Delivery) -> anyhow::Result<()> {
        self.send(&letter.data, letter.properties.clone()).await
    }

    /// Returns true if no message waits for a consumer.
    async fn is_empty(&self) -> anyhow::Result<bool> {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue = self.name.clone().into();
        let queue = self.channel.queue_declare(queue, options, FieldTable::default()).await?;
        Ok(queue.message_count() == 0)
    }

    /// Returns true if no message is left, also none that a consumer had in hand when it ended.
    async fn is_done(&self) -> anyhow::Result<bool> {
        let left = self.channel.basic_get(self.name.clone().into(), BasicGetOptions::default());
        let Some(left) = left.await? else { return Ok(true) };
        left.nack(BasicNackOptions { requeue: true, ..BasicNackOptions::default() }).await?;
        Ok(false)
    }
}

/// A worker: this program again, with arguments.
pub(crate) struct Worker {
    child: Child,
    /// The arguments, for the next one.
    url: String,
    directory: PathBuf,
}

impl Worker {
    pub(crate) fn start(url: &str, queues: &Queues, directory: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["worker", url, &queues.name]).arg(directory);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let child = command.spawn().context("cannot start a worker")?;
        Ok(Self { child, url: url.to_owned(), directory: directory.to_owned() })
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

    /// Lets it work until the queue is empty, and ends it. What it had in hand and has not begun is in
    /// the queue again, and is for the next one.
    pub(crate) async fn finish(mut self, queues: &Queues) -> anyhow::Result<()> {
        loop {
            // By itself it ends only for an error.
            while self.child.try_wait()?.is_none() && !queues.is_empty().await? {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            drop(self.child.stdin.take());
            let output = self.child.wait_with_output().await?;
            ensure!(output.status.success(), "a worker has failed: {}", output.status);
            if queues.is_done().await? {
                return Ok(());
            }
            self = Self::start(&self.url, queues, &self.directory)?;
        }
    }
}
