//! The engine on a real Redis server: what goes wrong between them, and how it is settled.
//!
//! Effects are lines in a file outside of the code under test. Time is real, and leases are short.

mod commands;
mod connecting;
mod cuts;
mod dropped;
mod fences;
mod interleavings;
mod leases;
mod lists;
#[cfg(feature = "near-cache")]
mod near_cache;
mod outages;
mod refusals;
mod renewals;
mod rights;
mod runtimes;
mod staged;
mod steps;
mod waiters;
#[path = "../support/warnings.rs"]
mod warnings;
mod world;
