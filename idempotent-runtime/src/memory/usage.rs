//! The size of the records, and its limits.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::store::{Claim, Record};

/// An estimate of the size of a record beside its variable parts: the record itself, and its place
/// in the map and in the index.
const OVERHEAD: usize = size_of::<Record>() + 128;

/// The size of one record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cost {
    records: usize,
    bytes: usize,
}

impl Cost {
    pub(super) fn of_claim(claim: &Claim) -> Self {
        let texts = [&claim.operation, &claim.namespace, &claim.holder];
        Self::with_parts(texts, claim.trace.as_deref(), 0)
    }

    pub(super) fn of_slot(slot: Option<&Record>) -> Self {
        slot.map_or_else(Self::default, |record| {
            let texts = [&record.operation, &record.namespace, &record.holder];
            Self::with_parts(texts, record.trace.as_deref(), record.body.len())
        })
    }

    fn with_parts(texts: [&Arc<str>; 3], trace: Option<&str>, body: usize) -> Self {
        let texts = texts.map(|text| text.len()).iter().sum::<usize>() + trace.map_or(0, str::len);
        Self { records: 1, bytes: OVERHEAD + texts + body }
    }
}

/// The totals over all shards.
pub(super) struct Usage {
    records: Counter,
    bytes: Counter,
}

struct Counter {
    used: AtomicUsize,
    limit: usize,
}

impl Usage {
    pub(super) fn new(max_records: usize, max_bytes: usize) -> Self {
        let counter = |limit| Counter { used: AtomicUsize::new(0), limit };
        Self { records: counter(max_records), bytes: counter(max_bytes) }
    }

    /// Takes `cost` and returns true if there is room for it.
    pub(super) fn reserve(&self, cost: Cost) -> bool {
        if !self.records.reserve(cost.records) {
            return false;
        }
        let fits = self.bytes.reserve(cost.bytes);
        if !fits {
            self.records.replace(cost.records, 0);
        }
        fits
    }

    /// Replaces `before`, which is part of the totals, by `after`, which may exceed the limits.
    pub(super) fn replace(&self, before: Cost, after: Cost) {
        self.records.replace(before.records, after.records);
        self.bytes.replace(before.bytes, after.bytes);
    }
}

impl Counter {
    fn reserve(&self, amount: usize) -> bool {
        let reserve =
            |used: usize| used.checked_add(amount).filter(|&sum| amount == 0 || sum <= self.limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, reserve).is_ok()
    }

    fn replace(&self, before: usize, after: usize) {
        // Amounts are added before they are subtracted again, so the total never falls below zero.
        self.used.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
    }
}

impl fmt::Display for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.used.load(Ordering::Relaxed), self.limit)
    }
}

/// The detail of a rejected claim.
impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} records and {} bytes are in use", self.records, self.bytes)
    }
}

impl fmt::Debug for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
