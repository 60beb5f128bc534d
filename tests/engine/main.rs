//! The engine on the embedded store, through the public interface.
//!
//! Effects are lines in a file outside of the code under test. Time is a clock that moves by hand.

mod census;
mod coalescing;
mod commit;
mod conflict;
mod context;
mod corrupt;
mod could_not_look;
mod crash;
mod crash_points;
mod errors;
mod events;
mod expiry;
mod faults_met;
mod fingerprints;
mod helpers;
mod in_doubt;
mod late;
mod limits;
mod lists;
mod memory;
#[cfg(feature = "near-cache")]
mod near_cache;
mod origins;
mod panics;
mod reasons;
mod records;
mod renewal;
mod replay;
mod runtimes;
mod shutdown;
mod steps;
mod storm;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod support;
mod values;
mod verify;
#[path = "../support/warnings.rs"]
mod warnings;
mod windows;

use support::{faults, ledger, world};
