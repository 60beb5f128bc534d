//! The scripts, each in a file of its own, appended to the code that all of them share.

use redis::Script;

use crate::store::codes::{REASONS, code, policy_code, state_code};
use crate::store::{CrashPolicy, Reason, State, envelope};

/// Returns the numbers that the scripts use, as Lua's variables.
fn numbers() -> String {
    let reason = |reason| code(&REASONS, reason);
    let numbers = [
        ("IN_PROGRESS", state_code(State::InProgress)),
        ("IN_DOUBT", state_code(State::InDoubt)),
        ("COMPLETED", state_code(State::Completed)),
        ("FAILED", state_code(State::Failed)),
        ("RELEASED", state_code(State::Released)),
        ("TOMBSTONE", state_code(State::Tombstone)),
        ("VERIFY", policy_code(CrashPolicy::Verify)),
        ("HOLD", policy_code(CrashPolicy::Hold)),
        ("CRASHED", reason(Reason::Crashed)),
        ("RESOLVED", reason(Reason::Resolved)),
        ("VERSION", envelope::VERSION),
    ];
    let places = [("FIXED", envelope::LENGTHS), ("HEADER", envelope::FIELDS)];
    let numbers = numbers.map(|(name, number)| (name, usize::from(number)));
    numbers
        .iter()
        .chain(&places)
        .fold(String::new(), |lines, (name, number)| lines + &format!("local {name} = {number}\n"))
}

macro_rules! scripts {
    ($($name:ident)*) => {
        pub(super) struct Scripts {
            $(pub(super) $name: Script,)*
        }

        impl Scripts {
            pub(super) fn new() -> Self {
                let shared = numbers() + include_str!("scripts/record.lua");
                let script = |code: &str| Script::new(&[&shared, code].concat());
                Self {
                    $($name: script(include_str!(concat!("scripts/", stringify!($name), ".lua"))),)*
                }
            }
        }
    };
}

scripts! { claim renew complete release abandon park checkpoint fence resolve remove }
