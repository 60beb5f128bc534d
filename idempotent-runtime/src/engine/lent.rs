//! The transactions that `in_transaction` has lent to a body, and what guarded calls have met in each of them.
//!
//! Bodies hand on what they were lent in many shapes (`&mut tx`, `&mut **tx`, a loan of it, the whole to another task), and
//! all of them lead to one connection. So a call knows its transaction by the place of that connection in memory, which
//! nothing else has for as long as it is lent. A call in another transaction, wherever it is made, finds nothing here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::key::KeyHash;

static LENT: Mutex<BTreeMap<usize, Arc<Calls>>> = Mutex::new(BTreeMap::new());

fn lent() -> MutexGuard<'static, BTreeMap<usize, Arc<Calls>>> {
    LENT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What guarded calls have met in one transaction.
#[derive(Debug, Default)]
pub(crate) struct Calls(Mutex<Met>);

#[derive(Debug, Default)]
struct Met {
    /// The database has said what it has of these: a record, or none.
    answered: BTreeSet<KeyHash>,
    /// The result was there.
    found: Vec<KeyHash>,
    /// In the order in which they were written; those of calls inside of a body come before the one around them.
    written: Vec<Written>,
}

#[derive(Debug)]
struct Written {
    key: KeyHash,
    is_error: bool,
}

/// How many records there were when a claim was granted: what came later is undone with it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark(usize);

/// The calls in the transaction whose connection is at `place`, if it was lent.
pub(super) fn calls_at(place: usize) -> Option<Arc<Calls>> {
    lent().get(&place).cloned()
}

impl Calls {
    fn met(&self) -> MutexGuard<'_, Met> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The database has answered what it has of `key`.
    pub(super) fn answered(&self, key: KeyHash) -> Mark {
        let mut met = self.met();
        met.answered.insert(key);
        Mark(met.written.len())
    }

    /// A call was answered with the record that was there.
    pub(super) fn found(&self, key: KeyHash) {
        self.met().found.push(key);
    }

    /// The record of `key` is in the transaction, with a result or with an error.
    pub(super) fn wrote(&self, key: KeyHash, is_error: bool) {
        self.met().written.push(Written { key, is_error });
    }

    /// What was written since `mark` was undone.
    pub(super) fn undid(&self, Mark(before): Mark) {
        self.met().written.truncate(before);
    }
}

#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
impl Calls {
    /// Lets the calls in the transaction whose connection is at `place` find this, until the answer is dropped.
    pub(crate) fn lend(self: &Arc<Self>, place: usize) -> Lent {
        lent().insert(place, Arc::clone(self));
        Lent(place)
    }

    /// The records that tell whether the transaction was committed: what it has written. One that has written none has
    /// only found some, which are the same afterwards.
    pub(crate) fn records(&self) -> Vec<KeyHash> {
        let met = self.met();
        if met.written.is_empty() { met.found.clone() } else { met.written.iter().map(|written| written.key).collect() }
    }

    /// Whether the database has said in this transaction what it has of one of `records`.
    pub(crate) fn tell_of(&self, records: &[KeyHash]) -> bool {
        let met = self.met();
        records.iter().any(|key| met.answered.contains(key))
    }

    /// Whether a call has stored or held an error.
    pub(crate) fn have_kept_an_error(&self) -> bool {
        self.met().written.iter().any(|written| written.is_error)
    }
}

/// For as long as a transaction is lent.
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
#[derive(Debug)]
pub(crate) struct Lent(usize);

#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
impl Drop for Lent {
    fn drop(&mut self) {
        lent().remove(&self.0);
    }
}
