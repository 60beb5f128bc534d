//! The transactions that `in_transaction` has lent to a body, and what guarded calls have met in
//! each of them.
//!
//! Bodies pass on what they were lent in many forms (`&mut tx`, `&mut **tx`, a loan of it, the
//! whole to another task), and all of them lead to one connection. So a call identifies its
//! transaction by the address of that connection, which nothing else has for as long as it is lent.
//! A call in another transaction, wherever it is made, finds nothing here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, MutexGuard};

use super::store_client::StoreClient;
use crate::key::KeyHash;
use crate::lock::Mutex;

tokio::task_local! {
    /// The transaction whose body the task is in, and those around it.
    static AROUND: Arc<Around>;
}

/// A transaction whose body the task is in.
struct Around {
    calls: Arc<Calls>,
    outer: Option<Arc<Around>>,
}

/// Returns true if the task is in the body of a transaction that `is_meant`.
fn is_around(is_meant: impl Fn(&Calls) -> bool) -> bool {
    let any = |innermost: &Arc<Around>| {
        std::iter::successors(Some(innermost), |around| around.outer.as_ref())
            .any(|around| is_meant(&around.calls))
    };
    AROUND.try_with(any).unwrap_or(false)
}

static LENT: Mutex<BTreeMap<usize, Arc<Calls>>> = Mutex::new(BTreeMap::new());

fn lent() -> MutexGuard<'static, BTreeMap<usize, Arc<Calls>>> {
    LENT.lock()
}

/// The state of the guarded calls in one transaction.
#[derive(Default)]
pub struct Calls(Mutex<Met>);

#[derive(Default)]
struct Met {
    /// The keys for which the database has answered whether there is a record.
    answered: BTreeSet<KeyHash>,
    /// Those of them that had no record.
    absent: BTreeSet<KeyHash>,
    /// The keys whose result was there.
    found: Vec<KeyHash>,
    /// The records in the order in which they were written. Those of calls inside a body precede
    /// the one around them.
    written: Vec<Written>,
    /// True if a call of a disabled operation was made, which leaves no record.
    is_unrecorded: bool,
    /// The store of the records. `None` before the first call.
    store: Option<StoreClient>,
    /// The kind of the database, as `sqlx` names it.
    #[cfg(feature = "__sql")]
    database: Option<&'static str>,
}

#[derive(Debug)]
#[cfg_attr(
    not(any(feature = "__sql", feature = "testing")),
    expect(dead_code, reason = "only `in_transaction` looks, which needs a database")
)]
struct Written {
    key: KeyHash,
    is_error: bool,
}

/// The number of records when a claim was granted. Those that were written later are undone with
/// it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark(usize);

/// Returns the calls in the transaction whose connection is at `place`, if it was lent.
pub(super) fn calls_at(place: usize) -> Option<Arc<Calls>> {
    lent().get(&place).cloned()
}

/// Returns true if the code is in the body of a transaction of `store`, as far as a call in it has
/// recorded. Such a transaction keeps its locks until the body has ended.
pub(super) fn is_in_body_of(store: &StoreClient) -> bool {
    is_around(|calls| calls.met().store.as_ref().is_some_and(|other| other.is_same(store)))
}

/// Returns true if the code is in the body of a transaction of this kind of database.
#[cfg(feature = "__sql")]
pub fn is_in_body(database: &str) -> bool {
    is_around(|calls| calls.met().database == Some(database))
}

impl std::fmt::Debug for Calls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Calls").field("written", &self.met().written).finish_non_exhaustive()
    }
}

impl Calls {
    fn met(&self) -> MutexGuard<'_, Met> {
        self.0.lock()
    }

    /// Records that the database, which is that of `store`, has answered what it has of `key`.
    pub(super) fn answered(&self, key: KeyHash, store: &StoreClient) -> Mark {
        let mut met = self.met();
        met.answered.insert(key);
        met.store.get_or_insert_with(|| store.clone());
        Mark(met.written.len())
    }

    /// Records that there was no record of `key`: its claim was granted.
    pub(super) fn absent(&self, key: KeyHash) {
        self.met().absent.insert(key);
    }

    /// Records that a call was answered with an existing record.
    pub(super) fn found(&self, key: KeyHash) {
        self.met().found.push(key);
    }

    /// Records that the record of `key` is in the transaction, with a result or with an error.
    pub(super) fn wrote(&self, key: KeyHash, is_error: bool) {
        self.met().written.push(Written { key, is_error });
    }

    /// Records that a call runs without a record: nothing will show whether its writes were
    /// committed.
    pub(super) fn unrecorded(&self, store: &StoreClient) {
        let mut met = self.met();
        met.is_unrecorded = true;
        met.store.get_or_insert_with(|| store.clone());
    }

    /// Records that everything written since `mark` was undone.
    pub(super) fn undid(&self, Mark(before): Mark) {
        self.met().written.truncate(before);
    }
}

#[cfg(any(feature = "__sql", feature = "testing"))]
impl Calls {
    /// Those of a transaction of this kind of database, as `sqlx` names it.
    #[cfg(feature = "__sql")]
    pub fn of_database(name: &'static str) -> Self {
        Self(Mutex::new(Met { database: Some(name), ..Met::default() }))
    }

    /// Lets the calls in the transaction whose connection is at `place` find this, until the
    /// returned guard is dropped.
    pub fn lend(self: &Arc<Self>, place: usize) -> Lent {
        lent().insert(place, Arc::clone(self));
        Lent(place)
    }

    /// Runs the body of the transaction.
    pub async fn around<F: Future>(self: &Arc<Self>, body: F) -> F::Output {
        let outer = AROUND.try_with(Arc::clone).ok();
        AROUND.scope(Arc::new(Around { calls: Arc::clone(self), outer }), body).await
    }

    /// Returns the records that show whether the transaction was committed: those that it has
    /// written. A transaction that has written none has only found some, which are the same
    /// afterwards. Returns no records if a call had none, because that call would run once more.
    pub fn records(&self) -> Vec<KeyHash> {
        let met = self.met();
        if met.is_unrecorded {
            return Vec::new();
        }
        if met.written.is_empty() {
            met.found.clone()
        } else {
            met.written.iter().map(|written| written.key).collect()
        }
    }

    /// Returns true if the database has answered in this transaction what it has of all of
    /// `records`. One of them may have been undone by a savepoint of the body's own, so its absence
    /// says nothing about the others.
    pub fn tell_of(&self, records: &[KeyHash]) -> bool {
        let met = self.met();
        !records.is_empty() && records.iter().all(|key| met.answered.contains(key))
    }

    /// Returns true if none of `records` was there. One that was there shows that they were
    /// committed, even if another one is absent: a savepoint of the body's own may have undone it.
    pub fn found_none_of(&self, records: &[KeyHash]) -> bool {
        let met = self.met();
        records.iter().all(|key| met.absent.contains(key))
    }

    /// Returns true if a call has stored or held an error.
    pub fn have_kept_an_error(&self) -> bool {
        self.met().written.iter().any(|written| written.is_error)
    }
}

/// A guard that exists for as long as a transaction is lent.
#[cfg(any(feature = "__sql", feature = "testing"))]
#[derive(Debug)]
pub struct Lent(usize);

#[cfg(any(feature = "__sql", feature = "testing"))]
impl Drop for Lent {
    fn drop(&mut self) {
        lent().remove(&self.0);
    }
}

#[cfg(all(test, feature = "sqlite", feature = "memory"))]
mod tests {
    use super::Calls;
    use crate::Idempotency;
    use crate::key::KeyHash;
    use crate::store::MemoryStore;

    #[test]
    fn a_call_without_a_record_leaves_none_that_tells_of_the_transaction() {
        let (one, other) = (KeyHash::from_bytes([1; 32]), KeyHash::from_bytes([2; 32]));
        let calls = Calls::default();
        calls.wrote(one, false);
        calls.wrote(other, false);
        assert_eq!(calls.records(), [one, other]);
        assert!(!calls.tell_of(&[one]) && !calls.tell_of(&[]));
        calls.unrecorded(&Idempotency::new(MemoryStore::new()).inner.store);
        assert!(calls.records().is_empty());
    }
}
