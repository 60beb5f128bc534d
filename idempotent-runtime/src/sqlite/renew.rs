//! Prolonging leases, many in one transaction: each would sync the file by itself.

use sqlx::{Connection as _, SqliteConnection};

use super::error::store_error;
use super::{Inner, SqliteStore, execute, key_of, owner_of, query};
use crate::sql::{self, Answer, in_time, integer, is_answered};
use crate::store::{Renewal, StoreError, StoreErrorKind, Written, transition};

const OPERATION: &str = "renew";
/// How many leases one transaction prolongs at most: others want to write too.
const MOST: usize = 500;

impl SqliteStore {
    pub(super) async fn renew_rows(&self, renewals: &[Renewal]) -> Answer<Vec<Written>> {
        let mut written = Vec::with_capacity(renewals.len());
        for renewals in renewals.chunks(MOST) {
            let mut lease = self.0.lease(OPERATION, &self.0.writer).await?;
            let result = in_time(OPERATION, self.0.response_timeout, renew(&self.0, &mut lease, renewals)).await;
            if is_answered(&result) {
                lease.end();
            }
            written.extend(result?);
        }
        Ok(written)
    }
}

async fn renew(store: &Inner, connection: &mut SqliteConnection, renewals: &[Renewal]) -> Answer<Vec<Written>> {
    let failed = |error| store_error(OPERATION, error);
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    let mut written = Vec::with_capacity(renewals.len());
    for renewal in renewals {
        written.push(renew_one(store, &mut transaction, renewal).await?);
    }
    transaction.commit().await.map_err(failed)?;
    Ok(written)
}

async fn renew_one(store: &Inner, connection: &mut SqliteConnection, renewal: &Renewal) -> Answer<Written> {
    let now = store.clock.now();
    let statement = query(&store.statements.renew)
        .bind(key_of(&renewal.key))
        .bind(owner_of(renewal.token))
        .bind(integer(now.as_millis()))
        .bind(integer((now + renewal.lease).as_millis()));
    if execute(OPERATION, connection, statement).await? == 1 {
        return Ok(Written::Applied);
    }
    let reading = query(&store.statements.read).bind(integer(now.as_millis())).bind(key_of(&renewal.key));
    let row = reading.fetch_optional(connection).await.map_err(|error| store_error(OPERATION, error))?;
    let mut slot = match row.map(|row| sql::found(OPERATION, &row)) {
        None => None,
        Some(Ok(found)) => found.stored.map(|stored| stored.record),
        // A record that this release cannot read is not its owner's any more, and no reason to give up the others.
        Some(Err(_)) => return Ok(Written::Lost),
    };
    match transition::renew(&mut slot, renewal, now) {
        Written::Applied => {
            Err(StoreError::new(StoreErrorKind::Refused, OPERATION).with_detail("the row and its record disagree"))
        }
        lost => Ok(lost),
    }
}
