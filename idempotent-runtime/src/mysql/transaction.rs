//! A record in the user's own transaction.

use std::error::Error as _;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Error, MySql, MySqlConnection, Row as _, Transaction};

use super::error::{DUPLICATE_KEY, LOCK_WAIT_TIMEOUT, NO_SAVEPOINT, number, store_error};
use super::query::{Bound, query};
use super::statements::{Isolation, Statement};
use super::{
    Inner, MySqlStore, commit_statement, delete_statement, read_row, replace_statement, waits,
};
use crate::clock::Timestamp;
use crate::key::KeyHash;
use crate::sql::transaction::{
    self, Identity, OwnIdentity, Savepoints, TransactionStore, Transactional, first_grant,
    first_row,
};
use crate::sql::{self, Answer, Found, Guard, Row, Standing, Table, TransactionDatabase, in_time};
use crate::store::transaction::{
    AnyConnection, ClaimAnswer, End, TransactionConnection, TransactionFuture,
};
use crate::store::{
    Claim, Commit, DynStore, Operation, Record, SqlTransaction, StoreError, StoreErrorKind, Token,
};

const OPERATION: Operation = Operation::Transaction;
/// The name that people call it by.
const DATABASE: &str = "MySQL";

impl TransactionDatabase for MySql {
    // Fewer locks and deadlocks than under the server's default, and nothing here needs more.
    const BEGIN: &'static str = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; START TRANSACTION; SAVEPOINT idempotency_transaction";

    /// The savepoint disappears with the transaction in which it was set, whether that was undone
    /// or committed.
    async fn standing(connection: &mut MySqlConnection) -> Result<Standing, Error> {
        match sqlx::raw_sql("RELEASE SAVEPOINT idempotency_transaction").execute(connection).await {
            Ok(_) => Ok(Standing::Whole),
            Err(error) if number(&error) == Some(NO_SAVEPOINT) => Ok(Standing::Over),
            Err(error) => Err(error),
        }
    }
}

pub(crate) struct InTransaction<'a> {
    connection: &'a mut MySqlConnection,
    store: &'a Inner,
    /// True if a plain read does not show the current row: a write has met another one, because the
    /// snapshot of the transaction is older, or the session shows uncommitted data.
    is_behind: bool,
    /// True if the row may be locked. No savepoint releases that lock.
    has_locked: bool,
    stage: Stage,
}

/// The progress of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Begun,
    /// The transaction is known to be one of this database, and from now on the rows are queried.
    Known,
    /// The savepoint is set, and rows are written.
    SetOut,
}

impl InTransaction<'_> {
    /// Returns the number of rows that the statement found. It is sent once: a deadlock has rolled
    /// back the whole transaction.
    async fn write(&mut self, operation: Operation, statement: Bound<'_>) -> Answer<u64> {
        let done = statement.execute(&mut *self.connection).await;
        done.map(|done| done.rows_affected()).map_err(|error| store_error(operation, error))
    }

    async fn write_one(&mut self, operation: Operation, statement: Bound<'_>) -> Answer<bool> {
        let is_written = self.write(operation, statement).await? == 1;
        self.is_behind |= !is_written;
        self.has_locked = true;
        Ok(is_written)
    }
}

impl Table for InTransaction<'_> {
    async fn read(&mut self, operation: Operation, key: KeyHash) -> Answer<Found> {
        let statements = &self.store.in_transactions;
        if !self.is_behind {
            let (found, isolation) =
                read_row(operation, self.connection, self.store, &statements.read, &key).await?;
            self.has_locked |= isolation == Isolation::Serializable;
            if isolation != Isolation::Uncommitted || found.stored.is_none() {
                return Ok(found);
            }
            self.is_behind = true;
        }
        self.has_locked = true;
        Ok(read_row(operation, self.connection, self.store, &statements.read_latest, &key).await?.0)
    }

    async fn insert(&mut self, operation: Operation, row: &Row) -> Answer<bool> {
        let inserted = sql::bind(query(&self.store.in_transactions.insert), row)
            .execute(&mut *self.connection)
            .await;
        match inserted {
            Ok(_) => Ok(true),
            Err(error) if number(&error) == Some(DUPLICATE_KEY) => {
                // The failed insert keeps a lock on the row that it has met.
                (self.is_behind, self.has_locked) = (true, true);
                Ok(false)
            }
            Err(error) => Err(store_error(operation, error)),
        }
    }

    async fn replace(&mut self, operation: Operation, guard: Guard, row: &Row) -> Answer<bool> {
        let statement = replace_statement(&self.store.in_transactions, guard, row);
        self.write_one(operation, statement).await
    }

    async fn delete(&mut self, operation: Operation, guard: Guard) -> Answer<bool> {
        let statement = delete_statement(&self.store.in_transactions, guard);
        self.write_one(operation, statement).await
    }
}

impl InTransaction<'_> {
    async fn is_in_transaction(&mut self) -> bool {
        const SAVEPOINT: &str = "idempotency_wait";
        Savepoints::set_savepoint(self.connection, SAVEPOINT).await.is_ok()
            && self.connection.release(SAVEPOINT).await.is_ok()
    }

    /// Returns true if the lock that was waited for is that of the table, and not of a row. The
    /// server reports both waits with the same number.
    async fn is_table_locked(&mut self) -> bool {
        let touched = sqlx::raw_sql(AssertSqlSafe(self.store.in_transactions.touch.clone()))
            .execute(&mut *self.connection);
        touched.await.is_err_and(|error| number(&error) == Some(LOCK_WAIT_TIMEOUT))
    }
}

impl Savepoints for MySqlConnection {
    async fn run(&mut self, statement: String) -> Answer<()> {
        let done = sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *self).await;
        done.map(drop).map_err(|error| store_error(OPERATION, error))
    }

    /// Outside of a transaction the server accepts `SAVEPOINT` without creating one, and each
    /// statement would be committed. Rolling back to it shows whether it exists.
    async fn set_savepoint(&mut self, name: &str) -> Answer<()> {
        self.run(format!("SAVEPOINT {name}")).await?;
        self.run(format!("ROLLBACK TO SAVEPOINT {name}")).await.map_err(|error| {
            let detail = "the connection is not in a transaction: begin one first";
            if Self::is_gone(&error) {
                StoreError::new(StoreErrorKind::Config, OPERATION).with_detail(detail)
            } else {
                error
            }
        })
    }

    fn is_gone(error: &StoreError) -> bool {
        server_error(error).and_then(number) == Some(NO_SAVEPOINT)
    }
}

impl Transactional for InTransaction<'_> {
    type Connection = MySqlConnection;

    /// Reads wait too: for table locks, and under SERIALIZABLE, which the transaction may have, for
    /// row locks.
    async fn look(
        &mut self,
        _: &str,
        key: KeyHash,
        patience: Duration,
    ) -> Answer<(Identity, Found)> {
        let bounded = waits::bound(self.connection, patience.as_millis().div_ceil(1_000)).await;
        bounded.map_err(|error| store_error(OPERATION, error))?;
        let identity =
            identity(OPERATION, self.connection, &self.store.in_transactions.identity).await?;
        self.stage = Stage::Known;
        Ok((identity, self.read(OPERATION, key).await?))
    }

    fn connection(&mut self) -> &mut MySqlConnection {
        &mut *self.connection
    }

    async fn set_out(&mut self, savepoint: &str) -> Answer<()> {
        Savepoints::set_savepoint(self.connection, savepoint).await?;
        self.stage = Stage::SetOut;
        Ok(())
    }

    /// Also raises the fence, without a round trip of its own: the write may have waited for
    /// another transaction, whose fence is then the larger one.
    async fn settle(&mut self, savepoint: &str, claimed: &Record) -> Answer<u64> {
        let raising = self.store.in_transactions.raise(&claimed.key, claimed.owner);
        let settled =
            waits::restore_and(self.connection, &format!("{raising}; SAVEPOINT {savepoint}_body"))
                .await;
        let fence: i64 = settled
            .and_then(|row| row.try_get(0))
            .map_err(|error| store_error(OPERATION, error))?;
        Ok(u64::try_from(fence).unwrap_or(claimed.fence))
    }

    async fn leave(&mut self, savepoint: &str) -> Answer<()> {
        let undone = if self.stage == Stage::SetOut {
            self.connection.undo(savepoint).await
        } else {
            Ok(())
        };
        // Rolling back to a savepoint does not restore the bounds.
        let restored =
            waits::restore(self.connection).await.map_err(|error| store_error(OPERATION, error));
        undone.and(restored)
    }

    async fn has_outwaited(&mut self, error: StoreError) -> Answer<()> {
        // A server can be configured to undo the whole transaction on a lock timeout.
        if !Self::is_locked_out(&error)
            || !(self.stage == Stage::SetOut || self.is_in_transaction().await)
        {
            return Err(error);
        }
        if self.stage != Stage::Begun && !self.is_table_locked().await {
            return Ok(());
        }
        Err(table_is_locked(&error))
    }

    fn keeps_lock(&self) -> bool {
        self.has_locked
    }

    fn is_locked_out(error: &StoreError) -> bool {
        server_error(error).and_then(number) == Some(LOCK_WAIT_TIMEOUT)
    }

    async fn commit_own(&mut self, commit: &Commit) -> Answer<bool> {
        Ok(self
            .write(Operation::Complete, commit_statement(&self.store.in_transactions, commit))
            .await?
            == 1)
    }
}

/// Returns the error of a table that another session has locked. Without the server's error as
/// source: with it, transactions would run again, and wait as long each time.
fn table_is_locked(error: &dyn std::fmt::Display) -> StoreError {
    let detail = format!(
        "another session keeps the table locked, as `LOCK TABLES` and `ALTER TABLE` do ({error})"
    );
    StoreError::new(StoreErrorKind::Refused, OPERATION).with_detail(detail)
}

/// Rolls back, begins a transaction in which calls keep their records, and restores the waits.
async fn begin_again(connection: &mut MySqlConnection) -> Answer<()> {
    let again = format!("ROLLBACK; {}", MySql::BEGIN);
    let begun = waits::restore_after(connection, &again).await;
    begun.map_err(|error| store_error(OPERATION, error))
}

fn server_error(error: &StoreError) -> Option<&Error> {
    error.source().and_then(|source| source.downcast_ref())
}

async fn identity(
    operation: Operation,
    connection: &mut MySqlConnection,
    statement: &Statement,
) -> Answer<Identity> {
    let row = query(statement).fetch_one(connection).await;
    let row = row.and_then(|row| Ok((row.try_get(0)?, row.try_get::<Option<String>, _>(1)?)));
    let (written, place) = row.map_err(|error| store_error(operation, error))?;
    // No query shows whether a temporary table of the session hides the store's.
    Identity::new(operation, written, place.unwrap_or_default(), String::new())
}

impl TransactionStore for MySqlStore {
    type Connection = MySqlConnection;
    type OpenTable<'a> = InTransaction<'a>;

    fn table_on<'a>(&'a self, connection: &'a mut MySqlConnection) -> InTransaction<'a> {
        InTransaction {
            connection,
            store: &self.0,
            is_behind: false,
            has_locked: false,
            stage: Stage::Begun,
        }
    }

    fn known_identity(&self) -> &OwnIdentity {
        &self.0.identity
    }

    /// The insert locks a row that is there, and no savepoint releases that lock: so if there is one,
    /// the transaction begins again, as it does after a wait in vain.
    async fn record_first(
        &self,
        connection: &mut MySqlConnection,
        claim: &Claim,
        result: &Commit,
        patience: Duration,
    ) -> Answer<Option<ClaimAnswer>> {
        let own = TransactionStore::identity(self).await?;
        let Some((grant, row)) = first_row(claim, result) else { return Ok(None) };
        let failed = |error| store_error(OPERATION, error);
        let (written, place, _) = own.parts();
        let seconds = patience.as_millis().div_ceil(1_000);
        waits::bound(connection, seconds).await.map_err(failed)?;
        let statements = &self.0.in_transactions;
        let insert = sql::bind(query(&statements.insert_first), &row);
        let insert = insert.bind(&written[..]).bind(place);
        match insert.execute(&mut *connection).await {
            Ok(inserted) if inserted.rows_affected() == 1 => {}
            Err(error) if number(&error) == Some(LOCK_WAIT_TIMEOUT) => {
                begin_again(connection).await?;
                let mut table = self.table_on(connection);
                if !table.is_table_locked().await {
                    return Ok(Some(ClaimAnswer::new(None, true)));
                }
                return Err(table_is_locked(&error));
            }
            Err(error) if number(&error) != Some(DUPLICATE_KEY) => {
                let _ = waits::restore(connection).await;
                return Err(failed(error));
            }
            Ok(_) | Err(_) => {
                begin_again(connection).await?;
                return Ok(None);
            }
        }
        let raising = statements.raise(&claim.key, claim.token);
        let raised = waits::restore_and(connection, &raising).await;
        let fence: i64 = raised.and_then(|row| row.try_get(0)).map_err(failed)?;
        let fence = u64::try_from(fence).unwrap_or_default();
        self.0.fences.granted(fence);
        Ok(Some(first_grant(grant, Timestamp::from_millis(fence / 1_000), fence)))
    }

    /// Uses a connection for renewals, opened like the others: all of the pool's may be in
    /// transactions that wait for this.
    async fn own_identity(&self) -> Answer<Identity> {
        let store = &self.0;
        let mut lease = store.renewals.lease(OPERATION).await?;
        let asked = in_time(
            OPERATION,
            store.renewals.response_timeout,
            identity(OPERATION, &mut lease, &store.statements.identity),
        )
        .await;
        store.renewals.end(lease, asked.as_ref().err());
        let identity = asked?;
        store.identity.set(identity.clone());
        Ok(identity)
    }
}

impl TransactionConnection for MySqlConnection {
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
impl SqlTransaction for MySqlConnection {
    type Connection = Self;

    fn connection(&mut self) -> &mut Self {
        self
    }
}

#[diagnostic::do_not_recommend]
impl SqlTransaction for Transaction<'_, MySql> {
    type Connection = MySqlConnection;

    fn connection(&mut self) -> &mut MySqlConnection {
        self
    }
}
