//! A record in the user's own transaction.

use std::error::Error as _;
use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Error, PgConnection, Postgres, Row as _, Transaction};

use super::error::{
    is_aborted, is_lock_timeout, is_out_of_time, is_savepoint_missing, store_error,
};
use super::request::Request;
use super::statements::{BOUND_BEFORE, Statement};
use super::{Inner, PostgresStore, commit_request, found_one, no_row, owner_bytes};
use crate::clock::Timestamp;
use crate::key::KeyHash;
use crate::sql::transaction::{
    self, Identity, OwnIdentity, Savepoints, TransactionStore, Transactional, first_grant,
    first_row,
};
use crate::sql::{
    Answer, Found, Guard, NotCommitted, Row, Standing, Table, TransactionDatabase, Unanswered,
};
use crate::store::transaction::{
    AnyConnection, ClaimAnswer, End, TransactionConnection, TransactionFuture,
};
use crate::store::{
    Claim, Commit, DynStore, Operation, Record, SqlTransaction, StoreError, StoreErrorKind, Token,
};

const OPERATION: Operation = Operation::Transaction;
/// The name that people call it by.
const DATABASE: &str = "PostgreSQL";

/// The shortest time to wait for a lock. The server also takes locks to make room for a row, and a
/// caller that does not wait for other transactions still waits for those.
const SHORTEST_WAIT: Duration = Duration::from_millis(50);
/// The time that a statement may take beyond its wait for a lock. It may wait for several, one
/// after the other: for each transaction that had the key and rolled back.
const WORK: Duration = Duration::from_secs(1);
/// The longest time, in microseconds, that an insert takes without having waited for another
/// transaction. Such a transaction has sent at least two more requests since it got the key, so its
/// fence may be the larger one.
const QUICK: i64 = 100;
/// The time, in microseconds, after which the fence of a row that was written with its result is
/// raised to that of its body, which is read after the wait. Until then the row's may be lower, by
/// no more than this, and no later claim of the key gets one in between: it comes after the commit,
/// and takes the server's time.
const LATE: u64 = 1_000;

impl TransactionDatabase for Postgres {
    const BEGIN: &'static str = "BEGIN";

    // An error aborts the transaction and does not end it.
    const PASSING_ERRORS_UNDO: bool = false;

    /// An aborted transaction rejects every statement except its end, and outside a transaction
    /// there are no savepoints. This one disappears with the transaction.
    async fn standing(connection: &mut PgConnection) -> Result<Standing, Error> {
        match sqlx::raw_sql("SAVEPOINT idempotency_standing").execute(connection).await {
            Ok(_) => Ok(Standing::Whole),
            Err(error) if is_aborted(&error) => Ok(Standing::Undone),
            Err(error) if is_savepoint_missing(&error) => Ok(Standing::Over),
            Err(error) => Err(error),
        }
    }

    async fn mark(connection: &mut PgConnection) -> Result<(), Error> {
        let setting =
            format!("SELECT set_config('{BOUND_BEFORE}', current_setting('lock_timeout'), true)");
        sqlx::raw_sql(AssertSqlSafe(setting)).execute(connection).await.map(drop)
    }

    /// The setting of the mark is gone with the transaction.
    async fn is_marked_over(connection: &mut PgConnection) -> bool {
        let shown = sqlx::raw_sql(AssertSqlSafe(format!("SHOW {BOUND_BEFORE}")));
        let rows = shown.fetch_all(connection).await;
        rows.is_ok_and(|rows| !rows.first().is_some_and(is_mark))
    }

    /// A transaction that an error has aborted refuses to show a setting, and then the server does
    /// not reach the commit. The setting of the mark is gone when the transaction has ended: what
    /// was committed then is what came after that.
    ///
    /// The client believes in its transaction until it has ended it itself. So another one begins,
    /// which is rolled back when the connection returns to its pool, without a wait for that.
    async fn commit_marked(
        mut transaction: Transaction<'static, Self>,
    ) -> Result<Standing, NotCommitted> {
        let commit = format!("SHOW {BOUND_BEFORE}; COMMIT; BEGIN");
        // All answers: the first row is there before the commit.
        match sqlx::raw_sql(AssertSqlSafe(commit)).fetch_all(&mut *transaction).await {
            Ok(rows) => {
                let is_marked = rows.first().is_some_and(is_mark);
                Ok(if is_marked { Standing::Whole } else { Standing::Over })
            }
            Err(error) if is_aborted(&error) => Ok(Standing::Undone),
            Err(error) => Err(NotCommitted::AtCommit(error)),
        }
    }
}

/// Returns true if the setting has a value, which it has in the marked transaction alone.
fn is_mark(row: &PgRow) -> bool {
    row.try_get::<&str, _>(0).is_ok_and(|mark| !mark.is_empty())
}

pub(crate) struct InTransaction<'a> {
    connection: &'a mut PgConnection,
    store: &'a Inner,
    /// The user's values of the settings that are changed while the claim is made, in the order of
    /// [`restoring`].
    before: [String; 3],
    /// The fence that was written.
    fence: Option<i64>,
    /// True if another transaction with a larger fence may have owned the key before.
    is_late: bool,
}

impl InTransaction<'_> {
    /// Returns true if the statement returned a row. It is sent once: an error has broken the whole
    /// transaction.
    async fn wrote(&mut self, operation: Operation, request: Request<'_>) -> Answer<bool> {
        let rows =
            request.send_once(operation, self.connection, self.store.sessions.prepares()).await?;
        Ok(!rows.is_empty())
    }
}

impl Table for InTransaction<'_> {
    async fn read(&mut self, operation: Operation, key: KeyHash) -> Answer<Found> {
        let request = Request::new(&self.store.in_transactions.read).bytes(key.as_bytes());
        found_one(
            operation,
            self.store,
            &request.send_once(operation, self.connection, self.store.sessions.prepares()).await?,
        )
    }

    async fn insert(&mut self, operation: Operation, row: &Row) -> Answer<bool> {
        let request = Request::new(&self.store.in_transactions.insert_late).values(row.values());
        let rows =
            request.send_once(operation, self.connection, self.store.sessions.prepares()).await?;
        let Some(row) = rows.first() else { return Ok(false) };
        let failed = |error| store_error(operation, error);
        self.fence = Some(row.try_get(1).map_err(failed)?);
        self.is_late = row.try_get::<i64, _>(2).map_err(failed)? > QUICK;
        Ok(true)
    }

    async fn replace(&mut self, operation: Operation, guard: Guard, row: &Row) -> Answer<bool> {
        let owner = owner_bytes(guard.owner);
        let request = Request::new(&self.store.in_transactions.replace).values(row.values());
        self.is_late = true;
        self.wrote(operation, request.bytes(&owner).integer(guard.revision)).await
    }

    async fn delete(&mut self, operation: Operation, guard: Guard) -> Answer<bool> {
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

    /// Sends everything in one text and one round trip: the savepoint, the bounds, and both reads.
    async fn look(
        &mut self,
        savepoint: &str,
        key: KeyHash,
        patience: Duration,
    ) -> Answer<(Identity, Found)> {
        let (first, statements) = (opening(savepoint, patience), &self.store.in_transactions);
        let first = format!("{first}; {}; ", statements.identity.text());
        let request = Request::new(&statements.read).bytes(key.as_bytes());
        let rows = request.send_after(OPERATION, self.connection, &first).await?;
        let (Some(settings), Some(found)) =
            (rows.first(), rows.get(1..).filter(|found| !found.is_empty()))
        else {
            return Err(no_row(OPERATION));
        };
        for (column, before) in self.before.iter_mut().enumerate() {
            *before = settings.try_get(column).map_err(|error| store_error(OPERATION, error))?;
        }
        let (written, found) = found.split_at(found.len() - 1);
        Ok((identity(written)?, found_one(OPERATION, self.store, found)?))
    }

    fn connection(&mut self) -> &mut PgConnection {
        &mut *self.connection
    }

    /// Does nothing: the first text has set the savepoint.
    async fn set_out(&mut self, _: &str) -> Answer<()> {
        Ok(())
    }

    async fn settle(&mut self, savepoint: &str, claimed: &Record) -> Answer<u64> {
        // The fence was written before the wait for another transaction, if there was one. That
        // transaction may have got a larger fence meanwhile, shown it to its body, and rolled back.
        // So the fence is raised now, when the row belongs to this transaction and no other one can
        // get a fence for the key.
        let raising = if self.is_late {
            format!("{};", self.store.in_transactions.raise)
        } else {
            String::new()
        };
        let statement =
            Statement::new(&format!("{}; {raising} SAVEPOINT {savepoint}_body", restoring()));
        let owner = owner_bytes(claimed.owner);
        let [locks, whole, bytes] = &self.before;
        let request = Request::new(&statement).text(locks).text(whole).text(bytes);
        let request = request.bytes(claimed.key.as_bytes()).bytes(&owner);
        let rows = request.send_once(OPERATION, self.connection, false).await?;
        if let Some(row) = rows.get(1) {
            self.fence = Some(row.try_get(0).map_err(|error| store_error(OPERATION, error))?);
        }
        Ok(self.fence.and_then(|fence| u64::try_from(fence).ok()).unwrap_or(claimed.fence))
    }

    /// Also restores the settings, and releases rows that a write has locked and not changed.
    async fn leave(&mut self, savepoint: &str) -> Answer<()> {
        self.connection
            .run(format!("ROLLBACK TO SAVEPOINT {savepoint}; RELEASE SAVEPOINT {savepoint}"))
            .await
    }

    /// The server reports waits for rows and for the table with the same code, and names the row
    /// only to the first that waits for it. So the table is locked without waiting, to see whether
    /// that was the cause.
    async fn has_outwaited(&mut self, error: StoreError) -> Answer<()> {
        const SAVEPOINT: &str = "idempotency_wait";
        if !error.source().and_then(|source| source.downcast_ref()).is_some_and(is_out_of_time) {
            return Err(error);
        }
        let locked = self
            .connection
            .run(format!("SAVEPOINT {SAVEPOINT}; {}", self.store.in_transactions.lock))
            .await;
        let undone = self
            .connection
            .run(format!("ROLLBACK TO SAVEPOINT {SAVEPOINT}; RELEASE SAVEPOINT {SAVEPOINT}"))
            .await;
        if locked.is_ok() && undone.is_ok() { Ok(()) } else { Err(error) }
    }

    fn is_locked_out(error: &StoreError) -> bool {
        error.source().and_then(|source| source.downcast_ref()).is_some_and(is_lock_timeout)
    }

    async fn commit_own(&mut self, commit: &Commit) -> Answer<bool> {
        let owner = owner_bytes(commit.token);
        self.wrote(Operation::Complete, commit_request(&self.store.in_transactions, commit, &owner))
            .await
    }
}

/// Returns the answer to a first record that was not written because its lock, or the statement,
/// took too long. The server reports waits for rows and for the table with the same code, and has
/// aborted the transaction. So that is ended, and the table is locked in another one, without
/// waiting.
async fn waited_in_vain(
    store: &Inner,
    connection: &mut PgConnection,
    error: StoreError,
) -> Answer<ClaimAnswer> {
    let lock = format!("ROLLBACK; BEGIN; {}", store.in_transactions.lock);
    match connection.run(lock).await {
        Ok(()) => Ok(ClaimAnswer::new(None, true)),
        Err(_) => Err(error),
    }
}

/// Waits for `answer` for at most `limit`.
#[expect(
    clippy::disallowed_methods,
    reason = "the patience with a server is real time, whatever clock records have"
)]
async fn within<T>(limit: Duration, answer: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(limit, answer).await.ok()
}

/// Returns the error of a first record whose answer has not come.
fn unanswered(limit: Duration) -> StoreError {
    let detail = format!(
        "no answer within {limit:?}: another session may keep the table locked, as `ALTER TABLE` does"
    );
    StoreError::new(StoreErrorKind::Unavailable, OPERATION)
        .with_detail(detail)
        .with_source(Unanswered)
}

fn is_error_of(error: &StoreError, is: impl Fn(&Error) -> bool) -> bool {
    error.source().and_then(|source| source.downcast_ref()).is_some_and(is)
}

/// Sets the savepoint and the settings for the time of the claim: how long to wait for a lock, how
/// long a statement may take, unless the user bounds that more closely, and how bytes are written
/// in an answer to a text. Returns the previous settings.
fn opening(savepoint: &str, patience: Duration) -> String {
    let millis = |duration: Duration| duration.as_millis().min(i32::MAX as u128);
    let patience = patience.max(SHORTEST_WAIT);
    let (locks, whole) = (millis(patience), millis(patience.saturating_add(WORK)));
    format!(
        "SAVEPOINT {savepoint}; SELECT current_setting('lock_timeout'), current_setting('statement_timeout'),
             current_setting('bytea_output'), set_config('lock_timeout', '{locks}', true),
             set_config('statement_timeout', least({whole}, nullif(
                 floor(extract(epoch FROM current_setting('statement_timeout')::interval) * 1000)::int8, 0
             ))::text, true),
             set_config('bytea_output', 'hex', true)"
    )
}

/// Restores the settings that [`opening`] returned.
fn restoring() -> &'static str {
    "SELECT set_config('lock_timeout', $1, true), set_config('statement_timeout', $2, true),
         set_config('bytea_output', $3, true)"
}

fn identity(rows: &[PgRow]) -> Answer<Identity> {
    let row = rows.first().ok_or_else(|| {
        StoreError::new(StoreErrorKind::Config, OPERATION).with_detail("the `meta` table is empty")
    })?;
    let failed = |error| store_error(OPERATION, error);
    let (name, number): (String, i64) =
        (row.try_get(2).map_err(failed)?, row.try_get(3).map_err(failed)?);
    let table: Option<i64> = row.try_get(4).map_err(failed)?;
    Identity::new(
        OPERATION,
        row.try_get(1).map_err(failed)?,
        format!("{name} {number}"),
        table.map(|table| table.to_string()).unwrap_or_default(),
    )
}

impl TransactionStore for PostgresStore {
    type Connection = PgConnection;
    type OpenTable<'a> = InTransaction<'a>;

    fn table_on<'a>(&'a self, connection: &'a mut PgConnection) -> InTransaction<'a> {
        InTransaction {
            connection,
            store: &self.0,
            before: Default::default(),
            fence: None,
            is_late: false,
        }
    }

    fn known_identity(&self) -> &OwnIdentity {
        &self.0.identity
    }

    async fn record_first(
        &self,
        connection: &mut PgConnection,
        claim: &Claim,
        result: &Commit,
        patience: Duration,
    ) -> Answer<Option<ClaimAnswer>> {
        let own = TransactionStore::identity(self).await?;
        let Some((grant, row)) = first_row(claim, result) else { return Ok(None) };
        let (store, prepares) = (&self.0, self.0.sessions.prepares());
        let (written, place, table) = own.parts();
        let bound = patience.max(SHORTEST_WAIT).as_millis().min(i32::MAX as u128).to_string();
        let request = Request::new(&store.in_transactions.insert_first)
            .values(row.values())
            .bytes(written)
            .text(place)
            .text(table)
            .text(&bound);
        // The wait for the table comes before the statement could set a bound, and is bounded here.
        let limit = patience.saturating_add(store.sessions.response_timeout());
        let sent = request.send_once(OPERATION, &mut *connection, prepares);
        let Some(sent) = within(limit, sent).await else { return Err(unanswered(limit)) };
        let rows = match sent {
            Err(error) if is_error_of(&error, is_out_of_time) => {
                return waited_in_vain(store, connection, error).await.map(Some);
            }
            rows => rows?,
        };
        let Some(row) = rows.first() else {
            let restoring = Request::new(&store.in_transactions.restore_bound);
            restoring.send_once(OPERATION, connection, prepares).await?;
            return Ok(None);
        };
        let integer = |column: usize| {
            let figure: i64 = row.try_get(column).map_err(|error| store_error(OPERATION, error))?;
            Ok::<_, StoreError>(u64::try_from(figure).unwrap_or_default())
        };
        let (created, fence, took) = (integer(1)?, integer(2)?, integer(3)?);
        store.fences.granted(fence);
        if took > LATE {
            // A wait for another transaction, whose body had a fence: that of the row is older.
            let raising = Statement::new(&store.in_transactions.raise);
            let owner = owner_bytes(claim.token);
            let request = Request::new(&raising).text("").text("").text("");
            let request = request.bytes(claim.key.as_bytes()).bytes(&owner);
            request.send_once(OPERATION, connection, false).await?;
        }
        Ok(Some(first_grant(grant, Timestamp::from_millis(created), fence)))
    }

    /// Uses a connection for renewals, opened like the others: all of the pool's may be in
    /// transactions that wait for this.
    async fn own_identity(&self) -> Answer<Identity> {
        let store = &self.0;
        let request = Request::new(&store.statements.identity);
        let identity = identity(&store.renewals.rows(OPERATION, request).await?)?;
        store.identity.set(identity.clone());
        Ok(identity)
    }
}

impl TransactionConnection for PgConnection {
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
