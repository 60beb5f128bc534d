//! The checks of a server when a store connects to it.

use sqlx::Row as _;

use super::error::store_error;
use super::request::Request;
use super::statements::Statement;
use super::{Inner, no_row};
use crate::store::{Operation, StoreError, StoreErrorKind};

const OPERATION: Operation = Operation::Connect;
/// PostgreSQL 13, in the server's notation.
const OLDEST: i32 = 130_000;
const QUESTION: &str = "SELECT $mark, current_setting('server_version_num')::int4, current_setting('server_version'),
    pg_is_in_recovery(), current_setting('fsync') = 'on', current_setting('synchronous_commit') <> 'off',
    coalesce((SELECT relpersistence = 'u' FROM pg_class WHERE oid = to_regclass($1)), false)";

pub(super) async fn server(store: &Inner) -> Result<(), StoreError> {
    let (question, table) = (Statement::new(QUESTION), store.table.quoted('"'));
    let request = Request::new(&question).text(&table);
    let rows = store.sessions.rows(OPERATION, request).await?;
    let row = rows.first().ok_or_else(|| no_row(OPERATION))?;
    let failed = |error| store_error(OPERATION, error);
    if row.try_get::<i32, _>(1).map_err(failed)? < OLDEST {
        let version: &str = row.try_get(2).map_err(failed)?;
        return Err(StoreError::new(StoreErrorKind::Unsupported, OPERATION).with_detail(format!(
            "the server is PostgreSQL {version}; version 13 or later is required"
        )));
    }
    if row.try_get(3).map_err(failed)? {
        return Err(StoreError::new(StoreErrorKind::Refused, OPERATION).with_detail(
            "the server is a standby: it accepts no writes, and its records may be stale",
        ));
    }
    let [fsync, synchronous] =
        [row.try_get::<bool, _>(4).map_err(failed)?, row.try_get(5).map_err(failed)?];
    if !fsync || !synchronous {
        tracing::warn!(
            "the server acknowledges writes before they are on disk (`fsync` or \
             `synchronous_commit` is off): records are lost when it crashes, and their calls run \
             again"
        );
    }
    if row.try_get(6).map_err(failed)? {
        tracing::warn!(
            "the table is UNLOGGED: all records are lost when the server crashes, and their calls run again"
        );
    }
    Ok(())
}
