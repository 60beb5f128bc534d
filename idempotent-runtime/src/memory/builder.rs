//! Limits and clock of an in-memory store.

use std::sync::Arc;

use super::MemoryStore;
use super::usage::Usage;
use crate::clock::{Clock, SystemClock};

/// Builds a [`MemoryStore`]. Created by [`MemoryStore::builder`].
#[derive(Clone, Debug)]
#[must_use]
pub struct MemoryStoreBuilder {
    max_records: usize,
    max_bytes: usize,
    clock: Arc<dyn Clock>,
}

impl Default for MemoryStoreBuilder {
    fn default() -> Self {
        Self {
            max_records: 1_000_000,
            max_bytes: 512 * 1024 * 1024,
            clock: Arc::new(SystemClock::new()),
        }
    }
}

impl MemoryStoreBuilder {
    /// Sets the maximum number of records and tombstones. The default is one million.
    pub fn max_records(mut self, max_records: usize) -> Self {
        self.max_records = max_records;
        self
    }

    /// Sets the maximum size of all records in bytes, including an estimate of their overhead. The
    /// default is 512 MiB.
    ///
    /// Results and checkpoints of running calls may exceed it: a call that was admitted can store
    /// its result.
    pub fn max_bytes(mut self, max_bytes: usize) -> Self {
        self.max_bytes = max_bytes;
        self
    }

    /// Sets the clock on which leases and expiry are counted. The default is the machine's.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Creates an empty store.
    pub fn build(self) -> MemoryStore {
        MemoryStore::from_parts(Usage::new(self.max_records, self.max_bytes), self.clock)
    }
}
