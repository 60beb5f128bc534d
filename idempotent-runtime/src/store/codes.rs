//! The numbers that stand for states, policies and reasons in stored records. A number never
//! changes its meaning. Statements and scripts get them from here.

use super::{CrashPolicy, Reason, State};

pub(crate) const STATES: [(State, u8); 6] = [
    with_code(State::InProgress),
    with_code(State::InDoubt),
    with_code(State::Completed),
    with_code(State::Failed),
    with_code(State::Released),
    with_code(State::Tombstone),
];

pub(crate) const POLICIES: [(CrashPolicy, u8); 4] = [
    (CrashPolicy::Retry, policy_code(CrashPolicy::Retry)),
    (CrashPolicy::Resume, policy_code(CrashPolicy::Resume)),
    (CrashPolicy::Verify, policy_code(CrashPolicy::Verify)),
    (CrashPolicy::Hold, policy_code(CrashPolicy::Hold)),
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

const fn with_code(state: State) -> (State, u8) {
    (state, state_code(state))
}

/// The code of `state`.
pub(crate) const fn state_code(state: State) -> u8 {
    match state {
        State::InProgress => 1,
        State::InDoubt => 2,
        State::Completed => 3,
        State::Failed => 4,
        State::Released => 5,
        State::Tombstone => 6,
    }
}

/// The code of `policy`.
pub(crate) const fn policy_code(policy: CrashPolicy) -> u8 {
    match policy {
        CrashPolicy::Retry => 1,
        CrashPolicy::Resume => 2,
        CrashPolicy::Verify => 3,
        CrashPolicy::Hold => 4,
    }
}

/// The code of `value`, or zero if the table does not have it. The tables have all values.
pub(crate) fn code<T: Copy + PartialEq>(table: &[(T, u8)], value: T) -> u8 {
    table.iter().find(|(known, _)| *known == value).map_or(0, |(_, code)| *code)
}

/// The value that has `code`.
pub(crate) fn value<T: Copy>(table: &[(T, u8)], code: u8) -> Option<T> {
    table.iter().find(|(_, known)| *known == code).map(|(value, _)| *value)
}

/// The code of `reason`, or zero for `None`.
#[cfg(feature = "__external")]
pub(crate) fn reason_code(reason: Option<Reason>) -> u8 {
    reason.map_or(0, |reason| code(&REASONS, reason))
}
