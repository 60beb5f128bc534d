//! A pull consumer, as the source of a consumer.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::{self, AckKind};
use futures::future::{BoxFuture, join_all};
use idempotency::inbox::{DeadReason, Disposition, Order, Settled, Source};
use tokio::time::timeout;

use crate::dead_letter::DeadLetters;
use crate::error::Error;
use crate::message::{KeyOf, StreamMessage};
use crate::pulls::Pulls;

/// The time for an answer to get into the client's hands, and for all to leave this process.
const SENT_WITHIN: Duration = Duration::from_secs(10);
/// The first pause of a dead letter that has not arrived, and the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(5 * 60);

type Sent = Result<(), async_nats::Error>;

/// A pull consumer of JetStream, as the source of a [`Consumer`](idempotency::inbox::Consumer). See
/// [`JetStream`](crate::JetStream).
pub struct PullSource {
    pub(crate) pulls: Pulls,
    pub(crate) stream: Arc<str>,
    pub(crate) key: Option<KeyOf>,
    pub(crate) patience: Duration,
    pub(crate) dead_letters: DeadLetters,
}

impl PullSource {
    /// Moves a message to the dead letters, or has it delivered again if that fails.
    async fn bury(&self, settled: Settled<StreamMessage>, reason: DeadReason) -> Sent {
        let Err(error) = self.dead_letters.publish(&settled, reason).await else {
            return answer(settled.message.message(), AckKind::Ack).await;
        };
        let pause = growing(settled.message.deliveries().unwrap_or(1));
        tracing::error!(
            stream = &*self.stream,
            consumer = %self.dead_letters.consumer,
            reason = reason.as_str(),
            %error,
            ?pause,
            "a dead letter has not arrived: the message is kept, and delivered again after a pause"
        );
        answer(settled.message.message(), again_after(pause)).await
    }
}

impl Source for PullSource {
    type Message = StreamMessage;
    type Error = Error;

    const ORDER: Order = Order::Free;

    async fn receive(&self, room: usize) -> Result<Vec<Arc<StreamMessage>>, Error> {
        let taken = self.pulls.take(room).await?;
        let message =
            |taken| Arc::new(StreamMessage::new(taken, self.stream.clone(), self.key.clone()));
        Ok(taken.into_iter().map(message).collect())
    }

    async fn settle(&self, settled: Vec<Settled<StreamMessage>>) -> Result<(), Error> {
        let client = settled.first().map(|settled| settled.message.message().context.client());
        let answers = settled.into_iter().map(|settled| -> BoxFuture<'_, Sent> {
            let kind = match settled.disposition {
                Disposition::Ack => AckKind::Ack,
                Disposition::DeadLetter(reason) => return Box::pin(self.bury(settled, reason)),
                Disposition::Retry(pause) | Disposition::Postpone(pause) => again_after(pause),
                // Not known here: it is the server's again.
                _ => again_after(LONGEST_PAUSE),
            };
            Box::pin(async move { answer(settled.message.message(), kind).await })
        });
        all_sent(join_all(answers).await, client).await
    }

    fn patience(&self) -> Option<Duration> {
        Some(self.patience)
    }

    async fn keep(&self, held: Vec<Arc<StreamMessage>>) -> Result<(), Error> {
        let kept = held.iter().map(|message| answer(message.message(), AckKind::Progress));
        all_sent(join_all(kept).await, None).await
    }

    async fn stop(&self) -> Result<(), Error> {
        let waiting = self.pulls.stop().await;
        let client = waiting.first().map(|message| message.context.client());
        let returned = waiting.iter().map(|message| answer(message, AckKind::Nak(None)));
        all_sent(join_all(returned).await, client).await
    }
}

/// Doubles from one second, up to the longest pause.
fn growing(deliveries: u32) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << deliveries.saturating_sub(1).min(9));
    doubled.min(LONGEST_PAUSE)
}

fn again_after(pause: Duration) -> AckKind {
    AckKind::Nak(Some(pause).filter(|pause| !pause.is_zero()))
}

/// Hands an answer to the client, which sends it when it has a connection.
async fn answer(message: &jetstream::Message, kind: AckKind) -> Sent {
    timeout(SENT_WITHIN, message.ack_with(kind)).await?
}

/// Waits until the answers have left this process, which may be about to end.
async fn all_sent(answers: Vec<Sent>, client: Option<async_nats::Client>) -> Result<(), Error> {
    let flushed = match client {
        Some(client) => match timeout(SENT_WITHIN, client.flush()).await {
            Ok(flushed) => flushed.map_err(async_nats::Error::from),
            Err(elapsed) => Err(elapsed.into()),
        },
        None => Ok(()),
    };
    answers.into_iter().chain([flushed]).collect::<Sent>().map_err(Error::NotSent)
}

impl fmt::Debug for PullSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PullSource")
            .field("stream", &self.stream)
            .field("consumer", &self.dead_letters.consumer)
            .field("patience", &self.patience)
            .finish_non_exhaustive()
    }
}
