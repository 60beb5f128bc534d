//! What happened in a run, written by those who see it from outside of the engine: the store, the
//! links, the provider.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use idempotency::store::{Operation, Token};
use idempotency_test_support::history::{Outcome, Rule, Transition, Violation};

/// One thing that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// A request to the store met something else than a prompt answer.
    Fault {
        at: Duration,
        process: String,
        request: Operation,
        fault: &'static str,
    },
    /// A request was applied to a record.
    Applied(Box<Transition>),
    /// A body, or the question of one, began.
    Began {
        at: Duration,
        work: usize,
        process: String,
        key: String,
        token: Token,
        sent: Duration,
        what: &'static str,
    },
    /// It is over, whatever the way.
    Ended {
        at: Duration,
        work: usize,
    },
    /// A body was told its fence.
    Fenced {
        at: Duration,
        key: String,
        token: Token,
        fence: u64,
    },
    Effect(Effect),
    Called(Called),
    /// Something happened to a process, or to the store.
    Turn {
        at: Duration,
        process: String,
        turn: Turn,
    },
    /// Something happened to a transaction.
    InTransaction {
        at: Duration,
        process: String,
        what: &'static str,
    },
    /// A caller was told that nothing happened, of attempts with these effects.
    NothingHappened {
        at: Duration,
        values: Vec<String>,
        failure: String,
    },
    /// What an operator did.
    Operator {
        at: Duration,
        key: String,
        did: String,
    },
    /// Who saw it knew at once that it was wrong.
    Broken {
        at: Duration,
        violation: Violation,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Started,
    Killed,
    Frozen,
    Thawed,
    /// Its machine stands still, with the timers in it.
    Suspended,
    Awake,
    CutOff,
    /// From now on there are no faults.
    Calm,
    StoreAway,
    StoreBack,
    ShutsDown,
}

/// One effect in the world outside.
#[derive(Clone, Debug, PartialEq)]
pub struct Effect {
    pub at: Duration,
    pub process: String,
    pub key: String,
    /// Empty where the body is not in steps.
    pub step: &'static str,
    pub retention: u32,
    pub token: Token,
    /// How many owners the retention had, up to the one that made it.
    pub attempt: u32,
    pub fingerprint: Option<u64>,
    /// What the caller gets for it. No two effects have the same.
    pub value: String,
    /// The key by which the provider recognises the request.
    pub provider_key: Option<String>,
}

/// A call that came back.
#[derive(Clone, Debug, PartialEq)]
pub struct Called {
    pub process: String,
    pub key: String,
    pub fingerprint: Option<u64>,
    /// Whether faults were over when it began.
    pub in_calm: bool,
    pub started: Duration,
    pub ended: Duration,
    /// How long it may take, if nothing stands still.
    pub bound: Duration,
    pub outcome: Outcome,
}

#[derive(Debug, Default)]
pub struct Log(Mutex<Vec<Entry>>);

impl Log {
    pub fn write(&self, entry: Entry) {
        self.entries().push(entry);
    }

    pub fn broken(&self, at: Duration, rule: Rule, key: &str, retention: u32, seen: String) {
        let violation = Violation { rule, key: key.to_owned(), retention, seen };
        self.write(Entry::Broken { at, violation });
    }

    pub fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
