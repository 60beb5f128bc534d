//! How long the server waits for the locks of others.

use sqlx::{AssertSqlSafe, Error, MySqlConnection, raw_sql};

/// Locks of rows; and locks of tables, as `ALTER TABLE`, `LOCK TABLES` and `FLUSH TABLES WITH READ LOCK` take them, for
/// which a session by itself waits a day, also when its client has gone.
const BOUNDS: [&str; 2] = ["innodb_lock_wait_timeout", "lock_wait_timeout"];

/// The assignments by which a session waits for `seconds` at most: the server counts whole ones.
pub(super) fn bounds(seconds: u128) -> String {
    let seconds = seconds.clamp(1, 1 << 24);
    BOUNDS.map(|name| format!("SESSION {name} = {seconds}")).join(", ")
}

/// From now on the session, which is not ours, waits for `seconds` at most. Its user's own bounds are kept in variables of
/// the session, also where an earlier request was given up before it could restore them. For locks of rows MariaDB takes
/// zero, and does not wait then; MySQL waits for a second at least.
pub(super) async fn bound(connection: &mut MySqlConnection, seconds: u128) -> Result<(), Error> {
    let keeping = BOUNDS
        .map(|name| format!("@idempotency_{name} = CAST(COALESCE(@idempotency_{name}, @@SESSION.{name}) AS UNSIGNED)"));
    let at_once = ", SESSION innodb_lock_wait_timeout = IF(VERSION() LIKE '%MariaDB%', 0, 1)";
    let at_once = if seconds == 0 { at_once } else { "" };
    let statement = format!("SET {}, {}{at_once}", keeping.join(", "), bounds(seconds));
    raw_sql(AssertSqlSafe(statement)).execute(connection).await.map(drop)
}

/// From now on the session waits as it did before it was bounded.
pub(super) async fn restore(connection: &mut MySqlConnection) -> Result<(), Error> {
    let restoring = BOUNDS.map(|name| format!("SESSION {name} = @idempotency_{name}, @idempotency_{name} = NULL"));
    raw_sql(AssertSqlSafe(format!("SET {}", restoring.join(", ")))).execute(connection).await.map(drop)
}
