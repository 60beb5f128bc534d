//! The PostgreSQL store: a row for each record, one statement for each of the frequent transitions.

mod address;
mod bounds;
mod builder;
mod check;
mod error;
mod migrate;
mod purge;
mod renew;
mod request;
mod session;
mod statements;
mod transaction;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{PgPool, Postgres, Row as _};

pub use address::PostgresAddress;
pub use builder::PostgresStoreBuilder;
use request::Request;
use session::Sessions;
use statements::{Statement, Statements};

use crate::clock::Timestamp;
use crate::key::KeyHash;
use crate::sql::census::{Counted, Stride};
use crate::sql::stretch::Stretch;
use crate::sql::transaction::OwnIdentity;
use crate::sql::{
    self, Answer, AnswerRow, Fences, First, Found, Guard, Lease, Listed, Look, PurgeMark, Row,
    Rows, Seen, Table, TableName, Watchers, integer, reason_code, state_code, store_of_rows,
};
use crate::store::codes::{self, STATES};
use crate::store::{
    Capabilities, Claim, ClaimOutcome, Commit, Operation, Record, Release, Scan, StoreError,
    StoreErrorKind, Token, transition,
};

/// Records in a table of a PostgreSQL database, version 13 or later.
///
/// A replay is one statement that locks no row and writes nothing; a call that runs needs one more
/// statement, which commits. Each statement is a transaction of its own, and no session has to keep
/// any state beyond it. Leases and expiry are judged on the server's clock.
///
/// See the repository's `docs/postgres.md` for servers that can lose acknowledged writes, for
/// poolers and for the required rights.
///
/// ```no_run
/// # use idempotency::{Idempotency, store::PostgresStore};
/// # async fn open() -> Result<(), Box<dyn std::error::Error>> {
/// let store = PostgresStore::connect("postgres://shop:password@db.internal/shop").await?;
/// store.migrate().await?; // once, where the service is deployed or started
/// let engine = Idempotency::new(store);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct PostgresStore(Arc<Inner>);

/// The position, in a row, of the values that follow the store's time and the columns.
const AFTER_COLUMNS: usize = PgRow::BEFORE + 1 + sql::COLUMNS.len();

struct Inner {
    sessions: Sessions,
    renewals: Sessions,
    statements: Statements,
    /// The statements for the user's transactions, where the call determines how long to wait for a
    /// lock.
    in_transactions: Statements,
    table: TableName,
    watchers: Arc<Watchers>,
    fences: Fences,
    purge_mark: PurgeMark,
    /// The identity of the database that the records are in, once it is known.
    identity: OwnIdentity,
}

impl PostgresStore {
    /// Connects to the server that `url` names, as
    /// `postgres://user:password@host:5432/database?sslmode=verify-full`, and checks that it can
    /// keep the promise. Does not create the table: see [`migrate`](Self::migrate).
    ///
    /// # Errors
    /// [`Config`](StoreErrorKind::Config) when the URL is invalid or the server refuses the role,
    /// [`Refused`](StoreErrorKind::Refused) when there is no connection to it,
    /// [`Unsupported`](StoreErrorKind::Unsupported) when it is older than version 13.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        Self::builder(url).connect().await
    }

    /// Creates a builder for a store on the server that `address` names: a URL,
    /// [`sqlx::postgres::PgConnectOptions`] or a [`sqlx::PgPool`].
    pub fn builder(address: impl PostgresAddress) -> PostgresStoreBuilder {
        PostgresStoreBuilder::new(address)
    }

    /// Creates a store that takes its connections from `pool`. Renewals use at most two connections
    /// of their own, opened as the pool opens its connections. Nothing is checked, and nothing is
    /// sent before the first call.
    ///
    /// The pool's connections belong to the runtimes that opened them, and return to it only as
    /// long as these runtimes run.
    ///
    /// Code that holds many of them, in open transactions for example, keeps the engine's calls
    /// waiting. These are refused after the engine's `claim_timeout`, and a wait of more than one second
    /// is logged, at most once a minute. Code that holds one connection and makes a call needs two: as many
    /// such callers as the pool has connections can block each other. Use a separate pool for the
    /// store then.
    ///
    /// Any isolation level and any timeouts will do: each request states how long to wait for a
    /// lock. Hooks that the pool runs when it opens or lends a connection must leave it outside of
    /// a transaction, and so must other code that returns one: what the store writes in a
    /// transaction that other code has begun by a statement and not ended is never committed.
    pub fn from_pool(pool: PgPool) -> Self {
        PostgresStoreBuilder::in_pool(pool)
    }

    /// Creates the table, and its schema if that is missing, or upgrades the table of an earlier
    /// release. Many processes may call it at once. If there is nothing to do, it needs only the
    /// right to read.
    ///
    /// # Errors
    /// [`Config`](StoreErrorKind::Config) when the table was made by a newer release, or the role
    /// may not create it.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        migrate::migrate(&self.0).await
    }
}

impl AnswerRow for PgRow {
    /// The [mark](statements::Statement).
    const BEFORE: usize = 1;
}

/// Returns the error of an answer that has no row although its statement always returns one.
fn no_row(operation: Operation) -> StoreError {
    StoreError::new(StoreErrorKind::Unavailable, operation).with_detail("the answer has no row")
}

/// Reads the one row that the statement `read` returns.
fn found_one(operation: Operation, store: &Inner, rows: &[PgRow]) -> Answer<Found> {
    let row = rows.first().ok_or_else(|| no_row(operation))?;
    let micros: i64 =
        row.try_get(AFTER_COLUMNS).map_err(|error| error::store_error(operation, error))?;
    store.fences.reached(u64::try_from(micros).unwrap_or_default());
    sql::found(operation, row)
}

/// A connection for several statements on one row.
pub(crate) struct PostgresTable {
    connection: Lease<Postgres>,
    store: Arc<Inner>,
}

impl PostgresTable {
    async fn wrote(&mut self, operation: Operation, request: Request<'_>) -> Answer<bool> {
        let rows =
            request.send(operation, &mut self.connection, self.store.sessions.writing()).await?;
        Ok(!rows.is_empty())
    }
}

impl Table for PostgresTable {
    async fn read(&mut self, operation: Operation, key: KeyHash) -> Answer<Found> {
        let store = Arc::clone(&self.store);
        let request = Request::new(&store.statements.read).bytes(key.as_bytes());
        let rows = request.send(operation, &mut self.connection, store.sessions.reading()).await?;
        found_one(operation, &store, &rows)
    }

    async fn insert(&mut self, operation: Operation, row: &Row) -> Answer<bool> {
        let store = Arc::clone(&self.store);
        self.wrote(operation, Request::new(&store.statements.insert).values(row.values())).await
    }

    async fn replace(&mut self, operation: Operation, guard: Guard, row: &Row) -> Answer<bool> {
        let (store, owner) = (Arc::clone(&self.store), owner_bytes(guard.owner));
        let request = Request::new(&store.statements.replace).values(row.values());
        self.wrote(operation, request.bytes(&owner).integer(guard.revision)).await
    }

    async fn delete(&mut self, operation: Operation, guard: Guard) -> Answer<bool> {
        let (store, owner) = (Arc::clone(&self.store), owner_bytes(guard.owner));
        let request = Request::new(&store.statements.delete).bytes(guard.key.as_bytes());
        self.wrote(operation, request.bytes(&owner).integer(guard.revision)).await
    }
}

impl Rows for PostgresStore {
    type Table = PostgresTable;

    async fn table(&self, operation: Operation) -> Answer<PostgresTable> {
        let connection = self.0.sessions.lease(operation).await?;
        Ok(PostgresTable { connection, store: Arc::clone(&self.0) })
    }

    async fn end(&self, table: PostgresTable, failure: Option<&StoreError>) {
        self.0.sessions.end(table.connection, failure);
    }

    fn response_timeout(&self) -> Duration {
        self.0.sessions.response_timeout()
    }

    fn watchers(&self) -> &Arc<Watchers> {
        &self.0.watchers
    }

    fn fences(&self) -> &Fences {
        &self.0.fences
    }

    async fn row(&self, operation: Operation, key: KeyHash) -> Answer<Found> {
        let request = Request::new(&self.0.statements.read).bytes(key.as_bytes());
        found_one(operation, &self.0, &self.0.sessions.rows(operation, request).await?)
    }

    async fn first_claim(&self, claim: &Claim) -> Answer<First> {
        const OPERATION: Operation = Operation::Claim;
        // The row as it would be at time zero; the server adds its time.
        let zero = Timestamp::default();
        let ClaimOutcome::Granted(grant) = transition::claim(&mut None, claim, zero) else {
            return Ok(First::Raced);
        };
        let row = Row::new(&grant.record, 0, None, Some(zero + claim.ttl));
        let request = Request::new(&self.0.statements.claim).values(row.values());
        let rows = match self.0.sessions.written(OPERATION, request).await {
            Err(error) if error::is_read_only(&error) => {
                return Box::pin(self.stored_result(claim, error)).await;
            }
            rows => rows?,
        };
        let Some(row) = rows.first() else { return Ok(First::Raced) };
        let found = sql::found(OPERATION, row)?;
        let inserted =
            row.try_get(AFTER_COLUMNS).map_err(|error| error::store_error(OPERATION, error))?;
        Ok(match found {
            Found { stored: Some(stored), .. } if inserted => First::Mine(stored.record),
            found => First::Found(found),
        })
    }

    async fn commit_own(&self, commit: &Commit) -> Answer<bool> {
        let owner = owner_bytes(commit.token);
        let request = commit_request(&self.0.statements, commit, &owner);
        Ok(!self.0.sessions.written(Operation::Complete, request).await?.is_empty())
    }

    async fn release_own(&self, release: &Release) -> Answer<bool> {
        let owner = owner_bytes(release.token);
        let request =
            Request::new(&self.0.statements.release).bytes(release.key.as_bytes()).bytes(&owner);
        Ok(!self.0.sessions.written(Operation::Release, request).await?.is_empty())
    }

    async fn page(&self, scan: &Scan, stretch: &Stretch) -> Answer<Vec<Listed>> {
        const OPERATION: Operation = Operation::Scan;
        let request = Request::new(&self.0.statements.page)
            .bytes(stretch.after())
            .bytes(stretch.last())
            .integer(stretch.limit())
            .values(sql::filter::values(scan));
        let rows = self.0.sessions.rows(OPERATION, request).await?;
        rows.iter().map(|row| sql::listed(OPERATION, row)).collect()
    }

    async fn count(&self, after: &[u8], stride: Stride) -> Answer<Vec<Counted>> {
        let statement = &self.0.statements.census[stride as usize];
        let request = Request::new(statement).bytes(after);
        let rows = self.0.sessions.rows(Operation::Census, request).await?;
        rows.iter().map(sql::census::counted).collect()
    }
}

impl PostgresStore {
    /// Answers a claim on a server that accepts no writes. A stored result is still returned;
    /// everything else would be decided on data that may be old.
    async fn stored_result(&self, claim: &Claim, refusal: StoreError) -> Answer<First> {
        let found = self.row(refusal.operation(), claim.key).await?;
        let is_answer = |record: &Record| record.state.is_answer() && record.expires > found.now;
        if found.stored.as_ref().is_some_and(|stored| is_answer(&stored.record)) {
            return Ok(First::Found(found));
        }
        Err(refusal)
    }
}

/// Stores a result on its owner's own unfinished record.
fn commit_request<'a>(
    statements: &'a Statements,
    commit: &'a Commit,
    owner: &'a [u8; 16],
) -> Request<'a> {
    Request::new(&statements.commit)
        .bytes(commit.key.as_bytes())
        .bytes(owner)
        .small(state_code(commit.state))
        .bytes(&commit.body)
        .integer(commit.schema.into())
        .small(reason_code(commit.reason))
        .integer(millis(commit.ttl))
}

fn owner_bytes(owner: Token) -> [u8; 16] {
    owner.bits().to_be_bytes()
}

fn millis(duration: Duration) -> i64 {
    integer(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// Reads what a watcher needs to know about the records of `keys`.
fn look(sessions: Sessions, statement: Arc<Statement>, keys: Vec<KeyHash>) -> Look {
    const OPERATION: Operation = Operation::Watch;
    Box::pin(async move {
        let request = Request::new(&statement).keys(&keys);
        let rows = sessions.rows(OPERATION, request).await?;
        let failed = |error| error::store_error(OPERATION, error);
        let mut seen = HashMap::with_capacity(rows.len());
        for row in rows {
            let key = row.try_get(1).map_err(failed)?;
            let owner = row.try_get(2).map_err(failed)?;
            let state = u8::try_from(row.try_get::<i16, _>(3).map_err(failed)?).ok();
            let given_up = row.try_get::<i64, _>(4).map_err(failed)? == 0;
            if let Some(state) = state.and_then(|code| codes::value(&STATES, code)) {
                let owner = Token::from_bits(u128::from_be_bytes(owner));
                seen.insert(KeyHash::from_bytes(key), Seen { owner, state, given_up });
            }
        }
        Ok(seen)
    })
}

store_of_rows!(PostgresStore, "postgres", {
    let mut capabilities = Capabilities::server();
    capabilities.needs_purging = true;
    capabilities
});

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore")
            .field("table", &self.0.table.to_string())
            .finish_non_exhaustive()
    }
}
