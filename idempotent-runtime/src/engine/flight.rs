//! Coalescing: callers of one key in one process share one claim.
//!
//! The first caller leads, the others follow. A leader that is gone, that released its claim or
//! that ran out of time leaves its place to one of them. So does one whose lease is over while its
//! body hangs: the store may have given the call to somebody else by then, and its record is what
//! counts.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::lease::Lease;
use crate::fingerprint::Fingerprint;
use crate::key::KeyHash;
use crate::outcome::Answer;

/// What callers have in common that share an answer: the key, what they accept as their own
/// request, now and from former releases, and whether they have a question for the outside world.
type Key = (KeyHash, Option<Fingerprint>, Vec<Option<Fingerprint>>, bool);

/// The calls of one engine that are under way.
#[derive(Default)]
pub(crate) struct Flights(Mutex<HashMap<Key, Arc<Flight>>>);

/// One call that is under way.
pub(crate) struct Flight {
    stage: Mutex<Stage>,
    /// Wakes the followers in the order in which they came, and not at random as a watch channel
    /// would: the next leader is the one that waited longest, and a simulation can be repeated.
    changed: Notify,
    /// Under which the leader runs its body, once it does.
    lease: OnceLock<Arc<Lease>>,
    /// Whether the leader has run its body, or was told of another call with the key.
    has_met: AtomicBool,
}

impl Flight {
    pub(crate) fn stage(&self) -> Stage {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Resolves at the next change of the stage after this was called.
    pub(crate) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Resolves when the store may have given the call to somebody else while the leader is still
    /// at it.
    pub(crate) async fn forsaken(&self) {
        match self.lease.get() {
            Some(lease) => lease.ended().await,
            None => std::future::pending().await,
        }
    }

    /// Whether who follows has followed more than a question to the store.
    pub(crate) fn has_met(&self) -> bool {
        self.has_met.load(Ordering::Acquire)
    }

    fn is_forsaken(&self) -> bool {
        self.lease.get().is_some_and(|lease| lease.is_lost())
    }

    fn enter(&self, stage: Stage) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = stage;
        self.changed.notify_waiters();
    }
}

/// How far the leader is.
#[derive(Clone, Debug)]
pub(crate) enum Stage {
    /// It asks the store.
    Asking,
    /// The body runs, here or elsewhere.
    Busy,
    /// This is the answer for all.
    Answered(Answer),
    /// It has none. One of the followers asks for itself.
    Vacant,
}

pub(crate) enum Seat {
    Leader(Leader),
    Follower(Arc<Flight>),
}

impl Flights {
    pub(crate) fn join(self: &Arc<Self>, key: Key) -> Seat {
        let mut flights = self.lock();
        if let Some(flight) = flights.get(&key)
            && !flight.is_forsaken()
        {
            return Seat::Follower(flight.clone());
        }
        let flight = Arc::new(Flight {
            stage: Mutex::new(Stage::Asking),
            changed: Notify::new(),
            lease: OnceLock::new(),
            has_met: AtomicBool::new(false),
        });
        // In place of a forsaken one, whose leader finds that when it ends. Its followers come here
        // by themselves, and the first of them leads: the others find the new flight under this
        // lock.
        flights.insert(key.clone(), flight.clone());
        Seat::Leader(Leader { flights: self.clone(), key, flight, ended: false })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Arc<Flight>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The caller that asks for all. Dropped, it leaves its place to a follower.
pub(crate) struct Leader {
    flights: Arc<Flights>,
    key: Key,
    flight: Arc<Flight>,
    ended: bool,
}

impl Leader {
    pub(crate) fn busy(&self) {
        self.has_met();
        self.flight.enter(Stage::Busy);
    }

    /// The store has told of another call with the key.
    pub(crate) fn has_met(&self) {
        self.flight.has_met.store(true, Ordering::Release);
    }

    /// The body runs under `lease`, and the followers wait for no longer than that lasts.
    pub(crate) fn runs_under(&self, lease: &Arc<Lease>) {
        // A leader has one claim. Set before the stage: who sees the stage sees the lease.
        let _ = self.flight.lease.set(lease.clone());
        self.busy();
    }

    pub(crate) fn answer(mut self, answer: Answer) {
        self.end(Stage::Answered(answer));
    }

    fn end(&mut self, stage: Stage) {
        if !std::mem::replace(&mut self.ended, true) {
            let mut flights = self.flights.lock();
            // A forsaken leader has lost its seat to another one by then.
            if flights.get(&self.key).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight)) {
                flights.remove(&self.key);
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
