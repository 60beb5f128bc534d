//! The engine and the stores of the crate [`idempotency`](https://docs.rs/idempotency). Depend on that crate, not on this one.

pub mod clock;
mod canonical;
mod error;
mod fingerprint;
pub mod key;
mod policy;
pub mod store;

pub use error::{Error, ErrorKind};
pub use fingerprint::Fingerprint;
pub use policy::{OnConflict, OnCrash, OnError, Unstored};
