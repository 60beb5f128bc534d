//! Removing expired records.

use std::sync::atomic::Ordering::Relaxed;

use sqlx::mysql::MySqlRow;
use sqlx::{Connection as _, Error, MySqlConnection, Row as _};

use super::MySqlStore;
use super::error::{NO_SUCH_INDEX, SYNTAX, has_conflict, number, store_error};
use super::query::{ATTEMPTS, Bound, START, query};
use super::statements::{Access, MOST, Statement, filled_up};
use crate::sql::{Answer, Batch, Place, in_time, purge_from_mark};
use crate::store::{Operation, PurgeOutcome, StoreError, StoreErrorKind};

const OPERATION: Operation = Operation::Purge;
/// The place before every row.
const BEGINNING: Place = (i64::MIN, [0; 32]);

impl MySqlStore {
    pub(super) async fn purge_rows(&self, limit: usize) -> Answer<PurgeOutcome> {
        let batch = |begin: Option<Place>, most| self.purge_from(begin.unwrap_or(BEGINNING), most);
        purge_from_mark(&self.0.purge_mark, limit, batch).await
    }

    /// Returns the server's time, and what was done with the first `limit` due rows after `begin`.
    async fn purge_from(&self, begin: Place, limit: usize) -> Answer<(i64, Batch)> {
        let (mut all, mut due) = (Batch::default(), 0);
        while due < limit {
            let most = MOST.min(limit - due);
            let (found, batch) = self.purge_batch(all.last.unwrap_or(begin), most).await?;
            due += found;
            all.removed += batch.removed;
            all.last = batch.last.or(all.last);
            self.0.purge_mark.reached(all.last);
            if found < most {
                break;
            }
        }
        let statement = from(query(&self.0.statements.oldest(self.access())), begin);
        let rows = self.0.connections.rows(OPERATION, statement).await?;
        let Some(row) = rows.first() else { return Ok((0, all)) };
        let failed = |error| store_error(OPERATION, error);
        let is_one_left = row.try_get::<Option<i64>, _>("purge_at").map_err(failed)?.is_some();
        all.oldest = is_one_left.then(|| place(row)).transpose().map_err(failed)?;
        (all.put_off, all.is_last) = (due - all.removed, due < limit);
        Ok((row.try_get("read_at").map_err(failed)?, all))
    }

    /// Returns the number of due rows that were found, and what was done with them.
    async fn purge_batch(&self, begin: Place, most: usize) -> Answer<(usize, Batch)> {
        let mut lease = self.0.connections.impatient(OPERATION).await?;
        let purging = async {
            for _ in 0..ATTEMPTS {
                match self.try_batch(&mut lease, begin, most).await {
                    // The server has rolled back all of it.
                    Err(error) if has_conflict(&error) => {}
                    Err(error)
                        if number(&error) == Some(NO_SUCH_INDEX)
                            && self.0.knows_index.swap(false, Relaxed) => {}
                    // MariaDB 10.5 cannot skip locked rows. Two purges then wait for each other.
                    Err(error)
                        if number(&error) == Some(SYNTAX)
                            && self.0.skips_locked.swap(false, Relaxed) => {}
                    result => return result.map_err(|error| store_error(OPERATION, error)),
                }
            }
            Err(StoreError::new(StoreErrorKind::Refused, OPERATION)
                .with_detail("the rows were locked by others"))
        };
        let result = in_time(OPERATION, self.0.connections.response_timeout, purging).await;
        self.0.connections.end_impatient(lease, result.as_ref().err());
        result
    }

    fn access(&self) -> Access {
        if self.0.knows_index.load(Relaxed) { Access::Index } else { Access::Any }
    }

    /// Selects the keys first, then changes each row by its primary key if it is still due: no
    /// claim made meanwhile waits longer than for this batch.
    async fn try_batch(
        &self,
        connection: &mut MySqlConnection,
        begin: Place,
        most: usize,
    ) -> Result<(usize, Batch), Error> {
        let statements = &self.0.statements;
        let mut transaction = connection.begin_with(START).await?;
        let due = statements.due(self.access(), self.0.skips_locked.load(Relaxed));
        let due = from(query(&due), begin).bind(i64::try_from(most).unwrap_or(i64::MAX));
        let rows = due.fetch_all(&mut *transaction).await?;
        let places = rows.iter().map(place).collect::<Result<Vec<_>, _>>()?;
        let mut batch = Batch { last: places.last().copied(), ..Batch::default() };
        if !places.is_empty() {
            let keys = filled_up(&places.iter().map(|(_, key)| &key[..]).collect::<Vec<_>>());
            batch.removed = change(&mut transaction, &statements.purge(keys.len()), &keys).await?;
            if batch.removed < places.len() {
                change(&mut transaction, &statements.put_off(keys.len()), &keys).await?;
            }
        }
        transaction.commit().await?;
        Ok((places.len(), batch))
    }
}

fn from(statement: Bound<'_>, (purge_at, key): Place) -> Bound<'_> {
    statement.bind(purge_at).bind(purge_at).bind(key.to_vec())
}

fn place(row: &MySqlRow) -> Result<Place, Error> {
    let key = <[u8; 32]>::try_from(row.try_get::<&[u8], _>("key_hash")?)
        .map_err(|error| Error::Decode(error.into()))?;
    Ok((row.try_get("purge_at")?, key))
}

async fn change(
    connection: &mut MySqlConnection,
    statement: &Statement,
    keys: &[&[u8]],
) -> Result<usize, Error> {
    let statement = keys.iter().fold(query(statement), |query, key| query.bind(*key));
    let done = statement.execute(connection).await?;
    Ok(usize::try_from(done.rows_affected()).unwrap_or(usize::MAX))
}
