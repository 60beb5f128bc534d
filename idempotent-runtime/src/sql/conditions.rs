//! The parts of statements that depend on the codes of states, the same in every dialect.

use std::fmt;

use crate::store::State;
use crate::store::codes::state_code;

/// The state of a record that was claimed.
pub(crate) const IN_PROGRESS: u8 = state_code(State::InProgress);

/// The condition that a record is unfinished: in progress or in doubt.
pub(crate) const UNFINISHED: Unfinished = Unfinished;

/// The time at which nothing is left of a record: released ones and tombstones have no tombstone of
/// their own.
pub(crate) const FORGOTTEN: Forgotten = Forgotten;

pub(crate) struct Unfinished;

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "state IN ({IN_PROGRESS}, {})", state_code(State::InDoubt))
    }
}

pub(crate) struct Forgotten;

impl fmt::Display for Forgotten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (released, tombstone) = (state_code(State::Released), state_code(State::Tombstone));
        write!(
            f,
            "(expires_at + CASE WHEN state IN ({released}, {tombstone}) THEN 0 ELSE after_expiry END)"
        )
    }
}
