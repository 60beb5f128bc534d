//! Coalescing: callers of one key in one process share one claim.
//!
//! The first caller leads, the others follow. A leader that is gone, that released its claim or that ran out of time
//! leaves its place to one of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::fingerprint::Fingerprint;
use crate::key::KeyHash;
use crate::outcome::Answer;

/// What callers have in common that share an answer: the key, and what they accept as their own request, now and from
/// former releases.
type Key = (KeyHash, Option<Fingerprint>, Vec<Option<Fingerprint>>);

/// The calls of one engine that are under way.
#[derive(Default)]
pub(crate) struct Flights(Mutex<HashMap<Key, Arc<Flight>>>);

/// One call that is under way.
pub(crate) struct Flight {
    stage: Mutex<Stage>,
    /// Wakes the followers in the order in which they came, and not at random as a watch channel would: the next leader
    /// is the one that waited longest, and a simulation can be repeated.
    changed: Notify,
}

impl Flight {
    pub(crate) fn stage(&self) -> Stage {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Resolves at the next change of the stage after this was called.
    pub(crate) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
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
        if let Some(flight) = flights.get(&key) {
            return Seat::Follower(flight.clone());
        }
        let flight = Arc::new(Flight { stage: Mutex::new(Stage::Asking), changed: Notify::new() });
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
        self.flight.enter(Stage::Busy);
    }

    pub(crate) fn answer(mut self, answer: Answer) {
        self.end(Stage::Answered(answer));
    }

    fn end(&mut self, stage: Stage) {
        if !std::mem::replace(&mut self.ended, true) {
            self.flights.lock().remove(&self.key);
            self.flight.enter(stage);
        }
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.end(Stage::Vacant);
    }
}
