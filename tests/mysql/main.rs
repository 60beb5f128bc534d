//! The MySQL store on a real MariaDB server: what it costs, what it leaves alone, and how it fails.

mod bounds;
mod conflicts;
mod deadlocks;
mod demotion;
mod fences;
mod outages;
mod plans;
mod purge_work;
mod purging;
mod renewals;
mod rights;
mod rows;
mod runtimes;
mod sessions;
mod starved;
mod statements;
mod tables;
mod tls;
mod waits;
#[path = "../support/warnings.rs"]
mod warnings;
mod world;
