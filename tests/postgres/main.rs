//! What is special about the PostgreSQL store, on real servers.

mod connecting;
mod demotion;
mod fences;
mod formats;
mod isolation;
mod migrations;
mod outages;
mod plans;
mod poolers;
mod purge_work;
mod purging;
mod renewals;
mod rights;
mod runtimes;
mod shared_sessions;
mod starved;
mod statements;
mod statistics;
mod tls;
mod waiters;
mod waits;
#[path = "../support/warnings.rs"]
mod warnings;
mod world;
