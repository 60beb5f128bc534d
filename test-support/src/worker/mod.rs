//! Worker processes that can be killed at named points.
//!
//! The test starts a program with [`Worker::spawn`] and names the points at which it is to stop.
//! The program creates [`KillPoints::from_env`] and awaits [`reach`](KillPoints::reach) where a
//! kill would be interesting; [`KillPointStore`] around its store adds the points of the store's
//! requests. The two sides communicate by lines: the worker prints `at <point>` and waits; the test
//! writes `go <point>`. All other lines that the worker prints are its output.

mod kill_point_store;
mod kill_points;
mod process;

pub use kill_point_store::KillPointStore;
pub use kill_points::KillPoints;
pub use process::{Worker, example};

/// The points that every crash test covers, in the order in which one call reaches them.
pub const POINTS: [&str; 8] = [
    BEFORE_SEND,
    AFTER_SEND,
    AFTER_CLAIM,
    BEFORE_EFFECT,
    DURING_RENEWAL,
    AFTER_EFFECT,
    BEFORE_COMMIT,
    AFTER_COMMIT,
];

/// The claim has not been sent.
pub const BEFORE_SEND: &str = "before_send";
/// The claim is in flight, its answer has not been read.
pub const AFTER_SEND: &str = "after_send";
/// The claim was granted, the engine does not know it yet.
pub const AFTER_CLAIM: &str = "after_claim";
/// In the body, before the effect. Reached by the body itself.
pub const BEFORE_EFFECT: &str = "before_effect";
/// A renewal is in flight, its answer has not been read.
pub const DURING_RENEWAL: &str = "during_renewal";
/// In the body, after the effect. Reached by the body itself.
pub const AFTER_EFFECT: &str = "after_effect";
/// The commit has not been sent.
pub const BEFORE_COMMIT: &str = "before_commit";
/// The commit was applied, the engine does not know it yet.
pub const AFTER_COMMIT: &str = "after_commit";

/// A record has not been put in doubt yet, by its owner or by an operator.
pub const BEFORE_PARK: &str = "before_park";
/// The request that puts a record in doubt is in flight, its answer has not been read.
pub const DURING_PARK: &str = "during_park";
/// The record was put in doubt, the engine does not know it yet.
pub const AFTER_PARK: &str = "after_park";
/// An operator's answer has not been sent.
pub const BEFORE_RESOLVE: &str = "before_resolve";
/// An operator's answer is in flight, the store's has not been read.
pub const DURING_RESOLVE: &str = "during_resolve";
/// An operator's answer was applied, the engine does not know it yet.
pub const AFTER_RESOLVE: &str = "after_resolve";

/// The checkpoint with this number has not been sent. A record's first one has the number 0.
pub fn before_checkpoint(number: u32) -> String {
    format!("before_checkpoint_{number}")
}

/// The checkpoint with this number is in flight, its answer has not been read.
pub fn during_checkpoint(number: u32) -> String {
    format!("during_checkpoint_{number}")
}

/// The checkpoint with this number was applied, the engine does not know it yet.
pub fn after_checkpoint(number: u32) -> String {
    format!("after_checkpoint_{number}")
}

/// The variable that names the points at which a worker waits, separated by commas.
const POINTS_VARIABLE: &str = "IDEMPOTENCY_KILL_POINTS";
/// The prefix of a line by which a worker reports a point.
const AT: &str = "at ";
/// The prefix of a line by which a test lets the worker continue.
const GO: &str = "go ";
