//! Running a whole transaction again when the database requires it.

use std::error::Error as StdError;
use std::future::Future;
use std::ops::{ControlFlow, Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use sqlx::{Connection as _, Database, Pool, SqlSafeStr as _, Transaction};

use super::passing::{
    has_lost_session, is_passing, is_passing_before_commit, is_refused, is_refused_for_data,
    is_rolled_back, is_unanswered, keeps_lock, may_have_happened,
};
use crate::clock::{Clock as _, SystemClock};
use crate::engine::{
    Attempt, Attempts, Calls, Lent, is_in_body, unknown_by_effect, unknown_by_key,
};
use crate::error::{Error, ErrorKind};
use crate::lock::Mutex;
use crate::outcome::CallError;
use crate::store::SqlTransaction;
use crate::store::transaction::place_of;

/// The number of times that a transaction is run again.
const RETRIES: usize = 12;

/// A database in which [`in_transaction`] runs transactions: `sqlx::Postgres`, `sqlx::MySql` and
/// `sqlx::Sqlite`, each with the feature of that name.
pub trait TransactionDatabase: Database<Connection: SqlTransaction> {
    /// The statement that begins a transaction in which calls keep their records.
    #[doc(hidden)]
    const BEGIN: &'static str;

    /// True if a transient error may have undone the transaction. If false, a transaction that has
    /// ended when such an error is seen had ended before it.
    #[doc(hidden)]
    const PASSING_ERRORS_UNDO: bool = true;

    /// Returns the state of the transaction that [`BEGIN`](Self::BEGIN) started. A commit alone
    /// does not show it: the database answers a commit as if all were well.
    #[doc(hidden)]
    fn standing(
        connection: &mut Self::Connection,
    ) -> impl Future<Output = Result<Standing, sqlx::Error>> + Send;

    /// Marks the transaction that [`BEGIN`](Self::BEGIN) started, so that
    /// [`commit_marked`](Self::commit_marked) recognises it. A record that was written
    /// [first](crate::store::Transactions::record_first) has marked it already.
    #[doc(hidden)]
    fn mark(
        connection: &mut Self::Connection,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send {
        let _ = connection;
        std::future::ready(Ok(()))
    }

    /// Returns true if a marked transaction has ended before the body did.
    #[doc(hidden)]
    fn is_marked_over(connection: &mut Self::Connection) -> impl Future<Output = bool> + Send {
        async { matches!(Self::standing(connection).await, Ok(Standing::Over)) }
    }

    /// Commits a marked transaction if it is [whole](Standing::Whole), in one round trip where the
    /// database can do that.
    #[doc(hidden)]
    fn commit_marked(
        transaction: Transaction<'static, Self>,
    ) -> impl Future<Output = Result<Standing, NotCommitted>> + Send {
        commit_if_whole(transaction)
    }

    /// Rolls back, so that another transaction can begin on the connection.
    #[doc(hidden)]
    fn roll_back(
        transaction: Transaction<'static, Self>,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send {
        transaction.rollback()
    }

    /// Returns true if a transaction can begin again on `connection`, which the client believes to
    /// be in one.
    #[doc(hidden)]
    fn mend(connection: &mut Self::Connection) -> impl Future<Output = bool> + Send {
        let _ = connection;
        std::future::ready(false)
    }
}

/// The state of a transaction before its commit.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// A commit keeps everything that was written in it.
    Whole,
    /// An error that the body ignored has broken it, and nothing of it is kept.
    Undone,
    /// It no longer exists: undone, or ended by a statement or by the client. Everything written
    /// since was committed at once.
    Over,
}

/// The error of a commit.
#[doc(hidden)]
#[derive(Debug)]
pub enum NotCommitted {
    /// The commit was not sent.
    BeforeCommit(sqlx::Error),
    /// The answer to it.
    AtCommit(sqlx::Error),
}

async fn commit_if_whole<DB: TransactionDatabase>(
    mut transaction: Transaction<'static, DB>,
) -> Result<Standing, NotCommitted> {
    match DB::standing(&mut transaction).await.map_err(NotCommitted::BeforeCommit)? {
        Standing::Whole => {
            transaction.commit().await.map_err(NotCommitted::AtCommit)?;
            Ok(Standing::Whole)
        }
        standing => {
            let _ = DB::roll_back(transaction).await;
            Ok(standing)
        }
    }
}

/// Runs `body` in a transaction of `pool` and commits it. If the database could not complete the
/// transaction (a deadlock, a serialization failure, a lost connection), runs the whole transaction
/// again after a growing pause.
///
/// Any other `Err` of the body rolls the transaction back and is returned. The body's error is
/// classified by its sources, so it must keep the client's error as one (`#[from]`, `#[source]`).
/// An error of this crate among them that says that an effect may have happened is returned too,
/// whatever its cause: [`NotStored`](ErrorKind::NotStored) of another transaction or call in the
/// body.
/// If the answer to the commit is lost, the outcome is unknown. If a guarded call was made in the
/// transaction ([`Call::run_in`](crate::Call::run_in), or the attribute's `tx`), the body then runs
/// once more, and the call replays if the commit happened and runs if it did not. So **everything
/// that the body writes must go through guarded calls**. Without any,
/// [`NotStored`](ErrorKind::NotStored) is returned. The same error, with the last failure in its
/// text, is returned when the attempts end before a call of the same key has shown the outcome of
/// that commit: the server cannot be reached, or the body returns an `Err` before it makes the
/// call, because it sees its own effect.
///
/// An error that a guarded call **stores or holds** (`on_error`) is kept by the commit, like
/// everything in the transaction. If the body returns it as its own error, it is rolled back, which
/// is logged as a warning, and the next call runs again. So return such errors in an `Ok`:
///
/// ```ignore
/// let paid = in_transaction(&pool, |mut tx| async move {
///     match pay(&mut tx, order).await {
///         Err(PayError::Timeout) => Ok(Err(PayError::Timeout)), // held: the record in doubt is committed
///         result => result.map(Ok),
///     }
/// });
/// let receipt = paid.await??;
/// ```
///
/// A body that continues after an error of the database may return `Ok` when nothing is left to
/// commit: PostgreSQL has aborted the transaction after any error, MySQL has undone it after a
/// deadlock and SQLite after `OR ROLLBACK` or on a full disk, statements like `CREATE TABLE` have
/// committed it on MySQL, and sqlx rolls it back together with a nested transaction whose `begin`
/// fails or is dropped before it is done. Everything after that is committed at once, except in a
/// transaction that PostgreSQL has aborted. All these are errors here, which costs one more round
/// trip before the commit.
///
/// If the pool has no connection within its `acquire_timeout`, the transaction is not run again.
///
/// On SQLite the transaction begins with `BEGIN IMMEDIATE`.
///
/// # Errors
/// The body's own, and converted into `E`: [`NotStored`](ErrorKind::NotStored) when it is unknown
/// whether the transaction was committed, [`StoreUnavailable`](ErrorKind::StoreUnavailable) when it
/// could not be begun or committed, even after 12 more tries. That is not retryable where the
/// database refuses the commit because of a constraint, as it does as long as the data are as they
/// are. When the body returned `Ok` and its
/// transaction no longer existed: [`Config`](ErrorKind::Config) where the database says that
/// nothing of it is kept (one that PostgreSQL has aborted), [`NotStored`](ErrorKind::NotStored),
/// which is then not retryable, where part of it may be committed.
///
#[cfg_attr(feature = "sqlite", doc = "```")]
#[cfg_attr(not(feature = "sqlite"), doc = "```ignore")]
/// # use std::time::Duration;
/// # use idempotency::{Error, Idempotency, store::SqliteStore, tx::in_transaction};
/// # #[derive(Debug)] enum StockError { Client(sqlx::Error), Idempotency(Error) }
/// # impl std::fmt::Display for StockError { fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { Ok(()) } }
/// # impl std::error::Error for StockError {}
/// # impl From<Error> for StockError { fn from(error: Error) -> Self { Self::Idempotency(error) } }
/// # impl From<sqlx::Error> for StockError { fn from(error: sqlx::Error) -> Self { Self::Client(error) } }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let pool = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await?;
/// # sqlx::query("CREATE TABLE stock (item TEXT, left INTEGER)").execute(&pool).await?;
/// # sqlx::query("INSERT INTO stock VALUES ('book', 3)").execute(&pool).await?;
/// let store = SqliteStore::from_pool(pool.clone());
/// store.migrate().await?;
/// let engine = Idempotency::new(store);
/// let engine = &engine;
/// let reserve = |order: u64| {
///     in_transaction(&pool, move |mut tx| async move {
///         let call = engine.call("stock.reserve", order).ttl(Duration::from_secs(86_400));
///         call.run_in(&mut tx, async |connection| {
///             let taken = sqlx::query("UPDATE stock SET left = left - 1 WHERE left > 0").execute(connection).await?;
///             Ok::<_, StockError>(taken.rows_affected())
///         })
///         .await
///     })
/// };
/// assert_eq!(reserve(7).await?, 1);
/// assert_eq!(reserve(7).await?, 1);
/// let (left,): (i64,) = sqlx::query_as("SELECT left FROM stock").fetch_one(&pool).await?;
/// assert_eq!(left, 2);
/// # Ok(())
/// # }
/// ```
pub async fn in_transaction<DB, T, E, B, F>(pool: &Pool<DB>, body: B) -> Result<T, E>
where
    DB: TransactionDatabase,
    B: FnMut(OpenTransaction<DB>) -> F,
    F: Future<Output = Result<T, E>>,
    E: CallError + StdError + 'static,
{
    repeated(pool, body, &Marked::default()).await
}

/// The knowledge of the transaction that is open, or was last: true once it is marked and its body has
/// begun.
#[derive(Debug, Default)]
pub(crate) struct Marked(AtomicBool);

impl Marked {
    pub(crate) fn set(&self, is_marked: bool) {
        self.0.store(is_marked, Ordering::Release);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Like [`in_transaction`], for a body that may mark its transactions.
pub(crate) async fn repeated<DB, T, E, B, F>(
    pool: &Pool<DB>,
    mut body: B,
    marked: &Marked,
) -> Result<T, E>
where
    DB: TransactionDatabase,
    B: FnMut(OpenTransaction<DB>) -> F,
    F: Future<Output = Result<T, E>>,
    E: CallError + StdError + 'static,
{
    let mut attempts = Attempts::new(pauses());
    loop {
        let calls = Arc::new(Calls::of_database(DB::NAME));
        let attempt = attempt(pool, &mut body, &calls, marked).await;
        match attempts.after(attempt, &calls) {
            ControlFlow::Break(result) => return result,
            ControlFlow::Continue(pause) => SystemClock::new().sleep(pause).await,
        }
    }
}

/// The transaction that [`in_transaction`] has begun: a `sqlx::Transaction` that is committed when
/// the body has finished. The body drops it, and need not end it.
///
/// A transaction put in its place (`std::mem::replace`) is committed instead. On MySQL and MariaDB
/// it is rolled back, and [`NotStored`](ErrorKind::NotStored) is returned, because nothing there
/// distinguishes it from one that was undone.
#[derive(Debug)]
pub struct OpenTransaction<DB: TransactionDatabase> {
    /// The transaction; `None` only while this is dropped. Calls identify it by its address, which
    /// stays the same when this is moved.
    transaction: Option<Box<Transaction<'static, DB>>>,
    /// The loan of the transaction to calls, ended before the transaction leaves its address.
    lent: Option<Lent>,
    home: Home<DB>,
}

/// The place where the transaction is found again when the body has finished.
type Home<DB> = Arc<Mutex<Option<Transaction<'static, DB>>>>;

const THERE: &str = "the transaction is there until it is dropped";

impl<DB: TransactionDatabase> Deref for OpenTransaction<DB> {
    type Target = Transaction<'static, DB>;

    fn deref(&self) -> &Self::Target {
        self.transaction.as_ref().expect(THERE)
    }
}

impl<DB: TransactionDatabase> DerefMut for OpenTransaction<DB> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        self.transaction.as_mut().expect(THERE)
    }
}

#[diagnostic::do_not_recommend]
impl<DB: TransactionDatabase> SqlTransaction for OpenTransaction<DB>
where
    Transaction<'static, DB>: SqlTransaction,
{
    type Connection = <Transaction<'static, DB> as SqlTransaction>::Connection;

    fn connection(&mut self) -> &mut Self::Connection {
        SqlTransaction::connection(&mut **self)
    }
}

impl<DB: TransactionDatabase> Drop for OpenTransaction<DB> {
    fn drop(&mut self) {
        // The loan ends first: once the transaction is back in `home` it has left the address by
        // which calls know it, and another one may be at that address.
        self.lent = None;
        let transaction = self.transaction.take().map(|transaction| *transaction);
        *self.home.lock() = transaction;
    }
}

const UNDONE: &str = "the database had undone the transaction before its commit, because of an \
    error after which the body continued; return such errors, or set a savepoint and roll back to \
    it";
const OVER: &str = "the transaction had ended before its commit: undone because of an error after \
    which the body continued, ended by a statement, or rolled back with one in it whose `begin` \
    failed or was dropped";

/// The name that `sqlx` gives to the database.
const SQLITE: &str = "SQLite";
const AROUND: &str = "another transaction holds the only writer of the file, and as far as is known \
    that is the one around this one: use that (`&mut transaction`) in place of a second";

async fn attempt<DB, T, E, B, F>(
    pool: &Pool<DB>,
    body: &mut B,
    calls: &Arc<Calls>,
    marked: &Marked,
) -> Attempt<T, E>
where
    DB: TransactionDatabase,
    B: FnMut(OpenTransaction<DB>) -> F,
    F: Future<Output = Result<T, E>>,
    E: CallError + StdError + 'static,
{
    let transaction = match begin(pool).await {
        Ok(transaction) => Box::new(transaction),
        Err(error) => {
            let is_passing = is_passing(&error);
            // SQLite has one writer, and this one waits for the other for as long as that waits for
            // it: in vain, and each time that it is run again.
            if is_passing && DB::NAME == SQLITE && is_in_body(SQLITE) {
                return Attempt::Failed(Error::config(AROUND).into());
            }
            let error = not_begun(error).into();
            return if is_passing { Attempt::Again(error) } else { Attempt::Failed(error) };
        }
    };
    let home = Home::<DB>::default();
    let lent = Some(calls.lend(place_of(&**transaction)));
    let open = OpenTransaction { transaction: Some(transaction), lent, home: Arc::clone(&home) };
    marked.set(false);
    let result = calls.around(body(open)).await;
    let is_marked = marked.get();
    let transaction = home.lock().take();
    let value = match result {
        Ok(value) => value,
        // Its connection still waits for the answer: it is closed, or used again, when that comes.
        Err(error) if is_unanswered(&error) => return Attempt::Done(Err(error)),
        Err(error) if is_marked => {
            let (is_passing, text) = (is_passing(&error), error.to_string());
            let undoes = DB::PASSING_ERRORS_UNDO && is_passing && !keeps_lock(&error);
            return match ended_marked(transaction, undoes, &text).await {
                Ended::Over(over) => Attempt::Done(Err(over.into())),
                _ if is_passing => Attempt::Again(error),
                Ended::Lost if !may_have_happened(&error) => Attempt::Again(error),
                Ended::Lost | Ended::RolledBack => Attempt::Done(Err(error)),
            };
        }
        Err(error) if is_passing(&error) => {
            // Not the error itself, which may be one that other threads must not see.
            let (keeps_lock, text) = (keeps_lock(&error), error.to_string());
            return match over_before(transaction, keeps_lock, &text).await {
                Some(over) => Attempt::Done(Err(over.into())),
                // Nothing was committed, whatever the error was.
                None => Attempt::Again(error),
            };
        }
        Err(error) => {
            let may_have_happened = may_have_happened(&error);
            if !may_have_happened && is_lost(transaction).await {
                return Attempt::Again(error);
            }
            if calls.have_kept_an_error() {
                tracing::warn!(%error, "an error that a guarded call has stored or held is rolled back with its transaction, \
                    and the next call runs again: to keep it, let the body return it in an `Ok`");
            }
            return Attempt::Done(Err(error));
        }
    };
    let Some(transaction) = transaction else {
        let detail = "the body had ended and its transaction was still in use, so it was not \
            committed";
        return Attempt::Failed(Error::config(detail).into());
    };
    match commit(transaction, calls, is_marked).await {
        Ok(()) => Attempt::Done(Ok(value)),
        Err(attempt) => attempt,
    }
}

/// Begins a transaction, on a connection on which one can begin.
async fn begin<DB: TransactionDatabase>(
    pool: &Pool<DB>,
) -> Result<Transaction<'static, DB>, sqlx::Error> {
    let mut connection = pool.acquire().await?;
    // The last transaction on it could not be rolled back, and the pool does not check.
    while connection.is_in_transaction() && !DB::mend(&mut connection).await {
        // The connection is useless, whatever closing it returns.
        let _ = connection.close().await;
        connection = pool.acquire().await?;
    }
    Transaction::begin(connection, Some(DB::BEGIN.into_sql_str())).await
}

/// Returns the error for a transaction that had ended before the body failed with the error `text`,
/// as far as that can be known.
async fn over_before<DB: TransactionDatabase>(
    transaction: Option<Transaction<'static, DB>>,
    keeps_lock: bool,
    text: &str,
) -> Option<Error> {
    let over = || Some(unknown_by_effect(format!("{OVER}; the body ended with: {text}")));
    let mut transaction = transaction?;
    if client_has_ended(&mut transaction) {
        return over();
    }
    // The lock that a call would wait for undoes nothing in any database.
    if DB::PASSING_ERRORS_UNDO && !keeps_lock {
        return None;
    }
    if !matches!(DB::standing(&mut transaction).await, Ok(Standing::Over)) {
        return None;
    }
    let _ = DB::roll_back(transaction).await;
    over()
}

/// How a marked transaction has ended whose body has failed.
enum Ended {
    /// Before the body did: part of what that wrote may be committed.
    Over(Error),
    /// With its connection.
    Lost,
    RolledBack,
}

/// Rolls back a marked transaction whose body failed with the error `text`. `is_undone`: the database
/// has undone it for that reason.
async fn ended_marked<DB: TransactionDatabase>(
    transaction: Option<Transaction<'static, DB>>,
    is_undone: bool,
    text: &str,
) -> Ended {
    let Some(mut transaction) = transaction else { return Ended::RolledBack };
    let is_over = client_has_ended(&mut transaction)
        || (!is_undone && DB::is_marked_over(&mut transaction).await);
    let rolled_back = DB::roll_back(transaction).await;
    if is_over {
        Ended::Over(unknown_by_effect(format!("{OVER}; the body ended with: {text}")))
    } else if rolled_back.is_err_and(|error| has_lost_session(&error)) {
        Ended::Lost
    } else {
        Ended::RolledBack
    }
}

/// Returns true if the client itself has rolled the transaction back, with a nested one whose `begin`
/// failed or was dropped. It knows that without the server, which may not be there to answer any
/// more.
fn client_has_ended<DB: TransactionDatabase>(transaction: &mut Transaction<'static, DB>) -> bool {
    !transaction.is_in_transaction()
}

/// Commits, or returns what to do instead.
async fn commit<DB, T, E>(
    mut transaction: Transaction<'static, DB>,
    calls: &Calls,
    is_marked: bool,
) -> Result<(), Attempt<T, E>>
where
    DB: TransactionDatabase,
    E: From<Error>,
{
    if client_has_ended(&mut transaction) {
        let _ = DB::roll_back(transaction).await;
        return Err(Attempt::Done(Err(unknown_by_effect(OVER).into())));
    }
    let committed = if is_marked {
        DB::commit_marked(transaction).await
    } else {
        commit_if_whole(transaction).await
    };
    let error = match committed {
        Ok(Standing::Whole) => return Ok(()),
        // The body's result describes effects that do not exist.
        Ok(Standing::Undone) => return Err(Attempt::Failed(Error::config(UNDONE).into())),
        Ok(Standing::Over) => return Err(Attempt::Failed(unknown_by_effect(OVER).into())),
        Err(NotCommitted::BeforeCommit(error)) => {
            let is_passing = is_passing_before_commit(&error);
            let error = rolled_back("the connection failed before the commit", true, error).into();
            return Err(if is_passing { Attempt::Again(error) } else { Attempt::Failed(error) });
        }
        Err(NotCommitted::AtCommit(error)) => error,
    };
    let of_server = error.as_database_error();
    Err(if of_server.is_some_and(is_rolled_back) {
        Attempt::Again(rolled_back("the database could not continue it", true, error).into())
    } else if of_server.is_some_and(is_refused) {
        let is_passing = !of_server.is_some_and(is_refused_for_data);
        Attempt::Failed(rolled_back("the database refused the commit", is_passing, error).into())
    } else {
        let records = calls.records();
        if records.is_empty() {
            let detail = "the answer to the commit was lost, and no guarded call in the \
                transaction shows whether it happened";
            Attempt::Done(Err(unknown_by_effect(detail).with_source(error).into()))
        } else {
            Attempt::Unknown {
                records,
                error: unknown_by_key("the answer to the commit was lost").with_source(error),
            }
        }
    })
}

fn not_begun(error: sqlx::Error) -> Error {
    Error::new(ErrorKind::StoreUnavailable)
        .with_text("the transaction could not be begun", "run it again later")
        .with_source(error)
        // Of all calls in it: none of them has run.
        .of_call()
}

/// Builds the error for a body that ran when nothing was committed. `is_passing`: it can be
/// committed when it is run again.
fn rolled_back(detail: &str, is_passing: bool, error: sqlx::Error) -> Error {
    let advice = if is_passing {
        "run the whole transaction again"
    } else {
        "correct what it writes, and run it again"
    };
    Error::new(ErrorKind::StoreUnavailable)
        .with_text("the body ran, and its transaction was rolled back", advice)
        .with_detail(detail)
        .with_source(error)
        .rolled_back(is_passing)
}

/// Returns pauses of 10 ms, doubling up to a second, with jitter: transactions that deadlocked
/// should not meet again.
fn pauses() -> impl Iterator<Item = Duration> + Send {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(10))
        .with_max_delay(Duration::from_secs(1))
        .with_factor(2.0)
        .with_max_times(RETRIES)
        .with_jitter()
        .build()
}

/// Rolls back, and returns true if the connection was lost, which an error of the body's own type
/// need not show.
async fn is_lost<DB: TransactionDatabase>(transaction: Option<Transaction<'static, DB>>) -> bool {
    let Some(transaction) = transaction else { return false };
    DB::roll_back(transaction).await.is_err_and(|error| has_lost_session(&error))
}
