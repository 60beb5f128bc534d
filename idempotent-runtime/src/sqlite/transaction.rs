//! A record in the user's own transaction.

use std::time::Duration;

use sqlx::{
    AssertSqlSafe, Connection as _, Error, Row as _, Sqlite, SqliteConnection, Transaction,
};

use super::error::{is_busy, is_savepoint_missing, is_table_missing, store_error};
use super::{
    Connections, Inner, SqliteStore, commit_statement, execute, insert, query, read, replace,
};
use crate::clock::Timestamp;
use crate::key::KeyHash;
use crate::sql::transaction::{
    self, Identity, OwnIdentity, Savepoints, TransactionStore, Transactional,
};
use crate::sql::{
    Answer, Found, Guard, Row, Standing, Table, TransactionDatabase, in_time, is_answered,
};
use crate::store::transaction::{
    AnyConnection, ClaimAnswer, End, TransactionConnection, TransactionFuture,
};
use crate::store::{
    Claim, Commit, DynStore, Operation, Record, SqlTransaction, StoreError, StoreErrorKind, Token,
};

const OPERATION: Operation = Operation::Transaction;
/// The name that people call it by.
const DATABASE: &str = "SQLite";

impl TransactionDatabase for Sqlite {
    // A transaction that begins by reading can no longer write once another one has written.
    const BEGIN: &'static str = "BEGIN IMMEDIATE";

    // A lock that others hold undoes nothing but the statement.
    const PASSING_ERRORS_UNDO: bool = false;

    async fn standing(connection: &mut SqliteConnection) -> Result<Standing, Error> {
        Ok(if is_in_none(connection).await? { Standing::Over } else { Standing::Whole })
    }

    async fn roll_back(mut transaction: Transaction<'static, Self>) -> Result<(), Error> {
        if !is_in_none(&mut transaction).await? {
            return transaction.rollback().await;
        }
        Self::mend(&mut transaction).await;
        Ok(())
    }

    /// SQLite ends a transaction by itself when the disk is full, and where a statement requests it
    /// (`OR ROLLBACK`). The client does not notice, and lets no transaction begin on the connection
    /// before its own is rolled back. So this begins one for the client to roll back.
    async fn mend(connection: &mut SqliteConnection) -> bool {
        let is_given = run(connection, "BEGIN").await.is_ok();
        // The client refuses to begin, and rolls back the transaction that it believes to be in. An
        // answer to a later request shows that it has done so.
        drop(connection.begin_with(Self::BEGIN).await);
        let is_mended = connection.ping().await.is_ok() && !connection.is_in_transaction();
        if is_given {
            // If the transaction is still open, because the client believes in a nested one, later
            // users would build on it.
            let _ = run(connection, "ROLLBACK").await;
        }
        is_mended
    }
}

/// Returns true if the connection is not in a transaction, whatever the client believes. SQLite
/// rejects a transaction within a transaction, and nothing happens.
async fn is_in_none(connection: &mut SqliteConnection) -> Result<bool, Error> {
    match run(connection, "BEGIN").await {
        Ok(()) => run(connection, "ROLLBACK").await.map(|()| true),
        Err(Error::Database(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn run(connection: &mut SqliteConnection, statement: &'static str) -> Result<(), Error> {
    sqlx::raw_sql(statement).execute(connection).await.map(drop)
}

pub(crate) struct InTransaction<'a> {
    connection: &'a mut SqliteConnection,
    store: &'a Inner,
    has_savepoint: bool,
}

impl Table for InTransaction<'_> {
    async fn read(&mut self, operation: Operation, key: KeyHash) -> Answer<Found> {
        read(operation, self.connection, self.store, true, &key).await
    }

    async fn insert(&mut self, operation: Operation, row: &Row) -> Answer<bool> {
        insert(operation, self.connection, &self.store.statements, row)
            .await
            .map_err(not_begun_to_write)
    }

    async fn replace(&mut self, operation: Operation, guard: Guard, row: &Row) -> Answer<bool> {
        replace(operation, self.connection, &self.store.statements, guard, row)
            .await
            .map_err(not_begun_to_write)
    }

    async fn delete(&mut self, operation: Operation, guard: Guard) -> Answer<bool> {
        super::delete(operation, self.connection, &self.store.statements, guard)
            .await
            .map_err(not_begun_to_write)
    }
}

impl Savepoints for SqliteConnection {
    async fn run(&mut self, statement: String) -> Answer<()> {
        execute(OPERATION, self, sqlx::query(AssertSqlSafe(statement))).await.map(drop)
    }

    /// Outside of a transaction a savepoint would begin one, and its release commit it. One that a
    /// dropped call left open would keep all others from writing.
    async fn set_savepoint(&mut self, name: &str) -> Answer<()> {
        let failed = |error| store_error(OPERATION, error);
        if is_in_none(self).await.map_err(failed)? {
            let detail =
                "the connection is not in a transaction: begin one first, with `BEGIN IMMEDIATE`";
            return Err(StoreError::new(StoreErrorKind::Config, OPERATION).with_detail(detail));
        }
        self.run(format!("SAVEPOINT {name}")).await
    }

    fn is_gone(error: &StoreError) -> bool {
        is_savepoint_missing(error)
    }
}

/// Only `BEGIN` waits: at most one transaction writes at a time.
impl Transactional for InTransaction<'_> {
    type Connection = SqliteConnection;

    async fn look(&mut self, _: &str, key: KeyHash, _: Duration) -> Answer<(Identity, Found)> {
        let identity = identity(OPERATION, self.connection, self.store).await?;
        Ok((identity, self.read(OPERATION, key).await?))
    }

    fn connection(&mut self) -> &mut SqliteConnection {
        &mut *self.connection
    }

    async fn set_out(&mut self, savepoint: &str) -> Answer<()> {
        Savepoints::set_savepoint(self.connection, savepoint).await?;
        self.has_savepoint = true;
        Ok(())
    }

    async fn settle(&mut self, savepoint: &str, claimed: &Record) -> Answer<u64> {
        self.connection.run(format!("SAVEPOINT {savepoint}_body")).await?;
        Ok(claimed.fence)
    }

    async fn leave(&mut self, savepoint: &str) -> Answer<()> {
        if self.has_savepoint { self.connection.undo(savepoint).await } else { Ok(()) }
    }

    /// No other transaction has the key: a transaction that is locked out of writing did not begin
    /// as one that writes.
    async fn has_outwaited(&mut self, error: StoreError) -> Answer<()> {
        Err(error)
    }

    fn is_locked_out(error: &StoreError) -> bool {
        is_busy(error)
    }

    async fn commit_own(&mut self, commit: &Commit) -> Answer<bool> {
        // No other session has the row, however long the body took.
        let statement = commit_statement(self.store, commit, Timestamp::from_millis(0));
        Ok(execute(Operation::Complete, self.connection, statement).await? == 1)
    }
}

/// Converts the error of a write that met another writer: a transaction that begins by reading does
/// not wait for it, and can no longer write after it.
fn not_begun_to_write(error: StoreError) -> StoreError {
    if !is_busy(&error) {
        return error;
    }
    StoreError::new(StoreErrorKind::Refused, error.operation())
        .with_detail(
            "another transaction writes, or has written since this one began to read: roll it back, and begin it with \
             `BEGIN IMMEDIATE`, which waits for its turn",
        )
        .with_source(error)
}

/// Returns the identity of the database that `connection` is on.
pub(super) async fn identity(
    operation: Operation,
    connection: &mut SqliteConnection,
    store: &Inner,
) -> Answer<Identity> {
    let row = query(&store.statements.identity).fetch_one(connection).await;
    let row =
        row.and_then(|row| Ok((row.try_get(0)?, row.try_get::<String, _>(1)?, row.try_get(2)?)));
    let (written, file, table) = row.map_err(|error| store_error(operation, error))?;
    // Empty for a database in memory.
    let canonical = std::fs::canonicalize(&file).map(|path| path.to_string_lossy().into_owned());
    Identity::new(operation, written, canonical.unwrap_or(file), table)
}

impl SqliteStore {
    async fn identity_on(&self, connections: &Connections) -> Answer<Identity> {
        let mut lease = connections.lease(OPERATION).await?;
        let asked =
            in_time(OPERATION, self.0.response_timeout, identity(OPERATION, &mut lease, &self.0))
                .await;
        if is_answered(&asked) {
            lease.give_back().await;
        }
        asked
    }
}

impl TransactionStore for SqliteStore {
    type Connection = SqliteConnection;
    type OpenTable<'a> = InTransaction<'a>;

    fn table_on<'a>(&'a self, connection: &'a mut SqliteConnection) -> InTransaction<'a> {
        InTransaction { connection, store: &self.0, has_savepoint: false }
    }

    fn known_identity(&self) -> &OwnIdentity {
        &self.0.identity
    }

    /// Uses a separate connection, opened like the others: all of the pool's may be in transactions
    /// that wait for this.
    async fn own_identity(&self) -> Answer<Identity> {
        let store = &self.0;
        let identity = match self.identity_on(&store.aside).await {
            // Only the user's pool sees the table: a database in memory, without a name that
            // connections share.
            Err(error) if is_table_missing(&error) => self.identity_on(&store.writer).await?,
            asked => asked?,
        };
        store.identity.set(identity.clone());
        Ok(identity)
    }
}

impl TransactionConnection for SqliteConnection {
    fn begin<'a>(
        &'a mut self,
        store: &'a dyn DynStore,
        claim: &'a Claim,
        patience: Duration,
    ) -> TransactionFuture<'a, ClaimAnswer> {
        transaction::begin_on(AnyConnection::new(self, DATABASE), store, claim, patience)
    }

    fn record_first<'a>(
        &'a mut self,
        store: &'a dyn DynStore,
        claim: &'a Claim,
        result: &'a Commit,
        patience: Duration,
    ) -> TransactionFuture<'a, Option<ClaimAnswer>> {
        let connection = AnyConnection::new(self, DATABASE);
        transaction::record_first_on(connection, store, claim, result, patience)
    }

    fn end<'a>(
        &'a mut self,
        store: &'a dyn DynStore,
        token: Token,
        end: End,
    ) -> TransactionFuture<'a, bool> {
        transaction::end_on(AnyConnection::new(self, DATABASE), store, token, end)
    }

    fn set_savepoint<'a>(&'a mut self, name: &'a str) -> TransactionFuture<'a, ()> {
        transaction::set_savepoint_on(self, name)
    }

    fn end_savepoint<'a>(&'a mut self, name: &'a str, undoes: bool) -> TransactionFuture<'a, ()> {
        transaction::end_savepoint_on(self, name, undoes)
    }
}

#[diagnostic::do_not_recommend]
impl SqlTransaction for SqliteConnection {
    type Connection = Self;

    fn connection(&mut self) -> &mut Self {
        self
    }
}

#[diagnostic::do_not_recommend]
impl SqlTransaction for Transaction<'_, Sqlite> {
    type Connection = SqliteConnection;

    fn connection(&mut self) -> &mut SqliteConnection {
        self
    }
}
