//! Removing expired records.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use sqlx::{Connection as _, Error, MySqlConnection, Row as _};

use super::MySqlStore;
use super::error::{SYNTAX, has_conflict, number, store_error};
use super::query::{ATTEMPTS, START, query};
use super::statements::{MOST, Statement, filled_up};
use crate::sql::{Answer, in_time};
use crate::store::{Purged, StoreError, StoreErrorKind};

const OPERATION: &str = "purge";
/// What one batch did.
struct Batch {
    due: usize,
    removed: usize,
}

impl MySqlStore {
    pub(super) async fn purge_rows(&self, limit: usize) -> Answer<Purged> {
        let (mut seen, mut removed) = (0, 0);
        while seen < limit {
            let most = MOST.min(limit - seen);
            let batch = self.purge_batch(most).await?;
            removed += batch.removed;
            seen += batch.due;
            if batch.due < most {
                break;
            }
        }
        let rows = self.0.connections.rows(OPERATION, query(&self.0.statements.lag)).await?;
        let lag = rows.first().map(|row| row.try_get::<i64, _>(0)).transpose();
        let lag = lag.map_err(|error| store_error(OPERATION, error))?;
        let lag = lag.map(|lag| Duration::from_millis(u64::try_from(lag).unwrap_or_default()));
        Ok(Purged::new(removed, lag).with_put_off(seen - removed))
    }

    async fn purge_batch(&self, most: usize) -> Answer<Batch> {
        let mut lease = self.0.connections.impatient(OPERATION).await?;
        let purging = async {
            for _ in 0..ATTEMPTS {
                match self.try_batch(&mut lease, most).await {
                    // The server has rolled back all of it.
                    Err(error) if has_conflict(&error) => {}
                    // MariaDB 10.5 cannot skip locked rows. Two purges then wait for each other.
                    Err(error) if number(&error) == Some(SYNTAX) && self.0.skips_locked.swap(false, Relaxed) => {}
                    result => return result.map_err(|error| store_error(OPERATION, error)),
                }
            }
            Err(StoreError::new(StoreErrorKind::Refused, OPERATION).with_detail("the rows were locked by others"))
        };
        let result = in_time(OPERATION, self.0.connections.response_timeout, purging).await;
        self.0.connections.end_impatient(lease, result.as_ref().err());
        result
    }

    /// The keys first, then each row by its primary key if it is still due: nobody who claims meanwhile waits longer than
    /// for this batch.
    async fn try_batch(&self, connection: &mut MySqlConnection, most: usize) -> Result<Batch, Error> {
        let statements = &self.0.statements;
        let mut transaction = connection.begin_with(START).await?;
        let due = if self.0.skips_locked.load(Relaxed) { &statements.due_unlocked } else { &statements.due };
        let rows = query(due).bind(i64::try_from(most).unwrap_or(i64::MAX)).fetch_all(&mut *transaction).await?;
        let keys: Vec<Vec<u8>> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
        let mut batch = Batch { due: keys.len(), removed: 0 };
        if batch.due > 0 {
            let keys = filled_up(&keys.iter().map(|key| &key[..]).collect::<Vec<_>>());
            batch.removed = change(&mut transaction, &statements.purge(keys.len()), &keys).await?;
            if batch.removed < batch.due {
                change(&mut transaction, &statements.put_off(keys.len()), &keys).await?;
            }
        }
        transaction.commit().await?;
        Ok(batch)
    }
}

async fn change(connection: &mut MySqlConnection, statement: &Statement, keys: &[&[u8]]) -> Result<usize, Error> {
    let statement = keys.iter().fold(query(statement), |query, key| query.bind(*key));
    let done = statement.execute(connection).await?;
    Ok(usize::try_from(done.rows_affected()).unwrap_or(usize::MAX))
}
