//! That things come to an end: callers, waits, dead owners, and not the living ones.

use idempotency::store::Operation;
use std::time::Duration;

use idempotency::clock::Timestamp;
use idempotency::record::State;
use idempotency_test_support::history::{Outcome, Rule, Transition, Violation};

use crate::log::{Called, Entry, Turn};
use crate::plan::Plan;
use crate::rules::{applied, called};
use crate::windows;

/// A waiter looks by itself this often, and needs a little time for it.
const NOTICED_WITHIN: Duration = Duration::from_millis(2_200);

pub fn broken(plan: &Plan, entries: &[Entry]) -> Vec<Violation> {
    let calls = called(entries).flat_map(|call| {
        let in_calm = call.in_calm.then_some(());
        // With a window, a call may wait for one record and be told of another.
        let of_one_record = in_calm.filter(|()| windows::of_label(&call.key).is_none());
        [
            overdue(entries, call),
            in_calm.and_then(|()| refused(call)),
            of_one_record.and_then(|()| blocked(entries, call)),
            of_one_record.and_then(|()| unnoticed(entries, call)),
        ]
    });
    let owners = applied(entries).map(|change| taken_from_the_living(plan, entries, change));
    calls.chain(owners).flatten().collect()
}

fn turns(entries: &[Entry]) -> impl Iterator<Item = (Duration, &str, Turn)> {
    entries.iter().filter_map(|entry| match entry {
        Entry::Turn { at, process, turn } => Some((*at, process.as_str(), *turn)),
        _ => None,
    })
}

fn violation(rule: Rule, key: &str, seen: String) -> Violation {
    Violation { rule, key: key.to_owned(), retention: 0, seen }
}

/// L1: a call comes back within its bound, and with what stood still around it.
fn overdue(entries: &[Entry], call: &Called) -> Option<Violation> {
    let took = call.ended.saturating_sub(call.started);
    let stood_still = frozen(entries, &call.process, call.started, call.ended);
    (took > call.bound + stood_still).then(|| {
        let seen = format!(
            "a call of {} took {took:?} and may take {:?}: {:?}",
            call.process, call.bound, call.outcome
        );
        violation(Rule::CallsReturn, &call.key, seen)
    })
}

/// How long a process stood still between two times.
fn frozen(entries: &[Entry], name: &str, from: Duration, until: Duration) -> Duration {
    let (mut since, mut sum) = (None, Duration::ZERO);
    for (at, process, turn) in turns(entries).filter(|(_, process, _)| *process == name) {
        debug_assert_eq!(process, name);
        match turn {
            Turn::Frozen | Turn::Suspended => since = since.or(Some(at)),
            Turn::Thawed | Turn::Awake => {
                let began = since.take().unwrap_or(at);
                sum += at.min(until).saturating_sub(began.max(from));
            }
            _ => {}
        }
    }
    sum
}

/// L1: with a store that answers, a call gets an answer about its key.
fn refused(call: &Called) -> Option<Violation> {
    let Outcome::Error(kind) = &call.outcome else { return None };
    let is_answer =
        ["InProgress", "InDoubt", "StepInterrupted", "Expired"].contains(&kind.as_str());
    (!is_answer).then(|| {
        let seen = format!(
            "a call of {} at {:?} got {kind} from a store that answers",
            call.process, call.started
        );
        violation(Rule::CallsReturn, &call.key, seen)
    })
}

/// L2: who waits longer than a lease finds the place of a dead owner free.
fn blocked(entries: &[Entry], call: &Called) -> Option<Violation> {
    let is_refused = call.outcome == Outcome::Error("InProgress".to_owned());
    (is_refused && !is_at_work(entries, &call.key, call.ended)).then(|| {
        let waited = call.ended.saturating_sub(call.started);
        let seen = format!(
            "a call of {} at {:?} waited {waited:?} for nobody",
            call.process, call.started
        );
        violation(Rule::DeadOwnersMakeRoom, &call.key, seen)
    })
}

/// Whether the owner of `key` at `time` works, or is about to.
fn is_at_work(entries: &[Entry], key: &str, time: Duration) -> bool {
    let last = applied(entries).filter(|change| change.key == key && change.at <= time).last();
    let Some(owner) = last.and_then(|change| change.after.as_ref()).map(|record| record.owner)
    else {
        return false;
    };
    let works = entries.iter().filter_map(|entry| match entry {
        Entry::Began { work, token, .. } if *token == owner => Some(*work),
        _ => None,
    });
    let has_ended = |work| {
        entries
            .iter()
            .any(|it| matches!(it, Entry::Ended { at, work: it } if *it == work && *at < time))
    };
    works.into_iter().any(|work| !has_ended(work))
}

/// L3: a result is noticed soon after it was stored.
fn unnoticed(entries: &[Entry], call: &Called) -> Option<Violation> {
    let is_answer = |change: &Transition| {
        let is_there = |record: &Option<_>| record.as_ref().is_some_and(is_answer);
        is_there(&change.after) && !is_there(&change.before)
    };
    let stored = applied(entries)
        .filter(|change| {
            change.key == call.key && call.started < change.at && change.at <= call.ended
        })
        .find(|change| is_answer(change))?;
    let late = call.ended.saturating_sub(stored.at);
    (late > NOTICED_WITHIN).then(|| {
        let seen = format!("{} waited for {late:?} after the result was stored", call.process);
        violation(Rule::WaitersNotice, &call.key, seen)
    })
}

fn is_answer(record: &idempotency::store::Record) -> bool {
    record.state.is_answer()
}

/// L4: a body runs in a process that moves, whose renewals met no fault, and its record was taken
/// away.
fn taken_from_the_living(plan: &Plan, entries: &[Entry], change: &Transition) -> Option<Violation> {
    let owned = change.before.as_ref().filter(|record| record.state == State::InProgress)?;
    let is_taken = change.granted().is_some()
        || change.after.as_ref().is_some_and(|it| it.state == State::InDoubt);
    let by_itself = owned.lease_until == Timestamp::default()
        || matches!(
            change.request,
            idempotency_test_support::history::Request::Park { only_orphaned: false, .. }
        );
    if !is_taken || by_itself {
        return None;
    }
    let (work, process, sent) = entries.iter().find_map(|entry| match entry {
        Entry::Began { work, process, token, sent, .. } if *token == owned.owner => {
            Some((*work, process, *sent))
        }
        _ => None,
    })?;
    let ended = entries.iter().any(
        |entry| matches!(entry, Entry::Ended { at, work: it } if *it == work && *at <= change.at),
    );
    // A claim that took long, and a renewal that was lost, leave less of the lease.
    let lately = change.at.saturating_sub(plan.lease * 2);
    let is_excused = entries.iter().any(|entry| match entry {
        Entry::Fault { at, process: whose, request, .. } => {
            whose == process
                && *at <= change.at
                && *at >= lately
                && [Operation::Renew, Operation::Claim].contains(request)
        }
        Entry::Turn { at, process: whose, turn } if *at <= change.at => match turn {
            Turn::Killed | Turn::ShutsDown => whose == process,
            Turn::Frozen | Turn::Suspended => {
                whose == process && frozen_until(entries, process, *at) >= lately
            }
            Turn::CutOff => whose == process && *at + plan.lease * 3 >= lately,
            Turn::StoreAway => *at + plan.lease >= lately,
            _ => false,
        },
        _ => false,
    });
    let is_renewed = change.at < sent + plan.max_run;
    (!ended && !is_excused && is_renewed).then(|| {
        let seen = format!(
            "the record of {process}, whose body runs, went to {} at {:?}",
            change.from, change.at
        );
        violation(Rule::LivingOwnersStay, &change.key, seen)
    })
}

fn frozen_until(entries: &[Entry], name: &str, since: Duration) -> Duration {
    let moves = |turn: Turn| matches!(turn, Turn::Thawed | Turn::Awake);
    let thawed =
        turns(entries).find(|(at, process, turn)| moves(*turn) && *process == name && *at >= since);
    thawed.map_or(Duration::MAX, |(at, ..)| at)
}
