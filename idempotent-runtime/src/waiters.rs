//! A registry of those who wait for changes of records, which each store guards with a lock of its
//! own.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;

/// The waiters of each key, by numbers. A key is present only while it has waiters.
#[derive(Debug)]
pub(crate) struct Waiters<K, W> {
    next: u64,
    by_key: HashMap<K, HashMap<u64, W>>,
}

impl<K, W> Default for Waiters<K, W> {
    fn default() -> Self {
        Self { next: 0, by_key: HashMap::new() }
    }
}

impl<K: Eq + Hash, W> Waiters<K, W> {
    /// Adds a waiter, and returns the number under which it is removed.
    pub(crate) fn add(&mut self, key: K, waiter: W) -> u64 {
        let number = self.next;
        self.next = number.wrapping_add(1);
        self.by_key.entry(key).or_default().insert(number, waiter);
        number
    }

    pub(crate) fn remove<Q: Eq + Hash + ?Sized>(&mut self, key: &Q, number: u64)
    where
        K: Borrow<Q>,
    {
        if let Some(waiters) = self.by_key.get_mut(key) {
            waiters.remove(&number);
            if waiters.is_empty() {
                self.by_key.remove(key);
            }
        }
    }
}

#[cfg(any(feature = "memory", feature = "__sql"))]
impl<K: Eq + Hash, W> Waiters<K, W> {
    /// The waiters of `key`.
    pub(crate) fn of<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> impl Iterator<Item = &W>
    where
        K: Borrow<Q>,
    {
        self.by_key.get(key).into_iter().flat_map(HashMap::values)
    }
}

#[cfg(feature = "redis")]
impl<K: Eq + Hash, W> Waiters<K, W> {
    /// Drops the waiters of `key`.
    pub(crate) fn drop_all_of<Q: Eq + Hash + ?Sized>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
    {
        self.by_key.remove(key);
    }

    /// Drops the waiters of all keys.
    pub(crate) fn drop_all(&mut self) {
        self.by_key.clear();
    }
}

#[cfg(feature = "__sql")]
impl<K: Copy + Eq + Hash, W> Waiters<K, W> {
    /// The keys with a waiter that `is_meant`.
    pub(crate) fn keys(&self, is_meant: impl Fn(&W) -> bool) -> Vec<K> {
        let has_one = |waiters: &HashMap<_, W>| waiters.values().any(&is_meant);
        self.by_key.iter().filter(|(_, waiters)| has_one(waiters)).map(|(key, _)| *key).collect()
    }
}

#[cfg(all(test, feature = "memory"))]
impl<K, W> Waiters<K, W> {
    pub(crate) fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }
}
