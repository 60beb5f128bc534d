//! Bounds and clock of a memory store.

use std::sync::Arc;

use super::MemoryStore;
use super::usage::Usage;
use crate::clock::{Clock, SystemClock};

/// Builds a [`MemoryStore`]. Made by [`MemoryStore::builder`].
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
    /// How many records and tombstones the store holds at most. One million unless set.
    pub fn max_records(mut self, max_records: usize) -> Self {
        self.max_records = max_records;
        self
    }

    /// How many bytes the records take at most, with an estimate of their own overhead. 512 MiB
    /// unless set.
    ///
    /// Results and checkpoints of calls that are running may exceed it: a call that was admitted
    /// can store its result.
    pub fn max_bytes(mut self, max_bytes: usize) -> Self {
        self.max_bytes = max_bytes;
        self
    }

    /// The clock on which leases and expiry are counted. The machine's unless set.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// An empty store.
    pub fn build(self) -> MemoryStore {
        MemoryStore::from_parts(Usage::new(self.max_records, self.max_bytes), self.clock)
    }
}
