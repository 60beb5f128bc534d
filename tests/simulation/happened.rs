//! What runs are about: each of it has to happen in some of them.

use idempotency::record::State;
use idempotency::store::Reason;
use idempotency_test_support::history::{Outcome, Request, Transition};

use crate::log::{Entry, Turn};
use crate::windows;

type Event = (&'static str, fn(&Entry) -> bool);

pub const EVENTS: &[Event] = &[
    ("a request is lost", |it| is_fault(it, "lost")),
    ("an answer is lost", |it| is_fault(it, "answer lost")),
    ("a request is late", |it| is_fault(it, "late")),
    ("a request is slow", |it| is_fault(it, "slow")),
    ("a request arrives twice", |it| is_fault(it, "twice")),
    ("a process is killed", |it| is_turn(it, Turn::Killed)),
    ("a process stands still", |it| is_turn(it, Turn::Thawed)),
    ("a machine is suspended", |it| is_turn(it, Turn::Awake)),
    ("a process is cut off", |it| is_turn(it, Turn::CutOff)),
    ("a process is shut down", |it| is_turn(it, Turn::ShutsDown)),
    ("the store is away", |it| is_turn(it, Turn::StoreBack)),
    ("a claim is taken over", |it| is_change(it, |change| change.taken_over().is_some())),
    ("a claim is taken over that only looked", |it| {
        is_change(it, |change| {
            windows::of_label(&change.key).is_some()
                && change.taken_over().is_some_and(|before| before.checkpoints == 0)
        })
    }),
    ("a question is asked again", |it| {
        is_change(it, |change| {
            change.taken_over().is_some_and(|before| before.state == State::InDoubt)
        })
    }),
    ("a dead owner is parked", |it| {
        is_change(it, |change| {
            matches!(change.request, Request::Claim { .. }) && becomes(change, State::InDoubt)
        })
    }),
    ("an owner parks itself", |it| {
        is_change(it, |change| {
            matches!(change.request, Request::Park { .. }) && becomes(change, State::InDoubt)
        })
    }),
    ("an owner in doubt commits", |it| {
        is_change(it, |change| {
            matches!(change.request, Request::Complete { .. })
                && change.before.as_ref().is_some_and(|record| record.state == State::InDoubt)
        })
    }),
    (
        "a commit is refused",
        |it| matches!(it, Entry::Applied(change) if matches!(change.request, Request::Complete { .. }) && !change.has_changed()),
    ),
    ("an error is stored", |it| is_change(it, |change| becomes(change, State::Failed))),
    ("a step is recorded", |it| {
        is_change(it, |change| matches!(change.request, Request::Checkpoint { .. }))
    }),
    ("a step of a call that refuses runs in a task", |it| {
        is_change(it, |change| {
            matches!(
                change.request,
                Request::Park { only_orphaned: false, .. } | Request::Abandon { .. }
            ) && change.key.starts_with("InTask")
                && change
                    .after
                    .as_ref()
                    .is_some_and(|it| it.reason == Some(Reason::Error) && it.checkpoints == 0)
        })
    }),
    ("a lease is renewed", |it| {
        is_change(it, |change| matches!(change.request, Request::Renew { .. }))
    }),
    ("an owner gives its lease up", |it| {
        is_change(it, |change| matches!(change.request, Request::Abandon { .. }))
    }),
    ("a claim is given back", |it| is_change(it, |change| change.after.is_none())),
    ("a released call is claimed", |it| {
        is_change(it, |change| {
            change.granted().is_some()
                && change.before.as_ref().is_some_and(|it| it.state == State::Released)
        })
    }),
    ("a retention begins anew", |it| {
        is_change(it, |change| change.granted().is_some() && change.retention > 0)
    }),
    ("an operator says that it happened", |it| {
        is_change(it, |change| {
            matches!(change.request, Request::Resolve { .. }) && becomes(change, State::Completed)
        })
    }),
    ("an operator says that it did not", |it| {
        is_change(it, |change| {
            matches!(change.request, Request::Resolve { .. }) && change.after.is_none()
        })
    }),
    ("an operator forgets", |it| {
        is_change(it, |change| matches!(change.request, Request::Remove { .. }))
    }),
    (
        "a result is replayed",
        |it| matches!(it, Entry::Called(called) if matches!(called.outcome, Outcome::Value(_))),
    ),
    (
        "another request is refused",
        |it| matches!(it, Entry::Called(called) if called.outcome == Outcome::Mismatch),
    ),
    ("a late retry is refused", |it| is_error(it, "Expired")),
    ("a result is not stored", |it| is_error(it, "NotStored")),
    ("an owner is superseded", |it| is_error(it, "Superseded")),
    ("a step is found interrupted", |it| is_error(it, "StepInterrupted")),
    ("a body panics", |it| is_error(it, "panic")),
];

fn is_fault(entry: &Entry, name: &str) -> bool {
    matches!(entry, Entry::Fault { fault, .. } if *fault == name)
}

fn is_turn(entry: &Entry, wanted: Turn) -> bool {
    matches!(entry, Entry::Turn { turn, .. } if *turn == wanted)
}

fn is_change(entry: &Entry, wanted: impl Fn(&Transition) -> bool) -> bool {
    matches!(entry, Entry::Applied(change) if change.has_changed() && wanted(change))
}

fn becomes(change: &Transition, state: State) -> bool {
    change.after.as_ref().is_some_and(|record| record.state == state)
}

fn is_error(entry: &Entry, wanted: &str) -> bool {
    matches!(entry, Entry::Called(called) if called.outcome == Outcome::Error(wanted.to_owned()))
}
