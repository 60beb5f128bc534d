//! Changing one record by the rules of the protocol, without a lock.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::key::KeyHash;
use crate::store::{Operation, Record, StoreError, StoreErrorKind, Token};

use super::row::{Row, integer};

/// The number of times that a change is decided before it is refused because other writers were
/// faster. Each time another writer's change succeeded, so this many in a row occur only on a key
/// that thousands write at once.
const ATTEMPTS: usize = 100;

/// A record as it stands in its row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) record: Record,
    pub(crate) revision: i64,
    /// The time at which a purge checks the row, in milliseconds of the store's time.
    pub(crate) purge_at: i64,
}

/// The result of a read, expired records included, and the store's time of the read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) now: Timestamp,
    pub(crate) stored: Option<Stored>,
}

/// The condition that a row must still meet for a write to take effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Guard {
    pub(crate) key: KeyHash,
    pub(crate) owner: Token,
    pub(crate) revision: i64,
}

/// The statements on one row that make up a change, each of them atomic.
pub(crate) trait Table: Send {
    /// Reads the row of `key` and the store's time.
    fn read(
        &mut self,
        operation: Operation,
        key: KeyHash,
    ) -> impl Future<Output = Result<Found, StoreError>> + Send;

    /// Writes a row; returns false and changes nothing if there is one with its key.
    fn insert(
        &mut self,
        operation: Operation,
        row: &Row,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Replaces the row that `guard` describes with `row`; returns false and changes nothing if
    /// that row is not there.
    fn replace(
        &mut self,
        operation: Operation,
        guard: Guard,
        row: &Row,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Removes the row that `guard` describes; returns false and changes nothing if that row is not
    /// there.
    fn delete(
        &mut self,
        operation: Operation,
        guard: Guard,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;
}

/// Lets `transition` decide on the record of `key`, starting from `found` if there is one, and
/// writes its decision.
///
/// `retention` is the time for which the result of a claim will be kept, so that the purge checks
/// the row by then.
///
/// No lock is held between the read and the write. Each write is conditional: an insert on there
/// being no row, a replacement or removal on the owner and the revision that were read. If another
/// writer was faster, the write changes nothing and `transition` decides again on a new read. So
/// the answer always belongs to the row that was written, or to one that needed no write.
pub(crate) async fn change<A>(
    table: &mut impl Table,
    operation: Operation,
    key: KeyHash,
    found: Option<Found>,
    retention: Option<Duration>,
    mut transition: impl FnMut(&mut Option<Record>, Timestamp) -> A,
) -> Result<A, StoreError> {
    let mut found = found;
    for _ in 0..ATTEMPTS {
        let Found { now, stored } = match found.take() {
            Some(found) => found,
            None => table.read(operation, key).await?,
        };
        let answer_ends = retention.map(|ttl| now + ttl);
        let mut slot = stored.as_ref().map(|stored| stored.record.clone());
        let answer = transition(&mut slot, now);
        let guard = stored.as_ref().map(|stored| Guard {
            key,
            owner: stored.record.owner,
            revision: stored.revision,
        });
        let written = match (guard, slot) {
            (None, None) => true,
            (None, Some(record)) => {
                let revision = integer(now.as_millis().saturating_mul(1000));
                let row = Row::new(&record, revision, None, answer_ends);
                table.insert(operation, &row).await?
            }
            (Some(_), Some(record))
                if stored.as_ref().is_some_and(|stored| stored.record == record) =>
            {
                true
            }
            (Some(guard), Some(record)) => {
                let revision = guard.revision.saturating_add(1);
                let before = stored.as_ref().map(|stored| stored.purge_at);
                table
                    .replace(operation, guard, &Row::new(&record, revision, before, answer_ends))
                    .await?
            }
            (Some(guard), None) => table.delete(operation, guard).await?,
        };
        if written {
            return Ok(answer);
        }
    }
    Err(StoreError::new(StoreErrorKind::Refused, operation)
        .with_detail(format!("others changed the record {ATTEMPTS} times while it was read")))
}
