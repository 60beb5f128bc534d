//! The numbers that stand for states, policies and reasons in stored records. A number never
//! changes its meaning.

use super::{CrashPolicy, Reason, State};

pub(crate) const STATES: [(State, u8); 6] = [
    (State::InProgress, 1),
    (State::InDoubt, 2),
    (State::Completed, 3),
    (State::Failed, 4),
    (State::Released, 5),
    (State::Tombstone, 6),
];

pub(crate) const POLICIES: [(CrashPolicy, u8); 4] = [
    (CrashPolicy::Retry, 1),
    (CrashPolicy::Resume, 2),
    (CrashPolicy::Verify, 3),
    (CrashPolicy::Hold, 4),
];

pub(crate) const REASONS: [(Reason, u8); 11] = [
    (Reason::Crashed, 1),
    (Reason::Dropped, 2),
    (Reason::Panicked, 3),
    (Reason::LeaseLost, 4),
    (Reason::Error, 5),
    (Reason::NotStored, 6),
    (Reason::ShutDown, 7),
    (Reason::TooLarge, 8),
    (Reason::NotEncodable, 9),
    (Reason::Resolved, 10),
    (Reason::Unverified, 11),
];

/// The code of `value`, or zero if the table does not have it. The tables have all values.
pub(crate) fn code<T: Copy + PartialEq>(table: &[(T, u8)], value: T) -> u8 {
    table.iter().find(|(known, _)| *known == value).map_or(0, |(_, code)| *code)
}

/// The value that has `code`.
pub(crate) fn value<T: Copy>(table: &[(T, u8)], code: u8) -> Option<T> {
    table.iter().find(|(_, known)| *known == code).map(|(value, _)| *value)
}

/// The code of `reason`, or zero for `None`.
#[cfg(any(feature = "redis", feature = "postgres", feature = "mysql", feature = "sqlite"))]
pub(crate) fn reason_code(reason: Option<Reason>) -> u8 {
    reason.map_or(0, |reason| code(&REASONS, reason))
}

/// The code of `state`.
#[cfg(any(feature = "redis", feature = "postgres", feature = "mysql", feature = "sqlite"))]
pub(crate) fn state_code(state: State) -> u8 {
    code(&STATES, state)
}
