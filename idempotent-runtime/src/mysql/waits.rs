//! How long the server waits for the locks of others.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::mysql::MySqlRow;
use sqlx::{AssertSqlSafe, Error, MySqlConnection, Row as _, raw_sql};

/// Locks of rows; and locks of tables, as `ALTER TABLE`, `LOCK TABLES` and
/// `FLUSH TABLES WITH READ LOCK` take them, for which a session by itself waits a day, also when
/// its client has gone.
const BOUNDS: [&str; 2] = ["innodb_lock_wait_timeout", "lock_wait_timeout"];

/// The assignments by which a session waits for `seconds` at most: the server counts whole ones.
fn bounds(seconds: u128) -> String {
    let seconds = seconds.clamp(1, 1 << 24);
    BOUNDS.map(|name| format!("SESSION {name} = {seconds}")).join(", ")
}

/// Whether sessions are as they were told to be when they began. A proxy may answer what sets
/// something by itself, or send it to another session, and then the server would wait without a
/// bound when something is written.
#[derive(Clone, Debug, Default)]
pub(super) struct ReadBack(Arc<Mutex<Sessions>>);

/// What was found so far.
#[derive(Clone, Debug, Default)]
struct Sessions {
    begun: u64,
    /// What was wrong with the last one.
    refusal: Option<String>,
}

impl ReadBack {
    /// Begins a session of the store's own with `settings`, and bounds of `seconds`.
    ///
    /// # Errors
    /// Where it is not as it was told to be. The pool tries again then until its patience is over,
    /// and says nothing but that: see [`refusal_since`](Self::refusal_since) for the reason.
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
                    "`SET SESSION {name} = {seconds}` has no effect: it is {found}. Does a proxy answer it, or spread the \
                     statements of a session over several? Let it keep sessions apart, or connect to the server"
                ));
            }
        }
        let result =
            refusal.clone().map_or(Ok(()), |refusal| Err(Error::Configuration(refusal.into())));
        self.found(refusal);
        result
    }

    fn found(&self, refusal: Option<String>) {
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.begun += 1;
        sessions.refusal = refusal;
    }

    /// How many sessions have begun so far.
    pub(super) fn begun(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).begun
    }

    /// What was wrong with the session that began last, if it is none of the first `begun`: a
    /// refusal of long ago is not why there is no connection today.
    pub(super) fn refusal_since(&self, begun: u64) -> Option<String> {
        let sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.refusal.clone().filter(|_| sessions.begun > begun)
    }
}

/// How long the server may wait and work for a read that bounds itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadBound {
    pub(super) locks: u128,
    pub(super) whole: Duration,
}

impl ReadBound {
    /// `SELECT`, and what bounds it on either server: that needs no round trip, changes nothing in
    /// a session that belongs to somebody else, and does not depend on what a pooler has made of a
    /// session's settings. MariaDB runs what is in the first comment, and MySQL takes the second
    /// one for hints. On both the lock bound holds already while the statement is prepared, which
    /// waits for the table too. There is nothing like it for the locks of rows on MySQL, so writes
    /// are bounded by their session.
    pub(super) fn select(self) -> String {
        let Self { locks, whole } = self;
        let (seconds, millis) = (whole.as_secs_f64(), whole.as_millis().max(1));
        format!(
            "/*M!100100 SET STATEMENT lock_wait_timeout = {locks}, max_statement_time = {seconds:.3} FOR */ \
             SELECT /*+ SET_VAR(lock_wait_timeout = {locks}) MAX_EXECUTION_TIME({millis}) */"
        )
    }
}

/// From now on the session, which is not ours, waits for `seconds` at most. Its user's own bounds
/// are kept in variables of the session, also where an earlier request was given up before it could
/// restore them. MariaDB takes zero, and does not wait then; MySQL waits for a second at least.
pub(super) async fn bound(connection: &mut MySqlConnection, seconds: u128) -> Result<(), Error> {
    let keeping = BOUNDS
        .map(|name| format!("@idempotency_{name} = CAST(COALESCE(@idempotency_{name}, @@SESSION.{name}) AS UNSIGNED)"));
    let at_once =
        BOUNDS.map(|name| format!(", SESSION {name} = IF(VERSION() LIKE '%MariaDB%', 0, 1)"));
    let at_once = if seconds == 0 { at_once.concat() } else { String::new() };
    let statement = format!("SET {}, {}{at_once}", keeping.join(", "), bounds(seconds));
    raw_sql(AssertSqlSafe(statement)).execute(connection).await.map(drop)
}

/// From now on the session waits as it did before it was bounded.
pub(super) async fn restore(connection: &mut MySqlConnection) -> Result<(), Error> {
    raw_sql(AssertSqlSafe(restoring())).execute(connection).await.map(drop)
}

/// The same, and `statements` then, in one round trip. The row that they answer with.
pub(super) async fn restore_and(
    connection: &mut MySqlConnection,
    statements: &str,
) -> Result<MySqlRow, Error> {
    let rows = raw_sql(AssertSqlSafe(format!("{}; {statements}", restoring())))
        .fetch_all(connection)
        .await?;
    rows.into_iter().next().ok_or(Error::RowNotFound)
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

    /// The tests run on MariaDB: what MySQL is told is in MySQL's manual, and here.
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
