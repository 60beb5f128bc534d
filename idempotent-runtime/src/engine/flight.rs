//! Coalescing: callers of one engine that must get the same answer share one claim.
//!
//! The first caller leads, the others follow. A leader that is gone, that released its claim or
//! that ran out of time leaves its place to one of the followers. So does one whose lease has
//! expired while its body hangs: the store may have granted the call to another owner by then, and
//! that owner's record is what counts.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::lease::Lease;
use crate::fingerprint::Fingerprint;
use crate::key::KeyHash;
use crate::lock::Mutex;
use crate::outcome::Answer;

/// The properties that callers must share to get the same answer: the key, the fingerprints that
/// they accept as their own request, current and former, and whether they have a verification
/// callback.
type Identity = (KeyHash, Option<Fingerprint>, Vec<Option<Fingerprint>>, bool);

/// The calls of one engine that are under way. A key begins with a hash, so two of them are compared
/// faster than one is hashed for a table.
#[derive(Default)]
pub(crate) struct Flights(Mutex<BTreeMap<Identity, Arc<Flight>>>);

/// One call that is under way.
pub(crate) struct Flight {
    stage: Mutex<Stage>,
    /// Wakes the followers in order of arrival, and not at random as a watch channel would: the
    /// next leader is the one that has waited longest, and a simulation can be repeated.
    changed: Notify,
    /// The lease of the leader's claim, once it has one.
    lease: OnceLock<Arc<Lease>>,
    /// True if the leader has had a claim, or has learned about another call with the key.
    has_met: AtomicBool,
    /// True if the leader waits for a call elsewhere that no longer looks at its windows.
    chosen_elsewhere: AtomicBool,
    /// The forsaken flight in whose place this one is. Its body may still run, or its result is on
    /// its way to the store.
    before: Mutex<Option<Arc<Flight>>>,
    /// True if it has no leader any more.
    is_over: AtomicBool,
}

impl Flight {
    pub(crate) fn stage(&self) -> Stage {
        self.stage.lock().clone()
    }

    /// Resolves at the next change of the stage after this was called.
    pub(crate) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Resolves when the store may have granted the call to another owner while the leader is still
    /// running it.
    pub(crate) async fn forsaken(&self) {
        match self.lease.get() {
            Some(lease) => lease.ended().await,
            None => std::future::pending().await,
        }
    }

    /// Returns true if the leader has had a claim, or has learned about another call with the key.
    pub(crate) fn has_met(&self) -> bool {
        self.has_met.load(Ordering::Acquire)
    }

    /// Returns true if the claim for which the followers wait is of a call that no longer looks at its
    /// windows, so that its body may have begun. Says nothing about a key without a window.
    pub(crate) fn has_chosen_window(&self) -> bool {
        self.lease.get().map_or_else(
            || self.chosen_elsewhere.load(Ordering::Acquire),
            |lease| lease.has_begun(),
        )
    }

    /// Returns the latest of the flights before this one that has a leader, and lets go of those
    /// between them.
    fn at_work_before(&self) -> Option<Arc<Self>> {
        let mut before = self.before.lock();
        while let Some(flight) = before.clone().filter(|it| it.is_over.load(Ordering::Acquire)) {
            *before = flight.before.lock().take();
        }
        before.clone()
    }

    fn is_forsaken(&self) -> bool {
        self.lease.get().is_some_and(|lease| lease.is_lost())
    }

    fn enter(&self, stage: Stage) {
        *self.stage.lock() = stage;
        self.changed.notify_waiters();
    }
}

/// The progress of the leader.
#[derive(Clone, Debug)]
pub(crate) enum Stage {
    /// It queries the store.
    Querying,
    /// The call is claimed, by the leader or elsewhere. Its body may not have started yet.
    Claimed,
    /// It has the answer for all callers.
    Answered(Answer),
    /// It has no answer. One of the followers queries the store itself.
    Vacant,
}

pub(crate) enum Seat {
    Leader(Leader),
    Follower(Arc<Flight>),
}

impl Flights {
    pub(crate) fn join(self: &Arc<Self>, key: Identity) -> Seat {
        let mut flights = self.lock();
        let before = match flights.get(&key) {
            Some(flight) if !flight.is_forsaken() => return Seat::Follower(flight.clone()),
            other => other.cloned(),
        };
        // Those that are over are not kept for as long as one of them is forsaken after the other.
        if let Some(flight) = &before {
            flight.at_work_before();
        }
        let flight = Arc::new(Flight {
            stage: Mutex::new(Stage::Querying),
            changed: Notify::new(),
            lease: OnceLock::new(),
            has_met: AtomicBool::new(before.is_some()),
            chosen_elsewhere: AtomicBool::new(false),
            before: Mutex::new(before),
            is_over: AtomicBool::new(false),
        });
        // This may replace a forsaken flight. Its leader notices that when it ends, see
        // `Leader::end`. Its followers join again by themselves: the first of them leads, and the
        // others find the new flight under this lock. So there is never more than one flight per
        // key that a caller can join.
        flights.insert(key.clone(), flight.clone());
        Seat::Leader(Leader { flights: self.clone(), key, flight, ended: false })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Identity, Arc<Flight>>> {
        self.0.lock()
    }
}

/// The caller that queries the store for all. When dropped, it leaves its place to a follower.
pub(crate) struct Leader {
    flights: Arc<Flights>,
    key: Identity,
    flight: Arc<Flight>,
    ended: bool,
}

impl Leader {
    /// Returns true if another call with the key has run here, and may still run.
    pub(crate) fn has_met(&self) -> bool {
        self.flight.has_met()
    }

    /// Records that another process, or another flight, has claimed the call. `has_chosen`: it has
    /// looked at its windows.
    pub(crate) fn claimed_elsewhere(&self, has_chosen: bool) {
        self.note_other_call();
        self.flight.chosen_elsewhere.store(has_chosen, Ordering::Release);
        self.flight.enter(Stage::Claimed);
    }

    /// Records that the store has reported another call with the key.
    pub(crate) fn note_other_call(&self) {
        self.flight.has_met.store(true, Ordering::Release);
    }

    /// Records that this leader has claimed the call, under `lease`. The followers wait no longer
    /// than that lasts.
    pub(crate) fn claimed(&self, lease: &Arc<Lease>) {
        // A leader has one claim. Set before the stage, so a follower that sees the stage sees the
        // lease.
        let _ = self.flight.lease.set(lease.clone());
        self.note_other_call();
        self.flight.enter(Stage::Claimed);
    }

    pub(crate) fn answer(mut self, answer: Answer) {
        self.end(Stage::Answered(answer));
    }

    fn end(&mut self, stage: Stage) {
        if !std::mem::replace(&mut self.ended, true) {
            let mut flights = self.flights.lock();
            self.flight.is_over.store(true, Ordering::Release);
            // Removed before the stage is entered: the followers that it wakes may join again at
            // once, and must not find a flight without a leader. A forsaken leader has lost its
            // place to another flight by then, which must stay. If it is still at work when that one
            // ends, it gets its place back: callers that come later must know of it.
            if flights.get(&self.key).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight)) {
                match self.flight.at_work_before() {
                    Some(before) => flights.insert(self.key.clone(), before),
                    None => flights.remove(&self.key),
                };
            }
            drop(flights);
            self.flight.enter(stage);
        }
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.end(Stage::Vacant);
    }
}
