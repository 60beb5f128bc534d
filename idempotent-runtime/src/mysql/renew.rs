//! Renewing many leases in one statement.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use sqlx::Row as _;

use super::error::store_error;
use super::query::{ATTEMPTS, Bound, Connections, query};
use super::statements::filled_up;
use super::{MySqlStore, integer_of, key_of, owner_of};
use crate::key::KeyHash;
use crate::sql::{self, Answer};
use crate::store::{
    Operation, Renewal, StoreError, StoreErrorKind, Token, WriteOutcome, transition,
};

const OPERATION: Operation = Operation::Renew;
/// The maximum number of leases that one statement prolongs: as many as an engine renews at once.
const MOST: usize = 1_000;

type Owner = (KeyHash, Token);

impl MySqlStore {
    /// Renews with two statements for all leases of the same length: one finds the rows that no
    /// other transaction has locked, the other renews those. The number of rows that the second one
    /// found shows whether all of them were renewed; only if not, each row is read.
    pub(super) async fn renew_rows(&self, renewals: &[Renewal]) -> Answer<Vec<WriteOutcome>> {
        let connections = &self.0.renewals;
        let mut leases: HashMap<Duration, Vec<&Renewal>> = HashMap::new();
        for renewal in renewals {
            let owners = leases.entry(renewal.lease).or_default();
            owners.push(renewal);
        }
        let mut refused = HashMap::new();
        for (lease, renewals) in leases {
            for renewals in renewals.chunks(MOST) {
                self.renew_owners(connections, lease, renewals, &mut refused).await?;
            }
        }
        Ok(renewals
            .iter()
            .map(|renewal| refused.get(&owner(renewal)).copied().unwrap_or(WriteOutcome::Applied))
            .collect())
    }

    /// Prolongs the leases, and adds those that were not prolonged to `refused`.
    ///
    /// The renewal would wait for each row that another transaction has locked, an administrator's
    /// for example. All other leases would wait with it, perhaps longer than they last. So it names
    /// only rows that were free a moment ago. Finding those is a statement of its own: if the
    /// connection falls silent between the two, no lock is left.
    async fn renew_owners(
        &self,
        connections: &Connections,
        lease: Duration,
        renewals: &[&Renewal],
        refused: &mut HashMap<Owner, WriteOutcome>,
    ) -> Answer<()> {
        let mut pending: HashMap<Owner, &Renewal> =
            renewals.iter().map(|renewal| (owner(renewal), *renewal)).collect();
        for _ in 0..ATTEMPTS {
            let keys: Vec<_> = pending.values().map(|renewal| renewal.key).collect();
            let mut locked = HashMap::new();
            if let Some(unlocked) = self.unlocked(connections, &keys).await? {
                locked = pending
                    .extract_if(|(key, _), _| !unlocked.contains(&key.as_bytes()[..]))
                    .collect();
            }
            if !locked.is_empty() {
                refused.extend(self.lost(connections, &mut locked).await?);
                refused.extend(locked.into_keys().map(|owner| (owner, WriteOutcome::Unanswered)));
            }
            if pending.is_empty() {
                return Ok(());
            }
            let owners: Vec<_> = pending.keys().copied().collect();
            let renewed = connections.write(OPERATION, || self.renewing(lease, &owners)).await?;
            if renewed == owners.len() as u64 {
                return Ok(());
            }
            // A record that can still be renewed now was renewed by the statement, or was written
            // after it. The next attempt shows which: renewing twice does no harm.
            refused.extend(self.lost(connections, &mut pending).await?);
            if pending.is_empty() {
                return Ok(());
            }
        }
        Err(StoreError::new(StoreErrorKind::Refused, OPERATION)
            .with_detail("the records changed meanwhile"))
    }

    /// Returns the keys whose rows exist and are not locked by another transaction, or `None` if
    /// the server cannot find them: before MariaDB 10.6.
    async fn unlocked(
        &self,
        connections: &Connections,
        keys: &[KeyHash],
    ) -> Answer<Option<HashSet<Vec<u8>>>> {
        if !self.0.skips_locked.load(Relaxed) {
            return Ok(None);
        }
        let keys = filled_up(keys);
        let statement = self.0.statements.unlocked(keys.len());
        let statement = keys.iter().fold(query(&statement), |query, key| query.bind(key_of(key)));
        match connections.locked_rows(OPERATION, statement).await {
            Ok(rows) => {
                let keys = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>();
                keys.map(Some).map_err(|error| store_error(OPERATION, error))
            }
            Err(error) if error.kind() == StoreErrorKind::Unsupported => {
                self.0.skips_locked.store(false, Relaxed);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn renewing(&self, lease: Duration, owners: &[Owner]) -> Bound<'static> {
        let owners = filled_up(owners);
        let statement = query(&self.0.statements.renew(owners.len()))
            .bind(integer_of(lease))
            .bind(integer_of(lease));
        let statement = owners.iter().fold(statement, |query, (key, _)| query.bind(key_of(key)));
        owners
            .iter()
            .fold(statement, |query, (key, token)| query.bind(key_of(key)).bind(owner_of(*token)))
    }

    /// Removes those from `pending` whose record says that they cannot be renewed.
    async fn lost(
        &self,
        connections: &Connections,
        pending: &mut HashMap<Owner, &Renewal>,
    ) -> Answer<Vec<(Owner, WriteOutcome)>> {
        let keys: Vec<_> = pending.keys().map(|(key, _)| key_of(key)).collect();
        let keys = filled_up(&keys.iter().map(|key| &key[..]).collect::<Vec<_>>());
        let statement = self.0.statements.rows(keys.len());
        let statement = keys.iter().fold(query(&statement), |query, key| query.bind(*key));
        let rows = connections.rows(OPERATION, statement).await?;
        // A record that this release cannot read no longer belongs to its owner, and is no reason
        // to give up the others.
        let found = rows.iter().map(|row| {
            let key =
                row.try_get::<Vec<u8>, _>(1).map_err(|error| store_error(OPERATION, error))?;
            Ok((key, sql::found(OPERATION, row).ok()))
        });
        let found: HashMap<_, _> = found.collect::<Answer<_>>()?;
        let mut lost = Vec::new();
        pending.retain(|owner, renewal| {
            let written = match found.get(&owner.0.as_bytes()[..]) {
                None => WriteOutcome::Gone,
                Some(None) => WriteOutcome::Lost,
                Some(Some(found)) => {
                    let mut slot = found.stored.as_ref().map(|stored| stored.record.clone());
                    transition::renew(&mut slot, renewal, found.now)
                }
            };
            let is_lost = written != WriteOutcome::Applied;
            lost.extend(is_lost.then_some((*owner, written)));
            !is_lost
        });
        Ok(lost)
    }
}

fn owner(renewal: &Renewal) -> Owner {
    (renewal.key, renewal.token)
}
