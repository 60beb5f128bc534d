//! The part of a scan that the server decides, so that a page costs what is on it and not what was
//! left out.

use super::conditions::IN_PROGRESS;
use super::row::{FORMAT, Value, integer, state_code};
use crate::store::codes::policy_code;
use crate::store::{CrashPolicy, Only, Scan, State};

/// The values of a filter: the state, what is listed only, operation, namespace, and the time
/// before which a record was created.
pub(crate) fn values(scan: &Scan) -> [Value<'_>; 5] {
    let before = scan.created_before.map_or(i64::MAX, |before| integer(before.as_millis()));
    [
        Value::Small(scan.state.map_or(0, state_code)),
        Value::Small(match scan.only {
            Only::Any => 0,
            Only::InDoubt => 1,
            Only::Orphaned => 2,
        }),
        Value::Text(scan.operation.as_deref()),
        Value::Text(scan.namespace.as_deref()),
        Value::Integer(before),
    ]
}

/// The values in the order in which [`condition`] names them, for a dialect without numbers.
#[cfg(feature = "mysql")]
pub(crate) fn values_in_order(scan: &Scan) -> [Value<'_>; 10] {
    let [state, only, operation, namespace, before] = values(scan);
    [state, state, only, only, only, operation, operation, namespace, namespace, before]
}

/// Returns the condition for the rows that a scan may list, `now` being the server's time.
///
/// An expired row may be a tombstone by now, and one of another format cannot be read: the store
/// looks at both itself, as at everything else that this lets through.
pub(crate) fn condition(
    now: &str,
    [state, only, operation, namespace, before]: [&str; 5],
) -> String {
    let (in_doubt, hold) = (state_code(State::InDoubt), policy_code(CrashPolicy::Hold));
    format!(
        "(format <> {FORMAT} OR (
             ({state} = 0 OR state = {state} OR expires_at <= {now})
             AND ({only} = 0 OR ({only} = 1 AND state = {in_doubt})
                 OR (state = {IN_PROGRESS} AND lease_until <= {now} AND ({only} = 2 OR policy = {hold})))
             AND ({operation} IS NULL OR operation = {operation})
             AND ({namespace} IS NULL OR namespace = {namespace})
             AND created_at < {before}
         ))"
    )
}
