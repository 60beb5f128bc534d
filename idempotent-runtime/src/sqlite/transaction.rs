//! A record in the user's own transaction.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Error, Row as _, Sqlite, SqliteConnection, Transaction};

use super::error::{is_busy, store_error};
use super::{Inner, SqliteStore, commit_statement, execute, insert, query, read, replace};
use crate::key::KeyHash;
use crate::sql::transaction::{self, Identity, TransactionStore, Transactional};
use crate::sql::{Answer, Found, Guard, Row, Table, TransactionDatabase, in_time, is_answered};
use crate::store::transaction::{End, Keep, Kept};
use crate::store::{Claim, Claimed, Commit, DynStore, SqlTransaction, StoreError, StoreErrorKind, Token};

const OPERATION: &str = "claim in a transaction";

impl TransactionDatabase for Sqlite {
    // A transaction that begins by reading cannot write any more once somebody else has.
    const BEGIN: &'static str = "BEGIN IMMEDIATE";

    /// A commit where there is no transaction any more is an error.
    async fn is_whole(_: &mut SqliteConnection) -> Result<bool, Error> {
        Ok(true)
    }
}

pub(crate) struct InTransaction<'a> {
    connection: &'a mut SqliteConnection,
    store: &'a Inner,
}

impl Table for InTransaction<'_> {
    async fn read(&mut self, operation: &'static str, key: KeyHash) -> Answer<Found> {
        read(operation, self.connection, &self.store.statements, &key, self.store.now()).await
    }

    async fn insert(&mut self, operation: &'static str, row: &Row) -> Answer<bool> {
        insert(operation, self.connection, &self.store.statements, row).await
    }

    async fn replace(&mut self, operation: &'static str, guard: Guard, row: &Row) -> Answer<bool> {
        replace(operation, self.connection, &self.store.statements, guard, row).await
    }

    async fn delete(&mut self, operation: &'static str, guard: Guard) -> Answer<bool> {
        super::delete(operation, self.connection, &self.store.statements, guard).await
    }
}

impl Transactional for InTransaction<'_> {
    async fn identity(&mut self) -> Answer<Identity> {
        identity(OPERATION, self.connection, self.store).await
    }

    async fn run(&mut self, statement: String) -> Answer<()> {
        execute(OPERATION, self.connection, sqlx::query(AssertSqlSafe(statement))).await.map(drop)
    }

    /// Only `BEGIN` waits: a transaction that writes is the only one.
    async fn bound_waits(&mut self, _: Duration) -> Answer<()> {
        Ok(())
    }

    async fn restore_waits(&mut self) -> Answer<()> {
        Ok(())
    }

    fn is_out_of_patience(error: &StoreError) -> bool {
        is_busy(error)
    }

    async fn commit_own(&mut self, commit: &Commit) -> Answer<bool> {
        let statement = commit_statement(self.store, commit);
        Ok(execute("complete", self.connection, statement).await? == 1)
    }
}

/// Which database `connection` is on.
pub(super) async fn identity(
    operation: &'static str,
    connection: &mut SqliteConnection,
    store: &Inner,
) -> Answer<Identity> {
    let row = query(&store.statements.identity).fetch_one(connection).await;
    let identity = row.and_then(|row| row.try_get::<Vec<u8>, _>(0)).map_err(|error| store_error(operation, error))?;
    Identity::try_from(identity).map_err(|_| {
        StoreError::new(StoreErrorKind::Config, operation).with_detail("the `meta` table holds no identity of 16 bytes")
    })
}

impl TransactionStore for SqliteStore {
    const DATABASE: &'static str = "SQLite";

    type Connection = SqliteConnection;
    type OpenTable<'a> = InTransaction<'a>;

    fn table_on<'a>(&'a self, connection: &'a mut SqliteConnection) -> InTransaction<'a> {
        InTransaction { connection, store: &self.0 }
    }

    /// Where `migrate` has not told it, it is asked for on a connection for renewals: all of the pool's may be in transactions
    /// that wait for this.
    async fn own_identity(&self) -> Answer<Identity> {
        let store = &self.0;
        if let Some(identity) = store.identity.get() {
            return Ok(identity);
        }
        let mut lease = store.renewals.lease(OPERATION).await?;
        let asked = in_time(OPERATION, store.response_timeout, identity(OPERATION, &mut lease, store)).await;
        if is_answered(&asked) {
            lease.give_back().await;
        }
        let identity = asked?;
        store.identity.set(identity);
        Ok(identity)
    }
}

impl Keep for SqliteConnection {
    fn begin<'a>(
        &'a mut self,
        store: &'a dyn DynStore,
        claim: &'a Claim,
        patience: Duration,
    ) -> Kept<'a, Option<Claimed>> {
        transaction::begin_on::<SqliteStore>(self, store, claim, patience)
    }

    fn end<'a>(&'a mut self, store: &'a dyn DynStore, token: Token, end: End) -> Kept<'a, bool> {
        transaction::end_on::<SqliteStore>(self, store, token, end)
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
