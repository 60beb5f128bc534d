//! A message whose record is in one transaction with what its handler writes.

use std::error::Error as StdError;
use std::fmt;
use std::future::{Future, ready};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use bytes::Bytes;
use sqlx::Pool;

use super::delivery::Delivery;
use super::failures::{FailurePolicy, OnFailure};
use super::handled::{DeadReason, Disposition, Handled};
use super::inbox::{Ended, Inbox, Seen, done};
use crate::edge::{Attempt, EdgeOutcome, EdgeResult};
use crate::error::{Error, ErrorKind};
use crate::tx::{OpenTransaction, TransactionDatabase};

/// How a handler ended that is not to be committed.
#[derive(Debug)]
enum Undone<E> {
    Failed(E),
    Exhausted,
    /// It has the message, and is to be counted before the handler runs.
    Uncounted,
}

impl<E: fmt::Display> fmt::Display for Undone<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => error.fmt(f),
            Self::Exhausted => f.write_str("there were as many attempts as the inbox allows"),
            Self::Uncounted => f.write_str("the delivery is counted first"),
        }
    }
}

impl<E: StdError + 'static> StdError for Undone<E> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Failed(error) => Some(error),
            Self::Exhausted | Self::Uncounted => None,
        }
    }
}

impl<P> Inbox<P> {
    /// Handles one delivery in a transaction of `pool`: the record of the message and what the
    /// handler writes in the transaction are committed together, or not at all. After a crash
    /// nothing has happened, and the next delivery runs: **each message has its effect once**, as far
    /// as its effect is in that database.
    ///
    /// `pool` must be one of the database in which the engine's store is. The handler gets the
    /// transaction and need not end it; the rules of
    /// [`in_transaction`](crate::tx::in_transaction) are its rules. If the database could not
    /// complete the transaction (a deadlock, a lost connection), all of it is run again, up to 12
    /// times. If the answer to the commit is lost, the record shows what became of it.
    ///
    /// The rest is as with [`handle`](Self::handle), except that nothing is left of a failed
    /// attempt:
    ///
    /// - An `Err` undoes what the handler wrote. [`OnFailure::Done`] then stores the failure, and
    ///   [`OnFailure::Hold`] makes the message a dead letter, and leaves no record.
    /// - The [policy](Self::with_on_crash) does not matter, but for a record that `handle` has left
    ///   behind: it is in doubt.
    /// - The number of attempts is rolled back too. So deliveries that the
    ///   [broker's count](Delivery::deliveries) shows as repetitions, and
    ///   [suspects](Delivery::suspect), are counted in the store before their handler runs, in a
    ///   few more requests. What was handled before is not counted, and neither is what waits in
    ///   vain for another transaction.
    /// - It waits for each transaction that has the message for up to
    ///   [`with_wait`](Self::with_wait).
    ///
    /// Effects outside of the database still happen once for each attempt.
    ///
    /// # Panics
    /// If the handler panics. Nothing has happened in the database.
    ///
    #[cfg_attr(feature = "sqlite", doc = "```")]
    #[cfg_attr(not(feature = "sqlite"), doc = "```ignore")]
    /// # use std::time::Duration;
    /// # use idempotency::{Idempotency, store::SqliteStore};
    /// use idempotency::inbox::{Delivery, Disposition, Inbox};
    /// use idempotency::tx::OpenTransaction;
    /// use sqlx::Sqlite;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let pool = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await?;
    /// # sqlx::query("CREATE TABLE bookings (amount INTEGER)").execute(&pool).await?;
    /// let store = SqliteStore::from_pool(pool.clone());
    /// store.migrate().await?;
    /// let inbox = Inbox::new(Idempotency::new(store), "billing", Duration::from_secs(14 * 86_400));
    /// for _ in 0..2 {
    ///     let delivery = Delivery::new("order-7-paid").payload(b"100");
    ///     let handled = inbox.handle_in(&pool, delivery, |mut tx: OpenTransaction<Sqlite>| async move {
    ///         sqlx::query("INSERT INTO bookings VALUES (100)").execute(&mut **tx).await.map(drop)
    ///     });
    ///     assert_eq!(handled.await.disposition, Disposition::Ack);
    /// }
    /// let (booked,): (i64,) = sqlx::query_as("SELECT sum(amount) FROM bookings").fetch_one(&pool).await?;
    /// assert_eq!(booked, 100);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn handle_in<DB, E, B, F>(
        &self,
        pool: &Pool<DB>,
        delivery: Delivery<'_>,
        handler: B,
    ) -> Handled<E>
    where
        P: FailurePolicy<E>,
        DB: TransactionDatabase,
        B: FnMut(OpenTransaction<DB>) -> F,
        F: Future<Output = Result<(), E>>,
        E: StdError + 'static,
    {
        let seen = Seen::default();
        self.handle_in_seen(pool, delivery, handler, &seen, &Counted::default()).await
    }

    pub(super) async fn handle_in_seen<DB, E, B, F>(
        &self,
        pool: &Pool<DB>,
        delivery: Delivery<'_>,
        mut handler: B,
        seen: &Seen,
        counted: &Counted,
    ) -> Handled<E>
    where
        P: FailurePolicy<E>,
        DB: TransactionDatabase,
        B: FnMut(OpenTransaction<DB>) -> F,
        F: Future<Output = Result<(), E>>,
        E: StdError + 'static,
    {
        let refused = |error| self.answered(EdgeOutcome::Refused { error, own: None }, seen);
        let refused_a_step = AtomicBool::new(false);
        let (attempt, ended) = loop {
            let call = match self.call_of(&delivery) {
                Ok(call) => call,
                Err(error) => return refused(error),
            };
            seen.of(&call);
            let attempt = delivery.attempt(counted.get());
            let is_uncounted = delivery.is_suspect() && counted.get() == 0;
            // An attempt before the first that was counted is not known: a broker delivers again what
            // it has only delivered, too. Each message is tried.
            let is_exhausted = self.is_exhausted_before(attempt) && counted.get() != 1;
            let body = |transaction| {
                // A message that was handled is acknowledged, however often it was delivered: so its
                // record was looked for first.
                let running = match Attempt::current() {
                    Some(running) if running.is_protected() && is_uncounted => {
                        Err(Undone::Uncounted)
                    }
                    Some(running) if !is_exhausted => {
                        if running.is_protected() {
                            seen.begins(attempt);
                        }
                        Ok((running, handler(transaction)))
                    }
                    _ => Err(Undone::Exhausted),
                };
                let refused_a_step = &refused_a_step;
                async move {
                    let (running, body) = running?;
                    let result = body.await;
                    refused_a_step.store(running.was_refused_a_step(), Ordering::Relaxed);
                    result.map_err(Undone::Failed)
                }
            };
            let ended = call.run_in_transaction(pool, done(), body).await;
            if !matches!(ended, Err(Undone::Uncounted)) {
                break (attempt, ended);
            }
            // Not in the transaction: it would need a second connection, and all of a pool may be in
            // transactions that wait for one.
            match self.counter(delivery.counted_under()).count().await {
                Ok(count) => counted.set(count),
                Err(error) => return refused(error),
            }
        };
        let is_exhausted = matches!(ended, Err(Undone::Exhausted));
        let answer = match ended {
            Ok(outcome) => self.answered_in(outcome, attempt, seen),
            Err(Undone::Exhausted | Undone::Uncounted) => {
                self.answered(EdgeOutcome::Executed(Ended::Exhausted), seen)
            }
            Err(Undone::Failed(error)) => {
                let disposition = match self.decide(&error) {
                    // It may be the engine's own error, and no result.
                    OnFailure::Done if refused_a_step.load(Ordering::Relaxed) => {
                        self.failed(attempt, seen, OnFailure::Retry).0
                    }
                    OnFailure::Done => self.store_failure(pool, &delivery, seen).await,
                    decision => self.failed(attempt, seen, decision).0,
                };
                self.answered(EdgeOutcome::Executed(Ended::Failed(error, disposition)), seen)
            }
        };
        let is_dead = matches!(answer.disposition, Disposition::DeadLetter(_));
        if counted.get() > 0 && is_dead && !(is_exhausted && delivery.stays_counted()) {
            // A redrive begins to count from one.
            if let Err(error) = self.counter(delivery.counted_under()).uncount().await {
                tracing::warn!(%error, "the count of the deliveries of a dead letter stays");
            }
        }
        answer
    }

    /// Stores the failure of a handler, whose transaction was rolled back, as its result.
    async fn store_failure<DB: TransactionDatabase>(
        &self,
        pool: &Pool<DB>,
        delivery: &Delivery<'_>,
        seen: &Seen,
    ) -> Disposition {
        let call = match self.call_of(delivery) {
            Ok(call) => call,
            Err(error) => return self.refused(&error, false, seen),
        };
        let nothing = |_| ready(Ok::<_, std::convert::Infallible>(()));
        let failed = EdgeResult::failed(Bytes::new());
        match call.run_in_transaction(pool, failed, nothing).await {
            Ok(EdgeOutcome::Refused { error, .. } | EdgeOutcome::Lost { error, .. }) => {
                self.refused(&error, false, seen)
            }
            Ok(_) => Disposition::Ack,
        }
    }

    fn answered_in<E>(&self, outcome: EdgeOutcome<()>, attempt: u32, seen: &Seen) -> Handled<E> {
        let outcome = match outcome {
            EdgeOutcome::Refused { error, own: Some(()) } => {
                let disposition = self.not_committed(&error, attempt, seen);
                let handled = self.answered(EdgeOutcome::Refused { error, own: None }, seen);
                return Handled { disposition, ..handled };
            }
            EdgeOutcome::Refused { error, own: None } if is_in_doubt(&error) => {
                let handled = self.answered(EdgeOutcome::Refused { error, own: None }, seen);
                let disposition = Disposition::DeadLetter(DeadReason::InDoubt);
                return Handled { disposition, ..handled };
            }
            EdgeOutcome::Executed(()) => EdgeOutcome::Executed(Ended::Processed),
            EdgeOutcome::Unprotected(()) => EdgeOutcome::Unprotected(Ended::Processed),
            EdgeOutcome::Replayed { result, .. } => EdgeOutcome::Replayed { result, own: None },
            EdgeOutcome::Lost { error, .. } => EdgeOutcome::Lost { error, own: None },
            EdgeOutcome::Refused { error, own: None } => EdgeOutcome::Refused { error, own: None },
        };
        self.answered(outcome, seen)
    }

    /// Returns the disposition of a message whose handler has succeeded and whose transaction was
    /// not committed, or is not known to be.
    fn not_committed(&self, error: &Error, attempt: u32, seen: &Seen) -> Disposition {
        match error.kind() {
            ErrorKind::NotStored if is_in_doubt(error) => {
                Disposition::DeadLetter(DeadReason::InDoubt)
            }
            ErrorKind::NotStored => self.refused(error, true, seen),
            ErrorKind::StoreUnavailable if error.is_retryable() => self.refused(error, true, seen),
            // The handler has gone on after an error of the database, or has written what it does
            // not accept: the message is at fault, and not the database.
            _ => self.failed(attempt, seen, OnFailure::Retry).0,
        }
    }
}

/// Returns true if the handler has ended its transaction itself, and part of what it wrote may be
/// committed without the record.
fn is_in_doubt(error: &Error) -> bool {
    error.kind() == ErrorKind::NotStored && !error.is_retryable()
}

/// What the store has counted of a message, for all tries of one delivery: they count once. Zero if
/// it has not.
#[derive(Debug, Default)]
pub(super) struct Counted(AtomicU32);

impl Counted {
    fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, count: u32) {
        self.0.store(count, Ordering::Relaxed);
    }
}

#[cfg(all(test, feature = "sqlite"))]
mod tests {
    use std::time::Duration;

    use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};

    use super::{Counted, Seen};
    use crate::Idempotency;
    use crate::inbox::{Delivery, Disposition, Inbox};
    use crate::store::SqliteStore;

    /// The database of the records answers, and the pool of the handler does not.
    #[tokio::test]
    async fn tries_of_one_delivery_that_do_not_begin_count_as_one() {
        let options = SqliteConnectOptions::new().filename("file:counts?mode=memory&cache=shared");
        let open = || SqlitePoolOptions::new().max_connections(1).connect_with(options.clone());
        let (pool, closed) = (open().await.unwrap(), open().await.unwrap());
        closed.close().await;
        let store = SqliteStore::from_pool(pool.clone());
        store.migrate().await.unwrap();
        let inbox = Inbox::new(Idempotency::new(store), "billing", Duration::from_secs(60));
        let (inbox, counted) = (inbox.with_max_attempts(2), Counted::default());
        let delivery = || Delivery::new("m-1").suspect();
        let book = async |_| Ok::<_, sqlx::Error>(());
        for _ in 0..5 {
            let seen = Seen::default();
            let handled = inbox.handle_in_seen(&closed, delivery(), book, &seen, &counted).await;
            assert!(matches!(handled.disposition, Disposition::Postpone(_)), "{handled:?}");
        }
        let seen = Seen::default();
        let handled = inbox.handle_in_seen(&pool, delivery(), book, &seen, &counted).await;
        assert_eq!((handled.disposition, handled.attempt), (Disposition::Ack, 1));
    }
}
