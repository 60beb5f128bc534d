//! One message, from the moment it is taken from its lane until its disposition is known.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::consumer::Question;
use super::failures::FailurePolicy;
use super::handled::{Disposition, Handled, Outcome};
use super::inbox::{Inbox, Seen, is_store_away, misconfigured};
use super::intake::Intake;
use super::source::{Message, Order};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind};

/// What the workers of a consumer share.
pub(super) struct Worker<M, P, H> {
    pub(super) inbox: Inbox<P>,
    pub(super) handler: H,
    pub(super) question: Option<Question<M>>,
    pub(super) order: Order,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) intake: Arc<Intake>,
    /// A place for each handler that runs.
    pub(super) places: Arc<Semaphore>,
    pub(super) stopping: watch::Receiver<bool>,
}

/// How the work on a message ended.
#[derive(Debug)]
pub(super) enum Worked {
    /// The broker gets this.
    Settle(Disposition),
    /// The engine is shutting down: no message can be handled any more.
    ShutDown,
    /// No message can be handled, and this one is not settled.
    Misconfigured(Error),
}

/// How one call ended.
enum Called<E> {
    Handled(Handled<E>),
    Panicked,
}

/// The pauses of one message on which the store fails although it answers others.
#[derive(Default)]
struct Refusals {
    count: u32,
    paused: Duration,
}

impl<M, P, H, F, E> Worker<M, P, H>
where
    M: Message,
    P: FailurePolicy<E> + Send + Sync + 'static,
    H: Fn(Arc<M>) -> F + Send + Sync + 'static,
    F: Future<Output = Result<(), E>> + Send + 'static,
    E: Send + 'static,
{
    /// Handles `message`, as often as that is to be done here, and returns what the broker gets.
    ///
    /// A message that waits for the store or for its next try keeps its place in hand, and gives
    /// its `place` among the running handlers to others.
    pub(super) async fn work(
        self: Arc<Self>,
        message: Arc<M>,
        place: OwnedSemaphorePermit,
    ) -> Worked {
        let mut place = Some(place);
        let mut refusals = Refusals::default();
        loop {
            let seen = Seen::default();
            let called = self.call(&message, &seen).await;
            drop(place.take());
            let disposition = match called {
                Called::Panicked => self.inbox.panicked(&seen, self.question.is_some()),
                Called::Handled(handled) if is_store_away(&handled) => {
                    match self.store_away(&mut refusals, &seen).await {
                        Ok(()) => {}
                        Err(worked) => return worked,
                    }
                    match self.place().await {
                        Some(again) => place = Some(again),
                        None => return POSTPONED,
                    }
                    continue;
                }
                Called::Handled(handled) if is_shut_down(&handled) => return Worked::ShutDown,
                Called::Handled(handled) => match misconfigured(handled) {
                    Ok(disposition) => disposition,
                    Err(error) => return Worked::Misconfigured(error),
                },
            };
            refusals = Refusals::default();
            let pause = match disposition {
                Disposition::Retry(pause) | Disposition::Postpone(pause)
                    if self.order == Order::HoldLane =>
                {
                    pause
                }
                disposition => return Worked::Settle(disposition),
            };
            if !self.pause(pause).await {
                return POSTPONED;
            }
            match self.place().await {
                Some(again) => place = Some(again),
                None => return POSTPONED,
            }
        }
    }

    async fn call(&self, message: &Arc<M>, seen: &Seen) -> Called<E> {
        let handler = || (self.handler)(message.clone());
        let delivery = message.delivery();
        let mut call = pin!(async {
            match &self.question {
                None => self.inbox.handle_seen(delivery, handler, seen).await,
                Some(question) => {
                    let question = |attempt| question(message.clone(), attempt);
                    self.inbox.handle_verifying_seen(delivery, question, handler, seen).await
                }
            }
        });
        let unless_it_panics = std::future::poll_fn(|cx| {
            match catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(cx))) {
                Ok(poll) => poll.map(Called::Handled),
                Err(_) => std::task::Poll::Ready(Called::Panicked),
            }
        });
        unless_it_panics.await
    }

    /// Waits until the store answers again. A message on which it fails although it answers costs
    /// only itself: it pauses for longer and longer, and goes back to a broker that delivers it
    /// again.
    async fn store_away(&self, refusals: &mut Refusals, seen: &Seen) -> Result<(), Worked> {
        let was_away = self.unless_stopping(self.intake.report()).await.ok_or(POSTPONED)?;
        if was_away {
            *refusals = Refusals::default();
            return Ok(());
        }
        refusals.count += 1;
        let pause = self.inbox.pause(refusals.count, seen);
        // A broker that cannot deliver it again has only this consumer to try it.
        let goes_back = self.order != Order::HoldLane;
        if goes_back && refusals.paused >= self.inbox.longest_pause() {
            return Err(Worked::Settle(Disposition::Postpone(pause)));
        }
        refusals.paused = refusals.paused.saturating_add(pause);
        if self.pause(pause).await { Ok(()) } else { Err(POSTPONED) }
    }

    /// Sleeps. Returns false if the consumer stops meanwhile.
    async fn pause(&self, pause: Duration) -> bool {
        self.unless_stopping(self.clock.sleep(pause)).await.is_some()
    }

    /// Waits for a place among the running handlers. `None`: the consumer stops.
    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        self.unless_stopping(self.places.clone().acquire_owned()).await?.ok()
    }

    /// Returns the output of `future`, or `None` if the consumer stops before, or is gone.
    async fn unless_stopping<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let mut stopping = self.stopping.clone();
        tokio::select! {
            biased;
            _ = stopping.wait_for(|stops| *stops) => None,
            output = future => Some(output),
        }
    }
}

/// The message was not tried since it was last seen.
const POSTPONED: Worked = Worked::Settle(Disposition::Postpone(Duration::ZERO));

fn is_shut_down<E>(handled: &Handled<E>) -> bool {
    matches!(&handled.outcome, Outcome::Refused(error) if error.kind() == ErrorKind::ShuttingDown)
}
