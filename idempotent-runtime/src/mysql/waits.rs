//! Time limits for the server's waits for locks.

use std::sync::Arc;
use std::time::Duration;

use sqlx::mysql::MySqlRow;
use sqlx::{AssertSqlSafe, Connection as _, Error, MySqlConnection, Row as _, raw_sql};

use crate::lock::Mutex;

/// The bounds for locks of rows, and for locks of tables, as `ALTER TABLE`, `LOCK TABLES` and
/// `FLUSH TABLES WITH READ LOCK` take them. By default a session waits for the latter for a day,
/// even if its client has gone.
const BOUNDS: [&str; 2] = ["innodb_lock_wait_timeout", "lock_wait_timeout"];

/// A variable was set to `NULL`: see [`bound_outside_of_transactions`].
pub(super) const AUTOCOMMIT_IS_OFF: [u16; 2] = [1231, 1232];

/// Returns the assignments by which a session waits for at most `seconds`: the server counts whole
/// ones.
fn bounds(seconds: u128) -> String {
    let seconds = seconds.clamp(1, 1 << 24);
    BOUNDS.map(|name| format!("SESSION {name} = {seconds}")).join(", ")
}

/// Checks that sessions have the settings requested when they began. A proxy may answer a setting
/// by itself, or send it to another session, and then the server's wait for a write would be
/// unbounded.
#[derive(Clone, Debug, Default)]
pub(super) struct ReadBack(Arc<Mutex<Sessions>>);

/// The findings so far.
#[derive(Clone, Debug, Default)]
struct Sessions {
    begun: u64,
    /// The problem of the last session.
    refusal: Option<String>,
}

impl ReadBack {
    /// Begins a session of the store's own with `settings`, and bounds of `seconds`.
    ///
    /// # Errors
    /// If the session does not have the requested settings. The pool then tries again until its
    /// time limit, and reports only that: see [`refusal_since`](Self::refusal_since) for the
    /// reason.
    pub(super) async fn begin(
        self,
        connection: &mut MySqlConnection,
        settings: &str,
        seconds: u128,
    ) -> Result<(), Error> {
        let asked = BOUNDS.map(|name| format!("CAST(@@SESSION.{name} AS SIGNED)"));
        let text = format!("{settings}, {}; SELECT {}", bounds(seconds), asked.join(", "));
        let row = raw_sql(AssertSqlSafe(text)).fetch_one(connection).await?;
        let mut refusal = None;
        for (column, name) in BOUNDS.into_iter().enumerate() {
            let found: i64 = row.try_get(column)?;
            if u128::try_from(found) != Ok(seconds) {
                refusal = Some(format!(
                    "`SET SESSION {name} = {seconds}` has no effect: it is {found}. Does a proxy \
                     answer it, or spread the statements of a session over several? Configure it \
                     to keep sessions apart, or connect to the server directly"
                ));
            }
        }
        let result =
            refusal.clone().map_or(Ok(()), |refusal| Err(Error::Configuration(refusal.into())));
        self.found(refusal);
        result
    }

    fn found(&self, refusal: Option<String>) {
        let mut sessions = self.0.lock();
        sessions.begun += 1;
        sessions.refusal = refusal;
    }

    /// The number of sessions that have begun so far.
    pub(super) fn begun(&self) -> u64 {
        self.0.lock().begun
    }

    /// Returns the problem of the session that began last, unless it is one of the first `begun`:
    /// an old refusal does not explain why there is no connection now.
    pub(super) fn refusal_since(&self, begun: u64) -> Option<String> {
        let sessions = self.0.lock();
        sessions.refusal.clone().filter(|_| sessions.begun > begun)
    }
}

/// The time limits on the server for a read that sets them itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadBound {
    pub(super) locks: u128,
    pub(super) whole: Duration,
}

impl ReadBound {
    /// Returns `SELECT` with bounds that work on either server. They need no round trip, change
    /// nothing in a session that belongs to other code, and do not depend on what a pooler has made
    /// of a session's settings. MariaDB runs the content of the first comment, and MySQL reads the
    /// second one as hints. On both, the lock bound already holds while the statement is prepared,
    /// which waits for the table too. MySQL has nothing like it for row locks, so writes are
    /// bounded by their session.
    pub(super) fn select(self) -> String {
        let Self { locks, whole } = self;
        let (seconds, millis) = (whole.as_secs_f64(), whole.as_millis().max(1));
        format!(
            "/*M!100100 SET STATEMENT lock_wait_timeout = {locks}, max_statement_time = {seconds:.3} FOR */ \
             SELECT /*+ SET_VAR(lock_wait_timeout = {locks}) MAX_EXECUTION_TIME({millis}) */"
        )
    }
}

/// Limits the waits of a session that belongs to other code to `seconds` from now on. The user's
/// own bounds are kept in variables of the session, even if an earlier request was given up before
/// it could restore them. MariaDB accepts zero, and then does not wait; MySQL waits for at least a
/// second.
pub(super) async fn bound(connection: &mut MySqlConnection, seconds: u128) -> Result<(), Error> {
    raw_sql(AssertSqlSafe(bounding(seconds))).execute(connection).await.map(drop)
}

/// Limits the waits like [`bound`], of a session in which each statement is to be a transaction of its
/// own. Returns false if other code has left the session in a transaction: what is written there may
/// never be committed. An error with the number [`AUTOCOMMIT_IS_OFF`] if it has no autocommit.
pub(super) async fn bound_outside_of_transactions(
    connection: &mut MySqlConnection,
    seconds: u128,
) -> Result<bool, Error> {
    let [rows, _] = BOUNDS;
    let refusing = format!(", SESSION {rows} = IF(@@SESSION.autocommit, {seconds}, NULL)");
    // Each answer of the server says whether the session is in a transaction. The client shows that
    // only here, where a statement of the caller's is to begin one; if the session is in one, it is
    // rolled back.
    match connection.begin_with(AssertSqlSafe(bounding(seconds) + &refusing)).await {
        Ok(_transaction_of_other_code) => Ok(false),
        Err(Error::BeginFailed) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Returns the statement that keeps the session's bounds, and sets others.
fn bounding(seconds: u128) -> String {
    let keeping = BOUNDS
        .map(|name| format!("@idempotency_{name} = CAST(COALESCE(@idempotency_{name}, @@SESSION.{name}) AS UNSIGNED)"));
    let at_once =
        BOUNDS.map(|name| format!(", SESSION {name} = IF(VERSION() LIKE '%MariaDB%', 0, 1)"));
    let at_once = if seconds == 0 { at_once.concat() } else { String::new() };
    format!("SET {}, {}{at_once}", keeping.join(", "), bounds(seconds))
}

/// Restores the waits of the session to those before it was bounded.
pub(super) async fn restore(connection: &mut MySqlConnection) -> Result<(), Error> {
    raw_sql(AssertSqlSafe(restoring())).execute(connection).await.map(drop)
}

/// Restores the waits and runs `statements`, in one round trip. Returns the row with which they
/// answer.
pub(super) async fn restore_and(
    connection: &mut MySqlConnection,
    statements: &str,
) -> Result<MySqlRow, Error> {
    let rows = raw_sql(AssertSqlSafe(format!("{}; {statements}", restoring())))
        .fetch_all(connection)
        .await?;
    rows.into_iter().next().ok_or(Error::RowNotFound)
}

/// Runs `statements`, and restores the waits of the session, in one round trip.
pub(super) async fn restore_after(
    connection: &mut MySqlConnection,
    statements: &str,
) -> Result<(), Error> {
    let text = format!("{statements}; {}", restoring());
    raw_sql(AssertSqlSafe(text)).execute(connection).await.map(drop)
}

fn restoring() -> String {
    let restoring = BOUNDS
        .map(|name| format!("SESSION {name} = @idempotency_{name}, @idempotency_{name} = NULL"));
    format!("SET {}", restoring.join(", "))
}

#[cfg(test)]
mod tests {
    use super::{Duration, ReadBack, ReadBound};

    #[test]
    fn a_refusal_is_the_reason_only_for_those_who_waited_for_that_session() {
        let read_back = ReadBack::default();
        let before = read_back.begun();
        read_back.found(Some("no effect".to_owned()));
        assert_eq!(read_back.refusal_since(before).as_deref(), Some("no effect"));
        assert_eq!(read_back.refusal_since(read_back.begun()), None, "the server is away since");
        read_back.found(None);
        assert_eq!(read_back.refusal_since(before), None);
    }

    /// The tests run on MariaDB: the syntax for MySQL is checked against its manual, and here.
    #[test]
    fn a_read_bounds_itself_on_both_servers() {
        let bound = ReadBound { locks: 1, whole: Duration::from_millis(1_500) };
        assert_eq!(
            bound.select(),
            "/*M!100100 SET STATEMENT lock_wait_timeout = 1, max_statement_time = 1.500 FOR */ \
             SELECT /*+ SET_VAR(lock_wait_timeout = 1) MAX_EXECUTION_TIME(1500) */"
        );
    }
}
