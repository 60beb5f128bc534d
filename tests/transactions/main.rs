//! Claim, effect and record in the user's own transaction.

mod attribute;
mod lints;
#[cfg(feature = "mysql")]
mod mysql;
mod outcomes;
#[cfg(feature = "postgres")]
mod postgres;
mod signatures;
mod world;
