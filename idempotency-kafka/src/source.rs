//! Topics, as the source of a consumer.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::FutureExt as _;
use idempotency::inbox::{DeadReason, Disposition, Order, Settled, Source};
use rdkafka::consumer::{CommitMode, Consumer as _, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep_until, timeout};

use crate::dead_letter::DeadLetters;
use crate::error::Error;
use crate::group::Group;
use crate::message::TopicMessage;

/// The time between two looks at the client while no message is wanted: rebalances wait for that,
/// and the group gives up a member that does not look.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long one look takes that finds no message.
const LOOK: Duration = Duration::from_millis(10);
/// The time for the client to commit, to leave the group, and to close.
const CLOSED_WITHIN: Duration = Duration::from_secs(10);
/// So many messages are taken in before some are handed out.
const MOST_TAKEN: usize = 256;

type Client = StreamConsumer<Group>;

/// The topics of a consumer group, as the source of a
/// [`Consumer`](idempotency::inbox::Consumer). See [`Kafka`](crate::Kafka).
pub struct Topics {
    /// `None` once it is closed.
    client: Mutex<Option<Arc<Client>>>,
    names: Vec<String>,
    dead_letters: DeadLetters,
    /// Answers rebalances once the consumer has stopped.
    answering: Mutex<Option<JoinHandle<()>>>,
}

impl Topics {
    pub(crate) fn new(client: Client, names: Vec<String>, dead_letters: DeadLetters) -> Self {
        let client = Mutex::new(Some(Arc::new(client)));
        Self { client, names, dead_letters, answering: Mutex::new(None) }
    }

    fn client(&self) -> Option<Arc<Client>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn answering(&self) -> Option<JoinHandle<()>> {
        self.answering.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Moves a message to the dead letters.
    async fn bury(
        &self,
        client: &Client,
        settled: Settled<TopicMessage>,
        reason: DeadReason,
    ) -> Result<(), Error> {
        let group = client.context();
        let message = settled.message.clone();
        if !group.lock().is_ours(&message) {
            // Whoever has its partition now receives it, and it is a dead letter there.
            return Ok(());
        }
        if let Err(error) = self.dead_letters.publish(&settled, reason).await {
            tracing::error!(
                topic = message.topic(),
                partition = message.partition(),
                offset = message.offset(),
                reason = reason.as_str(),
                %error,
                "a dead letter has not arrived: its lane waits"
            );
            return Err(Error::Undelivered(error));
        }
        group.lock().finish(&message, false, client);
        Ok(())
    }

    /// Commits what is stored, leaves the group, and closes the client.
    async fn close(&self) {
        if let Some(answering) = self.answering() {
            answering.abort();
            let _ = answering.await;
        }
        let client = self.client.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(client) = client {
            let closed = drop_aside(client);
            if timeout(CLOSED_WITHIN, closed).await.is_err() {
                tracing::warn!(
                    topics = ?self.names,
                    "the client of Kafka has not closed within 10 seconds: what it has not committed \
                     comes again"
                );
            }
        }
    }
}

impl Source for Topics {
    type Message = TopicMessage;
    type Error = Error;

    const ORDER: Order = Order::HoldLane;

    async fn receive(&self, room: usize) -> Result<Vec<Arc<TopicMessage>>, Error> {
        let Some(client) = self.client() else { return std::future::pending().await };
        let group = client.context();
        loop {
            let changed = group.changed.notified();
            // However often something changes: rebalances come by the client too.
            if group.lock().looked_at().elapsed() >= LOOK_EVERY {
                group.lock().looks();
                if let Ok(received) = timeout(LOOK, client.recv()).await {
                    take(&client, received)?;
                }
            }
            for _ in 0..MOST_TAKEN {
                if let Some(topic) = group.lock().comes_back() {
                    return Err(Error::DeadLettersComeBack { topic: topic.to_owned() });
                }
                if room == 0 || !group.lock().is_hungry(room) {
                    break;
                }
                group.lock().looks();
                let Some(received) = client.recv().now_or_never() else { break };
                take(&client, received)?;
            }
            let messages = group.lock().hand_out(room);
            if !messages.is_empty() {
                return Ok(messages);
            }
            if room > 0 && group.lock().is_hungry(room) {
                group.lock().looks();
                tokio::select! {
                    received = client.recv() => take(&client, received)?,
                    () = changed => {}
                }
                continue;
            }
            let next_look = group.lock().looked_at() + LOOK_EVERY;
            tokio::select! {
                () = sleep_until(next_look) => {}
                () = changed => {}
            }
        }
    }

    async fn settle(&self, settled: Vec<Settled<TopicMessage>>) -> Result<(), Error> {
        let Some(client) = self.client() else { return Ok(()) };
        let group = client.context();
        let mut result = Ok(());
        for settled in settled {
            let message = &settled.message;
            match settled.disposition {
                Disposition::Ack => {
                    group.lock().finish(message, settled.attempt > 0, &*client);
                }
                Disposition::DeadLetter(reason) => {
                    let buried = self.bury(&client, settled, reason).await;
                    if buried.is_err() {
                        // It is handled again.
                        result = buried;
                        continue;
                    }
                }
                // Tried again in place, but for those of a partition that went.
                _ => group.lock().comes_again(message),
            }
            group.lock().returned(1);
        }
        group.changed.notify_one();
        self.close_at_the_end(client).await;
        result
    }

    fn patience(&self) -> Option<Duration> {
        None
    }

    async fn keep(&self, _: Vec<Arc<TopicMessage>>) -> Result<(), Error> {
        Ok(())
    }

    fn hold_lane(&self, lane: u64, is_held: bool) {
        let Some(client) = self.client() else { return };
        client.context().lock().hold(lane, is_held);
        client.context().changed.notify_one();
    }

    fn is_gone(&self, message: &TopicMessage) -> bool {
        self.client().is_some_and(|client| !client.context().lock().is_ours(message))
    }

    async fn stop(&self) -> Result<(), Error> {
        let Some(client) = self.client() else { return Ok(()) };
        client.context().lock().stop(&*client);
        // Those of handlers that still run are committed at the end.
        if let Err(error) = client.commit_consumer_state(CommitMode::Async) {
            tracing::debug!(%error, "nothing is committed");
        }
        let answers = client.clone();
        let answering = tokio::spawn(async move {
            loop {
                let _ = answers.recv().await;
            }
        });
        *self.answering.lock().unwrap_or_else(PoisonError::into_inner) = Some(answering);
        self.close_at_the_end(client).await;
        Ok(())
    }
}

impl Topics {
    /// Closes the client if the consumer has stopped and has nothing in hand any more.
    async fn close_at_the_end(&self, client: Arc<Client>) {
        let has_stopped = self.answering.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        let is_empty = client.context().lock().in_hand() == 0;
        drop(client);
        if has_stopped && is_empty {
            self.close().await;
        }
    }
}

/// A consumer that is dropped commits and leaves the group behind the back of the runtime.
impl Drop for Topics {
    fn drop(&mut self) {
        if let Some(answering) = self.answering() {
            answering.abort();
        }
        if let Some(client) = self.client.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            drop(drop_aside(client));
        }
    }
}

/// Takes in what the client has returned. Fails if it returns nothing any more.
fn take(client: &Client, received: Result<BorrowedMessage<'_>, KafkaError>) -> Result<(), Error> {
    match received {
        Ok(message) => client.context().lock().take(&message, client),
        Err(KafkaError::PartitionEOF(_)) => {}
        Err(error @ KafkaError::MessageConsumptionFatal(_)) => return Err(Error::Ended(error)),
        // The client tries again by itself.
        Err(error) => tracing::warn!(%error, "the client of Kafka reports an error, and goes on"),
    }
    Ok(())
}

/// Drops a client on a thread of its own: that blocks until the brokers have answered. The last owner
/// is that thread.
pub(crate) fn drop_aside<T: Send + Sync + 'static>(client: Arc<T>) -> oneshot::Receiver<()> {
    let (dropped, is_dropped) = oneshot::channel();
    let drop_it = move || {
        let mut client = client;
        while let Err(shared) = Arc::try_unwrap(client) {
            client = shared;
            std::thread::sleep(LOOK);
        }
        let _ = dropped.send(());
    };
    if let Err(error) = std::thread::Builder::new().spawn(drop_it) {
        tracing::warn!(%error, "there is no thread to close a client of Kafka");
    }
    is_dropped
}

impl fmt::Debug for Topics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Topics").field("names", &self.names).finish_non_exhaustive()
    }
}
