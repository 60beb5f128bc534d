//! A queue, as the source of a consumer.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join;
use futures::stream::{self, StreamExt as _};
use idempotency::inbox::{DeadReason, Disposition, Message as _, Order, Settled, Source};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use crate::dead_letter;
use crate::error::Error;
use crate::message::SqsMessage;
use crate::receives::Receives;
use crate::requests::{ANSWER_WITHIN, BATCH, Failures, Queue, seconds};

/// The first pause of a dead letter that has not arrived, and the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(5 * 60);

/// A queue of SQS, as the source of a [`Consumer`](idempotency::inbox::Consumer). See
/// [`Sqs`](crate::Sqs).
pub struct SqsQueue {
    pub(crate) receives: Receives,
    pub(crate) dead_letters: Option<Queue>,
    /// Held by requests about visibility: one that keeps a message must not arrive after its answer.
    pub(crate) turn: Mutex<()>,
}

impl SqsQueue {
    async fn answer(
        &self,
        done: &[Arc<SqsMessage>],
        again: &[(Arc<SqsMessage>, Duration)],
    ) -> Failures {
        let _turn = self.turn.lock().await;
        self.receives.queue.answer(done, again).await
    }

    /// Moves messages to the dead letters. Those that do not arrive are delivered again.
    async fn bury(&self, dead: Vec<(Settled<SqsMessage>, DeadReason)>) -> Failures {
        let end = Instant::now() + ANSWER_WITHIN;
        let copy = async |settled: Settled<SqsMessage>, reason: DeadReason| {
            let sent = match &self.dead_letters {
                Some(place) => timeout_at(end, dead_letter::send(place, &settled, reason)).await,
                None => {
                    Ok(Err("there is no queue for dead letters: set one with `dead_letters`, \
                                or a redrive policy moves it"
                        .to_owned()))
                }
            };
            let sent = sent.unwrap_or_else(|_| Err("no answer within 10 seconds".to_owned()));
            (settled.message, reason, sent)
        };
        let copy = &copy;
        // Those of a group keep their order.
        let groups = by_group(dead).into_iter().map(|group| async move {
            let mut sent = Vec::new();
            for (settled, reason) in group {
                sent.push(copy(settled, reason).await);
            }
            sent
        });
        let sent: Vec<_> = stream::iter(groups).buffer_unordered(BATCH).concat().await;
        let (mut done, mut again) = (Vec::new(), Vec::new());
        for (message, reason, sent) in sent {
            // Until now it is kept: one whose time ended would be delivered again, and handled.
            message.settle();
            let Err(error) = sent else {
                done.push(message);
                continue;
            };
            let pause = growing(message.deliveries().unwrap_or(1));
            tracing::error!(
                queue = &*self.receives.name,
                reason = reason.as_str(),
                error,
                ?pause,
                "a dead letter has not arrived: the message is kept, and delivered again after a \
                 pause"
            );
            again.push((message, pause));
        }
        self.answer(&done, &again).await
    }
}

impl Source for SqsQueue {
    type Message = SqsMessage;
    type Error = Error;

    /// Of a standard queue each message has a lane of its own.
    const ORDER: Order = Order::ReturnLane;

    async fn receive(&self, room: usize) -> Result<Vec<Arc<SqsMessage>>, Error> {
        self.receives.take(room).await
    }

    async fn settle(&self, settled: Vec<Settled<SqsMessage>>) -> Result<(), Error> {
        let (mut done, mut again, mut dead) = (Vec::new(), Vec::new(), Vec::new());
        for settled in settled {
            let is_dead = matches!(settled.disposition, Disposition::DeadLetter(_));
            if !is_dead {
                settled.message.settle();
            }
            match settled.disposition {
                Disposition::Ack => done.push(settled.message),
                Disposition::DeadLetter(reason) => dead.push((settled, reason)),
                Disposition::Retry(pause) | Disposition::Postpone(pause) => {
                    again.push((settled.message, pause));
                }
                // Not known here: it is the broker's again.
                _ => again.push((settled.message, LONGEST_PAUSE)),
            }
        }
        let (answered, buried) = join(self.answer(&done, &again), self.bury(dead)).await;
        answered.and(buried).into_result()
    }

    fn patience(&self) -> Option<Duration> {
        Some(self.receives.patience)
    }

    async fn keep(&self, held: Vec<Arc<SqsMessage>>) -> Result<(), Error> {
        let _turn = self.turn.lock().await;
        let can_be_kept = |message: &Arc<SqsMessage>| {
            !message.is_settled() && seconds(self.receives.patience, message.held()) > 0
        };
        let held = held.into_iter().filter(can_be_kept);
        let held: Vec<_> = held.map(|message| (message, self.receives.patience)).collect();
        self.receives.queue.answer(&[], &held).await.into_result()
    }

    async fn stop(&self) -> Result<(), Error> {
        let (waiting, mut requests) = self.receives.stop().await;
        let queue = self.receives.queue.clone();
        // SQS knows no way to take a request back. What it brings goes back while this process lives,
        // and after the visibility timeout otherwise.
        tokio::spawn(async move {
            while let Some((_, received)) = requests.next().await {
                queue.answer(&[], &at_once(received.unwrap_or_default())).await;
            }
        });
        self.answer(&[], &at_once(waiting)).await.into_result()
    }
}

/// The messages of each lane, in their order.
fn by_group(
    dead: Vec<(Settled<SqsMessage>, DeadReason)>,
) -> Vec<Vec<(Settled<SqsMessage>, DeadReason)>> {
    let (mut groups, mut places) = (Vec::<Vec<_>>::new(), HashMap::new());
    for one in dead {
        match one.0.message.lane() {
            Some(lane) => {
                let place = *places.entry(lane).or_insert_with(|| {
                    groups.push(Vec::new());
                    groups.len() - 1
                });
                groups[place].push(one);
            }
            None => groups.push(vec![one]),
        }
    }
    groups
}

fn at_once(messages: Vec<Arc<SqsMessage>>) -> Vec<(Arc<SqsMessage>, Duration)> {
    messages.into_iter().map(|message| (message, Duration::ZERO)).collect()
}

/// Doubles from one second, up to the longest pause.
fn growing(deliveries: u32) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << deliveries.saturating_sub(1).min(9));
    doubled.min(LONGEST_PAUSE)
}

impl fmt::Debug for SqsQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqsQueue")
            .field("queue", &self.receives.name)
            .field("dead_letters", &self.dead_letters.as_ref().map(|queue| &queue.url))
            .field("patience", &self.receives.patience)
            .finish_non_exhaustive()
    }
}
