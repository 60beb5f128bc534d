//! What is special about the PostgreSQL store, on real servers.

mod connecting;
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
mod statements;
mod statistics;
mod waiters;
mod waits;
mod world;
