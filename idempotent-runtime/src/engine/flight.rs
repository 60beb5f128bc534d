//! Coalescing: callers of one key in one process share one claim.
//!
//! The first caller leads, the others follow. A leader that is gone, that released its claim or that ran out of time
//! leaves its place to one of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::fingerprint::Fingerprint;
use crate::key::KeyHash;
use crate::outcome::Answer;

type Key = (KeyHash, Option<Fingerprint>);

/// The calls of one engine that are under way.
#[derive(Default)]
pub(crate) struct Flights(Mutex<HashMap<Key, watch::Sender<Stage>>>);

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
    Follower(watch::Receiver<Stage>),
}

impl Flights {
    pub(crate) fn join(self: &Arc<Self>, key: Key) -> Seat {
        let mut flights = self.lock();
        if let Some(stage) = flights.get(&key) {
            return Seat::Follower(stage.subscribe());
        }
        let stage = watch::Sender::new(Stage::Asking);
        flights.insert(key, stage.clone());
        Seat::Leader(Leader { flights: self.clone(), key, stage, ended: false })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, watch::Sender<Stage>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The caller that asks for all. Dropped, it leaves its place to a follower.
pub(crate) struct Leader {
    flights: Arc<Flights>,
    key: Key,
    stage: watch::Sender<Stage>,
    ended: bool,
}

impl Leader {
    pub(crate) fn busy(&self) {
        self.stage.send_replace(Stage::Busy);
    }

    pub(crate) fn answer(mut self, answer: Answer) {
        self.end(Stage::Answered(answer));
    }

    fn end(&mut self, stage: Stage) {
        if !std::mem::replace(&mut self.ended, true) {
            self.flights.lock().remove(&self.key);
            self.stage.send_replace(stage);
        }
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.end(Stage::Vacant);
    }
}
