//! Creating the table.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Error, Row as _, raw_sql};

use super::Inner;
use super::bounds::Bounds;
use super::error::{is_lock_timeout, is_missing_table, store_error};
use crate::sql::in_time;
use crate::store::{Operation, StoreError, StoreErrorKind};

const OPERATION: Operation = Operation::Migrate;
/// The version of the table that this release creates.
const VERSION: i64 = 1;
const SCRIPT: &str = include_str!("../../migrations/postgres/0001_records.sql");
/// The time limit for creating the table, and for waiting for others that create it at the same
/// time.
const PATIENCE: Duration = Duration::from_secs(60);
/// The advisory lock for creating tables, held in no call but this one.
const LOCK: i64 = 0x6964_656d_706f_7465;

pub(super) async fn migrate(store: &Inner) -> Result<(), StoreError> {
    let mut lease = store.sessions.lease(OPERATION).await?;
    let result = in_time(OPERATION, PATIENCE, make(store, &mut lease)).await;
    // Otherwise the connection is closed, which ends the transaction.
    if result.is_ok() {
        lease.end();
    }
    result
}

/// Runs for at most `PATIENCE`. The server itself waits only briefly for each lock, so that it does
/// not keep waiting after the client has given up.
async fn make(store: &Inner, connection: &mut PgConnection) -> Result<(), StoreError> {
    let failed = |error| store_error(OPERATION, error);
    loop {
        match up_to_date(store, connection).await {
            Ok(version) => return known(version),
            Err(error) if is_lock_timeout(&error) => {
                run(connection, String::from("ROLLBACK")).await.map_err(failed)?;
            }
            Err(error) => return Err(failed(error)),
        }
    }
}

/// Returns the version of the table, which is created if it does not exist.
async fn up_to_date(store: &Inner, connection: &mut PgConnection) -> Result<i64, Error> {
    // If the tables exist, a role without the right to create them may call this too.
    match version(store, connection).await {
        Ok(Some(version)) => return Ok(version),
        Ok(None) => {}
        Err(error) if is_missing_table(&error) => {}
        Err(error) => return Err(error),
    }
    // One process at a time: `CREATE … IF NOT EXISTS` of two at once can fail in the system
    // catalogs. The lock is taken before the first of these statements and ends with the
    // transaction. A process that has waited for it finds the table, and the script changes
    // nothing.
    let bounds = bounds(store).before();
    let begin = format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED; {bounds}SELECT pg_advisory_xact_lock({LOCK})"
    );
    run(connection, begin).await?;
    if let Some(schema) = store.table.schema() {
        // An existing schema does not require the right to create one.
        let there =
            raw_sql(AssertSqlSafe(format!("SELECT to_regnamespace('\"{schema}\"') IS NOT NULL")));
        if !there.fetch_one(&mut *connection).await.and_then(|row| row.try_get(0))? {
            run(connection, format!("CREATE SCHEMA \"{schema}\"")).await?;
        }
    }
    run(connection, store.table.in_script(SCRIPT, '"')).await?;
    let version = version(store, connection).await?;
    run(connection, String::from("COMMIT")).await?;
    Ok(version.unwrap_or_default())
}

/// A table may take longer than a request.
fn bounds(store: &Inner) -> Bounds {
    Bounds { whole: PATIENCE, ..Bounds::of(store.sessions.response_timeout()) }
}

async fn run(connection: &mut PgConnection, statements: String) -> Result<(), Error> {
    raw_sql(AssertSqlSafe(statements)).execute(connection).await.map(drop)
}

/// Returns the version of the table, if it and the one of its version exist.
async fn version(store: &Inner, connection: &mut PgConnection) -> Result<Option<i64>, Error> {
    let (table, meta) = (store.table.quoted('"'), store.table.with_suffix("meta").quoted('"'));
    let bounds = bounds(store).before();
    // A name is looked up without the table's lock, which an `ALTER TABLE` may hold for long.
    let row = raw_sql(AssertSqlSafe(format!(
        "{bounds}SELECT version FROM {meta} WHERE to_regclass('{table}') IS NOT NULL"
    )))
    .fetch_optional(connection)
    .await?;
    row.map(|row| row.try_get(0)).transpose()
}

fn known(version: i64) -> Result<(), StoreError> {
    if version > VERSION {
        return Err(StoreError::new(StoreErrorKind::Config, OPERATION).with_detail(format!(
            "the table has version {version}, created by a newer release; this one knows version \
             {VERSION}"
        )));
    }
    Ok(())
}
