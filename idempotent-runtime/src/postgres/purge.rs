//! Removing expired records.

use sqlx::Row as _;

use super::error::store_error;
use super::request::Request;
use super::{PostgresStore, no_row};
use crate::sql::{Answer, Batch, Place, purge_from_mark};
use crate::store::{Operation, PurgeOutcome};

const OPERATION: Operation = Operation::Purge;

impl PostgresStore {
    pub(super) async fn purge_rows(&self, limit: usize) -> Answer<PurgeOutcome> {
        let batch = |begin: Option<Place>, most| {
            self.purge_batch(most, begin.map_or(i64::MIN, |(purge_at, _)| purge_at))
        };
        purge_from_mark(&self.0.purge_mark, limit, batch).await
    }

    /// Returns the server's time, and what the statement did with the first `limit` due rows,
    /// starting at `from`.
    async fn purge_batch(&self, limit: usize, from: i64) -> Answer<(i64, Batch)> {
        let most = i64::try_from(limit).unwrap_or(i64::MAX);
        let request = Request::new(&self.0.statements.purge).integer(most).integer(from);
        let rows = self.0.sessions.rows(OPERATION, request).await?;
        let row = rows.first().ok_or_else(|| no_row(OPERATION))?;
        let failed = |error| store_error(OPERATION, error);
        let count = |column| {
            let count: i64 = row.try_get(column).map_err(failed)?;
            Ok(usize::try_from(count).unwrap_or(usize::MAX))
        };
        // Rows of the same time are unordered.
        let place = |column| {
            let purge_at: Option<i64> = row.try_get(column).map_err(failed)?;
            Ok(purge_at.map(|purge_at| (purge_at, [0; 32])))
        };
        let batch = Batch {
            removed: count(1)?,
            put_off: count(2)?,
            last: place(4)?,
            oldest: place(6)?,
            is_last: count(3)? < limit,
        };
        Ok((row.try_get(5).map_err(failed)?, batch))
    }
}
