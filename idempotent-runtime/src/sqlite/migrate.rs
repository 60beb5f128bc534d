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
    // No caller gives this up, so it waits for a writer as long as the pool's connections do.
    let mut lease = store.writer.unbounded(OPERATION).await?;
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
        make(store, &mut transaction).await.map_err(failed)?;
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

/// Creates the tables that are missing. If only the records are, their table was dropped: the next
/// fences begin above those of its records. The `meta` table has kept only the fences of records
/// that were removed before. Those of the others were granted by this process, or at a time that
/// has passed.
async fn make(store: &Inner, connection: &mut SqliteConnection) -> Result<(), Error> {
    let meta = store.table.with_suffix("meta").quoted('"');
    let kept = sqlx::query(AssertSqlSafe(format!("SELECT version FROM {meta}")));
    let was_dropped = match kept.fetch_optional(&mut *connection).await {
        Err(error) if is_missing_table(&error) => false,
        kept => kept?.is_some(),
    };
    let script = store.table.in_script(SCRIPT, '"');
    sqlx::raw_sql(AssertSqlSafe(script)).execute(&mut *connection).await?;
    if was_dropped {
        // A fence is a time in microseconds, or larger.
        let passed = store.now().saturating_mul(1_000).saturating_add(999);
        let granted = i64::try_from(store.fences.last()).unwrap_or(i64::MAX);
        let raise = format!("UPDATE {meta} SET fence = max(fence, ?1)");
        let raise = sqlx::query(AssertSqlSafe(raise)).bind(granted.max(passed));
        raise.execute(connection).await?;
    }
    Ok(())
}

/// Returns the version of the table, if it and the one of its version exist.
async fn version(store: &Inner, connection: &mut SqliteConnection) -> Result<Option<i64>, Error> {
    let (table, meta) = (store.table.quoted('"'), store.table.with_suffix("meta").quoted('"'));
    // The join reads nothing, but needs both tables.
    let statement = format!(
        "SELECT meta.version FROM {meta} AS meta LEFT JOIN {table} AS kept ON kept.key_hash = x'' WHERE meta.id = 1"
    );
    let row = sqlx::query(AssertSqlSafe(statement)).fetch_optional(connection).await?;
    row.map(|row| row.try_get(0)).transpose()
}
