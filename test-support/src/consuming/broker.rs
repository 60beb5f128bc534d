//! A broker, as the runs need to know it.

use std::sync::Arc;

use idempotent_runtime::inbox::Source;
use serde::{Deserialize, Serialize};

use super::MessageOf;
use super::wire::{Protocol, Wire};
use crate::deadline::eventually_async;
use crate::effects::EffectLog;

/// Where a worker finds its messages.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Address {
    /// The URL of the broker.
    pub url: String,
    /// The queue or stream.
    pub messages: String,
    /// The place of the dead letters.
    pub dead: String,
}

/// A queue of a real broker with a place for its dead letters, for one test, and effects that are
/// counted in a file.
#[expect(async_fn_in_trait, reason = "no test sends these futures to another thread")]
pub trait Broker: Sized + 'static {
    /// A consumer's end of the queue.
    type Source: Source;
    /// A dead letter as the broker has it.
    type Letter;
    /// The way from a consumer to the broker.
    type Protocol: Protocol;

    /// How many kinds of queues there are.
    const KINDS: usize = 1;
    /// How many copies of a dead letter there are if it is published twice: one, if the broker
    /// recognises the second.
    const COPIES: usize = 2;

    /// How many deaths by one message are not counted, where its attempts are rolled back: the broker
    /// counts no deliveries, and the first process that dies may not have looked.
    const UNCOUNTED_DEATHS: usize = 0;

    /// The broker delivers a message again after a time in which its consumer does not answer, though
    /// the connection lives.
    const IS_IMPATIENT: bool;

    /// Creates a queue. Its kind is the remainder of `number` by [`KINDS`](Self::KINDS).
    async fn create(number: usize) -> anyhow::Result<Self>;

    /// Creates a queue from which nothing comes back by itself in the time of a test.
    async fn patient() -> anyhow::Result<Self> {
        Self::create(0).await
    }

    /// Returns where a worker finds the messages.
    fn address(&self) -> Address;

    /// Connects a worker's consumer, which has a client of its own.
    async fn connect(address: &Address) -> anyhow::Result<Self::Source>;

    /// Connects a consumer of the test process.
    async fn source(&self) -> anyhow::Result<Self::Source>;

    /// Opens a way to the broker that can lose acknowledgements.
    async fn wire(&self) -> anyhow::Result<Wire<Self::Protocol>>;

    /// Returns what a handler sees.
    fn payload(message: &MessageOf<Self>) -> &[u8];

    /// Returns the effects.
    fn effects(&self) -> &Arc<EffectLog>;

    /// Publishes a message under this id, and waits until the broker has it.
    async fn publish(&self, id: &str, payload: &str) -> anyhow::Result<()>;

    /// Publishes what the payload of each says, under that id.
    async fn publish_all(&self, ids: impl IntoIterator<Item = String>) -> anyhow::Result<()> {
        for id in ids {
            self.publish(&id, &id).await?;
        }
        Ok(())
    }

    /// Publishes one message so often that the broker delivers it `times` times.
    async fn publish_repeatedly(&self, id: &str, times: usize) -> anyhow::Result<()>;

    /// Checks that all messages are in a consumer's hand: `count`, where the broker shows it.
    async fn are_in_hand(&self, count: usize) -> anyhow::Result<()>;

    /// Waits until the message of a consumer that was killed is in the queue again, where the broker
    /// notices its death.
    async fn notices_a_death(&self) -> anyhow::Result<()> {
        Ok(())
    }

    /// Waits until `count` messages are in the queue again, where the broker shows it.
    async fn are_back(&self, count: usize) -> anyhow::Result<()>;

    /// Waits until no message waits for a consumer, nor is in a consumer's hand where the broker
    /// shows that.
    async fn is_empty(&self) -> anyhow::Result<()>;

    /// Ends the test's consumers, and returns what is left: in the queue, and of dead letters.
    async fn left(&self) -> anyhow::Result<(usize, usize)>;

    /// Returns how many dead letters there are.
    async fn dead_letters(&self) -> anyhow::Result<usize>;

    /// Waits for a dead letter, and takes it.
    async fn dead_letter(&self) -> anyhow::Result<Self::Letter>;

    /// Returns the reason that a dead letter has.
    fn reason(letter: &Self::Letter) -> Option<String>;

    /// Returns the id of a dead letter, by which its copies are known.
    fn id(letter: &Self::Letter) -> Option<String>;

    /// Returns the payload of a dead letter.
    fn body(letter: &Self::Letter) -> Vec<u8>;

    /// Moves a dead letter back, as an operator's tool does: with all that it has.
    async fn redrive(&self, letter: &Self::Letter) -> anyhow::Result<()>;

    /// Makes another consumer's place for what is [announced](Self::announce).
    async fn subscribe(&self, name: &str) -> anyhow::Result<()>;

    /// Publishes a message to all subscribers.
    async fn announce(&self, id: &str) -> anyhow::Result<()>;

    /// Connects a subscriber.
    async fn subscriber(&self, name: &str) -> anyhow::Result<Self::Source>;

    /// Waits until a subscriber has no message left, as [`is_empty`](Self::is_empty) does.
    async fn has_read_all(&self, name: &str) -> anyhow::Result<()>;
}

/// Waits until there are so many dead letters.
pub(super) async fn has_dead_letters<B: Broker>(broker: &B, count: usize) -> anyhow::Result<()> {
    eventually_async(format!("{count} dead letters"), async || {
        broker.dead_letters().await.is_ok_and(|letters| letters == count)
    })
    .await
}
