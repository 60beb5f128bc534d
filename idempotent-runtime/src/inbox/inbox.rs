//! An inbox, and what it does with one delivery.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::delivery::Delivery;
use super::failures::{Decide, FailurePolicy, OnFailure, RetryAll};
use super::handled::{DeadReason, Disposition, Handled, Outcome};
use super::pauses::Pauses;
use crate::edge::{Attempt, EdgeCall, EdgeOutcome, EdgeResult, End, Turn, limits};
use crate::error::{Error, ErrorKind};
use crate::key::Key;
use crate::record::RecordHandle;
use crate::{Idempotency, OnConflict, OnCrash, Verdict};

/// The version of the results of inboxes. A function and an inbox with one name and one key do not
/// take each other's results: that would acknowledge a message that was never handled.
const VERSION: u32 = 0x1b0c_0001;

/// The longest name of an inbox, in bytes.
const LONGEST_NAME: usize = 200;

/// The pause before a message is delivered again of which nothing is known yet.
const SOON: Duration = Duration::from_secs(1);

/// The shortest such pause: a lease that is about to expire is not asked for without a pause.
const LEAST: Duration = Duration::from_millis(100);

/// An inbox: a message that it has handled is not handled again. Cheap to clone.
///
/// [`handle`](Self::handle) decides about one delivery, for a loop of your own; a
/// [`Consumer`](super::Consumer) is the loop.
///
/// ```
/// # use std::time::Duration;
/// # use idempotency::{Idempotency, store::MemoryStore};
/// use idempotency::inbox::{Delivery, Disposition, Inbox};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # let engine = Idempotency::new(MemoryStore::new());
/// let inbox = Inbox::new(engine, "billing", Duration::from_secs(14 * 86_400));
/// let booked = std::cell::Cell::new(0);
/// for _ in 0..2 {
///     let handled = inbox.handle(Delivery::new("order-7-paid").payload(b"{}"), async || {
///         booked.set(booked.get() + 1);
///         Ok::<_, std::io::Error>(())
///     });
///     assert_eq!(handled.await.disposition, Disposition::Ack);
/// }
/// assert_eq!(booked.get(), 1);
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "an inbox does nothing by itself"]
pub struct Inbox<P = RetryAll> {
    engine: Idempotency,
    name: Arc<str>,
    ttl: Duration,
    on_crash: OnCrash,
    max_attempts: u32,
    pauses: Pauses,
    wait: Duration,
    refuse_for: Option<Duration>,
    has_fingerprints: bool,
    failures: P,
}

impl Inbox {
    /// Creates the inbox of the consumer `name`: a consumer group, a queue, a subscription. Two
    /// inboxes with different names each handle every message.
    ///
    /// `ttl` is how long a handled message is recognised. It must be longer than the time after
    /// which the broker, a redrive or a replay can bring it back.
    ///
    /// A name that is empty or longer than 200 bytes, or a `ttl` that the engine does not accept, is
    /// reported by each delivery, and by a [`Consumer`](super::Consumer) before its first one
    /// ([`Config`](ErrorKind::Config)).
    pub fn new(engine: Idempotency, name: impl Into<Arc<str>>, ttl: Duration) -> Self {
        Self {
            engine,
            name: name.into(),
            ttl,
            on_crash: OnCrash::Hold,
            max_attempts: 10,
            pauses: Pauses { first: SOON, longest: Duration::from_secs(300) },
            wait: Duration::from_secs(5),
            refuse_for: None,
            has_fingerprints: true,
            failures: RetryAll,
        }
    }
}

impl<P> Inbox<P> {
    /// Sets what follows if a process dies while it handles a message, or the handler panics. The
    /// default is [`OnCrash::Hold`]: the message is a dead letter, in doubt.
    pub fn with_on_crash(self, on_crash: OnCrash) -> Self {
        Self { on_crash, ..self }
    }

    /// Lets `decide` choose what follows from an error of the handler. By default every error is
    /// [retried](OnFailure::Retry).
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use idempotency::{Idempotency, store::MemoryStore};
    /// use idempotency::inbox::{DeadReason, Delivery, Disposition, Inbox, OnFailure};
    ///
    /// #[derive(Debug)]
    /// enum BookError { Malformed, NoConnection }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let engine = Idempotency::new(MemoryStore::new());
    /// let inbox = Inbox::new(engine, "billing", Duration::from_secs(14 * 86_400))
    ///     .with_on_failure(|error: &BookError| match error {
    ///         BookError::Malformed => OnFailure::DeadLetter,
    ///         BookError::NoConnection => OnFailure::Retry,
    ///     });
    /// let handled = inbox.handle(Delivery::new("m-1"), async || Err(BookError::Malformed)).await;
    /// assert_eq!(handled.disposition, Disposition::DeadLetter(DeadReason::Failed));
    /// # }
    /// ```
    pub fn with_on_failure<E, F>(self, decide: F) -> Inbox<Decide<E, F>>
    where
        F: Fn(&E) -> OnFailure,
    {
        let Self { engine, name, ttl, on_crash, max_attempts, pauses, .. } = self;
        let (wait, refuse_for, has_fingerprints) =
            (self.wait, self.refuse_for, self.has_fingerprints);
        let failures = Decide::by(decide);
        Inbox {
            engine,
            name,
            ttl,
            on_crash,
            max_attempts,
            pauses,
            wait,
            refuse_for,
            has_fingerprints,
            failures,
        }
    }

    /// Sets after how many attempts a message is a dead letter. The default is 10; zero is no
    /// limit. Attempts of processes that died count. With `handle_in` and a limit of one, a message
    /// whose process died at its first delivery is tried once more: a broker does not say whether that
    /// delivery was an attempt.
    pub fn with_max_attempts(self, attempts: u32) -> Self {
        Self { max_attempts: attempts, ..self }
    }

    /// Sets the bounds of the pause after a failed attempt. It doubles with each, and is random
    /// between the half of that and all of it. The default is one second, up to five minutes.
    pub fn with_backoff(self, first: Duration, longest: Duration) -> Self {
        Self { pauses: Pauses { first, longest }, ..self }
    }

    /// Sets how long a delivery waits for another consumer that handles the same message. The
    /// default is 5 seconds; with zero it does not wait.
    pub fn with_wait(self, patience: Duration) -> Self {
        Self { wait: patience, ..self }
    }

    /// Refuses a message that comes back after its `ttl`, for `refuse_for` more: it is a
    /// [dead letter](DeadReason::Expired) instead of being handled again.
    pub fn with_refusal_after_expiry(self, refuse_for: Duration) -> Self {
        Self { refuse_for: Some(refuse_for), ..self }
    }

    /// Leaves payloads out of account, for producers that serialize a message again each time they
    /// send it. A second message under the same key is then a duplicate, whatever it says.
    pub fn without_fingerprint(self) -> Self {
        Self { has_fingerprints: false, ..self }
    }

    /// Returns the error of every call of this inbox that asks a question, which has bounds of its
    /// own, if an option is invalid.
    pub(super) fn check_asking(&self) -> Result<(), Error> {
        self.check()?;
        self.call(Key::of("")).on_crash_verify(async |_| Verdict::Unknown).check()
    }

    /// Returns the error of every call of this inbox, if an option is invalid.
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.name.len() > LONGEST_NAME {
            let length = self.name.len();
            return Err(Error::config(format!(
                "the name of the inbox takes {length} bytes and the limit is {LONGEST_NAME}"
            )));
        }
        self.call(Key::of("")).check()
    }

    pub(super) fn engine(&self) -> &Idempotency {
        &self.engine
    }

    /// Returns the pause before the next try after attempt `attempt`.
    pub(super) fn pause(&self, attempt: u32, seen: &Seen) -> Duration {
        self.pauses.after(attempt, seen.record.get())
    }

    /// The longest pause between two tries.
    pub(super) fn longest_pause(&self) -> Duration {
        self.pauses.longest
    }

    /// A record that never exists: a look at it shows whether the store answers.
    pub(super) fn probe(&self) -> RecordHandle {
        self.probing().record()
    }

    fn probing(&self) -> EdgeCall {
        self.call(Key::of(&("idempotency/inbox/probe", 0_u8)))
    }

    /// Returns the disposition of a message whose handler, or question, has panicked in the try of
    /// this consumer after `failures` failed ones. `is_known`: nothing is in doubt then.
    pub(super) fn panicked(&self, failures: u32, seen: &Seen, is_known: bool) -> Disposition {
        if self.on_crash == OnCrash::Hold && !is_known {
            Disposition::DeadLetter(DeadReason::InDoubt)
        } else {
            // A question that panics has no attempt.
            Disposition::Retry(self.pause(seen.attempt().max(failures.saturating_add(1)), seen))
        }
    }

    pub(super) fn call(&self, key: Key) -> EdgeCall {
        let on_conflict = match self.wait {
            Duration::ZERO => OnConflict::Reject,
            patience => OnConflict::Wait(patience),
        };
        let call = EdgeCall::new(&self.engine, self.name.clone(), key, self.ttl)
            .on_crash(self.on_crash)
            .on_conflict(on_conflict)
            .version(VERSION)
            .count_attempts();
        match self.refuse_for {
            Some(refuse_for) => call.after_expiry(refuse_for),
            None => call,
        }
    }

    /// Returns the error of every call of this inbox in transactions of `pool`, as far as it is known
    /// now: a database that gives no answer is none.
    #[cfg(feature = "__sql")]
    pub(super) async fn check_in<DB>(&self, pool: &sqlx::Pool<DB>) -> Result<(), Error>
    where
        DB: crate::tx::TransactionDatabase,
    {
        self.check()?;
        match self.probing().check_pool(pool).await {
            Err(error) if matches!(error.kind(), ErrorKind::Config | ErrorKind::Unsupported) => {
                Err(error)
            }
            _ => Ok(()),
        }
    }

    /// The count of the deliveries of the message with this key. Its name is no inbox's: a count is
    /// a record, which would take the place of a message's.
    #[cfg(feature = "__sql")]
    pub(super) fn counter(&self, key: Key) -> EdgeCall {
        // A scope of its own: an inbox may have the longer name.
        let scope = Key::of("idempotency/inbox/deliveries");
        EdgeCall::new(&self.engine, format!("{}/deliveries", self.name), key, self.ttl)
            .scope(Some(scope))
    }

    #[cfg(feature = "__sql")]
    pub(super) fn decide<E>(&self, error: &E) -> OnFailure
    where
        P: FailurePolicy<E>,
    {
        self.failures.decide(error)
    }

    /// Handles one delivery: runs `handler` unless the message was handled before, and returns what
    /// the broker is to be answered.
    ///
    /// Within the handler, [`Context::current`](crate::Context::current) is that of the call:
    /// attempt, fence, derived keys, steps. An `Err` of the handler says that nothing happened that
    /// must not happen twice; see [`OnFailure`].
    ///
    /// Stop to receive before the engine is [shut down](Idempotency::shutdown): every delivery after
    /// that is postponed by a second, and a broker may count it.
    ///
    /// If the future is dropped while the handler runs, the outcome is unknown: give the broker no
    /// answer. The next delivery finds what the [policy](Self::with_on_crash) says.
    ///
    /// # Panics
    /// If the handler panics. The outcome is unknown.
    pub async fn handle<E, B, F>(&self, delivery: Delivery<'_>, handler: B) -> Handled<E>
    where
        P: FailurePolicy<E>,
        B: FnOnce() -> F,
        F: Future<Output = Result<(), E>>,
    {
        let seen = Seen::default();
        self.handle_seen(delivery, handler, &seen).await
    }

    /// Like [`handle`](Self::handle), but after a crash `question` is asked what became of the
    /// earlier attempt, in place of the [policy](Self::with_on_crash).
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use idempotency::{Idempotency, Verdict, store::MemoryStore};
    /// use idempotency::inbox::{Delivery, Disposition, Inbox};
    ///
    /// # async fn books_show(_: &str) -> bool { true }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let engine = Idempotency::new(MemoryStore::new());
    /// let inbox = Inbox::new(engine, "billing", Duration::from_secs(14 * 86_400));
    /// let handled = inbox.handle_verifying(
    ///     Delivery::new("m-1"),
    ///     async |_attempt| match books_show("m-1").await {
    ///         true => Verdict::Completed(()),
    ///         false => Verdict::NotExecuted,
    ///     },
    ///     async || Ok::<_, std::io::Error>(()),
    /// );
    /// assert_eq!(handled.await.disposition, Disposition::Ack);
    /// # }
    /// ```
    pub async fn handle_verifying<E, Q, A, B, F>(
        &self,
        delivery: Delivery<'_>,
        question: Q,
        handler: B,
    ) -> Handled<E>
    where
        P: FailurePolicy<E>,
        Q: FnOnce(Attempt) -> A,
        A: Future<Output = Verdict<()>>,
        B: FnOnce() -> F,
        F: Future<Output = Result<(), E>>,
    {
        let seen = Seen::default();
        self.handle_verifying_seen(delivery, question, handler, &seen).await
    }

    pub(super) async fn handle_seen<E, B, F>(
        &self,
        delivery: Delivery<'_>,
        handler: B,
        seen: &Seen,
    ) -> Handled<E>
    where
        P: FailurePolicy<E>,
        B: FnOnce() -> F,
        F: Future<Output = Result<(), E>>,
    {
        let call = match self.call_of(&delivery) {
            Ok(call) => call,
            Err(error) => return self.answered(EdgeOutcome::Refused { error, own: None }, seen),
        };
        seen.of(&call);
        let outcome = call.run(|turn| self.body(turn, handler, &delivery, seen)).await;
        self.answered(outcome, seen)
    }

    pub(super) async fn handle_verifying_seen<E, Q, A, B, F>(
        &self,
        delivery: Delivery<'_>,
        question: Q,
        handler: B,
        seen: &Seen,
    ) -> Handled<E>
    where
        P: FailurePolicy<E>,
        Q: FnOnce(Attempt) -> A,
        A: Future<Output = Verdict<()>>,
        B: FnOnce() -> F,
        F: Future<Output = Result<(), E>>,
    {
        let call = match self.call_of(&delivery) {
            Ok(call) => call,
            Err(error) => return self.answered(EdgeOutcome::Refused { error, own: None }, seen),
        };
        seen.of(&call);
        let question = async |attempt| match question(attempt).await {
            Verdict::Completed(()) => Verdict::Completed(done()),
            Verdict::NotExecuted => Verdict::NotExecuted,
            Verdict::Unknown => Verdict::Unknown,
        };
        let call = call.on_crash_verify(question);
        let outcome = call.run(|turn| self.body(turn, handler, &delivery, seen)).await;
        self.answered(outcome, seen)
    }

    pub(super) fn call_of(&self, delivery: &Delivery<'_>) -> Result<EdgeCall, Error> {
        self.check()?;
        let call = self.call(delivery.key());
        let fingerprint = if self.has_fingerprints { delivery.fingerprint()? } else { None };
        Ok(match fingerprint {
            Some(fingerprint) => call.fingerprint(fingerprint),
            None => call,
        })
    }

    /// The body of the call: runs the handler, unless there were too many attempts.
    async fn body<E, B, F>(
        &self,
        turn: Turn,
        handler: B,
        delivery: &Delivery<'_>,
        seen: &Seen,
    ) -> (Ended<E>, End)
    where
        P: FailurePolicy<E>,
        B: FnOnce() -> F,
        F: Future<Output = Result<(), E>>,
    {
        let attempt = turn.attempt().context().attempt();
        if self.is_exhausted_before(attempt) {
            // An earlier attempt that broke off stays on the record; those that failed do not count
            // any more.
            return (Ended::Exhausted, End::Dismissed);
        }
        seen.begins(attempt);
        // Without a record only the broker counts.
        let attempt = if attempt == 0 { delivery.attempt(0) } else { attempt };
        match handler().await {
            Ok(()) => (Ended::Processed, done().into()),
            Err(error) => {
                let (disposition, end) = self.failed(attempt, seen, self.failures.decide(&error));
                (Ended::Failed(error, disposition), end)
            }
        }
    }

    /// Returns true if the attempts before `attempt` were as many as the inbox allows.
    pub(super) fn is_exhausted_before(&self, attempt: u32) -> bool {
        self.max_attempts != 0 && attempt > self.max_attempts
    }

    /// Returns what follows from a failure of attempt `attempt`.
    pub(super) fn failed(
        &self,
        attempt: u32,
        seen: &Seen,
        decision: OnFailure,
    ) -> (Disposition, End) {
        let pause = match decision {
            OnFailure::Retry => self.pause(attempt, seen),
            OnFailure::RetryAfter(pause) => pause,
            OnFailure::DeadLetter => {
                return (Disposition::DeadLetter(DeadReason::Failed), End::Dismissed);
            }
            OnFailure::Hold => return (Disposition::DeadLetter(DeadReason::InDoubt), End::Held),
            OnFailure::Done => {
                let failed = EdgeResult::failed(Bytes::new()).unless_refused();
                return (Disposition::Ack, failed.into());
            }
        };
        if self.max_attempts != 0 && attempt >= self.max_attempts {
            // A redrive begins to count from one, unless the record is left to its policy.
            return (Disposition::DeadLetter(DeadReason::Attempts), End::Dismissed);
        }
        (Disposition::Retry(pause), End::Released)
    }

    pub(super) fn answered<E>(&self, outcome: EdgeOutcome<Ended<E>>, seen: &Seen) -> Handled<E> {
        let attempt = seen.attempt.load(Ordering::Relaxed);
        let (disposition, outcome) = match outcome {
            EdgeOutcome::Executed(ended) | EdgeOutcome::Unprotected(ended) => match ended {
                Ended::Processed => (Disposition::Ack, Outcome::Processed),
                Ended::Failed(error, disposition) => (disposition, Outcome::Failed(error)),
                Ended::Exhausted => {
                    (Disposition::DeadLetter(DeadReason::Attempts), Outcome::Exhausted)
                }
            },
            EdgeOutcome::Replayed { .. } => (Disposition::Ack, Outcome::Duplicate),
            // An inbox has no result that is too large: this one is of something else.
            EdgeOutcome::Lost { error, .. } => {
                (Disposition::DeadLetter(DeadReason::Mismatch), Outcome::Refused(error))
            }
            EdgeOutcome::Refused { error, own } => {
                (self.refused(&error, own.is_some(), seen), Outcome::Refused(error))
            }
        };
        Handled { disposition, outcome, attempt, record: seen.record.get().copied() }
    }

    /// Returns the disposition of a message whose call was refused. `has_run`: the handler ran here.
    pub(super) fn refused(&self, error: &Error, has_run: bool, seen: &Seen) -> Disposition {
        let later = Disposition::Postpone(error.retry_after().unwrap_or(SOON).max(LEAST));
        match error.kind() {
            ErrorKind::Mismatch => Disposition::DeadLetter(DeadReason::Mismatch),
            ErrorKind::Expired => Disposition::DeadLetter(DeadReason::Expired),
            ErrorKind::MissingKey => Disposition::DeadLetter(DeadReason::MissingKey),
            ErrorKind::InvalidKey => Disposition::DeadLetter(DeadReason::InvalidKey),
            // A call that verifies later is retryable.
            ErrorKind::InDoubt | ErrorKind::StepInterrupted if !error.is_retryable() => {
                Disposition::DeadLetter(DeadReason::InDoubt)
            }
            // It was overtaken, and the next call would run as if nothing had happened.
            ErrorKind::Superseded if has_run && !error.is_retryable() => {
                Disposition::DeadLetter(DeadReason::InDoubt)
            }
            // The result leaves out a step that an earlier attempt has recorded: this code cannot
            // finish the call.
            ErrorKind::Decode if has_run => {
                let attempt = seen.attempt();
                if self.max_attempts != 0 && attempt >= self.max_attempts {
                    Disposition::DeadLetter(DeadReason::Attempts)
                } else {
                    Disposition::Retry(self.pause(attempt, seen))
                }
            }
            // The background goes on storing it for longer than that.
            ErrorKind::NotStored => Disposition::Postpone(limits(&self.engine).lease),
            ErrorKind::InProgress => {
                let left = error.retry_after().unwrap_or(limits(&self.engine).lease);
                Disposition::Postpone(left.max(LEAST))
            }
            _ => later,
        }
    }
}

/// The result of a message that was handled.
pub(super) fn done() -> EdgeResult {
    EdgeResult::completed(Bytes::new())
}

/// How the body of a call ended.
pub(super) enum Ended<E> {
    Processed,
    Failed(E, Disposition),
    Exhausted,
}

/// What is seen of a call beside its outcome, also if it panics.
#[derive(Debug, Default)]
pub(super) struct Seen {
    attempt: AtomicU32,
    record: std::sync::OnceLock<crate::key::KeyHash>,
}

impl Seen {
    pub(super) fn of(&self, call: &EdgeCall) {
        if let Ok(hash) = call.record().hash() {
            let _ = self.record.set(hash);
        }
    }

    pub(super) fn record(&self) -> Option<crate::key::KeyHash> {
        self.record.get().copied()
    }

    /// The handler begins its attempt `attempt`.
    pub(super) fn begins(&self, attempt: u32) {
        self.attempt.store(attempt, Ordering::Relaxed);
    }

    pub(super) fn attempt(&self) -> u32 {
        self.attempt.load(Ordering::Relaxed)
    }
}
