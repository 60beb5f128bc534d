//! The faulty store of these tests.

#[allow(unused_imports, reason = "other tests use the rest")]
pub use idempotency::testing::{Fault, Gate};

/// Everything that it stores is in memory.
pub type FaultyStore = idempotency::testing::FaultyStore<idempotency::store::MemoryStore>;
