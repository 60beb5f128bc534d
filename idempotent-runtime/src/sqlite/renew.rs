//! Renewing many leases in one statement: each would sync the file by itself.

use std::collections::HashSet;

use sqlx::{Row as _, SqliteConnection};

use super::error::store_error;
use super::{Inner, SqliteStore, key_of, owner_of, query};
use crate::clock::Timestamp;
use crate::sql::{self, Answer, in_time, integer, is_answered};
use crate::store::{Operation, Renewal, WriteOutcome};

const OPERATION: Operation = Operation::Renew;
/// The maximum number of leases that one statement prolongs: others need to write too.
const MOST: usize = 1_000;

impl SqliteStore {
    pub(super) async fn renew_rows(&self, renewals: &[Renewal]) -> Answer<Vec<WriteOutcome>> {
        let mut written = Vec::with_capacity(renewals.len());
        for renewals in renewals.chunks(MOST) {
            written.extend(self.renew_some(renewals).await?);
        }
        Ok(written)
    }

    async fn renew_some(&self, renewals: &[Renewal]) -> Answer<Vec<WriteOutcome>> {
        let mut lease = self.0.renewals.lease(OPERATION).await?;
        let result =
            in_time(OPERATION, self.0.response_timeout, renew(&self.0, &mut lease, renewals)).await;
        if is_answered(&result) {
            lease.give_back().await;
        }
        result
    }
}

async fn renew(
    store: &Inner,
    connection: &mut SqliteConnection,
    renewals: &[Renewal],
) -> Answer<Vec<WriteOutcome>> {
    let failed = |error| store_error(OPERATION, error);
    let now = store.clock.now();
    let statement =
        query(&store.statements.renew).bind(list(renewals, now)).bind(integer(now.as_millis()));
    let mut renewed = HashSet::with_capacity(renewals.len());
    for row in statement.fetch_all(&mut *connection).await.map_err(failed)? {
        renewed.insert((
            row.try_get::<Vec<u8>, _>(0).map_err(failed)?,
            row.try_get::<Vec<u8>, _>(1).map_err(failed)?,
        ));
    }
    let mut written = Vec::with_capacity(renewals.len());
    for renewal in renewals {
        let is_renewed =
            renewed.contains(&(key_of(&renewal.key).to_vec(), owner_of(renewal.token)));
        written.push(if is_renewed {
            WriteOutcome::Applied
        } else {
            refusal(store, connection, renewal, now).await?
        });
    }
    Ok(written)
}

/// Builds the statement's argument: key, owner and the end of the lease of each.
fn list(renewals: &[Renewal], now: Timestamp) -> String {
    let one = |renewal: &Renewal| {
        let (key, owner) = (renewal.key.to_hex(), renewal.token.bits());
        format!("[\"{key}\",\"{owner:032x}\",{}]", integer((now + renewal.lease).as_millis()))
    };
    format!("[{}]", renewals.iter().map(one).collect::<Vec<_>>().join(","))
}

/// Returns the reason why a renewal did nothing.
async fn refusal(
    store: &Inner,
    connection: &mut SqliteConnection,
    renewal: &Renewal,
    now: Timestamp,
) -> Answer<WriteOutcome> {
    let reading =
        query(&store.statements.read).bind(integer(now.as_millis())).bind(key_of(&renewal.key));
    let row =
        reading.fetch_optional(connection).await.map_err(|error| store_error(OPERATION, error))?;
    let mut slot = match row.map(|row| sql::found(OPERATION, &row)) {
        None => None,
        Some(Ok(found)) => found.stored.map(|stored| stored.record),
        // A record that this release cannot read no longer belongs to its owner, and is no reason
        // to give up the others.
        Some(Err(_)) => return Ok(WriteOutcome::Lost),
    };
    Ok(sql::not_renewed(&mut slot, renewal, now))
}
