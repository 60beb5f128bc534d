//! Creating the table.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Error, MySqlConnection, Row as _};

use super::Inner;
use super::error::{LOCK_WAIT_TIMEOUT, NO_TABLE, has_conflict, number, store_error};
use crate::sql::in_time;
use crate::store::{Operation, StoreError, StoreErrorKind};

const OPERATION: Operation = Operation::Migrate;
/// The version of the table that this release creates.
const VERSION: i64 = 1;
/// The time limit for creating the table, and for waiting for others that create it at the same
/// time.
const PATIENCE: Duration = Duration::from_secs(60);
const SCRIPT: &str = include_str!("../../migrations/mysql/0001_records.sql");

pub(super) async fn migrate(store: &Inner) -> Result<(), StoreError> {
    let mut lease = store.connections.impatient(OPERATION).await?;
    let result = in_time(OPERATION, PATIENCE, up_to_date(store, &mut lease)).await;
    store.connections.end_impatient(lease, result.as_ref().err());
    let version = result?;
    if version > VERSION {
        return Err(StoreError::new(StoreErrorKind::Config, OPERATION).with_detail(format!(
            "the table has version {version}, created by a newer release; this one knows version \
             {VERSION}"
        )));
    }
    Ok(())
}

/// Returns the version of the table, which is created if it does not exist. If it exists, a user
/// without the right to create tables can call this too.
///
/// Each statement of the script takes effect by itself, since the server commits around every
/// `CREATE TABLE`, and does nothing where another process was faster.
async fn up_to_date(store: &Inner, connection: &mut MySqlConnection) -> Result<i64, StoreError> {
    let failed = |error| store_error(OPERATION, error);
    // Bounded by `PATIENCE`.
    loop {
        match version(store, connection).await {
            Ok(Some(version)) => return Ok(version),
            Ok(None) => {}
            Err(error) if matches!(number(&error), Some(NO_TABLE | LOCK_WAIT_TIMEOUT)) => {}
            Err(error) => return Err(failed(error)),
        }
        let script = store.table.in_script(SCRIPT, '`');
        match sqlx::raw_sql(AssertSqlSafe(script)).execute(&mut *connection).await {
            Err(error) if !has_conflict(&error) && number(&error) != Some(LOCK_WAIT_TIMEOUT) => {
                return Err(failed(error));
            }
            _ => {}
        }
    }
}

async fn version(store: &Inner, connection: &mut MySqlConnection) -> Result<Option<i64>, Error> {
    let (table, meta) = (store.table.quoted('`'), store.table.with_suffix("meta").quoted('`'));
    // The join reads nothing, but needs both tables.
    let statement = format!(
        "SELECT meta.version FROM {meta} AS meta LEFT JOIN {table} AS kept ON kept.key_hash = X'' WHERE meta.id = 1"
    );
    let row =
        sqlx::query(AssertSqlSafe(statement)).persistent(false).fetch_optional(connection).await?;
    row.map(|row| row.try_get(0)).transpose()
}
