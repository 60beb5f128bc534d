//! A record in the user's own transaction.

use std::error::Error as _;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Error, MySql, MySqlConnection, Row as _, Transaction};

use super::error::{DUPLICATE_KEY, LOCK_WAIT_TIMEOUT, NO_SAVEPOINT, number, store_error};
use super::query::{Bound, query};
use super::statements::Statement;
use super::{Inner, MySqlStore, commit_statement, delete_statement, read_row, replace_statement, waits};
use crate::key::KeyHash;
use crate::sql::transaction::{self, Identity, OwnIdentity, Savepoints, TransactionStore, Transactional};
use crate::sql::{self, Answer, Found, Guard, Row, Standing, Table, TransactionDatabase, in_time};
use crate::store::transaction::{End, Keep, Kept, Taken};
use crate::store::{Claim, Commit, DynStore, SqlTransaction, StoreError, StoreErrorKind, Token};

const OPERATION: &str = "claim in a transaction";

impl TransactionDatabase for MySql {
    // Fewer locks and fewer deadlocks than under the server's default, and nothing here needs more.
    const BEGIN: &'static str =
        "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; START TRANSACTION; SAVEPOINT idempotency_transaction";

    /// The savepoint goes with the transaction that it was set in, whether that was undone or committed.
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
    /// Whether a write has met what a plain read does not show: the snapshot of the transaction may be older.
    is_behind: bool,
}

impl InTransaction<'_> {
    /// How many rows the statement found. It is sent once: a deadlock has rolled back the whole transaction.
    async fn write(&mut self, operation: &'static str, statement: Bound<'_>) -> Answer<u64> {
        let done = statement.execute(&mut *self.connection).await;
        done.map(|done| done.rows_affected()).map_err(|error| store_error(operation, error))
    }

    async fn write_one(&mut self, operation: &'static str, statement: Bound<'_>) -> Answer<bool> {
        let is_written = self.write(operation, statement).await? == 1;
        self.is_behind |= !is_written;
        Ok(is_written)
    }
}

impl Table for InTransaction<'_> {
    async fn read(&mut self, operation: &'static str, key: KeyHash) -> Answer<Found> {
        let statements = &self.store.in_transactions;
        let statement = if self.is_behind { &statements.read_latest } else { &statements.read };
        read_row(operation, self.connection, self.store, statement, &key).await
    }

    async fn insert(&mut self, operation: &'static str, row: &Row) -> Answer<bool> {
        let inserted = sql::bind(query(&self.store.in_transactions.insert), row).execute(&mut *self.connection).await;
        match inserted {
            Ok(_) => Ok(true),
            Err(error) if number(&error) == Some(DUPLICATE_KEY) => {
                self.is_behind = true;
                Ok(false)
            }
            Err(error) => Err(store_error(operation, error)),
        }
    }

    async fn replace(&mut self, operation: &'static str, guard: Guard, row: &Row) -> Answer<bool> {
        let statement = replace_statement(&self.store.in_transactions, guard, row);
        self.write_one(operation, statement).await
    }

    async fn delete(&mut self, operation: &'static str, guard: Guard) -> Answer<bool> {
        let statement = delete_statement(&self.store.in_transactions, guard);
        self.write_one(operation, statement).await
    }
}

impl Savepoints for MySqlConnection {
    async fn run(&mut self, statement: String) -> Answer<()> {
        let done = sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *self).await;
        done.map(drop).map_err(|error| store_error(OPERATION, error))
    }

    /// Outside of a transaction the server makes no savepoint and says nothing, and each statement would be committed.
    async fn set_savepoint(&mut self, name: &str) -> Answer<()> {
        self.run(format!("SAVEPOINT {name}")).await?;
        self.run(format!("ROLLBACK TO SAVEPOINT {name}")).await.map_err(|error| {
            let detail = "the connection is in no transaction: begin one first";
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

    // Under SERIALIZABLE, which the transaction may have.
    const READS_WAIT: bool = true;

    async fn identity(&mut self) -> Answer<Identity> {
        identity(OPERATION, self.connection, &self.store.in_transactions.identity).await
    }

    fn connection(&mut self) -> &mut MySqlConnection {
        &mut *self.connection
    }

    async fn bound_waits(&mut self, patience: Duration) -> Answer<()> {
        let bounded = waits::bound(self.connection, patience.as_millis().div_ceil(1_000)).await;
        bounded.map_err(|error| store_error(OPERATION, error))
    }

    async fn restore_waits(&mut self) -> Answer<()> {
        waits::restore(self.connection).await.map_err(|error| store_error(OPERATION, error))
    }

    fn is_out_of_patience(error: &StoreError) -> bool {
        server_error(error).and_then(number) == Some(LOCK_WAIT_TIMEOUT)
    }

    async fn commit_own(&mut self, commit: &Commit) -> Answer<bool> {
        Ok(self.write("complete", commit_statement(&self.store.in_transactions, commit)).await? == 1)
    }
}

fn server_error(error: &StoreError) -> Option<&Error> {
    error.source().and_then(|source| source.downcast_ref())
}

async fn identity(
    operation: &'static str,
    connection: &mut MySqlConnection,
    statement: &Statement,
) -> Answer<Identity> {
    let row = query(statement).fetch_one(connection).await;
    let row = row.and_then(|row| Ok((row.try_get(0)?, row.try_get::<Option<String>, _>(1)?)));
    let (written, place) = row.map_err(|error| store_error(operation, error))?;
    Identity::new(operation, written, place.unwrap_or_default())
}

impl TransactionStore for MySqlStore {
    const DATABASE: &'static str = "MySQL";

    type Connection = MySqlConnection;
    type OpenTable<'a> = InTransaction<'a>;

    fn table_on<'a>(&'a self, connection: &'a mut MySqlConnection) -> InTransaction<'a> {
        InTransaction { connection, store: &self.0, is_behind: false }
    }

    fn known_identity(&self) -> &OwnIdentity {
        &self.0.identity
    }

    /// On a connection for renewals, made as the others are: all of the pool's may be in transactions that wait for this.
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

impl Keep for MySqlConnection {
    fn begin<'a>(&'a mut self, store: &'a dyn DynStore, claim: &'a Claim, patience: Duration) -> Kept<'a, Taken> {
        transaction::begin_on::<MySqlStore>(self, store, claim, patience)
    }

    fn end<'a>(&'a mut self, store: &'a dyn DynStore, token: Token, end: End) -> Kept<'a, bool> {
        transaction::end_on::<MySqlStore>(self, store, token, end)
    }

    fn set_savepoint<'a>(&'a mut self, name: &'a str) -> Kept<'a, ()> {
        transaction::set_savepoint_on(self, name)
    }

    fn end_savepoint<'a>(&'a mut self, name: &'a str, undoes: bool) -> Kept<'a, ()> {
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
