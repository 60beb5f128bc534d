//! Making a whole transaction again when the database asks for it.

use std::error::Error as StdError;
use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use sqlx::error::DatabaseError;
use sqlx::{Database, Pool, Transaction};

use crate::clock::{Clock as _, SystemClock};
use crate::engine::{Watched, watched};
use crate::error::{Error, ErrorKind};
use crate::outcome::CallError;
use crate::store::SqlTransaction;

/// How often a transaction is made again.
const RETRIES: usize = 12;

/// A database in which [`in_transaction`] makes transactions: `sqlx::Postgres`, `sqlx::MySql` and `sqlx::Sqlite`, each
/// with the feature of that name.
pub trait TransactionDatabase: Database {
    /// The statement that begins a transaction in which calls keep their records.
    #[doc(hidden)]
    const BEGIN: &'static str;

    /// Whether a commit would still keep everything that was written since `BEGIN`. Not so where an error that the body
    /// took no notice of has undone it, and where the server then answers a commit as if all were well.
    #[doc(hidden)]
    fn is_whole(connection: &mut Self::Connection) -> impl Future<Output = Result<bool, sqlx::Error>> + Send;
}

/// Runs `body` in a transaction of `pool` and commits it; makes the whole transaction again, after a pause that grows,
/// when the database could not go on with it: deadlocks, serialization failures, a lost connection.
///
/// An `Err` of the body that is none of these rolls the transaction back and is returned. The body's error tells by its
/// sources what it is, so it keeps the client's error as one (`#[from]`, `#[source]`). When the answer to the commit
/// is lost, nobody knows whether it happened: if a guarded call was made in the transaction
/// ([`Call::run_in`](crate::Call::run_in), or the attribute's `tx`), the body runs once more, and the call replays if
/// it happened and runs if not. So **everything that the body writes belongs into guarded calls**. Without any, the error
/// is returned.
///
/// An error that a guarded call **stores or holds** (`on_error`) is kept by the commit, as all in the transaction. A body that
/// returns it as its own error has it rolled back, which is logged as a warning, and the next call runs again. So return
/// such errors in an `Ok`:
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
/// A body that goes on after an error of the database may return `Ok` where nothing is left to commit: PostgreSQL has
/// aborted the transaction after any error, MySQL has undone it after a deadlock, and both answer `COMMIT` as if all were
/// well. That is an error here, and costs one more round trip before the commit.
///
/// A pool that has no connection for as long as its `acquire_timeout` says is not asked again.
///
/// On SQLite the transaction begins with `BEGIN IMMEDIATE`.
///
/// # Errors
/// The body's own, and converted into `E`: [`NotStored`](ErrorKind::NotStored) when nobody knows whether the transaction
/// was committed, [`StoreUnavailable`](ErrorKind::StoreUnavailable) when it could not be begun or committed, also not
/// after 12 more tries, [`Config`](ErrorKind::Config) when the body returned `Ok` after an error that undid it.
///
#[cfg_attr(feature = "sqlite", doc = "```")]
#[cfg_attr(not(feature = "sqlite"), doc = "```ignore")]
/// # use std::time::Duration;
/// # use idempotent_runtime::{Error, Idempotency, in_transaction, store::SqliteStore};
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
pub async fn in_transaction<DB, T, E, B, F>(pool: &Pool<DB>, mut body: B) -> Result<T, E>
where
    DB: TransactionDatabase,
    B: FnMut(OpenTransaction<DB>) -> F,
    F: Future<Output = Result<T, E>>,
    E: CallError + StdError + 'static,
{
    let mut pauses = pauses();
    loop {
        let failed = match attempt(pool, &mut body).await {
            Attempt::Done(result) => return result,
            Attempt::Again(failed) => failed,
        };
        let Some(pause) = pauses.next() else { return Err(failed) };
        tracing::debug!(error = %failed, ?pause, "a transaction is made again");
        SystemClock::new().sleep(pause).await;
    }
}

/// The transaction that [`in_transaction`] has begun: a `sqlx::Transaction` that is committed when the body is over. The
/// body drops it, and has no need to end it. Put another in its place (`std::mem::replace`), and that one is committed.
#[derive(Debug)]
pub struct OpenTransaction<DB: TransactionDatabase> {
    /// `None` only while it is dropped.
    transaction: Option<Transaction<'static, DB>>,
    home: Home<DB>,
}

/// Where the transaction is found again when the body is over.
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
        *self.home.lock().unwrap_or_else(PoisonError::into_inner) = self.transaction.take();
    }
}

const UNDONE: &str = "the database had undone the transaction before its commit, because of an error that the body went \
    on after; return such errors, or set a savepoint and roll back to it";

enum Attempt<T, E> {
    Done(Result<T, E>),
    /// Nothing was committed, or a guarded call tells whether it was.
    Again(E),
}

async fn attempt<DB, T, E, B, F>(pool: &Pool<DB>, body: &mut B) -> Attempt<T, E>
where
    DB: TransactionDatabase,
    B: FnMut(OpenTransaction<DB>) -> F,
    F: Future<Output = Result<T, E>>,
    E: CallError + StdError + 'static,
{
    let transaction = match pool.begin_with(DB::BEGIN).await {
        Ok(transaction) => transaction,
        Err(error) => {
            let is_passing = is_passing(&error);
            let error = failed("the transaction could not be begun", error).into();
            return if is_passing { Attempt::Again(error) } else { Attempt::Done(Err(error)) };
        }
    };
    let home = Home::<DB>::default();
    let open = OpenTransaction { transaction: Some(transaction), home: Arc::clone(&home) };
    let Watched { output: result, has_record, has_error } = watched(body(open)).await;
    let transaction = home.lock().unwrap_or_else(PoisonError::into_inner).take();
    let value = match result {
        Ok(value) => value,
        // Nothing was committed, whatever it was.
        Err(error) if is_passing(&error) => return Attempt::Again(error),
        Err(error) if is_lost(transaction).await => return Attempt::Again(error),
        Err(error) => {
            if has_error {
                tracing::warn!(%error, "an error that a guarded call has stored or held is rolled back with its transaction, \
                    and the next call runs again: to keep it, let the body return it in an `Ok`");
            }
            return Attempt::Done(Err(error));
        }
    };
    let Some(mut transaction) = transaction else {
        let detail = "the body was over and its transaction still in use, so it was not committed";
        return Attempt::Done(Err(Error::config(detail).into()));
    };
    match DB::is_whole(&mut transaction).await {
        Ok(true) => {}
        Ok(false) => {
            // The body's result tells of what is not there.
            let _ = transaction.rollback().await;
            return Attempt::Done(Err(Error::config(UNDONE).into()));
        }
        Err(error) => {
            let is_passing = is_passing(&error);
            let error = failed("the transaction could not be committed", error).into();
            return if is_passing { Attempt::Again(error) } else { Attempt::Done(Err(error)) };
        }
    }
    match transaction.commit().await {
        Ok(()) => Attempt::Done(Ok(value)),
        Err(error) if error.as_database_error().is_some_and(is_rolled_back) => {
            Attempt::Again(failed("the database rolled back", error).into())
        }
        Err(error) if error.as_database_error().is_some_and(is_refused) => {
            Attempt::Done(Err(failed("the database refused the commit, and rolled back", error).into()))
        }
        Err(error) if has_record => Attempt::Again(not_stored("the answer to the commit was lost", error).into()),
        Err(error) => {
            let detail =
                "the answer to the commit was lost, and no guarded call in the transaction tells whether it happened";
            Attempt::Done(Err(not_stored(detail, error).into()))
        }
    }
}

fn failed(detail: &str, error: sqlx::Error) -> Error {
    Error::new(ErrorKind::StoreUnavailable).with_detail(detail).with_source(error)
}

/// The body ran, and nobody knows whether the transaction was committed.
fn not_stored(detail: &str, error: sqlx::Error) -> Error {
    Error::new(ErrorKind::NotStored).with_detail(detail).with_source(error)
}

/// 10 ms, doubling up to a second, with jitter: those who met in a deadlock should not meet again.
fn pauses() -> impl Iterator<Item = Duration> + Send {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(10))
        .with_max_delay(Duration::from_secs(1))
        .with_factor(2.0)
        .with_max_times(RETRIES)
        .with_jitter()
        .build()
}

/// Rolls back; whether the connection was lost, which an error of the body's own type need not tell.
async fn is_lost<DB: TransactionDatabase>(transaction: Option<Transaction<'static, DB>>) -> bool {
    let Some(transaction) = transaction else { return false };
    transaction.rollback().await.is_err_and(|error| is_connection_lost(&error))
}

/// Whether the transaction can succeed when it is made again: a deadlock, a serialization failure, a lock that was held
/// for too long or a connection that was lost before the commit.
///
/// The client's error is one of the sources of the body's. Error types that show their source as if they were it
/// (`#[error(transparent)]`) hide the client's own error and leave that of the server in it.
fn is_passing(error: &(dyn StdError + 'static)) -> bool {
    std::iter::successors(Some(error), |&error| error.source()).any(|error| {
        let of_client = error.downcast_ref::<sqlx::Error>();
        let of_server = of_client.and_then(sqlx::Error::as_database_error);
        let of_server = of_server.or_else(|| error.downcast_ref::<Box<dyn DatabaseError>>().map(Box::as_ref));
        of_client.is_some_and(is_connection_lost)
            || of_server.is_some_and(|error| is_rolled_back(error) || is_session_ended(error))
    })
}

/// Whether the database says that it has undone the transaction, or the statement that made the transaction fail.
fn is_rolled_back(error: &(dyn DatabaseError + 'static)) -> bool {
    #[cfg(feature = "mysql")]
    if let Some(error) = error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>() {
        use crate::mysql::error::{LOCK_WAIT_TIMEOUT, is_conflict};
        return is_conflict(error) || error.number() == LOCK_WAIT_TIMEOUT;
    }
    #[cfg(feature = "sqlite")]
    if let Some(error) = error.try_downcast_ref::<sqlx::sqlite::SqliteError>() {
        // The file or a table is locked; the extended codes have more bits.
        let code = DatabaseError::code(error).and_then(|code| code.parse::<u32>().ok()).unwrap_or_default();
        return matches!(code & 0xff, 5 | 6);
    }
    // Serialization failure and deadlock (PostgreSQL manual, appendix A).
    error.code().is_some_and(|code| matches!(&*code, "40001" | "40P01"))
}

/// Whether the answer to a commit says for certain that nothing was committed, and nothing will be when it is made again: a
/// constraint that is checked at the end.
fn is_refused(error: &(dyn DatabaseError + 'static)) -> bool {
    #[cfg(feature = "postgres")]
    if let Some(error) = error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>() {
        // What comes after the commit ends the session (FATAL), and may come when the commit is on its way to a standby.
        return matches!(error.severity(), sqlx::postgres::PgSeverity::Error);
    }
    #[cfg(feature = "sqlite")]
    if let Some(error) = error.try_downcast_ref::<sqlx::sqlite::SqliteError>() {
        // A constraint; the extended codes have more bits.
        let code = DatabaseError::code(error).and_then(|code| code.parse::<u32>().ok()).unwrap_or_default();
        return code & 0xff == 19;
    }
    let _ = error;
    false
}

fn is_connection_lost(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(error) => is_session_ended(&**error),
        _ => false,
    }
}

/// Whether the server ends the connection, or does not take one now.
fn is_session_ended(error: &(dyn DatabaseError + 'static)) -> bool {
    #[cfg(feature = "mysql")]
    if let Some(error) = error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>() {
        // Too many connections, a shutdown, and a connection that was killed.
        return matches!(error.number(), 1040 | 1053 | 1927);
    }
    // PostgreSQL manual, appendix A.
    error.code().is_some_and(|code| matches!(&*code, "57P01" | "57P02" | "57P03" | "53300"))
}
