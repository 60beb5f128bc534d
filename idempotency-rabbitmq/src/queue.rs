//! A queue, as the source of a consumer.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use idempotency::inbox::{DeadReason, Disposition, Order, Settled, Source};
use lapin::options::{BasicAckOptions, BasicNackOptions};
use lapin::types::ShortString;
use tokio::time::timeout;

use crate::dead_letter::DeadLetters;
use crate::error::Error;
use crate::held::{Held, LONGEST};
use crate::link::Link;
use crate::message::{KeyOf, QueueMessage};

/// The time for an answer to leave this process. It is in the client's hands before.
const SENT_WITHIN: Duration = Duration::from_secs(10);
/// The first pause of a dead letter that has not arrived.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

type Sent = Result<(), tokio::time::error::Elapsed>;

/// A queue of RabbitMQ, as the source of a [`Consumer`](idempotency::inbox::Consumer). See
/// [`RabbitMq`](crate::RabbitMq).
pub struct Queue {
    link: Link,
    name: Arc<str>,
    key: Option<KeyOf>,
    held: Held,
    dead_letters: DeadLetters,
    /// How many dead letters have not arrived since the last one that has.
    undelivered: AtomicU32,
}

impl Queue {
    pub(crate) fn new(
        link: Link,
        name: Arc<str>,
        dead_letters: Option<ShortString>,
        key: Option<KeyOf>,
    ) -> Self {
        Self {
            link,
            name,
            key,
            held: Held::default(),
            dead_letters: DeadLetters::new(dead_letters),
            undelivered: AtomicU32::new(0),
        }
    }

    /// Holds the message, or returns it at once.
    async fn hold(&self, message: Arc<QueueMessage>, pause: Duration) -> Sent {
        match self.held.hold(message, pause) {
            Ok(()) => Ok(()),
            Err(message) => nack(&message).await,
        }
    }

    /// Moves a message to the dead letters, or holds it if that fails.
    async fn bury(&self, settled: Settled<QueueMessage>, reason: DeadReason) -> Sent {
        if !settled.message.delivered().usable() {
            // Its channel has ended, and the broker delivers it again: then it is moved.
            return Ok(());
        }
        let published = self.dead_letters.publish(self.link.connection(), &settled, reason).await;
        let Err(error) = published else {
            self.undelivered.store(0, Ordering::Relaxed);
            return ack(&settled.message).await;
        };
        let failures = self.undelivered.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        // A quorum queue counts for each message, a classic one does not.
        let pause = growing(settled.message.deliveries().unwrap_or(failures));
        tracing::error!(
            queue = &*self.name,
            reason = reason.as_str(),
            %error,
            ?pause,
            "a dead letter has not arrived: the message is kept, and returned after a pause"
        );
        self.hold(settled.message, pause).await
    }

    fn all_sent(&self, answers: impl IntoIterator<Item = Sent>) -> Result<(), Error> {
        let all = answers.into_iter().collect::<Sent>();
        all.map_err(|_| Error::NotSent { queue: self.name.to_string() })
    }
}

impl Source for Queue {
    type Message = QueueMessage;
    type Error = Error;

    const ORDER: Order = Order::Free;

    async fn receive(&self, room: usize) -> Result<Vec<Arc<QueueMessage>>, Error> {
        let taken = async {
            if room == 0 {
                std::future::pending::<()>().await;
            }
            self.link.take(room).await
        };
        let mut taken = std::pin::pin!(taken);
        let taken = loop {
            tokio::select! {
                biased;
                message = self.held.next() => {
                    self.all_sent([nack(&message).await]).unwrap_or_else(|error| {
                        tracing::warn!(%error, "a message is returned late");
                    });
                }
                taken = &mut taken => break taken?,
            }
        };
        let message =
            |delivered| Arc::new(QueueMessage::new(delivered, self.name.clone(), self.key.clone()));
        Ok(taken.into_iter().map(message).collect())
    }

    async fn settle(&self, settled: Vec<Settled<QueueMessage>>) -> Result<(), Error> {
        let answers = settled.into_iter().map(|settled| -> BoxFuture<'_, Sent> {
            match settled.disposition {
                Disposition::Ack => Box::pin(async move { ack(&settled.message).await }),
                Disposition::DeadLetter(reason) => Box::pin(self.bury(settled, reason)),
                Disposition::Retry(pause) | Disposition::Postpone(pause) => {
                    Box::pin(self.hold(settled.message, pause))
                }
                // Not known here: it is the broker's again.
                _ => Box::pin(self.hold(settled.message, LONGEST)),
            }
        });
        self.all_sent(join_all(answers).await)
    }

    fn patience(&self) -> Option<Duration> {
        None
    }

    async fn keep(&self, _: Vec<Arc<QueueMessage>>) -> Result<(), Error> {
        Ok(())
    }

    async fn stop(&self) -> Result<(), Error> {
        let held: Vec<_> = self.held.close().collect();
        // Before anything is returned: the broker would deliver it to this consumer again.
        let left = self.link.cancel().await;
        let held = held.iter().map(|message| message.delivered());
        let returned = join_all(held.chain(&left).map(returned_at_once)).await;
        self.all_sent(returned)
    }
}

/// Doubles from one second, up to the longest pause.
fn growing(count: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << count.saturating_sub(1).min(9)).min(LONGEST)
}

async fn ack(message: &QueueMessage) -> Sent {
    let acked = message.delivered().ack(BasicAckOptions::default());
    sent(acked, "an acknowledgement").await
}

async fn nack(message: &QueueMessage) -> Sent {
    returned_at_once(message.delivered()).await
}

async fn returned_at_once(delivery: &lapin::message::Delivery) -> Sent {
    let requeue = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
    sent(delivery.nack(requeue), "a return").await
}

/// Waits until an answer has left this process. One on a channel that has ended is for no broker: it
/// delivers the message again.
async fn sent(answer: impl Future<Output = lapin::Result<bool>>, what: &str) -> Sent {
    match timeout(SENT_WITHIN, answer).await? {
        Ok(true) => {}
        Ok(false) => tracing::debug!("{what} comes after the end of its channel"),
        Err(error) => tracing::debug!(%error, "{what} comes with the end of its channel"),
    }
    Ok(())
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("name", &self.name)
            .field("held", &self.held.len())
            .finish_non_exhaustive()
    }
}
