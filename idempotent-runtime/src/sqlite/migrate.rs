//! Creating the table.

use sqlx::{AssertSqlSafe, Connection as _, Row as _};

use super::Inner;
use super::error::store_error;
use super::transaction::identity;
use crate::store::{StoreError, StoreErrorKind};

const OPERATION: &str = "migrate";
/// The version of the table that this release makes.
const VERSION: i64 = 1;
const SCRIPT: &str = include_str!("../../migrations/sqlite/0001_records.sql");

pub(super) async fn migrate(store: &Inner) -> Result<(), StoreError> {
    let failed = |error| store_error(OPERATION, error);
    let mut lease = store.lease(OPERATION, &store.writer).await?;
    // The lock is taken before anything is read: two processes that make the table at once come one after the other.
    let mut transaction = lease.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    let script = store.table.in_script(SCRIPT, '"');
    sqlx::raw_sql(AssertSqlSafe(script)).execute(&mut *transaction).await.map_err(failed)?;
    let meta = store.table.with_suffix("meta").quoted('"');
    let row = sqlx::query(AssertSqlSafe(format!("SELECT version FROM {meta}"))).fetch_one(&mut *transaction).await;
    let version: i64 = row.and_then(|row| row.try_get(0)).map_err(failed)?;
    if version > VERSION {
        return Err(StoreError::new(StoreErrorKind::Config, OPERATION).with_detail(format!(
            "the table has version {version}, made by a newer release; this one knows version {VERSION}"
        )));
    }
    let identity = identity(OPERATION, &mut transaction, store).await?;
    transaction.commit().await.map_err(failed)?;
    lease.end();
    // It is there already if this is not the first time.
    let _ = store.identity.set(identity);
    Ok(())
}
