//! The checks of a server when a store connects to it.

use sqlx::{AssertSqlSafe, MySqlConnection, Row as _};

use super::Inner;
use super::error::store_error;
use super::query::NO_AUTOCOMMIT;
use super::statements::{ISOLATION, Isolation};
use crate::sql::in_time;
use crate::store::{Operation, StoreError, StoreErrorKind};

const OPERATION: Operation = Operation::Connect;
const OLDEST_MARIADB: (u32, u32) = (10, 5);
const OLDEST_MYSQL: (u32, u32) = (8, 0);

pub(super) async fn server(store: &Inner) -> Result<(), StoreError> {
    let mut lease = store.connections.lease(OPERATION).await?;
    let result =
        in_time(OPERATION, store.connections.response_timeout, connected(&mut lease)).await;
    store.connections.end(lease, result.as_ref().err());
    result
}

async fn connected(connection: &mut MySqlConnection) -> Result<(), StoreError> {
    let row = sqlx::query("SELECT VERSION()").persistent(false).fetch_one(&mut *connection).await;
    let version: String =
        row.and_then(|row| row.try_get(0)).map_err(|error| store_error(OPERATION, error))?;
    supported(&version)?;
    session(connection).await?;
    let flush =
        sqlx::query("SELECT CAST(@@innodb_flush_log_at_trx_commit AS SIGNED)").persistent(false);
    match flush.fetch_one(&mut *connection).await.and_then(|row| row.try_get::<i64, _>(0)) {
        Ok(1) => {}
        Ok(flush) => tracing::warn!(
            "`innodb_flush_log_at_trx_commit` is {flush}: records that were acknowledged are lost when the server's \
             machine crashes, and their calls run again"
        ),
        Err(error) => tracing::warn!(
            %error,
            "the server does not report `innodb_flush_log_at_trx_commit`: it is not known whether \
             it can lose records"
        ),
    }
    Ok(())
}

/// Checks the settings that a pool of the user gives its sessions, as far as they would make
/// answers wrong.
async fn session(connection: &mut MySqlConnection) -> Result<(), StoreError> {
    let settings =
        format!("SELECT CAST(@@autocommit AS SIGNED), CAST(@@sql_mode AS CHAR), {ISOLATION}");
    let row = sqlx::query(AssertSqlSafe(settings)).persistent(false).fetch_one(connection).await;
    let row = row.and_then(|row| {
        Ok((row.try_get::<i64, _>(0)?, row.try_get::<String, _>(1)?, row.try_get::<i64, _>(2)?))
    });
    let (autocommit, mode, isolation) = row.map_err(|error| store_error(OPERATION, error))?;
    let unfit =
        |detail| Err(StoreError::new(StoreErrorKind::Config, OPERATION).with_detail(detail));
    if autocommit == 0 {
        return unfit(NO_AUTOCOMMIT);
    }
    if mode.split(',').any(|mode| mode.trim() == "EMPTY_STRING_IS_NULL") {
        return unfit(
            "`sql_mode` has EMPTY_STRING_IS_NULL in the sessions of the pool: empty results would \
             become NULL",
        );
    }
    if Isolation::of(isolation) == Isolation::Uncommitted {
        Err(uncommitted(OPERATION))
    } else {
        Ok(())
    }
}

/// Returns the error for a session that shows uncommitted data.
pub(super) fn uncommitted(operation: Operation) -> StoreError {
    StoreError::new(StoreErrorKind::Config, operation).with_detail(
        "the isolation level is READ UNCOMMITTED in the sessions of the pool: a result that is \
         never committed could be returned; use READ COMMITTED or stricter",
    )
}

fn supported(version: &str) -> Result<(), StoreError> {
    let is_mariadb = version.to_ascii_lowercase().contains("mariadb");
    let oldest = if is_mariadb { OLDEST_MARIADB } else { OLDEST_MYSQL };
    let mut parts = version.split(|char: char| !char.is_ascii_digit()).map(str::parse::<u32>);
    let found = match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Some((major, minor)),
        _ => None,
    };
    if found.is_some_and(|found| found >= oldest) {
        return Ok(());
    }
    Err(StoreError::new(StoreErrorKind::Config, OPERATION).with_detail(format!(
        "the server is `{version}`; the store requires MariaDB 10.5, MySQL 8.0 or later"
    )))
}

#[cfg(test)]
mod tests {
    use super::supported;

    #[test]
    fn old_servers_are_refused() {
        for version in [
            "10.5.0-MariaDB",
            "10.11.19-MariaDB-0+deb12u1",
            "11.4.2-MariaDB-log",
            "8.0.36",
            "8.4.0-log",
            "9.7.4",
        ] {
            assert!(supported(version).is_ok(), "{version}");
        }
        for version in ["10.4.34-MariaDB-log", "5.5.68-MariaDB", "5.7.44-log", "", "PostgreSQL"] {
            let error = supported(version).unwrap_err();
            assert!(error.to_string().contains("MariaDB 10.5, MySQL 8.0"), "{error}");
        }
    }
}
