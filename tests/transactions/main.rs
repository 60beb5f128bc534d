//! Claim, effect and record in the user's own transaction.

mod attribute;
mod clients;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod commits;
mod databases;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod deadlocks;
mod disabled;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod ended;
mod exactness;
mod hooks;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod isolation;
mod lints;
mod long;
mod meetings;
#[cfg(all(feature = "inbox", any(feature = "postgres", feature = "mysql")))]
mod message_commits;
#[cfg(feature = "inbox")]
mod messages;
#[cfg(feature = "mysql")]
mod mysql;
mod outcomes;
mod over;
#[cfg(feature = "postgres")]
mod postgres;
mod scene;
mod shutdown;
mod signatures;
mod sqlite;
mod uncommitted;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod undone;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod unknown;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod waits;
#[path = "../support/warnings.rs"]
mod warnings;
mod world;
