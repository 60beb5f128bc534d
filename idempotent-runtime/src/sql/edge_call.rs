//! A call of an edge whose record is in a transaction of its own, with what the body writes.

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;

use sqlx::Pool;

use super::in_transaction::{Marked, OpenTransaction, TransactionDatabase, repeated};
use crate::edge::{EdgeCall, EdgeOutcome, EdgeResult, codec};
use crate::engine::{
    Call, First, FirstResult, NoVerify, RecordedFirst, record_first, unknown_by_effect,
};
use crate::error::{Error, ErrorKind};
use crate::events::Outcome;
use crate::lock::Mutex;
use crate::outcome::{Answer, Codec, stored};
use crate::store::Token;

impl EdgeCall {
    /// Runs the call in a transaction of `pool`: the record with `result` and what `body` writes are
    /// committed together, or not at all. If the database could not complete the transaction, all
    /// of it is run again, up to 12 times, as by [`in_transaction`](crate::tx::in_transaction),
    /// whose rules are those of this body too.
    ///
    /// The record is written before the body runs. Nothing of it is seen before the commit. A call
    /// with this key in another transaction waits until this one has ended, for as long as
    /// [`on_conflict`](EdgeCall::on_conflict) allows for each such transaction.
    ///
    /// Neither a lease nor a policy is involved: after a crash nothing has happened. The number of
    /// attempts is rolled back too.
    ///
    /// `own` of a [`Refused`](EdgeOutcome::Refused) call is the value of a body whose transaction was
    /// not committed, or is not known to be.
    ///
    /// # Errors
    /// That of the body: nothing of this call is kept.
    ///
    #[cfg_attr(feature = "sqlite", doc = "```")]
    #[cfg_attr(not(feature = "sqlite"), doc = "```ignore")]
    /// # use std::time::Duration;
    /// # use idempotency::{Idempotency, store::SqliteStore};
    /// use idempotency::edge::{EdgeCall, EdgeOutcome, EdgeResult};
    /// use idempotency::key::Key;
    /// use idempotency::tx::OpenTransaction;
    /// use sqlx::Sqlite;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let pool = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await?;
    /// # sqlx::query("CREATE TABLE mail (id INTEGER)").execute(&pool).await?;
    /// let store = SqliteStore::from_pool(pool.clone());
    /// store.migrate().await?;
    /// let engine = Idempotency::new(store);
    /// for _ in 0..2 {
    ///     let call = EdgeCall::new(&engine, "mail", Key::of(&7), Duration::from_secs(60));
    ///     let write = |mut tx: OpenTransaction<Sqlite>| async move {
    ///         sqlx::query("INSERT INTO mail VALUES (7)").execute(&mut **tx).await.map(drop)
    ///     };
    ///     let outcome = call.run_in_transaction(&pool, EdgeResult::completed("sent"), write).await?;
    ///     assert!(matches!(outcome, EdgeOutcome::Executed(()) | EdgeOutcome::Replayed { .. }));
    /// }
    /// let (sent,): (i64,) = sqlx::query_as("SELECT count(*) FROM mail").fetch_one(&pool).await?;
    /// assert_eq!(sent, 1);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn run_in_transaction<DB, T, E, B, F>(
        self,
        pool: &Pool<DB>,
        result: EdgeResult,
        body: B,
    ) -> Result<EdgeOutcome<T>, E>
    where
        DB: TransactionDatabase,
        B: FnMut(OpenTransaction<DB>) -> F,
        F: Future<Output = Result<T, E>>,
        E: StdError + 'static,
    {
        if let Some(error) = self.refuses(&result) {
            return Ok(EdgeOutcome::Refused { error, own: None });
        }
        let (task_state, call, max_ttl, NoVerify) = self.parts();
        task_state.wrap(run(pool, call, &result.within(max_ttl).first(), body)).await
    }

    /// Checks that transactions of `pool` are in the database of the engine's store: their records
    /// would be in another one otherwise. Writes nothing. A disabled operation is not checked.
    ///
    /// # Errors
    /// [`Config`](ErrorKind::Config) if they are not, or if an option is invalid.
    /// [`StoreUnavailable`](ErrorKind::StoreUnavailable) if the database gives no answer.
    pub async fn check_pool<DB: TransactionDatabase>(self, pool: &Pool<DB>) -> Result<(), Error> {
        let nothing = async |_| Err::<(), _>(Nothing);
        match self.run_in_transaction(pool, EdgeResult::completed(""), nothing).await {
            Ok(EdgeOutcome::Refused { error, .. }) => Err(error),
            Ok(_) | Err(Nothing) => Ok(()),
        }
    }
}

/// The error of a body that only asks whether it could run.
#[derive(Debug)]
struct Nothing;

impl fmt::Display for Nothing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing is to be written")
    }
}

impl StdError for Nothing {}

const COMMITTED_BY_HAND: &str =
    "the body has committed its transaction itself, and failed after that";

/// How one transaction ended that was not committed.
#[derive(Debug)]
enum Failed<E> {
    /// The body returned this error.
    Own(E),
    Refused(Error),
    /// There is a record with a result, and nothing to commit.
    Found(Answer),
}

impl<E> From<Error> for Failed<E> {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl<E: fmt::Display> fmt::Display for Failed<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own(error) => error.fmt(f),
            Self::Refused(error) => error.fmt(f),
            Self::Found(_) => f.write_str("there is a result"),
        }
    }
}

impl<E: StdError + 'static> StdError for Failed<E> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Own(error) => Some(error),
            Self::Refused(error) => Some(error),
            Self::Found(_) => None,
        }
    }
}

/// The attempt that runs, or ran last, and the value of its body.
struct Latest<T> {
    attempt: Option<RecordedFirst>,
    value: Option<T>,
    /// The owners of earlier attempts whose bodies have failed: no commit of theirs was sent.
    failed: Vec<Token>,
}

impl<T> Latest<T> {
    /// Reports the end of the attempt.
    fn end(&mut self, outcome: Outcome) {
        if let Some(attempt) = self.attempt.take() {
            if self.value.is_none() {
                self.failed.extend(attempt.token());
            }
            attempt.end(outcome);
        }
    }
}

/// What a transaction is committed with.
struct Ran {
    is_protected: bool,
}

async fn run<DB, T, E, B, F>(
    pool: &Pool<DB>,
    call: Call,
    result: &FirstResult,
    body: B,
) -> Result<EdgeOutcome<T>, E>
where
    DB: TransactionDatabase,
    B: FnMut(OpenTransaction<DB>) -> F,
    F: Future<Output = Result<T, E>>,
    E: StdError + 'static,
{
    let version = call.request.version();
    // Locked for moments only: the futures that the body returns are not run under the lock.
    let latest = Mutex::new(Latest { attempt: None, value: None, failed: Vec::new() });
    let (body, marked) = (Mutex::new(body), Marked::default());
    let attempt = |mut transaction: OpenTransaction<DB>| {
        let (call, latest, body, marked) = (call.again(), &latest, &body, &marked);
        async move {
            {
                // An earlier attempt was rolled back, or its commit is what this one finds.
                let mut latest = latest.lock();
                latest.end(Outcome::Released);
                latest.value = None;
            }
            let first = match record_first(call, result, &mut **transaction).await? {
                First::Mine(first) => first,
                // Committed by its body, which then went on outside of the transaction.
                First::Answered(record) if latest.lock().failed.contains(&record.owner) => {
                    return Err(unknown_by_effect(COMMITTED_BY_HAND).into());
                }
                First::Answered(record) => return Err(Failed::Found(stored(record, version))),
            };
            if !first.has_marked() {
                DB::mark(&mut transaction).await.map_err(unmarked)?;
            }
            marked.set(true);
            let is_protected = first.is_protected();
            let running = first.body(|| (body.lock())(transaction));
            latest.lock().attempt = Some(first);
            let ended = running.await;
            let mut latest = latest.lock();
            if let Some(attempt) = &latest.attempt {
                attempt.body_has_ended();
            }
            latest.value = Some(ended.map_err(Failed::Own)?);
            Ok(Ran { is_protected })
        }
    };
    // Boxed: it has room for a transaction and for the body.
    let ended = Box::pin(repeated(pool, attempt, &marked)).await;
    let mut latest = latest.lock();
    let own = latest.value.take();
    Ok(match (ended, own) {
        (Ok(Ran { is_protected }), Some(value)) => {
            latest.end(Outcome::Executed);
            if is_protected {
                EdgeOutcome::Executed(value)
            } else {
                EdgeOutcome::Unprotected(value)
            }
        }
        (Err(Failed::Found(answer)), _) => answered(answer),
        (Err(Failed::Own(error)), _) => {
            latest.end(Outcome::Released);
            return Err(error);
        }
        (Err(Failed::Refused(error)), own) => {
            let is_unknown = error.kind() == ErrorKind::NotStored;
            latest.end(if is_unknown { Outcome::NotStored } else { Outcome::Released });
            EdgeOutcome::Refused { error: error.of_call(), own }
        }
        // A body that ran has left its value.
        (Ok(Ran { .. }), None) => {
            EdgeOutcome::Refused { error: Error::new(ErrorKind::NotStored).of_call(), own: None }
        }
    })
}

/// Returns the outcome of a call whose record was there.
fn answered<T>(answer: Answer) -> EdgeOutcome<T> {
    let Codec { reader, .. } = codec();
    reader.answer(answer).into()
}

/// Returns the error of a transaction that broke before its body.
fn unmarked(error: sqlx::Error) -> Error {
    Error::new(ErrorKind::StoreUnavailable)
        .with_detail("the transaction broke before the body ran")
        .with_source(error)
        .of_call()
}
