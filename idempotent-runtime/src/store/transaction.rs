//! Records in the user's own transaction: the three parties of a call with `tx`.
//!
//! The engine calls the connection of the transaction. The connection passes itself, with its type
//! erased, to the [`Transactions`] of the engine's store, which know how a record is written to that
//! database. A store that wraps another one stands between the two: its own `Transactions` change
//! what passes and forward the connection.

use crate::store::Operation;
use std::any::Any;
use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::loan::Loan;
use super::{Claim, ClaimOutcome, Commit, DynStore, Park, StoreError, StoreErrorKind, Token};

/// A transaction in which a record can be kept together with what the body writes:
/// `sqlx::Transaction` or the connection of PostgreSQL, MySQL or SQLite, each with the feature of
/// that name. Only these types implement it, and the simulation of the engine.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a supported SQL transaction",
    label = "not a transaction of PostgreSQL, MySQL or SQLite",
    note = "pass a `sqlx::Transaction` of `Postgres`, `MySql` or `Sqlite`, or the connection of one, and enable the feature `postgres`, `mysql` or `sqlite`"
)]
pub trait SqlTransaction: Send {
    /// The type of the transaction's connection.
    type Connection: TransactionConnection;

    /// Returns the connection of the transaction.
    fn connection(&mut self) -> &mut Self::Connection;

    /// Borrows `transaction` for one phase of a call.
    #[doc(hidden)]
    fn lend(transaction: &mut Self) -> Loan<'_> {
        Loan::of(transaction.connection())
    }
}

/// The future of a database's answer to a step of a call in a transaction.
pub type TransactionFuture<'a, T> =
    Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// The ability of a store to keep records in the user's transactions.
pub trait Transactions: Send + Sync {
    /// Takes the claim in the transaction on `connection`, waiting for other transactions for at
    /// most `patience`.
    ///
    /// [`End::Undo`] undoes the claim. If the answer is anything but a grant, or an error, the
    /// transaction is as it was, except for [a lock](ClaimAnswer::keeps_lock). A wrapper that fails
    /// after the inner store has granted the claim, for example because it cannot read the answer,
    /// must therefore first [end](Self::end) it with [`End::Undo`]: otherwise a body that never ran
    /// is in doubt when the caller commits.
    ///
    /// # Errors
    /// [`Config`](StoreErrorKind::Config) if the connection is not one of the store's database.
    /// Nothing is sent then.
    fn begin<'a>(
        &'a self,
        connection: AnyConnection<'a>,
        claim: &'a Claim,
        patience: Duration,
    ) -> TransactionFuture<'a, ClaimAnswer>;

    /// Writes the record of a first claim with its result, before its body runs: in a transaction
    /// that the engine has begun, and ends itself. Returns `None`, and leaves the transaction as it
    /// was, if there is a record or if that is not supported: the engine then [begins](Self::begin)
    /// the call, and [ends](Self::end) it with [`End::Keep`] before its body. The default does
    /// that.
    ///
    /// `result` is the result of `claim`. An answer is a grant, or none if other transactions did
    /// not end within `patience`, and then the transaction is to be rolled back. A wrapper that
    /// changes bodies changes that of `result`.
    ///
    /// # Errors
    /// The same as those of [`begin`](Self::begin). The transaction is broken, and is to be rolled
    /// back.
    fn record_first<'a>(
        &'a self,
        connection: AnyConnection<'a>,
        claim: &'a Claim,
        result: &'a Commit,
        patience: Duration,
    ) -> TransactionFuture<'a, Option<ClaimAnswer>> {
        let _ = (connection, claim, result, patience);
        Box::pin(std::future::ready(Ok(None)))
    }

    /// Ends what `begin` granted to `token`. Returns false if the record is not as `begin` left it.
    ///
    /// A wrapper that fails before it forwards `end` leaves everything as it was. If the end was
    /// [`End::Keep`] or [`End::KeepError`], the engine then ends the call with [`End::Undo`]. After a
    /// failed [`End::Undo`] or [`End::Hold`], what the body wrote is in the transaction, and the
    /// record is in doubt if the caller commits. A wrapper has no body to change there, and forwards
    /// both in any case.
    ///
    /// # Errors
    /// The same as those of [`begin`](Self::begin). A wrapper keeps the inner store's error as the
    /// source of its own.
    fn end<'a>(
        &'a self,
        connection: AnyConnection<'a>,
        token: Token,
        end: End,
    ) -> TransactionFuture<'a, bool>;
}

/// The connection of a transaction, with its type erased. Only a store of its database knows it.
pub struct AnyConnection<'a> {
    connection: &'a mut (dyn Any + Send),
    database: &'static str,
}

impl<'a> AnyConnection<'a> {
    /// Erases the type of `connection`, which is connected to a `database` of that name:
    /// `"PostgreSQL"`.
    pub fn new(connection: &'a mut (dyn Any + Send), database: &'static str) -> Self {
        Self { connection, database }
    }

    /// The name of the database to which it is connected.
    pub const fn database(&self) -> &'static str {
        self.database
    }

    /// Returns the connection if it is of type `C`.
    ///
    /// # Errors
    /// [`Config`](StoreErrorKind::Config) if it is of another type. The error names the database
    /// and `store`.
    pub fn downcast<C: Send + 'static>(self, store: &str) -> Result<&'a mut C, StoreError> {
        self.connection.downcast_mut().ok_or_else(|| {
            StoreError::new(StoreErrorKind::Config, CLAIM).with_detail(format!(
                "the transaction is one of {} and the engine's store is `{store}`: record and \
                 effect would not be in the same database",
                self.database
            ))
        })
    }
}

impl fmt::Debug for AnyConnection<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnyConnection").field("database", &self.database).finish_non_exhaustive()
    }
}

const CLAIM: Operation = Operation::Transaction;

/// Returns the [`Transactions`] of `store`.
///
/// # Errors
/// [`Config`](StoreErrorKind::Config) if it has none.
#[cfg(feature = "__sql")]
pub(crate) fn transactions<'a>(
    store: &'a dyn DynStore,
    database: &str,
) -> Result<&'a dyn Transactions, StoreError> {
    store.facets().transactions.ok_or_else(|| {
        StoreError::new(StoreErrorKind::Config, CLAIM).with_detail(format!(
            "the transaction is one of {database} and the engine's store is `{}`, which keeps no \
             records in transactions: record and effect would not be in the same database",
            store.name()
        ))
    })
}

/// The connection of a transaction, as the engine needs it. It changes without notice.
#[doc(hidden)]
pub trait TransactionConnection: Send {
    /// Returns the address of the connection in memory, which distinguishes it from all others that
    /// exist at the same time.
    fn place(&self) -> usize {
        place_of(self)
    }

    /// Takes the claim, waiting for other transactions for at most `patience`.
    ///
    /// [`End::Undo`] undoes the claim. If the answer is anything but a grant, the transaction is as
    /// it was, except for [a lock](ClaimAnswer::keeps_lock).
    fn begin<'a>(
        &'a mut self,
        store: &'a dyn DynStore,
        claim: &'a Claim,
        patience: Duration,
    ) -> TransactionFuture<'a, ClaimAnswer>;

    /// Writes the record of a first claim with its result, before its body runs. See
    /// [`Transactions::record_first`].
    fn record_first<'a>(
        &'a mut self,
        store: &'a dyn DynStore,
        claim: &'a Claim,
        result: &'a Commit,
        patience: Duration,
    ) -> TransactionFuture<'a, Option<ClaimAnswer>> {
        let _ = (store, claim, result, patience);
        Box::pin(std::future::ready(Ok(None)))
    }

    /// Ends what `begin` granted to `token`. Returns false if the record is not as `begin` left it.
    fn end<'a>(
        &'a mut self,
        store: &'a dyn DynStore,
        token: Token,
        end: End,
    ) -> TransactionFuture<'a, bool>;

    /// Sets the savepoint `name`, for a body without a claim. Rejects a connection that is not in a
    /// transaction.
    fn set_savepoint<'a>(&'a mut self, name: &'a str) -> TransactionFuture<'a, ()>;

    /// Removes the savepoint `name`; with `undoes`, also undoes everything written since it was
    /// set.
    fn end_savepoint<'a>(&'a mut self, name: &'a str, undoes: bool) -> TransactionFuture<'a, ()>;
}

/// The answer to a claim in a transaction.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClaimAnswer {
    /// The answer of the store, or `None` if other transactions did not end in time.
    pub claimed: Option<ClaimOutcome>,
    /// True if the claim is known to have waited for another transaction.
    pub has_waited: bool,
    /// True if this transaction may lock the record's owner out of it until the transaction ends.
    pub keeps_lock: bool,
}

impl ClaimAnswer {
    /// An answer of a transaction that keeps no lock.
    #[must_use]
    pub const fn new(claimed: Option<ClaimOutcome>, has_waited: bool) -> Self {
        Self { claimed, has_waited, keeps_lock: false }
    }
}

/// The reason why a call does not wait for another one: its transaction keeps the other call from
/// its own record. Run again, the transaction can wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeepsLock;

impl fmt::Display for KeepsLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the transaction has locked the record of another call")
    }
}

impl StdError for KeepsLock {}

/// The address of a connection in memory.
pub(crate) fn place_of<C: ?Sized>(connection: &C) -> usize {
    std::ptr::from_ref(connection).addr()
}

/// Returns a savepoint name unique to the call: calls can be nested in one transaction, and MySQL
/// replaces a savepoint when a later one has the same name.
#[cfg(feature = "__sql")]
pub(crate) fn savepoint_of(token: Token) -> String {
    format!("idempotency_{:016x}", token.bits() >> 64)
}

/// Returns a savepoint name for a body without a claim. It needs no randomness: a transaction
/// belongs to one process.
pub(crate) fn savepoint_without_claim() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("idempotency_disabled_{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The source of an error that says that a call's savepoint is gone, and with it the transaction in
/// which the call began.
#[derive(Debug)]
struct Over(StoreError);

impl fmt::Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the transaction had ended before the call that was made in it")
    }
}

impl StdError for Over {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.0)
    }
}

/// Marks `error` as saying that the savepoint of a call is gone.
#[cfg_attr(not(feature = "__sql"), expect(dead_code, reason = "only databases have savepoints"))]
pub(crate) fn over(error: StoreError) -> StoreError {
    StoreError::new(error.kind(), error.operation()).with_source(Over(error))
}

/// Returns true if the transaction ended before the call that was made in it: the database rolled
/// it back, or it contained a statement that commits implicitly. Everything after that was
/// committed at once.
pub(crate) fn is_over(error: &StoreError) -> bool {
    // A store that wraps another one may have put the error of the inner store into its own.
    std::iter::successors(error.source(), |&error| error.source()).any(<dyn StdError>::is::<Over>)
}

/// The end of a call in a transaction.
///
/// Exhaustive on purpose: a store that changes bodies must not let a new kind of body pass.
#[derive(Clone, Debug)]
pub enum End {
    /// Keeps what the body wrote, with its result.
    Keep(Commit),
    /// Undoes what the body wrote; its error is stored as the result.
    KeepError(Commit),
    /// Undoes what the body wrote; the record is in doubt.
    Hold(Park),
    /// Undoes everything since `begin`.
    Undo,
}
