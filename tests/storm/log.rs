//! What happened, kept outside of the store.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use idempotency::key::KeyHash;
use idempotency::store::{Token, WriteOutcome};
use idempotency_test_support::history::{Effect, Event, OpenCall, Outcome};

/// Under which policies a key is claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// All callers say hold.
    Hold,
    /// All callers say retry.
    Retry,
    /// Some say this, some that.
    Mixed,
}

impl Class {
    pub const ALL: [Self; 3] = [Self::Hold, Self::Retry, Self::Mixed];
}

/// When a request was sent and answered.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// When it was sent for the first time with its token.
    pub first_sent: Instant,
    /// When it was sent for the last time: this one was answered.
    pub sent: Instant,
    pub answered: Instant,
}

/// A claim that a token was told to own.
#[derive(Clone, Copy, Debug)]
pub struct Grant {
    pub token: Token,
    pub span: Span,
    pub taken_over: bool,
}

/// What an owner writes on its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    Renew,
    Commit,
    Release,
    Abandon,
    Park,
}

#[derive(Clone, Copy, Debug)]
pub struct Answered {
    pub token: Token,
    pub write: Write,
    pub answer: WriteOutcome,
    pub span: Span,
}

/// For how long a token believes that nobody else owns the record.
#[derive(Clone, Copy, Debug)]
pub struct Belief {
    pub token: Token,
    pub from: Instant,
    pub until: Instant,
}

#[derive(Clone, Copy, Debug)]
pub struct Fence {
    pub token: Token,
    pub number: u64,
    pub span: Span,
}

/// An operator's answer that the store took.
#[derive(Clone, Copy, Debug)]
pub struct Resolved {
    pub observed: Token,
    pub span: Span,
}

/// All that is known of one key.
#[derive(Debug)]
pub struct Key {
    pub label: String,
    pub class: Class,
    pub grants: Vec<Grant>,
    pub writes: Vec<Answered>,
    pub beliefs: Vec<Belief>,
    pub fences: Vec<Fence>,
    pub resolved: Vec<Resolved>,
    /// What may be stored as the result: what the bodies have made, and operators out of it.
    pub results: Vec<Bytes>,
    /// Whose body had its effect.
    pub effects: Vec<Token>,
    /// Calls and effects, for the common rules.
    pub events: Vec<Event>,
    /// Owners that will do nothing any more.
    pub dead: HashSet<Token>,
}

impl Key {
    pub fn new(label: String, class: Class) -> Self {
        Self {
            label,
            class,
            grants: Vec::new(),
            writes: Vec::new(),
            beliefs: Vec::new(),
            fences: Vec::new(),
            resolved: Vec::new(),
            results: Vec::new(),
            effects: Vec::new(),
            events: Vec::new(),
            dead: HashSet::new(),
        }
    }

    /// A body of `token` makes its effect, and will return `result`.
    pub fn effect(&mut self, token: Token, attempt: u32, result: Bytes) {
        self.effects.push(token);
        self.results.push(result);
        self.events.push(Effect::now(self.label.clone(), attempt).into());
    }

    /// A caller came back with `outcome`.
    pub fn ended(&mut self, call: OpenCall, outcome: Outcome) {
        self.events.push(call.end(outcome).into());
    }

    /// From now on `token` relies on its lease no more.
    pub fn gives_up(&mut self, token: Token) {
        let now = Instant::now();
        for belief in self.beliefs.iter_mut().filter(|belief| belief.token == token) {
            belief.until = belief.until.min(now);
        }
    }
}

/// All keys.
#[derive(Debug, Default)]
pub struct Log(Mutex<BTreeMap<KeyHash, Key>>);

impl Log {
    /// Writes or reads what is known of `key`, which was [added](Self::add) before.
    pub fn of<A>(&self, key: KeyHash, look: impl FnOnce(&mut Key) -> A) -> A {
        look(self.all().get_mut(&key).expect("the key was added"))
    }

    pub fn add(&self, key: KeyHash, known: Key) {
        self.all().insert(key, known);
    }

    pub fn all(&self) -> MutexGuard<'_, BTreeMap<KeyHash, Key>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
