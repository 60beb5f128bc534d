//! Makes any async function safe to retry.

#[cfg(feature = "testing")]
pub use idempotent_runtime::testing;
pub use idempotent_runtime::{Fingerprint, clock, key, store};
