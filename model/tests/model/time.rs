//! The clock of the model: a handful of ticks, each of which is a second to the transitions.

use std::time::Duration;

use idempotent_runtime::clock::Timestamp;

/// The length of a lease.
pub const LEASE: u8 = 2;
/// The time by which an unfinished record outlives its lease.
pub const LINGER: u8 = 2;
/// The time for which a result is kept: never shorter than the lease.
pub const TTL: u8 = 2;
/// The time for which the outside is not queried again.
pub const ASK_AGAIN: u8 = 1;

/// The first tick. The store uses zero for "never".
pub const START: u8 = 1;

pub fn timestamp(tick: u8) -> Timestamp {
    Timestamp::from_millis(u64::from(tick) * 1000)
}

pub fn duration(ticks: u8) -> Duration {
    Duration::from_secs(u64::from(ticks))
}

/// Returns the ticks from `now` to `end`.
pub fn ticks_left(end: Timestamp, now: u8) -> u64 {
    end.as_millis().saturating_sub(timestamp(now).as_millis()) / 1000
}
