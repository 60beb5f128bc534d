//! Whether what happened to one key is allowed.
//!
//! Two requests are compared only where one was answered before the other was sent: then there is
//! no doubt about their order.

use std::time::Instant;

use idempotency::store::{Token, WriteOutcome};
use idempotency_test_support::history::{Event, Outcome, Policy, check};

use crate::log::{Answered, Class, Grant, Key, Write};

/// The rules that are broken, with what was seen.
pub fn broken(key: &Key) -> Vec<String> {
    let policy = if key.class == Class::Hold { Policy::Hold } else { Policy::Retry };
    let common = check(&key.events, policy).err().map(|violations| violations.to_string());
    let own = [
        ("a result from nowhere", results_from_nowhere(key)),
        ("two owners at once", two_owners(key)),
        ("a stale owner's write was accepted", stale_writes(key)),
        ("an owner's write was refused without anybody in its place", refusals_without_reason(key)),
        ("a fence did not grow", fences(key)),
        ("the claim was abandoned under hold", abandoned_under_hold(key)),
    ];
    let own = own
        .into_iter()
        .filter_map(|(rule, seen)| Some(format!("{rule} at {}: {}", key.label, seen?)));
    common.into_iter().chain(own).collect()
}

fn results_from_nowhere(key: &Key) -> Option<String> {
    let outcomes = key.events.iter().filter_map(|event| match event {
        Event::Call(call) => Some((&call.caller, &call.outcome)),
        _ => None,
    });
    let mut results = outcomes.filter_map(|(caller, outcome)| match outcome {
        Outcome::Value(bytes) | Outcome::StoredError(bytes) => Some((caller, bytes)),
        Outcome::Mismatch | Outcome::Error(_) => None,
    });
    let (caller, bytes) =
        results.find(|(_, bytes)| !key.results.iter().any(|result| result == &bytes[..]))?;
    Some(format!("{caller} got `{}`, which nobody has made", bytes.escape_ascii()))
}

/// S7: nobody believes in a lease while somebody else does.
fn two_owners(key: &Key) -> Option<String> {
    let mut beliefs: Vec<_> =
        key.beliefs.iter().filter(|belief| belief.from < belief.until).collect();
    beliefs.sort_by_key(|belief| belief.from);
    let mut pairs = beliefs.iter().enumerate().flat_map(|(at, one)| {
        let meanwhile = beliefs[at + 1..].iter().take_while(|other| other.from < one.until);
        meanwhile.map(move |other| (one, other))
    });
    let (one, other) = pairs.find(|(one, other)| one.token != other.token)?;
    Some(format!("{:?} and {:?}, for {:?}", one.token, other.token, one.until - other.from))
}

/// The last grant of `token` that it knew of when it sent `write`.
fn grant_of<'a>(key: &'a Key, write: &Answered) -> Option<&'a Grant> {
    let own = key
        .grants
        .iter()
        .filter(|grant| grant.token == write.token && grant.span.answered <= write.span.sent);
    own.max_by_key(|grant| grant.span.answered)
}

fn stale_writes(key: &Key) -> Option<String> {
    key.writes.iter().filter(|write| write.answer == WriteOutcome::Applied).find_map(|write| {
        let granted = grant_of(key, write)?;
        let successor = key.grants.iter().find(|other| {
            other.token != write.token
                && other.span.first_sent > granted.span.answered
                && other.span.answered < write.span.sent
        });
        let resolved = key.resolved.iter().find(|resolved| {
            resolved.observed == write.token && resolved.span.answered < write.span.sent
        });
        let by = match (successor, resolved) {
            (Some(successor), _) => format!("{:?} owned it", successor.token),
            (None, Some(_)) => String::from("an operator had answered for it"),
            (None, None) => return None,
        };
        Some(format!("{:?} of {:?} after {by}", write.write, write.token))
    })
}

/// Who had a commit or a release refused must have a successor, or an operator in its place.
fn refusals_without_reason(key: &Key) -> Option<String> {
    let refused = |write: &&Answered| {
        matches!(write.write, Write::Commit | Write::Release)
            && matches!(write.answer, WriteOutcome::Lost | WriteOutcome::Gone)
    };
    key.writes.iter().filter(refused).find_map(|write| {
        let granted = grant_of(key, write)?;
        let is_after = |token: Token, grant: &Grant| {
            token != write.token
                && grant.span.answered > granted.span.first_sent
                && grant.span.first_sent < write.span.answered
        };
        let has_successor = key.grants.iter().any(|other| is_after(other.token, other));
        let is_resolved = key
            .resolved
            .iter()
            .any(|it| it.observed == write.token && it.span.first_sent < write.span.answered);
        let reason = has_successor || is_resolved;
        (!reason).then(|| {
            format!("{:?} of {:?} was answered with {:?}", write.write, write.token, write.answer)
        })
    })
}

/// S4: fences grow in the order of ownership.
fn fences(key: &Key) -> Option<String> {
    let granted = |token| key.grants.iter().filter(move |grant| grant.token == token);
    key.fences.iter().find_map(|fence| {
        let claimed = granted(fence.token).map(|grant| grant.span.first_sent).min()?;
        let owns = granted(fence.token).map(|grant| grant.span.answered).min()?;
        let earlier = key.fences.iter().find(|earlier| {
            let is_before =
                earlier.span.answered < claimed || has_gone_before(key, earlier.token, owns);
            earlier.token != fence.token
                && (earlier.number == fence.number || (is_before && earlier.number > fence.number))
        })?;
        Some(format!(
            "{:?} has {}, and {:?} had {}",
            fence.token, fence.number, earlier.token, earlier.number
        ))
    })
}

/// Whether the first owner of a record gave it back before `time`: who is told then that the record
/// is its own has claimed it later. (Who owned it before the first owner would have to be gone, and
/// is told nothing any more.)
fn has_gone_before(key: &Key, token: Token, time: Instant) -> bool {
    let gave_back = |write: &Answered| {
        write.token == token
            && write.write == Write::Release
            && write.answer == WriteOutcome::Applied
            && write.span.answered < time
    };
    let is_first = key.grants.iter().any(|grant| grant.token == token && !grant.taken_over);
    is_first && key.writes.iter().any(gave_back)
}

fn abandoned_under_hold(key: &Key) -> Option<String> {
    let abandoned = |write: &&Answered| write.write == Write::Abandon && write.answer.is_done();
    let write = key.writes.iter().filter(|_| key.class == Class::Hold).find(abandoned)?;
    Some(format!("by {:?}", write.token))
}
