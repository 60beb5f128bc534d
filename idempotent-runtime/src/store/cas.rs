//! Changing one record by the rules of the protocol, in stores that compare and swap.

use std::future::Future;

use super::{Operation, Record, StoreError, StoreErrorKind};
use crate::clock::Timestamp;
use crate::key::KeyHash;

/// The number of times that a change is decided before it is refused because other writers were
/// faster. Each time another writer's change succeeded, so this many in a row occur only on a key
/// that thousands write at once.
const ATTEMPTS: usize = 100;

/// The result of a read, expired records included, and the store's time of the read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found<S> {
    pub(crate) now: Timestamp,
    pub(crate) stored: Option<S>,
}

/// Places for records whose writes are conditional on what was read, each write atomic.
pub(crate) trait Cells: Send {
    /// A record as it was read, with what identifies this version of it.
    type Stored: Send + Sync;

    fn record(stored: &Self::Stored) -> &Record;

    fn read(
        &mut self,
        operation: Operation,
        key: KeyHash,
    ) -> impl Future<Output = Result<Found<Self::Stored>, StoreError>> + Send;

    /// Writes a record; returns false and changes nothing if there is one with its key.
    fn insert(
        &mut self,
        operation: Operation,
        record: &Record,
        now: Timestamp,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Writes `record` in place of `stored`; returns false and changes nothing if that version is
    /// not there.
    fn replace(
        &mut self,
        operation: Operation,
        stored: &Self::Stored,
        record: &Record,
        now: Timestamp,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Removes `stored`; returns false and changes nothing if that version is not there.
    fn remove(
        &mut self,
        operation: Operation,
        stored: &Self::Stored,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;
}

/// Lets `transition` decide on the record of `key`, starting from `found` if there is one, and
/// writes its decision.
///
/// No lock is held between the read and the write. Each write is conditional: an insert on there
/// being no record, a replacement or removal on the version that was read. If another writer was
/// faster, the write changes nothing and `transition` decides again on a new read. So the answer
/// always belongs to the record that was written, or to one that needed no write.
pub(crate) async fn change<C: Cells, A>(
    cells: &mut C,
    operation: Operation,
    key: KeyHash,
    mut found: Option<Found<C::Stored>>,
    mut transition: impl FnMut(&mut Option<Record>, Timestamp) -> A,
) -> Result<A, StoreError> {
    for _ in 0..ATTEMPTS {
        let Found { now, stored } = match found.take() {
            Some(found) => found,
            None => cells.read(operation, key).await?,
        };
        let mut slot = stored.as_ref().map(|stored| C::record(stored).clone());
        let answer = transition(&mut slot, now);
        let written = match (&stored, slot) {
            (None, None) => true,
            (None, Some(record)) => cells.insert(operation, &record, now).await?,
            (Some(stored), Some(record)) if *C::record(stored) == record => true,
            (Some(stored), Some(record)) => cells.replace(operation, stored, &record, now).await?,
            (Some(stored), None) => cells.remove(operation, stored).await?,
        };
        if written {
            return Ok(answer);
        }
    }
    Err(StoreError::new(StoreErrorKind::Refused, operation)
        .with_detail(format!("others changed the record {ATTEMPTS} times while it was read")))
}
