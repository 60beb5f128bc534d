//! Claim, effect and record in the user's own transaction.

mod outcomes;
#[cfg(feature = "postgres")]
mod postgres;
mod world;
