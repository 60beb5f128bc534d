//! Renewing leases, on connections of their own.

use std::collections::{HashMap, HashSet};

use sqlx::Row as _;

use super::error::store_error;
use super::request::Request;
use super::session::Sessions;
use super::{PostgresStore, millis, no_row, owner_bytes};
use crate::key::KeyHash;
use crate::sql::{self, Answer};
use crate::store::{Operation, Record, Renewal, WriteOutcome};

const OPERATION: Operation = Operation::Renew;

impl PostgresStore {
    pub(super) async fn renew_rows(&self, renewals: &[Renewal]) -> Answer<Vec<WriteOutcome>> {
        let sessions = &self.0.renewals;
        let keys: Vec<_> = renewals.iter().map(|renewal| renewal.key).collect();
        let owners: Vec<_> = renewals.iter().map(|renewal| owner_bytes(renewal.token)).collect();
        let leases = renewals.iter().map(|renewal| millis(renewal.lease)).collect();
        let request =
            Request::new(&self.0.statements.renew).keys(&keys).owners(&owners).integers(leases);
        let mut renewed: HashSet<([u8; 32], [u8; 16])> = HashSet::with_capacity(renewals.len());
        for row in sessions.written(OPERATION, request).await? {
            let failed = |error| store_error(OPERATION, error);
            renewed.insert((row.try_get(1).map_err(failed)?, row.try_get(2).map_err(failed)?));
        }
        let is_renewed = |renewal: &Renewal| {
            renewed.contains(&(*renewal.key.as_bytes(), owner_bytes(renewal.token)))
        };
        let refused = renewals.iter().filter(|renewal| !is_renewed(renewal));
        let found = self.found(sessions, refused.map(|renewal| renewal.key).collect()).await?;
        let written = |renewal| {
            if is_renewed(renewal) { WriteOutcome::Applied } else { refusal(renewal, &found) }
        };
        Ok(renewals.iter().map(written).collect())
    }

    /// Reads the records whose renewal did nothing, as far as they can be read.
    async fn found(
        &self,
        sessions: &Sessions,
        keys: Vec<KeyHash>,
    ) -> Answer<HashMap<KeyHash, Option<Record>>> {
        if keys.is_empty() {
            return Ok(HashMap::new());
        }
        let request = Request::new(&self.0.statements.renewed).keys(&keys);
        let rows = sessions.rows(OPERATION, request).await?;
        if rows.is_empty() {
            return Err(no_row(OPERATION));
        }
        let mut records = HashMap::with_capacity(rows.len());
        for row in rows {
            let key: Option<_> = row.try_get(2).map_err(|error| store_error(OPERATION, error))?;
            let Some(key) = key.map(KeyHash::from_bytes) else { continue };
            let found = sql::found(OPERATION, &row);
            if let Err(error) = &found {
                tracing::warn!(%key, %error, "a lease is not renewed: its record cannot be read");
            }
            let record = found.ok().and_then(|found| found.stored).map(|stored| stored.record);
            records.insert(key, record);
        }
        Ok(records)
    }
}

/// Returns the reason why a renewal did nothing.
fn refusal(renewal: &Renewal, found: &HashMap<KeyHash, Option<Record>>) -> WriteOutcome {
    let mut slot = match found.get(&renewal.key) {
        // A record that this release cannot read no longer belongs to its owner, and is no reason
        // to give up the others.
        Some(None) => return WriteOutcome::Lost,
        found => found.cloned().flatten(),
    };
    let now = slot.as_ref().map(|record| record.read_at).unwrap_or_default();
    sql::not_renewed(&mut slot, renewal, now)
}
