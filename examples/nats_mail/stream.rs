//! The streams of a run: its events, and its dead letters.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use idempotency::inbox::KEY_HEADER;
use idempotency_nats::async_nats;
use idempotency_nats::async_nats::jetstream::consumer::{PullConsumer, pull};
use idempotency_nats::async_nats::jetstream::message::{PublishMessage, StreamMessage as Stored};
use idempotency_nats::async_nats::jetstream::stream::Config;
use idempotency_nats::async_nats::jetstream::{self, Context};

use crate::payments::Event;

const CONSUMER: &str = "receipts";

/// The stream of this run.
pub(crate) struct Stream {
    context: Context,
    name: String,
}

impl Stream {
    /// The stream of the run whose receipts are in this file.
    pub(crate) async fn of(url: &str, sent: &Path) -> anyhow::Result<Self> {
        let run = sent.parent().and_then(Path::file_name).context("a directory has a name")?;
        let client = async_nats::connect(url).await.context("cannot connect to the server")?;
        // A name of a stream has no dots.
        let name = format!("payments-{}", run.to_string_lossy().replace('.', "-"));
        Ok(Self { context: jetstream::new(client), name })
    }

    pub(crate) fn dead(&self) -> String {
        format!("{}-dead", self.name)
    }

    pub(crate) async fn create(&self) -> anyhow::Result<()> {
        for name in [self.name.clone(), self.dead()] {
            let subjects = vec![name.clone()];
            let config = Config { name, subjects, ..Config::default() };
            self.context.create_stream(config).await.context("cannot create a stream")?;
        }
        // What the dead worker had comes again after two seconds. The default of 30 s fits a real
        // service.
        let config = pull::Config {
            durable_name: Some(CONSUMER.to_owned()),
            ack_wait: Duration::from_secs(2),
            ..pull::Config::default()
        };
        self.context.create_consumer_on_stream(config, &*self.name).await?;
        Ok(())
    }

    pub(crate) async fn delete(&self) -> anyhow::Result<()> {
        for name in [self.name.clone(), self.dead()] {
            self.context.delete_stream(name).await?;
        }
        Ok(())
    }

    /// Publishes events under the key of their payments: a repeat is the same message.
    pub(crate) async fn publish(&self, events: &[Event]) -> anyhow::Result<()> {
        for event in events {
            let message = PublishMessage::build().header(KEY_HEADER, &*event.payment.id);
            let message = message.payload(serde_json::to_vec(&event.payment)?.into());
            let ack = self.context.send_publish(self.name.clone(), message).await?;
            ensure!(!ack.await?.duplicate, "the stream knows the message");
        }
        Ok(())
    }

    pub(crate) async fn consumer(&self) -> anyhow::Result<PullConsumer> {
        let stream = self.context.get_stream_no_info(&self.name).await?;
        stream.get_consumer(CONSUMER).await.map_err(|error| anyhow::anyhow!(error))
    }

    /// Waits until all messages are acknowledged.
    pub(crate) async fn is_done(&self) {
        loop {
            if let Ok(consumer) = self.consumer().await {
                let info = consumer.cached_info();
                if (info.num_pending, info.num_ack_pending) == (0, 0) {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) async fn dead_letters(&self) -> anyhow::Result<Vec<Stored>> {
        let stream = self.context.get_stream(self.dead()).await?;
        let state = &stream.cached_info().state;
        let mut letters = Vec::new();
        for sequence in state.first_sequence..=state.last_sequence {
            letters.push(stream.get_raw_message(sequence).await?);
        }
        Ok(letters)
    }
}
