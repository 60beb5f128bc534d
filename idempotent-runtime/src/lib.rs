//! The engine and the stores of the crate [`idempotency`](https://docs.rs/idempotency). Depend on that crate, not on this one.

mod canonical;
pub mod clock;
mod error;
mod fingerprint;
pub mod key;
#[cfg(feature = "memory")]
pub mod memory;
mod policy;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;

pub use error::{Error, ErrorKind};
pub use fingerprint::Fingerprint;
pub use policy::{OnConflict, OnCrash, OnError, Unstored};
