//! Claim, effect and record in the user's own transaction.

#[cfg(feature = "mysql")]
mod mysql;
mod outcomes;
#[cfg(feature = "postgres")]
mod postgres;
mod world;
