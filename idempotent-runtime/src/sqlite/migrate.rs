//! Creating the table.

use sqlx::{AssertSqlSafe, Connection as _, Error, Row as _, SqliteConnection};

use super::Inner;
use super::error::{is_missing_table, store_error};
use super::transaction::identity;
use crate::store::{Operation, StoreError, StoreErrorKind};

const OPERATION: Operation = Operation::Migrate;
/// The version of the table that this release creates.
const VERSION: i64 = 1;
const SCRIPT: &str = include_str!("../../migrations/sqlite/0001_records.sql");

pub(super) async fn migrate(store: &Inner) -> Result<(), StoreError> {
    let failed = |error| store_error(OPERATION, error);
    let mut lease = store.writer.lease(OPERATION).await?;
    // If the table exists, this does not wait for any writer.
    let found = match version(store, &mut lease).await {
        Err(error) if is_missing_table(&error) => None,
        found => found.map_err(failed)?,
    };
    let found = if let Some(version) = found {
        version
    } else {
        // The lock is taken first: two processes that create the table at once run one after the
        // other.
        let mut transaction = lease.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
        let script = store.table.in_script(SCRIPT, '"');
        sqlx::raw_sql(AssertSqlSafe(script)).execute(&mut *transaction).await.map_err(failed)?;
        let made = version(store, &mut transaction).await.map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        made.unwrap_or_default()
    };
    if found > VERSION {
        return Err(StoreError::new(StoreErrorKind::Config, OPERATION).with_detail(format!(
            "the table has version {found}, created by a newer release; this one knows version \
             {VERSION}"
        )));
    }
    let identity = identity(OPERATION, &mut lease, store).await?;
    lease.give_back().await;
    store.identity.set(identity);
    Ok(())
}

async fn version(store: &Inner, connection: &mut SqliteConnection) -> Result<Option<i64>, Error> {
    let meta = store.table.with_suffix("meta").quoted('"');
    let row = sqlx::query(AssertSqlSafe(format!("SELECT version FROM {meta}")))
        .fetch_optional(connection)
        .await?;
    row.map(|row| row.try_get(0)).transpose()
}
