//! Changing one row by the rules of the protocol, without a lock.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::key::KeyHash;
use crate::store::cas::{self, Cells};
use crate::store::{Operation, Record, StoreError, Token};

use super::row::{Row, integer};

/// A record as it stands in its row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) record: Record,
    pub(crate) revision: i64,
    /// The time at which a purge checks the row, in milliseconds of the store's time.
    pub(crate) purge_at: i64,
}

/// The result of a read, expired records included, and the store's time of the read.
pub(crate) type Found = cas::Found<Stored>;

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

/// The rows of a table, as cells that are compared and swapped.
struct Rows<'table, T> {
    table: &'table mut T,
    retention: Option<Duration>,
}

impl<T: Table> Rows<'_, T> {
    fn answer_ends(&self, now: Timestamp) -> Option<Timestamp> {
        self.retention.map(|ttl| now + ttl)
    }
}

impl Stored {
    fn guard(&self) -> Guard {
        Guard { key: self.record.key, owner: self.record.owner, revision: self.revision }
    }
}

impl<T: Table> Cells for Rows<'_, T> {
    type Stored = Stored;

    fn record(stored: &Stored) -> &Record {
        &stored.record
    }

    async fn read(&mut self, operation: Operation, key: KeyHash) -> Result<Found, StoreError> {
        self.table.read(operation, key).await
    }

    async fn insert(
        &mut self,
        operation: Operation,
        record: &Record,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let revision = integer(now.as_millis().saturating_mul(1000));
        let row = Row::new(record, revision, None, self.answer_ends(now));
        self.table.insert(operation, &row).await
    }

    async fn replace(
        &mut self,
        operation: Operation,
        stored: &Stored,
        record: &Record,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let revision = stored.revision.saturating_add(1);
        let row = Row::new(record, revision, Some(stored.purge_at), self.answer_ends(now));
        self.table.replace(operation, stored.guard(), &row).await
    }

    async fn remove(&mut self, operation: Operation, stored: &Stored) -> Result<bool, StoreError> {
        self.table.delete(operation, stored.guard()).await
    }
}

/// Lets `transition` decide on the record of `key` by [`cas::change`].
///
/// `retention` is the time for which the result of a claim will be kept, so that the purge checks
/// the row by then.
pub(crate) async fn change<A>(
    table: &mut impl Table,
    operation: Operation,
    key: KeyHash,
    found: Option<Found>,
    retention: Option<Duration>,
    transition: impl FnMut(&mut Option<Record>, Timestamp) -> A,
) -> Result<A, StoreError> {
    cas::change(&mut Rows { table, retention }, operation, key, found, transition).await
}
