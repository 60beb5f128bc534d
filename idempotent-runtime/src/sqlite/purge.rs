//! Removing expired records.

use std::time::Duration;

use sqlx::{Connection as _, Row as _};

use super::error::store_error;
use super::{SqliteStore, execute, query};
use crate::sql::{Answer, in_time, is_answered};
use crate::store::{Operation, PurgeOutcome};

const OPERATION: Operation = Operation::Purge;

impl SqliteStore {
    pub(super) async fn purge_rows(&self, limit: usize) -> Answer<PurgeOutcome> {
        let mut lease = self.0.writer.lease(OPERATION).await?;
        let (statements, now) = (&self.0.statements, self.0.now());
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let purging = async {
            let failed = |error| store_error(OPERATION, error);
            let mut transaction = lease.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
            let due = |statement| query(statement).bind(now).bind(limit);
            let removed = execute(OPERATION, &mut transaction, due(&statements.purge)).await?;
            let put_off = execute(OPERATION, &mut transaction, due(&statements.put_off)).await?;
            let lag = query(&statements.lag).bind(now).fetch_one(&mut *transaction).await;
            let oldest: Option<i64> = lag.and_then(|row| row.try_get(0)).map_err(failed)?;
            transaction.commit().await.map_err(failed)?;
            let lag = oldest.map(|oldest| {
                Duration::from_millis(u64::try_from(now - oldest).unwrap_or_default())
            });
            let [removed, put_off] =
                [removed, put_off].map(|count| usize::try_from(count).unwrap_or(usize::MAX));
            Ok(PurgeOutcome::new(removed, lag).with_put_off(put_off))
        };
        let result = in_time(OPERATION, self.0.response_timeout, purging).await;
        if is_answered(&result) {
            lease.give_back().await;
        }
        result
    }
}
