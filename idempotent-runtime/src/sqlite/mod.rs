//! The SQLite store: one file, one writer at a time, many readers.

mod builder;
mod error;
mod lease;
mod migrate;
mod purge;
mod renew;
mod statements;
mod transaction;

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{AssertSqlSafe, Error, Row as _, Sqlite, SqliteConnection, SqlitePool};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

pub use builder::SqliteStoreBuilder;
use error::store_error;
use lease::{Followed, Lease};
use statements::Statements;

use crate::clock::{Clock, Timestamp};
use crate::key::KeyHash;
use crate::sql::census::{Counted, Stride};
use crate::sql::stretch::Stretch;
use crate::sql::transaction::OwnIdentity;
use crate::sql::{
    self, Answer, AnswerRow, COLUMNS, Fences, Found, Guard, Listed, Look, Pools, Row, Rows, Seen,
    Table, TableName, Watchers, in_time, integer, is_answered, is_settled, reason_code, state_code,
    store_of_rows,
};
use crate::store::codes::{self, STATES};
use crate::store::{
    Capabilities, Commit, Operation, Release, Scan, StoreClock, StoreError, StoreErrorKind, Token,
};

/// Records in a table of an SQLite database: a durable store for one machine, without a server.
///
/// The file is in WAL mode with `synchronous = FULL`: acknowledged writes survive a crash of the
/// process and of the machine. Several processes can share the file, on one machine and never on a
/// network file system. On each runtime one connection writes and several read. A write of one
/// statement takes the file's lock at once; one of several statements begins with `BEGIN
/// IMMEDIATE`.
///
/// SQLite has no clock: leases and expiry are judged on the injected clock, by default the
/// machine's.
///
/// ```
/// # use idempotency::{Error, Idempotency, store::SqliteStore};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("events.db");
/// let engine = Idempotency::new(SqliteStore::open(path).await?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct SqliteStore(Arc<Inner>);

struct Inner {
    readers: Connections,
    writer: Connections,
    renewals: Connections,
    /// The connections for queries while all of the pool's connections may be in transactions.
    aside: Connections,
    /// True if the connections are those of a pool of the user.
    is_given: bool,
    statements: Statements,
    table: TableName,
    watchers: Arc<Watchers>,
    clock: Arc<dyn Clock>,
    response_timeout: Duration,
    /// The identity of the database that the records are in, once it is known.
    identity: OwnIdentity,
    fences: Fences,
}

impl SqliteStore {
    /// Opens the file at `path`, and creates it and the table if they do not exist.
    ///
    /// # Errors
    /// [`Config`](StoreErrorKind::Config) when the file cannot be opened or created.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::builder(path).open().await
    }

    /// Opens the file that `url` names: `sqlite:events.db`, `sqlite:///var/lib/shop/events.db`.
    ///
    /// # Errors
    /// As [`open`](Self::open); [`Config`](StoreErrorKind::Config) when the URL has parameters, or
    /// names a database in memory: use [`MemoryStore`](crate::store::MemoryStore) for that.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        Self::builder(builder::path_of(url)?).open().await
    }

    /// Creates a builder for a store in the file at `path`.
    pub fn builder(path: impl AsRef<Path>) -> SqliteStoreBuilder {
        SqliteStoreBuilder::at(path.as_ref())
    }

    /// Creates a store in the database of `pool`. The caller chooses the pool's settings (WAL,
    /// `synchronous`), but connections with `PRAGMA read_uncommitted` are rejected
    /// ([`Config`](StoreErrorKind::Config)), and a `busy_timeout` of more than 1.5 seconds is
    /// reduced to that while the store uses a connection. Renewals use the pool's connections too.
    /// Code that holds many of them keeps the engine's calls waiting. So does a runtime that stands
    /// still, or a body that blocks a single-threaded one: a call on it that was just given a
    /// connection keeps that, and where the pool has no other one, leases are not renewed meanwhile.
    /// Call [`migrate`](Self::migrate) once before the first use.
    pub fn from_pool(pool: SqlitePool) -> Self {
        SqliteStoreBuilder::in_pool(pool)
    }

    /// Creates the table, or upgrades that of an earlier release. Many processes may call it at
    /// once.
    ///
    /// # Errors
    /// [`Config`](StoreErrorKind::Config) when the table was made by a newer release.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        migrate::migrate(&self.0).await
    }
}

/// Returns the time that a statement may wait for the file's lock: shorter than a request may take,
/// so that the answer says that nothing happened.
fn lock_bound(response_timeout: Duration) -> Duration {
    response_timeout * 3 / 4
}

type Bound<'q> = Query<'q, Sqlite, SqliteArguments>;

fn query(statement: &Arc<str>) -> Bound<'static> {
    sqlx::query(AssertSqlSafe(Arc::clone(statement)))
}

fn key_of(key: &KeyHash) -> &[u8] {
    &key.as_bytes()[..]
}

fn owner_of(owner: Token) -> Vec<u8> {
    owner.bits().to_be_bytes().to_vec()
}

impl Inner {
    fn now(&self) -> i64 {
        integer(self.clock.now().as_millis())
    }

    /// Returns the number of rows that one writing statement changed.
    async fn write(&self, operation: Operation, statement: Bound<'_>) -> Answer<u64> {
        let mut lease = self.writer.lease(operation).await?;
        let result =
            in_time(operation, self.response_timeout, execute(operation, &mut lease, statement))
                .await;
        if is_answered(&result) {
            lease.give_back().await;
        }
        result
    }
}

/// The source of connections, and the time that a request on one of them may take.
#[derive(Clone)]
struct Connections {
    pools: Pools<Sqlite>,
    /// The places in front of a pool of the user, as many as it has connections.
    places: Option<Arc<Semaphore>>,
    response_timeout: Duration,
}

impl Connections {
    fn new(pools: Pools<Sqlite>, response_timeout: Duration) -> Self {
        let places = pools.most_given().map(|most| Arc::new(Semaphore::new(most)));
        Self { pools, places, response_timeout }
    }

    /// Returns a connection whose statements wait for a lock no longer than their request.
    async fn lease(&self, operation: Operation) -> Answer<Lease> {
        self.lease_with(operation, Some(lock_bound(self.response_timeout))).await
    }

    /// Returns a connection whose statements wait for a lock as long as it was set up to.
    async fn unbounded(&self, operation: Operation) -> Answer<Lease> {
        self.lease_with(operation, None).await
    }

    async fn lease_with(&self, operation: Operation, bound: Option<Duration>) -> Answer<Lease> {
        let connecting = self.connect(bound);
        let connecting = async { connecting.await.map_err(|error| store_error(operation, error)) };
        in_time(operation, self.response_timeout, connecting).await.map_err(|error| {
            // Whatever the reason, no statement was begun.
            let is_unknown = error.is_outcome_unknown();
            if is_unknown {
                StoreError::new(StoreErrorKind::Refused, operation).with_source(error)
            } else {
                error
            }
        })
    }

    /// Connects. The store's own connections were opened with a bound; one of the user's gets it
    /// here, and only for as long as it is leased.
    async fn connect(&self, bound: Option<Duration>) -> Result<Lease, Error> {
        let (pools, patience) = (self.pools.clone(), self.response_timeout);
        let Some(places) = &self.places else {
            // Boxed: some kilobytes, because it may have to open the file, and part of every
            // request's future.
            let acquired = Box::pin(async move { pools.acquire().await }).await?;
            return Ok(Lease::new(acquired, false, patience));
        };
        // A pool tests a connection before it hands it out, and closes it if no caller waits for it
        // any more. So this is followed to its end, which may be as far away as the patience of the
        // pool: callers that give up leave no more of these behind than the pool has connections.
        let place = Arc::clone(places).acquire_owned().await.map_err(|_| Error::PoolClosed)?;
        // It has timers, which end with their runtime.
        Followed::new(&Handle::current(), false, async move {
            let acquired = pools.acquire().await?;
            drop(place);
            let mut lease = Lease::new(acquired, true, patience);
            if let Some(bound) = bound {
                lease.bound(bound).await?;
            }
            Ok(lease)
        })
        .await
    }

    /// Returns the rows that one reading statement finds.
    async fn rows(&self, operation: Operation, statement: Bound<'_>) -> Answer<Vec<SqliteRow>> {
        let mut lease = self.lease(operation).await?;
        let reading = async {
            statement.fetch_all(&mut *lease).await.map_err(|error| store_error(operation, error))
        };
        let result = in_time(operation, self.response_timeout, reading).await;
        if is_answered(&result) {
            lease.give_back().await;
        }
        result
    }
}

async fn execute(
    operation: Operation,
    connection: &mut SqliteConnection,
    statement: Bound<'_>,
) -> Answer<u64> {
    let result =
        statement.execute(connection).await.map_err(|error| store_error(operation, error))?;
    Ok(result.rows_affected())
}

/// Reads the row of `key`. `is_given` is true if the connection is the user's.
async fn read(
    operation: Operation,
    connection: &mut SqliteConnection,
    store: &Inner,
    is_given: bool,
    key: &KeyHash,
) -> Answer<Found> {
    let failed = |error| store_error(operation, error);
    let statement = if is_given { &store.statements.read_given } else { &store.statements.read };
    let reading = query(statement).bind(store.now()).bind(key_of(key)).fetch_one(connection);
    let row = reading.await.map_err(failed)?;
    let gone: i64 = row.try_get(COLUMNS.len() + 1).map_err(failed)?;
    if row.try_get::<i64, _>(COLUMNS.len() + 2).map_err(failed)? != 0 {
        return Err(StoreError::new(StoreErrorKind::Config, operation).with_detail(
            "`PRAGMA read_uncommitted` is on in the connections of the pool: where they share a \
             cache, a result that is never committed could be returned",
        ));
    }
    store.fences.granted(u64::try_from(gone).unwrap_or_default());
    sql::found(operation, &row)
}

/// A connection for several statements on one row.
pub(crate) struct SqliteTable {
    connection: Lease,
    store: Arc<Inner>,
}

impl AnswerRow for SqliteRow {}

impl Table for SqliteTable {
    async fn read(&mut self, operation: Operation, key: KeyHash) -> Answer<Found> {
        read(operation, &mut self.connection, &self.store, self.store.is_given, &key).await
    }

    async fn insert(&mut self, operation: Operation, row: &Row) -> Answer<bool> {
        insert(operation, &mut self.connection, &self.store.statements, row).await
    }

    async fn replace(&mut self, operation: Operation, guard: Guard, row: &Row) -> Answer<bool> {
        replace(operation, &mut self.connection, &self.store.statements, guard, row).await
    }

    async fn delete(&mut self, operation: Operation, guard: Guard) -> Answer<bool> {
        delete(operation, &mut self.connection, &self.store.statements, guard).await
    }
}

async fn insert(
    operation: Operation,
    connection: &mut SqliteConnection,
    statements: &Statements,
    row: &Row,
) -> Answer<bool> {
    Ok(execute(operation, connection, sql::bind(query(&statements.insert), row)).await? == 1)
}

async fn replace(
    operation: Operation,
    connection: &mut SqliteConnection,
    statements: &Statements,
    guard: Guard,
    row: &Row,
) -> Answer<bool> {
    let statement =
        sql::bind(query(&statements.replace), row).bind(owner_of(guard.owner)).bind(guard.revision);
    Ok(execute(operation, connection, statement).await? == 1)
}

async fn delete(
    operation: Operation,
    connection: &mut SqliteConnection,
    statements: &Statements,
    guard: Guard,
) -> Answer<bool> {
    let statement = query(&statements.delete)
        .bind(key_of(&guard.key))
        .bind(owner_of(guard.owner))
        .bind(guard.revision);
    Ok(execute(operation, connection, statement).await? == 1)
}

/// Stores a result on its owner's own unfinished record, if that has not expired `at` a time.
fn commit_statement<'q>(store: &Inner, commit: &Commit, at: Timestamp) -> Bound<'q> {
    let now = store.clock.now();
    query(&store.statements.commit)
        .bind(key_of(&commit.key))
        .bind(owner_of(commit.token))
        .bind(integer(at.as_millis()))
        .bind(state_code(commit.state))
        .bind(&commit.body[..])
        .bind(i64::from(commit.schema))
        .bind(reason_code(commit.reason))
        .bind(integer((now + commit.ttl).as_millis()))
}

impl Rows for SqliteStore {
    type Table = SqliteTable;

    async fn table(&self, operation: Operation) -> Answer<SqliteTable> {
        let connection = self.0.writer.lease(operation).await?;
        Ok(SqliteTable { connection, store: Arc::clone(&self.0) })
    }

    async fn end(&self, table: SqliteTable, failure: Option<&StoreError>) {
        if is_settled(failure) {
            table.connection.give_back().await;
        }
    }

    fn response_timeout(&self) -> Duration {
        self.0.response_timeout
    }

    fn watchers(&self) -> &Arc<Watchers> {
        &self.0.watchers
    }

    async fn row(&self, operation: Operation, key: KeyHash) -> Answer<Found> {
        let mut lease = self.0.readers.lease(operation).await?;
        let reading = read(operation, &mut lease, &self.0, self.0.is_given, &key);
        let result = in_time(operation, self.0.response_timeout, reading).await;
        if is_answered(&result) {
            lease.give_back().await;
        }
        result
    }

    fn fences(&self) -> &Fences {
        &self.0.fences
    }

    async fn commit_own(&self, commit: &Commit) -> Answer<bool> {
        let statement = commit_statement(&self.0, commit, self.0.clock.now());
        Ok(self.0.write(Operation::Complete, statement).await? == 1)
    }

    async fn release_own(&self, release: &Release) -> Answer<bool> {
        let statement = query(&self.0.statements.release)
            .bind(key_of(&release.key))
            .bind(owner_of(release.token))
            .bind(self.0.now());
        Ok(self.0.write(Operation::Release, statement).await? == 1)
    }

    async fn page(&self, scan: &Scan, stretch: &Stretch) -> Answer<Vec<Listed>> {
        const OPERATION: Operation = Operation::Scan;
        let statement = query(&self.0.statements.page)
            .bind(self.0.now())
            .bind(stretch.after())
            .bind(stretch.last())
            .bind(stretch.limit());
        let statement = sql::bind_all(statement, sql::filter::values(scan));
        let rows = self.0.readers.rows(OPERATION, statement).await?;
        rows.iter().map(|row| sql::listed(OPERATION, row)).collect()
    }

    async fn count(&self, after: &[u8], stride: Stride) -> Answer<Vec<Counted>> {
        let statement = &self.0.statements.census[stride as usize];
        let statement = query(statement).bind(self.0.now()).bind(after);
        let rows = self.0.readers.rows(Operation::Census, statement).await?;
        rows.iter().map(sql::census::counted).collect()
    }
}

/// Reads what a watcher needs to know about the records of `keys`.
fn look(
    readers: Connections,
    statements: Arc<str>,
    clock: Arc<dyn Clock>,
    keys: Vec<KeyHash>,
) -> Look {
    const OPERATION: Operation = Operation::Watch;
    Box::pin(async move {
        let list: Vec<_> = keys.iter().map(|key| format!("\"{}\"", key.to_hex())).collect();
        let statement = query(&statements)
            .bind(format!("[{}]", list.join(",")))
            .bind(integer(clock.now().as_millis()));
        let failed = |error| store_error(OPERATION, error);
        let rows = readers.rows(OPERATION, statement).await?;
        let mut seen = HashMap::with_capacity(rows.len());
        for row in rows {
            let key = <[u8; 32]>::try_from(row.try_get::<&[u8], _>(0).map_err(failed)?);
            let owner = <[u8; 16]>::try_from(row.try_get::<&[u8], _>(1).map_err(failed)?);
            let state = u8::try_from(row.try_get::<i16, _>(2).map_err(failed)?).ok();
            let given_up = row.try_get::<i64, _>(3).map_err(failed)? == 0;
            if let (Ok(key), Ok(owner), Some(state)) =
                (key, owner, state.and_then(|code| codes::value(&STATES, code)))
            {
                let owner = Token::from_bits(u128::from_be_bytes(owner));
                seen.insert(KeyHash::from_bytes(key), Seen { owner, state, given_up });
            }
        }
        Ok(seen)
    })
}

store_of_rows!(SqliteStore, "sqlite", {
    let mut capabilities = Capabilities::server();
    capabilities.clock = StoreClock::Injected;
    capabilities.single_writer = true;
    capabilities.needs_purging = true;
    capabilities
});

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore")
            .field("table", &self.0.table.to_string())
            .finish_non_exhaustive()
    }
}
