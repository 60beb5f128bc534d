//! Renewing many leases in one transaction.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use sqlx::{Connection as _, Error, MySqlConnection, Row as _};

use super::error::{DEADLOCK, SYNTAX, number, store_error};
use super::query::{ATTEMPTS, Connections, START, query};
use super::statements::filled_up;
use super::{MySqlStore, integer_of, key_of, owner_of};
use crate::key::KeyHash;
use crate::sql::{self, Answer, in_time, is_answered};
use crate::store::{Renewal, StoreError, StoreErrorKind, Token, Written};

const OPERATION: &str = "renew";
/// How many leases one transaction prolongs at most: as many as an engine renews at once.
const MOST: usize = 1_000;

type Owner = (KeyHash, Token);

impl MySqlStore {
    /// One transaction for the owners of leases of the same length. Those whose rows it did not get are read.
    pub(super) async fn renew_rows(&self, renewals: &[Renewal]) -> Answer<Vec<Written>> {
        let connections = Connections { pool: self.0.renewals.get(), ..self.0.connections.clone() };
        let mut leases: HashMap<Duration, Vec<&Renewal>> = HashMap::new();
        for renewal in renewals {
            let owners = leases.entry(renewal.lease).or_default();
            owners.push(renewal);
        }
        let mut refused = HashMap::new();
        for (lease, renewals) in leases {
            for renewals in renewals.chunks(MOST) {
                let mut pending: HashMap<Owner, &Renewal> =
                    renewals.iter().map(|renewal| (owner(renewal), *renewal)).collect();
                let owners: Vec<_> = pending.keys().copied().collect();
                for renewed in self.renew_owners(&connections, lease, &owners).await? {
                    pending.remove(&renewed);
                }
                self.refuse(&connections, &pending, &mut refused).await?;
            }
        }
        Ok(renewals.iter().map(|renewal| refused.get(&owner(renewal)).copied().unwrap_or(Written::Applied)).collect())
    }

    /// Prolongs the leases, and returns the owners whose leases these are.
    async fn renew_owners(
        &self,
        connections: &Connections,
        lease: Duration,
        owners: &[Owner],
    ) -> Answer<HashSet<Owner>> {
        let mut connection = connections.lease(OPERATION).await?;
        let renewing = async {
            for _ in 0..ATTEMPTS {
                match self.try_renewing(&mut connection, lease, owners).await {
                    // The server has rolled back all of it.
                    Err(error) if number(&error) == Some(DEADLOCK) => {}
                    // MariaDB 10.5 cannot skip locked rows: there, a locked row costs all of them their renewal.
                    Err(error) if number(&error) == Some(SYNTAX) && self.0.skips_locked.swap(false, Relaxed) => {}
                    result => return result.map_err(|error| store_error(OPERATION, error)),
                }
            }
            Err(StoreError::new(StoreErrorKind::Refused, OPERATION).with_detail("the rows were locked by others"))
        };
        let result = in_time(OPERATION, connections.response_timeout, renewing).await;
        if is_answered(&result) {
            connection.end();
        }
        result
    }

    /// A row that somebody else has locked must not keep the others waiting until their leases are over: those that can be
    /// prolonged are locked first, as far as nobody else holds them.
    async fn try_renewing(
        &self,
        connection: &mut MySqlConnection,
        lease: Duration,
        owners: &[Owner],
    ) -> Result<HashSet<Owner>, Error> {
        let statements = &self.0.statements;
        let mut transaction = connection.begin_with(START).await?;
        let places = filled_up(owners);
        let statement = query(&statements.renewable(places.len(), self.0.skips_locked.load(Relaxed)));
        let statement = places.iter().fold(statement, |query, (key, _)| query.bind(key_of(key)));
        let statement =
            places.iter().fold(statement, |query, (key, token)| query.bind(key_of(key)).bind(owner_of(*token)));
        let rows = statement.fetch_all(&mut *transaction).await?;
        let free = rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
        let free: HashSet<(Vec<u8>, Vec<u8>)> = free.collect::<Result<_, Error>>()?;
        if !free.is_empty() {
            let keys = filled_up(&free.iter().map(|(key, _)| &key[..]).collect::<Vec<_>>());
            let statement = query(&statements.renew(keys.len())).bind(integer_of(lease)).bind(integer_of(lease));
            let statement = keys.iter().fold(statement, |query, key| query.bind(*key));
            statement.execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        let is_free = |(key, token): &&Owner| free.contains(&(key_of(key), owner_of(*token)));
        Ok(owners.iter().filter(is_free).copied().collect())
    }

    /// Adds to `refused` why those who are `pending` were not renewed.
    async fn refuse(
        &self,
        connections: &Connections,
        pending: &HashMap<Owner, &Renewal>,
        refused: &mut HashMap<Owner, Written>,
    ) -> Answer<()> {
        if pending.is_empty() {
            return Ok(());
        }
        let keys: Vec<_> = pending.keys().map(|(key, _)| key_of(key)).collect();
        let keys = filled_up(&keys.iter().map(|key| &key[..]).collect::<Vec<_>>());
        let statement = self.0.statements.rows(keys.len());
        let statement = keys.iter().fold(query(&statement), |query, key| query.bind(*key));
        let rows = connections.rows(OPERATION, statement).await?;
        // A record that this release cannot read is not its owner's any more, and no reason to give up the others.
        let found = rows.iter().map(|row| {
            let key = row.try_get::<Vec<u8>, _>(1).map_err(|error| store_error(OPERATION, error))?;
            Ok((key, sql::found(OPERATION, row).ok()))
        });
        let found: HashMap<_, _> = found.collect::<Answer<_>>()?;
        refused.extend(pending.iter().map(|(owner, renewal)| {
            let written = match found.get(&owner.0.as_bytes()[..]) {
                None => Written::Gone,
                Some(None) => Written::Lost,
                Some(Some(found)) => {
                    let mut slot = found.stored.as_ref().map(|stored| stored.record.clone());
                    sql::not_renewed(&mut slot, renewal, found.now)
                }
            };
            (*owner, written)
        }));
        Ok(())
    }
}

fn owner(renewal: &Renewal) -> Owner {
    (renewal.key, renewal.token)
}
