//! One message, from the moment it is taken from its lane until its disposition is known.

use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::calling::Calling;
use super::handled::{DeadReason, Disposition, Handled, Outcome};
use super::handling::Handling;
use super::inbox::{Inbox, Seen};
use super::intake::{Answers, Intake};
use super::observed::Observed;
use super::resting::{Resting, Rests};
use super::source::{Message, Order};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind};
use crate::key::KeyHash;

/// What the workers of a consumer share.
pub(super) struct Worker<P, H> {
    pub(super) inbox: Inbox<P>,
    pub(super) handling: H,
    pub(super) order: Order,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) intake: Arc<Intake>,
    pub(super) resting: Arc<Resting>,
    pub(super) calling: Arc<Calling>,
    /// A place for each handler that runs.
    pub(super) places: Arc<Semaphore>,
    /// True once the consumer stops, or is gone.
    pub(super) stopping: Arc<Observed<bool>>,
}

/// How the work on a message ended.
#[derive(Debug)]
pub(super) enum Worked {
    /// The broker gets this.
    Settle { disposition: Disposition, record: Option<KeyHash>, attempt: u32 },
    /// The engine is shutting down: no message can be handled any more.
    ShutDown,
    /// No message can be handled, and this one is not settled.
    Misconfigured(Error),
}

/// How one call ended.
enum Called<E> {
    Handled(Handled<E>),
    Panicked,
    /// The message cannot be read: its code has panicked.
    Unreadable,
}

/// The tries of one message on which the store fails although it answers.
#[derive(Default)]
struct Refusals {
    count: u32,
    paused: Duration,
    /// Another message has succeeded since the first of them.
    is_its_own: bool,
    /// How many had succeeded at the last of them.
    successes: u64,
}

impl<P, H> Worker<P, H>
where
    P: Send + Sync + 'static,
{
    /// Handles `message`, as often as that is to be done here, and returns what the broker gets.
    ///
    /// A message that waits for the store or for its next try keeps its place in hand, and gives
    /// its `place` among the running handlers to others.
    pub(super) async fn work<M>(
        self: Arc<Self>,
        message: Arc<M>,
        place: OwnedSemaphorePermit,
    ) -> Worked
    where
        M: Message,
        H: Handling<M, P>,
    {
        let mut place = Some(place);
        let mut refusals = Refusals::default();
        // A try that the store did not let begin, or that met another consumer, is no failure.
        let mut failures = 0;
        let kept = H::Kept::default();
        loop {
            let seen = Seen::default();
            let successes = self.intake.successes();
            let calls = self.calling.this();
            let called = self.call(&message, failures, &seen, &kept).await;
            drop(calls);
            drop(place.take());
            let settle = |disposition| {
                let (record, attempt) = (seen.record(), seen.attempt());
                Worked::Settle { disposition, record, attempt }
            };
            let stopped = || settle(Disposition::Postpone(Duration::ZERO));
            let mut rests = None;
            let pause = match called {
                Called::Handled(handled) if is_store_away(&handled) => {
                    rests = self.rests();
                    match self.store_away(&mut refusals, successes, &seen).await {
                        Some(Away::TryAgain(pause)) => pause,
                        Some(Away::Return(pause)) => return settle(Disposition::Postpone(pause)),
                        None => return stopped(),
                    }
                }
                called => {
                    refusals = Refusals::default();
                    match self.disposition(called, failures, &seen) {
                        Ok(Disposition::Retry(pause)) if self.order == Order::HoldLane => {
                            failures += 1;
                            pause
                        }
                        Ok(Disposition::Postpone(pause)) if self.order == Order::HoldLane => pause,
                        Ok(disposition) => return settle(disposition),
                        Err(worked) => return worked,
                    }
                }
            };
            let _rests = rests.or_else(|| self.rests());
            if self.unless_stopping(self.clock.sleep(pause)).await.is_none() {
                return stopped();
            }
            match self.place().await {
                Some(again) => place = Some(again),
                None => return stopped(),
            }
        }
    }

    /// Returns the answer to the broker about a call that the store did not fail.
    fn disposition<M, E>(
        &self,
        called: Called<E>,
        failures: u32,
        seen: &Seen,
    ) -> Result<Disposition, Worked>
    where
        H: Handling<M, P, Error = E>,
        E: fmt::Debug,
    {
        match called {
            Called::Handled(handled) if is_shut_down(&handled) => Err(Worked::ShutDown),
            Called::Handled(handled) => {
                match &handled.outcome {
                    Outcome::Processed if handled.attempt > 0 => self.intake.succeeded(),
                    Outcome::Failed(error) => {
                        let attempt = handled.attempt;
                        let log = || {
                            tracing::warn!(attempt, ?error, "the handler of a message has failed");
                        };
                        // The error is the user's, and so is the code that shows and drops it.
                        let _ = catch_unwind(AssertUnwindSafe(log));
                    }
                    _ => {}
                }
                let known = handled.disposition;
                catch_unwind(AssertUnwindSafe(|| misconfigured(handled)))
                    .unwrap_or(Ok(known))
                    .map_err(Worked::Misconfigured)
            }
            Called::Panicked => {
                tracing::error!(attempt = seen.attempt(), "the handler of a message has panicked");
                Ok(self.inbox.panicked(failures, seen, self.handling.survives_panics()))
            }
            Called::Unreadable => {
                tracing::error!("the key of a message cannot be read: its code has panicked");
                Ok(Disposition::DeadLetter(DeadReason::InvalidKey))
            }
        }
    }

    async fn call<M>(
        &self,
        message: &Arc<M>,
        failures: u32,
        seen: &Seen,
        kept: &H::Kept,
    ) -> Called<H::Error>
    where
        M: Message,
        H: Handling<M, P>,
    {
        let Ok(delivery) = catch_unwind(AssertUnwindSafe(|| message.delivery())) else {
            return Called::Unreadable;
        };
        let delivery = delivery.failed_here(failures);
        let mut call = pin!(self.handling.handle(&self.inbox, message, delivery, seen, kept));
        let unless_it_panics = std::future::poll_fn(|cx| {
            match catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(cx))) {
                Ok(poll) => poll.map(Called::Handled),
                Err(_) => std::task::Poll::Ready(Called::Panicked),
            }
        });
        unless_it_panics.await
    }

    /// Waits until the store answers again. `None`: the consumer stops.
    ///
    /// A message on which it fails although it answers pauses for longer and longer. If others
    /// succeed meanwhile, the fault is that of its own record, and it goes back to the broker in the
    /// end. If none does, the store may refuse all of them: they stay in hand, but for one in a
    /// while, and the broker does not count that.
    async fn store_away(
        &self,
        refusals: &mut Refusals,
        successes: u64,
        seen: &Seen,
    ) -> Option<Away> {
        if self.unless_stopping(self.intake.report()).await? == Answers::Again {
            *refusals = Refusals::default();
            return Some(Away::TryAgain(Duration::ZERO));
        }
        let before = if refusals.count == 0 { successes } else { refusals.successes };
        refusals.successes = self.intake.successes();
        refusals.is_its_own |= refusals.successes != before;
        refusals.count = refusals.count.saturating_add(1);
        let pause = self.inbox.pause(refusals.count, seen);
        let longest = self.inbox.longest_pause();
        // A broker that cannot deliver it again has only this consumer to try it.
        if self.order != Order::HoldLane && refusals.paused >= longest {
            let now = self.clock.monotonic();
            if refusals.is_its_own || self.intake.may_return(now, longest) {
                return Some(Away::Return(pause));
            }
        }
        tracing::warn!(?pause, "the store fails on the record of a message, which is tried again");
        refusals.paused = refusals.paused.saturating_add(pause);
        Some(Away::TryAgain(pause))
    }

    /// Notes that the message waits for its next try, where its lane waits for it.
    fn rests(&self) -> Option<Rests<'_>> {
        (self.order == Order::HoldLane).then(|| self.resting.this())
    }

    /// Waits for a place among the running handlers. `None`: the consumer stops.
    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        self.unless_stopping(self.places.clone().acquire_owned()).await?.ok()
    }

    /// Returns the output of `future`, or `None` if the consumer stops before, or is gone.
    async fn unless_stopping<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            _ = self.stopping.when(|stops| *stops) => None,
            output = future => Some(output),
        }
    }
}

/// What follows from a failure of the store.
enum Away {
    TryAgain(Duration),
    Return(Duration),
}

fn is_shut_down<E>(handled: &Handled<E>) -> bool {
    matches!(&handled.outcome, Outcome::Refused(error) if error.kind() == ErrorKind::ShuttingDown)
}

/// Returns true if the store gave no usable answer, or had no room: other messages would fail too.
fn is_store_away<E>(handled: &Handled<E>) -> bool {
    matches!(&handled.outcome, Outcome::Refused(error)
        if matches!(error.kind(), ErrorKind::StoreUnavailable | ErrorKind::Full)
            && matches!(handled.disposition, Disposition::Postpone(_)))
}

/// Returns the error, if it says that no message can be handled as the inbox, the engine or the store
/// are set up.
fn misconfigured<E>(handled: Handled<E>) -> Result<Disposition, Error> {
    match (handled.disposition, handled.outcome) {
        (Disposition::Postpone(_), Outcome::Refused(error))
            if matches!(
                error.kind(),
                ErrorKind::Config
                    | ErrorKind::Unsupported
                    | ErrorKind::Decode
                    | ErrorKind::NotInstalled
                    | ErrorKind::Reentrant
                    | ErrorKind::Encode
            ) =>
        {
            Err(error)
        }
        (disposition, _) => Ok(disposition),
    }
}
