//! The faulty store of these tests.

pub use idempotency::testing::{Fault, Gate};

/// Everything that it stores is in memory.
pub type FaultyStore = idempotency::testing::FaultyStore<idempotency::store::MemoryStore>;
