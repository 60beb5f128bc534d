//! A record in the user's own transaction: the three parties of a call with `tx`.
//!
//! The engine talks to the connection of the transaction ([`TransactionConnection`]), which knows
//! what it is a connection of. The connection gives itself, its type erased, to the
//! [`Transactions`] of the engine's store, which know how a record is written there. A store that
//! wraps another one stands between the two: its own `Transactions` change what passes and hand
//! the connection on.

use std::any::Any;
use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{Claim, Claimed, Commit, DynStore, Park, StoreError, StoreErrorKind, Token};

/// A transaction in which a record can be kept together with what the body writes:
/// `sqlx::Transaction` or the connection of PostgreSQL, MySQL or SQLite, each with the feature of
/// that name. Nobody else implements it, but for the simulation of the engine.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no transaction in which a record can be kept",
    label = "not a transaction of PostgreSQL, MySQL or SQLite",
    note = "pass a `sqlx::Transaction` of `Postgres`, `MySql` or `Sqlite`, or the connection of one, and enable the feature `postgres`, `mysql` or `sqlite`"
)]
pub trait SqlTransaction: Send {
    /// The connection on which the transaction is.
    type Connection: TransactionConnection;

    /// The connection on which the transaction is.
    fn connection(&mut self) -> &mut Self::Connection;
}

/// The answer of a database to a step of a call in a transaction.
pub type TransactionFuture<'a, T> =
    Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// The records that a store keeps in transactions of the user's.
pub trait Transactions: Send + Sync {
    /// Takes the claim in the transaction on `connection`, waiting for other transactions for at
    /// most `patience`.
    ///
    /// What was claimed is undone by [`End::Undo`]. If the answer is anything but a grant, the
    /// transaction is as it was, but for [a lock](ClaimAnswer::keeps_lock).
    ///
    /// # Errors
    /// [`Config`](StoreErrorKind::Config) if the connection is one of another database: nothing is
    /// sent then.
    fn begin<'a>(
        &'a self,
        connection: AnyConnection<'a>,
        claim: &'a Claim,
        patience: Duration,
    ) -> TransactionFuture<'a, ClaimAnswer>;

    /// Ends what `begin` granted to `token`. False if the record is not as `begin` left it.
    ///
    /// # Errors
    /// As those of [`begin`](Self::begin).
    fn end<'a>(
        &'a self,
        connection: AnyConnection<'a>,
        token: Token,
        end: End,
    ) -> TransactionFuture<'a, bool>;
}

/// The connection of a transaction, whose type only the store at the end of the way knows.
pub struct AnyConnection<'a> {
    connection: &'a mut (dyn Any + Send),
    database: &'static str,
}

impl<'a> AnyConnection<'a> {
    /// `connection` is one of `database`: `"PostgreSQL"`.
    pub fn new(connection: &'a mut (dyn Any + Send), database: &'static str) -> Self {
        Self { connection, database }
    }

    /// The name of the database that it is connected to.
    pub const fn database(&self) -> &'static str {
        self.database
    }

    /// The connection, if it is one of type `C`.
    ///
    /// # Errors
    /// [`Config`](StoreErrorKind::Config), with the names of the database and of `store`, if it is
    /// not.
    pub fn downcast<C: Send + 'static>(self, store: &str) -> Result<&'a mut C, StoreError> {
        self.connection.downcast_mut().ok_or_else(|| {
            StoreError::new(StoreErrorKind::Config, CLAIM).with_detail(format!(
                "the transaction is one of {} and the engine's store is `{store}`: record and \
                 effect would not be in one database",
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

const CLAIM: &str = "claim in a transaction";

/// The [`Transactions`] of `store`.
///
/// # Errors
/// [`Config`](StoreErrorKind::Config) if it has none.
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
pub(crate) fn transactions<'a>(
    store: &'a dyn DynStore,
    database: &str,
) -> Result<&'a dyn Transactions, StoreError> {
    store.facets().transactions.ok_or_else(|| {
        StoreError::new(StoreErrorKind::Config, CLAIM).with_detail(format!(
            "the transaction is one of {database} and the engine's store is `{}`, which keeps no \
             records in transactions: record and effect would not be in one database",
            store.name()
        ))
    })
}

/// The connection of a transaction, as the engine needs it.
pub trait TransactionConnection: Send {
    /// Where the connection is in memory: what tells it from all others that are there at the same
    /// time.
    fn place(&self) -> usize {
        place_of(self)
    }

    /// Takes the claim, waiting for other transactions for at most `patience`.
    ///
    /// What was claimed is undone by [`End::Undo`]. If the answer is anything but a grant, the
    /// transaction is as it was, but for [a lock](ClaimAnswer::keeps_lock).
    fn begin<'a>(
        &'a mut self,
        store: &'a dyn DynStore,
        claim: &'a Claim,
        patience: Duration,
    ) -> TransactionFuture<'a, ClaimAnswer>;

    /// Ends what `begin` granted to `token`. False if the record is not as `begin` left it.
    fn end<'a>(
        &'a mut self,
        store: &'a dyn DynStore,
        token: Token,
        end: End,
    ) -> TransactionFuture<'a, bool>;

    /// Sets the savepoint `name`, for a body without a claim. A connection in no transaction is
    /// refused.
    fn set_savepoint<'a>(&'a mut self, name: &'a str) -> TransactionFuture<'a, ()>;

    /// Gives the savepoint `name` up; `undoes` says whether also what was written since.
    fn end_savepoint<'a>(&'a mut self, name: &'a str, undoes: bool) -> TransactionFuture<'a, ()>;
}

/// The answer to a claim in a transaction.
#[derive(Clone, Debug)]
pub struct ClaimAnswer {
    /// `None` if other transactions were not done in time.
    pub claimed: Option<Claimed>,
    /// Whether the claim is known to have waited for another transaction.
    pub has_waited: bool,
    /// Whether this transaction may keep whoever holds the record from it until it is over.
    pub keeps_lock: bool,
}

/// Why a call does not wait for another one: its transaction keeps that one from its own record.
/// Made again, it can wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeepsLock;

impl fmt::Display for KeepsLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the transaction has locked the record of another call")
    }
}

impl StdError for KeepsLock {}

/// The place of a connection in memory.
pub(crate) fn place_of<C: ?Sized>(connection: &C) -> usize {
    std::ptr::from_ref(connection).addr()
}

/// A name of its own for each call: calls can be nested in one transaction, and MySQL replaces a
/// savepoint by a later one of the same name.
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
pub(crate) fn savepoint_of(token: Token) -> String {
    format!("idempotency_{:016x}", token.bits() >> 64)
}

/// The same for a body without a claim. It needs no randomness: a transaction is one process's.
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
        f.write_str("the transaction was over before the call that was made in it")
    }
}

impl StdError for Over {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.0)
    }
}

/// `error` says that the savepoint of a call is gone.
#[cfg_attr(
    not(any(feature = "postgres", feature = "mysql", feature = "sqlite")),
    expect(dead_code, reason = "only databases have savepoints")
)]
pub(crate) fn over(error: StoreError) -> StoreError {
    StoreError::new(error.kind(), error.operation()).with_source(Over(error))
}

/// Whether the transaction was over before the call that was made in it: the database has undone
/// it, or a statement that commits by itself was in it. What came after that was committed at once.
pub(crate) fn is_over(error: &StoreError) -> bool {
    error.source().is_some_and(<dyn StdError>::is::<Over>)
}

/// How a call in a transaction ends.
#[derive(Clone, Debug)]
pub enum End {
    /// What the body wrote stays, with its result.
    Keep(Commit),
    /// What the body wrote is undone; its error is stored as the result.
    KeepError(Commit),
    /// What the body wrote is undone; the record is in doubt.
    Hold(Park),
    /// Everything since `begin` is undone.
    Undo,
}
