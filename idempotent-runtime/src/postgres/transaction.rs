//! A record in the user's own transaction.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Error, PgConnection, Postgres, Row as _, Transaction};

use super::error::{is_aborted, is_lock_timeout, is_savepoint_missing, store_error};
use super::request::Request;
use super::{Inner, PostgresStore, commit_request, found_one, owner_bytes};
use crate::key::KeyHash;
use crate::sql::transaction::{self, Identity, OwnIdentity, Savepoints, TransactionStore, Transactional};
use crate::sql::{Answer, Found, Guard, Row, Standing, Table, TransactionDatabase};
use crate::store::transaction::{End, Keep, Kept, Taken};
use crate::store::{Claim, Commit, DynStore, SqlTransaction, StoreError, StoreErrorKind, Token};

const OPERATION: &str = "claim in a transaction";

/// Remembers the user's bound in a setting of the transaction, and sets ours.
const BOUND_WAITS: &str = "SELECT set_config('idempotency.lock_timeout', current_setting('lock_timeout'), true),
    set_config('lock_timeout', $1, true)";
/// The rollback to a savepoint has brought the bound back already, and forgotten what was remembered.
const RESTORE_WAITS: &str = "SELECT set_config('lock_timeout',
    coalesce(nullif(current_setting('idempotency.lock_timeout', true), ''), current_setting('lock_timeout')), true)";

impl TransactionDatabase for Postgres {
    const BEGIN: &'static str = "BEGIN";

    /// An aborted transaction refuses every statement but its end.
    async fn standing(connection: &mut PgConnection) -> Result<Standing, Error> {
        match sqlx::raw_sql("SELECT 1").execute(connection).await {
            Ok(_) => Ok(Standing::Whole),
            Err(error) if is_aborted(&error) => Ok(Standing::Undone),
            Err(error) => Err(error),
        }
    }
}

pub(crate) struct InTransaction<'a> {
    connection: &'a mut PgConnection,
    store: &'a Inner,
}

impl InTransaction<'_> {
    /// Whether the statement returned a row. It is sent once: what it fails with has broken the whole transaction.
    async fn wrote(&mut self, operation: &'static str, request: Request<'_>) -> Answer<bool> {
        let rows = request.send_once(operation, self.connection, self.store.sessions.prepares()).await?;
        Ok(!rows.is_empty())
    }
}

impl Table for InTransaction<'_> {
    async fn read(&mut self, operation: &'static str, key: KeyHash) -> Answer<Found> {
        let request = Request::new(&self.store.in_transactions.read).bytes(key.as_bytes());
        found_one(
            operation,
            self.store,
            &request.send_once(operation, self.connection, self.store.sessions.prepares()).await?,
        )
    }

    async fn insert(&mut self, operation: &'static str, row: &Row) -> Answer<bool> {
        self.wrote(operation, Request::new(&self.store.in_transactions.insert).values(row.values())).await
    }

    async fn replace(&mut self, operation: &'static str, guard: Guard, row: &Row) -> Answer<bool> {
        let owner = owner_bytes(guard.owner);
        let request = Request::new(&self.store.in_transactions.replace).values(row.values());
        self.wrote(operation, request.bytes(&owner).integer(guard.revision)).await
    }

    async fn delete(&mut self, operation: &'static str, guard: Guard) -> Answer<bool> {
        let owner = owner_bytes(guard.owner);
        let request = Request::new(&self.store.in_transactions.delete).bytes(guard.key.as_bytes());
        self.wrote(operation, request.bytes(&owner).integer(guard.revision)).await
    }
}

impl Savepoints for PgConnection {
    async fn run(&mut self, statement: String) -> Answer<()> {
        let done = sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *self).await;
        done.map(drop).map_err(|error| store_error(OPERATION, error))
    }

    fn is_gone(error: &StoreError) -> bool {
        error.source().and_then(|source| source.downcast_ref()).is_some_and(is_savepoint_missing)
    }
}

impl Transactional for InTransaction<'_> {
    type Connection = PgConnection;

    async fn identity(&mut self) -> Answer<Identity> {
        let request = Request::new(&self.store.in_transactions.identity);
        identity(&request.send_once(OPERATION, self.connection, self.store.sessions.prepares()).await?)
    }

    fn connection(&mut self) -> &mut PgConnection {
        &mut *self.connection
    }

    async fn bound_waits(&mut self, patience: Duration) -> Answer<()> {
        // Zero would wait for ever.
        let millis = patience.as_millis().clamp(1, i32::MAX as u128);
        let bound = format!("{millis}ms");
        self.wrote(OPERATION, Request::new(&Arc::from(BOUND_WAITS)).text(&bound)).await.map(drop)
    }

    async fn restore_waits(&mut self) -> Answer<()> {
        self.wrote(OPERATION, Request::new(&Arc::from(RESTORE_WAITS))).await.map(drop)
    }

    fn is_out_of_patience(error: &StoreError) -> bool {
        error.source().and_then(|source| source.downcast_ref()).is_some_and(is_lock_timeout)
    }

    async fn commit_own(&mut self, commit: &Commit) -> Answer<bool> {
        let owner = owner_bytes(commit.token);
        self.wrote("complete", commit_request(&self.store.in_transactions, commit, &owner)).await
    }
}

fn identity(rows: &[PgRow]) -> Answer<Identity> {
    let row = rows
        .first()
        .ok_or_else(|| StoreError::new(StoreErrorKind::Config, OPERATION).with_detail("the `meta` table is empty"))?;
    let failed = |error| store_error(OPERATION, error);
    let (name, number): (String, i64) = (row.try_get(1).map_err(failed)?, row.try_get(2).map_err(failed)?);
    Identity::new(OPERATION, row.try_get(0).map_err(failed)?, format!("{name} {number}"))
}

impl TransactionStore for PostgresStore {
    const DATABASE: &'static str = "PostgreSQL";

    type Connection = PgConnection;
    type OpenTable<'a> = InTransaction<'a>;

    fn table_on<'a>(&'a self, connection: &'a mut PgConnection) -> InTransaction<'a> {
        InTransaction { connection, store: &self.0 }
    }

    fn known_identity(&self) -> &OwnIdentity {
        &self.0.identity
    }

    /// On a connection for renewals, made as the others are: all of the pool's may be in transactions that wait for this.
    async fn own_identity(&self) -> Answer<Identity> {
        let store = &self.0;
        let request = Request::new(&store.statements.identity);
        let identity = identity(&store.renewals.rows(OPERATION, request).await?)?;
        store.identity.set(identity.clone());
        Ok(identity)
    }
}

impl Keep for PgConnection {
    fn begin<'a>(&'a mut self, store: &'a dyn DynStore, claim: &'a Claim, patience: Duration) -> Kept<'a, Taken> {
        transaction::begin_on::<PostgresStore>(self, store, claim, patience)
    }

    fn end<'a>(&'a mut self, store: &'a dyn DynStore, token: Token, end: End) -> Kept<'a, bool> {
        transaction::end_on::<PostgresStore>(self, store, token, end)
    }

    fn set_savepoint<'a>(&'a mut self, name: &'a str) -> Kept<'a, ()> {
        transaction::set_savepoint_on(self, name)
    }

    fn end_savepoint<'a>(&'a mut self, name: &'a str, undoes: bool) -> Kept<'a, ()> {
        transaction::end_savepoint_on(self, name, undoes)
    }
}

#[diagnostic::do_not_recommend]
impl SqlTransaction for PgConnection {
    type Connection = Self;

    fn connection(&mut self) -> &mut Self {
        self
    }
}

#[diagnostic::do_not_recommend]
impl SqlTransaction for Transaction<'_, Postgres> {
    type Connection = PgConnection;

    fn connection(&mut self) -> &mut PgConnection {
        self
    }
}
