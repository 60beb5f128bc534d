//! A record in the user's own transaction.

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{Claim, Claimed, Commit, DynStore, Park, StoreError, Token};

/// A transaction in which a record can be kept together with what the body writes:
/// `sqlx::Transaction` or the connection of PostgreSQL, MySQL or SQLite, each with the feature of
/// that name. Only these types implement it, and the simulation of the engine.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no transaction in which a record can be kept",
    label = "not a transaction of PostgreSQL, MySQL or SQLite",
    note = "pass a `sqlx::Transaction` of `Postgres`, `MySql` or `Sqlite`, or the connection of one, and enable the feature `postgres`, `mysql` or `sqlite`"
)]
pub trait SqlTransaction: Send {
    /// The type of the transaction's connection.
    type Connection: Keep;

    /// Returns the connection of the transaction.
    fn connection(&mut self) -> &mut Self::Connection;
}

/// The future of a transaction's answer to the engine.
pub type Kept<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// The steps of a call that keeps its record in a transaction of `store`'s database.
pub trait Keep: Send {
    /// Returns the address of the connection in memory, which distinguishes it from all others that
    /// exist at the same time.
    fn place(&self) -> usize {
        place_of(self)
    }

    /// Takes the claim, waiting for other transactions for at most `patience`.
    ///
    /// [`End::Undo`] undoes the claim. If the answer is anything but a grant, the transaction is as
    /// it was, except for [a lock](Taken::keeps_lock).
    fn begin<'a>(
        &'a mut self,
        store: &'a dyn DynStore,
        claim: &'a Claim,
        patience: Duration,
    ) -> Kept<'a, Taken>;

    /// Ends what `begin` granted to `token`. Returns false if the record is not as `begin` left it.
    fn end<'a>(&'a mut self, store: &'a dyn DynStore, token: Token, end: End) -> Kept<'a, bool>;

    /// Sets the savepoint `name`, for a body without a claim. Rejects a connection that is not in a
    /// transaction.
    fn set_savepoint<'a>(&'a mut self, name: &'a str) -> Kept<'a, ()>;

    /// Removes the savepoint `name`; with `undoes`, also undoes everything written since it was
    /// set.
    fn end_savepoint<'a>(&'a mut self, name: &'a str, undoes: bool) -> Kept<'a, ()>;
}

/// The answer to a claim in a transaction.
#[derive(Clone, Debug)]
pub struct Taken {
    /// The answer of the store, or `None` if other transactions did not end in time.
    pub claimed: Option<Claimed>,
    /// True if the claim is known to have waited for another transaction.
    pub has_waited: bool,
    /// True if this transaction may lock the record's owner out of it until the transaction ends.
    pub keeps_lock: bool,
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
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
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
        f.write_str("the transaction was over before the call that was made in it")
    }
}

impl StdError for Over {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.0)
    }
}

/// Marks `error` as saying that the savepoint of a call is gone.
#[cfg_attr(
    not(any(feature = "postgres", feature = "mysql", feature = "sqlite")),
    expect(dead_code, reason = "only databases have savepoints")
)]
pub(crate) fn over(error: StoreError) -> StoreError {
    StoreError::new(error.kind(), error.operation()).with_source(Over(error))
}

/// Returns true if the transaction ended before the call that was made in it: the database rolled
/// it back, or it contained a statement that commits implicitly. Everything after that was
/// committed at once.
pub(crate) fn is_over(error: &StoreError) -> bool {
    error.source().is_some_and(<dyn StdError>::is::<Over>)
}

/// The end of a call in a transaction.
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
