//! The MySQL and MariaDB store: plain reads, and writes of one guarded statement each.

mod address;
mod builder;
mod check;
pub(crate) mod error;
mod migrate;
mod purge;
mod query;
mod renew;
mod statements;
mod transaction;
mod waits;
mod watch;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use sqlx::mysql::MySqlRow;
use sqlx::{MySql, MySqlConnection, MySqlPool, Row as _};

pub use address::MySqlAddress;
pub use builder::MySqlStoreBuilder;
use error::{DUPLICATE_KEY, number, store_error};
use query::{Bound, Connections, execute, query};
use statements::{Isolation, Statement, Statements};

use crate::key::KeyHash;
use crate::sql::census::{Counted, Stride};
use crate::sql::stretch::Stretch;
use crate::sql::transaction::OwnIdentity;
use crate::sql::{
    self, Answer, AnswerRow, COLUMNS, Fences, Found, Guard, Lease, Listed, PurgeMark, Row, Rows,
    Table, TableName, Watchers, in_time, integer, reason_code, state_code, store_of_rows,
};
use crate::store::{Capabilities, Commit, Operation, Release, Scan, StoreError, Token};

/// Records in a table of a MySQL or MariaDB server.
///
/// Requires MariaDB 10.5, MySQL 8.0 or later, and uses only statements that both support. A hit is
/// one plain read, which takes no lock and writes nothing; a first call is a read, an insert and,
/// for the result, an update by primary key. Leases and expiry are judged on the server's clock.
///
/// ```no_run
/// # use idempotency::{Idempotency, store::MySqlStore};
/// # async fn start() -> Result<(), Box<dyn std::error::Error>> {
/// let store = MySqlStore::connect("mysql://user:password@mysql.internal/shop").await?;
/// store.migrate().await?;
/// let engine = Idempotency::new(store);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct MySqlStore(Arc<Inner>);

struct Inner {
    connections: Connections,
    renewals: Connections,
    statements: Arc<Statements>,
    /// The statements for the user's transactions, where the call determines how long to wait for a
    /// lock.
    in_transactions: Statements,
    table: TableName,
    watchers: Arc<Watchers>,
    fences: Fences,
    purge_mark: PurgeMark,
    /// True if the server supports `SKIP LOCKED`, as far as is known.
    skips_locked: AtomicBool,
    /// True if the index of `purge_at` has the name that `migrate` gives it, as far as is known.
    knows_index: AtomicBool,
    /// The identity of the database that the records are in, once it is known.
    identity: OwnIdentity,
}

impl MySqlStore {
    /// Connects to the server and the database that `url` names:
    /// `mysql://user:password@host:3306/database`, or the same with `mariadb://`.
    /// `?ssl-mode=VERIFY_IDENTITY&ssl-ca=ca.pem` checks the server's certificate.
    ///
    /// # Errors
    /// As [`MySqlStoreBuilder::connect`].
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        Self::builder(url).connect().await
    }

    /// Creates a builder for a store on the server that `address` names: a URL,
    /// [`sqlx::mysql::MySqlConnectOptions`] or a [`sqlx::MySqlPool`].
    pub fn builder(address: impl MySqlAddress) -> MySqlStoreBuilder {
        MySqlStoreBuilder::new(address)
    }

    /// Creates a store that takes its connections from `pool`. Renewals use at most two connections
    /// of their own, opened as the pool opens its connections. The pool's connections belong to the
    /// runtimes that opened them, and return to it only as long as these runtimes run.
    ///
    /// Code that holds many of them, in open transactions for example, keeps the engine's calls
    /// waiting. These are refused after the engine's `claim_timeout`, and a wait of more than one second
    /// is logged, at most once a minute. Code that holds one connection and makes a call needs two: as many
    /// such callers as the pool has connections can block each other. Use a separate pool for the
    /// store then.
    ///
    /// The caller chooses the settings of connections. Any isolation level will do except `READ
    /// UNCOMMITTED`, which shows results that are never committed and is rejected
    /// ([`Config`](crate::store::StoreErrorKind::Config)). So will any time zone and any `sql_mode`
    /// except MariaDB's `EMPTY_STRING_IS_NULL`, but `autocommit` has to be on, as it is by default. A
    /// session that other code has left without it, or in a transaction, is refused before a write.
    /// During a write, its session waits for locks of rows and tables for at most a second; the
    /// previous limits are kept in variables of the session and restored. Reads limit themselves.
    /// The server is not checked. Call [`migrate`](Self::migrate) once before the first use.
    pub fn from_pool(pool: MySqlPool) -> Self {
        MySqlStoreBuilder::in_pool(pool)
    }

    /// Creates the table, or upgrades that of an earlier release. Many processes may call it at
    /// once. If there is nothing to do, the user does not need the right to create tables.
    ///
    /// # Errors
    /// [`Config`](crate::store::StoreErrorKind::Config) when the table was made by a newer release,
    /// or the user may not create it.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        migrate::migrate(&self.0).await
    }
}

fn key_of(key: &KeyHash) -> Vec<u8> {
    key.as_bytes().to_vec()
}

fn owner_of(owner: Token) -> Vec<u8> {
    owner.bits().to_be_bytes().to_vec()
}

fn integer_of(duration: Duration) -> i64 {
    integer(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

async fn read_row(
    operation: Operation,
    connection: &mut MySqlConnection,
    store: &Inner,
    statement: &Statement,
    key: &KeyHash,
) -> Answer<(Found, Isolation)> {
    let reading = query(statement).bind(key_of(key)).fetch_one(connection).await;
    let failed = |error| store_error(operation, error);
    let row = reading.map_err(failed)?;
    let micros: i64 = row.try_get(COLUMNS.len() + 1).map_err(failed)?;
    store.fences.reached(u64::try_from(micros).unwrap_or_default());
    let isolation = Isolation::of(row.try_get(COLUMNS.len() + 2).map_err(failed)?);
    Ok((sql::found(operation, &row)?, isolation))
}

/// Reads a row outside of a transaction. An uncommitted row is not returned, and the committed one
/// in its place is not known, so a session that shows uncommitted data is an error.
async fn read_committed(
    operation: Operation,
    connection: &mut MySqlConnection,
    store: &Inner,
    key: &KeyHash,
) -> Answer<Found> {
    match read_row(operation, connection, store, &store.statements.read, key).await? {
        (_, Isolation::Uncommitted) => Err(check::uncommitted(operation)),
        (found, _) => Ok(found),
    }
}

fn replace_statement(statements: &Statements, guard: Guard, row: &Row) -> Bound<'static> {
    let statement = sql::bind_values(query(&statements.replace), row);
    statement.bind(key_of(&guard.key)).bind(owner_of(guard.owner)).bind(guard.revision)
}

fn delete_statement(statements: &Statements, guard: Guard) -> Bound<'static> {
    let statement = query(&statements.delete);
    statement.bind(key_of(&guard.key)).bind(owner_of(guard.owner)).bind(guard.revision)
}

/// Stores a result on its owner's own unfinished record.
fn commit_statement(statements: &Statements, commit: &Commit) -> Bound<'static> {
    query(&statements.commit)
        .bind(integer_of(commit.ttl))
        .bind(integer_of(commit.ttl))
        .bind(state_code(commit.state))
        .bind(&commit.body[..])
        .bind(i64::from(commit.schema))
        .bind(reason_code(commit.reason))
        .bind(key_of(&commit.key))
        .bind(owner_of(commit.token))
}

/// A connection for several statements on one row.
pub(crate) struct MySqlTable {
    connection: Lease<MySql>,
    store: Arc<Inner>,
}

impl AnswerRow for MySqlRow {}

impl Table for MySqlTable {
    async fn read(&mut self, operation: Operation, key: KeyHash) -> Answer<Found> {
        read_committed(operation, &mut self.connection, &self.store, &key).await
    }

    async fn insert(&mut self, operation: Operation, row: &Row) -> Answer<bool> {
        let inserting =
            execute(&mut self.connection, || sql::bind(query(&self.store.statements.insert), row))
                .await;
        match inserting {
            Ok(_) => Ok(true),
            Err(error) if number(&error) == Some(DUPLICATE_KEY) => Ok(false),
            Err(error) => Err(store_error(operation, error)),
        }
    }

    async fn replace(&mut self, operation: Operation, guard: Guard, row: &Row) -> Answer<bool> {
        let replacing = || replace_statement(&self.store.statements, guard, row);
        let written = execute(&mut self.connection, replacing).await;
        Ok(written.map_err(|error| store_error(operation, error))? == 1)
    }

    async fn delete(&mut self, operation: Operation, guard: Guard) -> Answer<bool> {
        let deleting = || delete_statement(&self.store.statements, guard);
        let written = execute(&mut self.connection, deleting).await;
        Ok(written.map_err(|error| store_error(operation, error))? == 1)
    }
}

impl Rows for MySqlStore {
    type Table = MySqlTable;

    async fn table(&self, operation: Operation) -> Answer<MySqlTable> {
        let connection = self.0.connections.impatient(operation).await?;
        Ok(MySqlTable { connection, store: Arc::clone(&self.0) })
    }

    async fn end(&self, table: MySqlTable, failure: Option<&StoreError>) {
        self.0.connections.end_impatient(table.connection, failure);
    }

    fn response_timeout(&self) -> Duration {
        self.0.connections.response_timeout
    }

    fn watchers(&self) -> &Arc<Watchers> {
        &self.0.watchers
    }

    fn fences(&self) -> &Fences {
        &self.0.fences
    }

    async fn row(&self, operation: Operation, key: KeyHash) -> Answer<Found> {
        let connections = &self.0.connections;
        // An owner that does not find its record may not write at all. In a session that other code
        // has left in a transaction, the record may be too new to be found.
        let is_owners = !matches!(operation, Operation::Claim | Operation::Read | Operation::Watch);
        let mut lease = if is_owners {
            connections.impatient(operation).await?
        } else {
            connections.lease(operation).await?
        };
        let reading = read_committed(operation, &mut lease, &self.0, &key);
        let result = in_time(operation, connections.response_timeout, reading).await;
        let failure = result.as_ref().err();
        if is_owners {
            connections.end_impatient(lease, failure);
        } else {
            connections.end(lease, failure);
        }
        result
    }

    async fn commit_own(&self, commit: &Commit) -> Answer<bool> {
        let committing = || commit_statement(&self.0.statements, commit);
        Ok(self.0.connections.write(Operation::Complete, committing).await? == 1)
    }

    async fn release_own(&self, release: &Release) -> Answer<bool> {
        let releasing = || {
            query(&self.0.statements.release)
                .bind(key_of(&release.key))
                .bind(owner_of(release.token))
        };
        Ok(self.0.connections.write(Operation::Release, releasing).await? == 1)
    }

    async fn page(&self, scan: &Scan, stretch: &Stretch) -> Answer<Vec<Listed>> {
        const OPERATION: Operation = Operation::Scan;
        let statement = query(&self.0.statements.page).bind(stretch.after()).bind(stretch.last());
        let statement =
            sql::bind_all(statement, sql::filter::values_in_order(scan)).bind(stretch.limit());
        let rows = self.0.connections.rows(OPERATION, statement).await?;
        rows.iter().map(|row| sql::listed(OPERATION, row)).collect()
    }

    async fn count(&self, after: &[u8], stride: Stride) -> Answer<Vec<Counted>> {
        let statement = query(&self.0.statements.census[stride as usize]).bind(after);
        let rows = self.0.connections.rows(Operation::Census, statement).await?;
        rows.iter().map(sql::census::counted).collect()
    }
}

store_of_rows!(MySqlStore, "mysql", {
    let mut capabilities = Capabilities::server();
    capabilities.needs_purging = true;
    capabilities
});

impl fmt::Debug for MySqlStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MySqlStore")
            .field("table", &self.0.table.to_string())
            .finish_non_exhaustive()
    }
}
