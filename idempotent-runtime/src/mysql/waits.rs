//! How long the server waits for the locks of others in a session that is not ours.

use sqlx::{AssertSqlSafe, Error, MySqlConnection, raw_sql};

/// Keeps the user's own bound in a variable of the session, also where an earlier request was given up before it could
/// restore it.
const KEEPING: &str = "SET @idempotency_lock_wait_timeout = \
    CAST(COALESCE(@idempotency_lock_wait_timeout, @@SESSION.innodb_lock_wait_timeout) AS UNSIGNED)";
const RESTORING: &str = "SET SESSION innodb_lock_wait_timeout = @idempotency_lock_wait_timeout, \
    @idempotency_lock_wait_timeout = NULL";

/// From now on the session waits for `seconds` at most: the server counts whole ones.
pub(super) async fn bound(connection: &mut MySqlConnection, seconds: u128) -> Result<(), Error> {
    let seconds = seconds.clamp(1, 1 << 30);
    let statement = format!("{KEEPING}, SESSION innodb_lock_wait_timeout = {seconds}");
    raw_sql(AssertSqlSafe(statement)).execute(connection).await.map(drop)
}

/// From now on the session waits as it did before it was bounded.
pub(super) async fn restore(connection: &mut MySqlConnection) -> Result<(), Error> {
    raw_sql(RESTORING).execute(connection).await.map(drop)
}
