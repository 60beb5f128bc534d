//! Removing expired records.

use std::time::Duration;

use sqlx::Row as _;

use super::PostgresStore;
use super::error::store_error;
use super::request::Request;
use crate::sql::Answer;
use crate::store::Purged;

const OPERATION: &str = "purge";

impl PostgresStore {
    pub(super) async fn purge_rows(&self, limit: usize) -> Answer<Purged> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let request = Request::new(&self.0.statements.purge).integer(limit);
        let rows = self.0.sessions.rows(OPERATION, request).await?;
        let Some(row) = rows.first() else { return Ok(Purged::default()) };
        let failed = |error| store_error(OPERATION, error);
        let count = |column| {
            let count: i64 = row.try_get(column).map_err(failed)?;
            Ok(usize::try_from(count).unwrap_or(usize::MAX))
        };
        let lag: Option<i64> = row.try_get(1).map_err(failed)?;
        let lag = lag.map(|lag| Duration::from_millis(u64::try_from(lag).unwrap_or_default()));
        Ok(Purged::new(count(0)?, lag).with_put_off(count(2)?))
    }
}
