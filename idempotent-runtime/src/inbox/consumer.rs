//! The loop around an inbox.

use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tracing::Instrument as _;

use super::calling::Calling;
use super::drive::Drive;
use super::failures::{FailurePolicy, RetryAll};
#[cfg(feature = "__sql")]
use super::handling::InTransaction;
use super::handling::{Handling, Recorded};
use super::inbox::Inbox;
use super::intake::Intake;
use super::observed::Observed;
use super::resting::Resting;
use super::source::{Message as _, Source};
use super::worker::Worker;
use crate::Verdict;
use crate::edge::{Attempt, clock, limits};
use crate::error::Error;

/// A question about an earlier attempt of a message.
pub(super) type Question<M> =
    Arc<dyn Fn(Arc<M>, Attempt) -> Pin<Box<dyn Future<Output = Verdict<()>> + Send>> + Send + Sync>;

/// A consumer: it receives messages from a [`Source`], handles each by an [`Inbox`], and reports the
/// dispositions to the broker.
///
/// It holds twice as many messages as it runs handlers; where lanes are
/// [held back](Source::hold_lane), those that wait in their lane are beside these, up to three times
/// as many as handlers for each lane. Those of one [lane](super::Message::lane) run one after the other.
/// While the store does not answer, nothing is received: what is in hand waits without an answer to
/// the broker, and is tried again when the store is back.
///
/// ```no_run
/// # use std::time::Duration;
/// # use idempotency::Idempotency;
/// use idempotency::inbox::{Consumer, Inbox, Source};
///
/// # async fn book(_: &[u8]) -> Result<(), std::io::Error> { Ok(()) }
/// async fn consume(engine: Idempotency, queue: impl Source) {
///     let inbox = Inbox::new(engine, "billing", Duration::from_secs(14 * 86_400));
///     let stop = async { tokio::signal::ctrl_c().await.expect("there is a handler") };
///     let drained = Consumer::new(inbox, queue)
///         .with_concurrency(32)
///         .run(stop, |message| async move { book(b"the payload of message").await })
///         .await
///         .expect("the broker and the store are set up");
///     assert_eq!(drained.left, 0);
/// }
/// ```
#[must_use = "a consumer does nothing until it runs"]
pub struct Consumer<S: Source, P = RetryAll> {
    inbox: Inbox<P>,
    source: S,
    concurrency: usize,
    drain: Duration,
    question: Option<Question<S::Message>>,
}

impl<S: Source, P> Consumer<S, P> {
    /// Creates a consumer of the messages of `source`.
    pub fn new(inbox: Inbox<P>, source: S) -> Self {
        Self { inbox, source, concurrency: 16, drain: Duration::from_secs(25), question: None }
    }

    /// Sets how many handlers run at the same time. The default is 16.
    pub fn with_concurrency(self, handlers: usize) -> Self {
        Self { concurrency: handlers, ..self }
    }

    /// Sets how long [`run`](Self::run) waits for running handlers when it stops. The default is
    /// 25 seconds: Kubernetes leaves a process 30.
    pub fn with_drain(self, patience: Duration) -> Self {
        Self { drain: patience, ..self }
    }

    /// Asks `question` what became of an earlier attempt, if that broke off, in place of the
    /// inbox's [policy](Inbox::with_on_crash).
    pub fn with_on_crash_verify<Q, A>(self, question: Q) -> Self
    where
        Q: Fn(Arc<S::Message>, Attempt) -> A + Send + Sync + 'static,
        A: Future<Output = Verdict<()>> + Send + 'static,
    {
        let question: Question<S::Message> =
            Arc::new(move |message, attempt| Box::pin(question(message, attempt)));
        Self { question: Some(question), ..self }
    }

    /// Runs until `stop` resolves. Each message is handled in a task of its own.
    ///
    /// Then nothing more is received. Messages that wait go back to the broker, running handlers
    /// get up to [`with_drain`](Self::with_drain), and their messages are settled. Those that take
    /// longer run on without the consumer, and their messages are not settled: the broker delivers
    /// them again, and the next consumer finds the record.
    ///
    /// The same follows when the engine is [shut down](crate::Idempotency::shutdown): stop the
    /// consumer first, the engine after it. If this future is dropped, nothing is settled any more,
    /// and running handlers run on.
    ///
    /// # Errors
    /// [`ConsumeError::Refused`] before anything is received if an option is invalid, and later if a
    /// call of the inbox shows that: a record of another format or of a function with its name, a
    /// store that lacks a capability. The message that showed it is not settled.
    /// [`ConsumeError::Source`] if the broker ends the connection for good.
    ///
    /// # Panics
    /// If it runs outside of a Tokio runtime.
    pub async fn run<H, F, E>(
        self,
        stop: impl Future<Output = ()>,
        handler: H,
    ) -> Result<Drained, ConsumeError<S::Error>>
    where
        P: FailurePolicy<E> + Send + Sync + 'static,
        H: Fn(Arc<S::Message>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: fmt::Debug + Send + 'static,
    {
        let asks = self.question.is_some();
        let checked = if asks { self.inbox.check_asking() } else { self.inbox.check() };
        checked.map_err(ConsumeError::Refused)?;
        let Self { inbox, source, question, .. } = self;
        let bounds = (self.concurrency, self.drain);
        drive(inbox, source, bounds, stop, Recorded { handler, question }).await
    }

    /// Runs like [`run`](Self::run), with the record of each message in one transaction of `pool` with
    /// what its handler writes: see [`Inbox::handle_in`].
    ///
    /// # Errors
    /// Those of [`run`](Self::run). [`ConsumeError::Refused`] also if `pool` is one of another
    /// database than that of the engine's store, or if the consumer has a question
    /// ([`with_on_crash_verify`](Self::with_on_crash_verify)): after a crash nothing has happened.
    ///
    /// # Panics
    /// If it runs outside of a Tokio runtime.
    ///
    #[cfg_attr(feature = "postgres", doc = "```")]
    #[cfg_attr(not(feature = "postgres"), doc = "```ignore")]
    /// # use std::time::Duration;
    /// use idempotency::inbox::{Consumer, Inbox, Message, Source};
    /// use idempotency::{Idempotency, store::PostgresStore, tx::OpenTransaction};
    /// use sqlx::{PgPool, Postgres};
    ///
    /// async fn consume(orders: impl Source, pool: PgPool) -> Result<(), Box<dyn std::error::Error>> {
    ///     let engine = Idempotency::new(PostgresStore::from_pool(pool.clone()));
    ///     let inbox = Inbox::new(engine, "billing", Duration::from_secs(14 * 86_400));
    ///     let book = |mut tx: OpenTransaction<Postgres>, _| async move {
    ///         sqlx::query("UPDATE totals SET orders = orders + 1").execute(&mut **tx).await.map(drop)
    ///     };
    ///     Consumer::new(inbox, orders).run_in(pool, std::future::pending(), book).await?;
    ///     Ok(())
    /// }
    /// ```
    #[cfg(feature = "__sql")]
    pub async fn run_in<DB, H, F, E>(
        self,
        pool: sqlx::Pool<DB>,
        stop: impl Future<Output = ()>,
        handler: H,
    ) -> Result<Drained, ConsumeError<S::Error>>
    where
        P: FailurePolicy<E> + Send + Sync + 'static,
        DB: crate::tx::TransactionDatabase,
        H: Fn(crate::tx::OpenTransaction<DB>, Arc<S::Message>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: std::error::Error + Send + 'static,
    {
        if self.question.is_some() {
            let error = Error::config(
                "a consumer whose records are in transactions has no question to ask: after a \
                 crash nothing has happened",
            );
            return Err(ConsumeError::Refused(error));
        }
        let mut stop = std::pin::pin!(stop);
        tokio::select! {
            biased;
            () = stop.as_mut() => return Ok(Drained { left: 0 }),
            checked = self.inbox.check_in(&pool) => checked.map_err(ConsumeError::Refused)?,
        }
        let bounds = (self.concurrency, self.drain);
        let handling = InTransaction { pool, handler };
        drive(self.inbox, self.source, bounds, stop, handling).await
    }
}

/// Runs the loop of a consumer with these bounds: how many handlers run at the same time, and how
/// long it waits for them when it stops.
async fn drive<S, P, H>(
    inbox: Inbox<P>,
    source: S,
    (concurrency, drain): (usize, Duration),
    stop: impl Future<Output = ()>,
    handling: H,
) -> Result<Drained, ConsumeError<S::Error>>
where
    S: Source,
    P: Send + Sync + 'static,
    H: Handling<S::Message, P>,
{
    if concurrency == 0 {
        let error = Error::config("a consumer with a concurrency of 0 handles nothing");
        return Err(ConsumeError::Refused(error));
    }
    let clock = clock(inbox.engine());
    let intake = Arc::new(Intake::new());
    let places = Arc::new(Semaphore::new(concurrency.min(Semaphore::MAX_PERMITS / 2)));
    let resting = Arc::new(Resting::default());
    let calling = Arc::new(Calling::new(clock.clone(), limits(inbox.engine()).max_run));
    let stopping = Arc::new(Observed::default());
    let probe = inbox.probe();
    let worker = Arc::new(Worker {
        inbox,
        handling,
        order: S::ORDER,
        clock: clock.clone(),
        intake: intake.clone(),
        resting: resting.clone(),
        calling: calling.clone(),
        places: places.clone(),
        stopping: stopping.clone(),
    });
    let work = move |message: Arc<S::Message>, place| {
        let label = catch_unwind(AssertUnwindSafe(|| message.label().to_owned()));
        let label = label.unwrap_or_default();
        let span = tracing::info_span!("message", label);
        worker.clone().work(message, place).instrument(span)
    };
    let notes = (intake, resting, calling);
    let mut drive = Drive::new(source, clock, notes, places, stopping, probe, concurrency, drain);
    drive.forgets_doubts = H::FORGETS_DOUBTS;
    // Large, and once for each consumer.
    Box::pin(drive.run(stop, work)).await
}

impl<S: Source, P> fmt::Debug for Consumer<S, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("concurrency", &self.concurrency)
            .field("drain", &self.drain)
            .finish_non_exhaustive()
    }
}

/// How a consumer ended that was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Drained {
    /// How many messages were in hand and are not settled. The broker delivers them again.
    pub left: usize,
}

/// The reason why a consumer ended that was not stopped. `E` is the error of its source.
#[derive(Debug)]
#[non_exhaustive]
pub enum ConsumeError<E> {
    /// An option of the inbox, the engine or the store is invalid, or a record has another format.
    Refused(Error),
    /// The broker ended the connection.
    Source(E),
}

impl<E: fmt::Display> fmt::Display for ConsumeError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(error) => write!(f, "the consumer has ended: {error}"),
            Self::Source(error) => write!(f, "the connection to the broker has ended: {error}"),
        }
    }
}

impl<E: std::error::Error + 'static> std::error::Error for ConsumeError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(match self {
            Self::Refused(error) => error,
            Self::Source(error) => error,
        })
    }
}
