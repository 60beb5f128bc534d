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

/// The time for answers to leave this process. They are in the client's hands before.
const SENT_WITHIN: Duration = Duration::from_secs(10);
/// The first pause of a dead letter that has not arrived.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// A queue of RabbitMQ, as the source of a [`Consumer`](idempotency::inbox::Consumer). See
/// [`RabbitMq`](crate::RabbitMq).
pub struct Queue {
    link: Link,
    name: Arc<str>,
    key: Option<KeyOf>,
    held: Held,
    dead_letters: DeadLetters,
    /// How many dead letters have not arrived.
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
    async fn hold(&self, message: Arc<QueueMessage>, pause: Duration) {
        if let Err(message) = self.held.hold(message, pause) {
            nack(&message).await;
        }
    }

    /// Moves a message to the dead letters, or holds it if that fails.
    async fn bury(&self, settled: Settled<QueueMessage>, reason: DeadReason) {
        if !settled.message.delivered().usable() {
            // Its channel has ended, and the broker delivers it again: then it is moved.
            return;
        }
        let published = self.dead_letters.publish(self.link.connection(), &settled, reason).await;
        let Err(error) = published else { return ack(&settled.message).await };
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
        self.hold(settled.message, pause).await;
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
                message = self.held.next() => nack(&message).await,
                taken = &mut taken => break taken?,
            }
        };
        let message =
            |delivered| Arc::new(QueueMessage::new(delivered, self.name.clone(), self.key.clone()));
        Ok(taken.into_iter().map(message).collect())
    }

    async fn settle(&self, settled: Vec<Settled<QueueMessage>>) -> Result<(), Error> {
        let (mut answers, mut dead) = (Vec::<BoxFuture<'_, ()>>::new(), Vec::new());
        for settled in settled {
            match settled.disposition {
                Disposition::Ack => {
                    answers.push(Box::pin(async move { ack(&settled.message).await }));
                }
                Disposition::DeadLetter(reason) => dead.push(self.bury(settled, reason)),
                Disposition::Retry(pause) | Disposition::Postpone(pause) => {
                    answers.push(Box::pin(self.hold(settled.message, pause)));
                }
                // Not known here: it is the broker's again.
                _ => answers.push(Box::pin(self.hold(settled.message, LONGEST))),
            }
        }
        // A broker that reads nothing gets them later: they wait in the client.
        let sent = timeout(SENT_WITHIN, join_all(answers));
        let _ = futures::future::join(sent, join_all(dead)).await;
        Ok(())
    }

    fn patience(&self) -> Option<Duration> {
        None
    }

    async fn keep(&self, _: Vec<Arc<QueueMessage>>) -> Result<(), Error> {
        Ok(())
    }

    async fn stop(&self) -> Result<(), Error> {
        let held: Vec<_> = self.held.close().collect();
        let returned = join_all(held.iter().map(|message| nack(message)));
        let _ = timeout(SENT_WITHIN, returned).await;
        let left = self.link.cancel().await;
        let requeue = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
        let returned = join_all(left.iter().map(|delivery| delivery.nack(requeue)));
        let _ = timeout(SENT_WITHIN, returned).await;
        Ok(())
    }
}

/// Doubles from one second, up to the longest pause.
fn growing(count: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << count.saturating_sub(1).min(9)).min(LONGEST)
}

async fn ack(message: &QueueMessage) {
    let acked = message.delivered().ack(BasicAckOptions::default()).await;
    note(acked, "an acknowledgement");
}

async fn nack(message: &QueueMessage) {
    let requeue = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
    note(message.delivered().nack(requeue).await, "a return");
}

/// An answer on a channel that has ended is for no broker: it delivers the message again.
fn note(answered: lapin::Result<bool>, what: &str) {
    match answered {
        Ok(true) => {}
        Ok(false) => tracing::debug!("{what} comes after the end of its channel"),
        Err(error) => tracing::debug!(%error, "{what} comes with the end of its channel"),
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("name", &self.name)
            .field("held", &self.held.len())
            .finish_non_exhaustive()
    }
}
