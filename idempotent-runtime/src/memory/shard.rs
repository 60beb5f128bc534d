//! A part of the keys, with the order in which they expire.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use bytes::Bytes;

use super::usage::{Cost, Usage};
use super::watchers::Watchers;
use crate::clock::Timestamp;
use crate::key::KeyHash;
use crate::store::{Census, Claim, ClaimOutcome, Reason, Record, Scan, State, Token, transition};

/// One shard. Its maps are ordered, because they grow without the pause in which a hash table moves
/// its entries.
#[derive(Default)]
pub(super) struct Shard {
    /// `None` only while a transition runs.
    slots: BTreeMap<KeyHash, Option<Record>>,
    by_expiry: BTreeSet<(Timestamp, KeyHash)>,
    pub(super) watchers: Watchers,
    /// The fence of the last claim of any key.
    last_fence: u64,
}

/// The properties of a slot whose changes the shard must track.
#[derive(PartialEq)]
struct Summary {
    cost: Cost,
    expires: Option<Timestamp>,
    /// The properties that watches are about; the reason shows an abandoned lease.
    holder: Option<(State, Token, Option<Reason>)>,
}

impl Summary {
    fn of(slot: Option<&Record>) -> Self {
        Self {
            cost: Cost::of_slot(slot),
            expires: slot.map(|record| record.expires),
            holder: slot.map(|record| (record.state, record.owner, record.reason)),
        }
    }
}

impl Shard {
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        assert_eq!(self.slots.len(), self.by_expiry.len());
        self.slots.len()
    }

    /// Returns the record, if it has not expired.
    fn lasting(&self, key: &KeyHash, now: Timestamp) -> Option<&Record> {
        self.slots.get(key).and_then(Option::as_ref).filter(|record| record.expires > now)
    }

    /// Returns true if there is a record that has not expired.
    pub(super) fn holds(&self, key: &KeyHash, now: Timestamp) -> bool {
        self.lasting(key, now).is_some()
    }

    /// Returns the record, if it has a result that has not expired.
    pub(super) fn result(&self, key: &KeyHash, now: Timestamp) -> Option<Record> {
        let record = self.lasting(key, now).filter(|record| record.state.is_answer())?;
        Some(Record { read_at: now, ..record.clone() })
    }

    /// Grants a claim, or returns the record that holds it. `reserved` is already in the totals.
    pub(super) fn claim(
        &mut self,
        claim: &Claim,
        reserved: Cost,
        usage: &Usage,
        now: Timestamp,
    ) -> ClaimOutcome {
        let last_fence = self.last_fence;
        let claimed = self.apply(&claim.key, reserved, usage, |slot| {
            transition::claim_above(slot, claim, now, last_fence)
        });
        if let ClaimOutcome::Granted(grant) = &claimed {
            self.last_fence = last_fence.max(grant.record.fence);
        }
        claimed
    }

    /// Changes the slot of `key`. `reserved` is already in the totals.
    pub(super) fn apply<R>(
        &mut self,
        key: &KeyHash,
        reserved: Cost,
        usage: &Usage,
        change: impl FnOnce(&mut Option<Record>) -> R,
    ) -> R {
        let slot = self.slots.entry(*key).or_default();
        let before = Summary::of(slot.as_ref());
        let answer = change(slot);
        let after = Summary::of(slot.as_ref());
        if slot.is_none() {
            self.slots.remove(key);
        }
        if before.expires != after.expires {
            before.expires.map(|expires| self.by_expiry.remove(&(expires, *key)));
            after.expires.map(|expires| self.by_expiry.insert((expires, *key)));
        }
        if before.holder != after.holder {
            self.watchers.changed(key);
        }
        usage.replace(reserved, Cost::default());
        usage.replace(before.cost, after.cost);
        answer
    }

    /// Removes at most `limit` expired records, or turns them into their tombstones. Returns their
    /// number.
    pub(super) fn remove_expired(&mut self, limit: usize, now: Timestamp, usage: &Usage) -> usize {
        for removed in 0..limit {
            match self.by_expiry.first() {
                Some(&(expires, key)) if expires <= now => {
                    self.apply(&key, Cost::default(), usage, |slot| transition::expire(slot, now));
                }
                _ => return removed,
            }
        }
        limit
    }

    /// The time since the oldest expired record expired.
    pub(super) fn lag(&self, now: Timestamp) -> Option<Duration> {
        let &(expires, _) = self.by_expiry.first()?;
        (expires <= now).then(|| now.saturating_duration_since(expires))
    }

    /// Counts at most `left` records from the key `first` on, and takes their number from it. Returns
    /// the key of the next one.
    pub(super) fn count(
        &self,
        first: KeyHash,
        left: &mut usize,
        now: Timestamp,
        census: &mut Census,
    ) -> Option<KeyHash> {
        for (key, slot) in self.slots.range(first..) {
            if *left == 0 {
                return Some(*key);
            }
            *left -= 1;
            if let Some(record) = transition::read(&mut slot.clone(), now) {
                census.add(&record);
            }
        }
        None
    }

    /// Adds the records that `scan` selects. Returns false if the page is full, or has examined
    /// enough, and there may be more.
    pub(super) fn list(&self, scan: &Scan, now: Timestamp, listing: &mut Listing) -> bool {
        for (key, slot) in self.slots.range((listing.start, Bound::Included(listing.last))) {
            if listing.is_over() {
                return false;
            }
            listing.reached = Some(*key);
            listing.left -= 1;
            let mut record = slot.as_ref().filter(|record| scan.is_about(record)).cloned();
            let record = transition::read(&mut record, now);
            let record = record.filter(|record| scan.includes(record));
            listing.records.extend(record.map(|record| Record { body: Bytes::new(), ..record }));
        }
        true
    }
}

/// A page that is being filled.
pub(super) struct Listing {
    start: Bound<KeyHash>,
    last: KeyHash,
    limit: usize,
    /// The number of records that may still be examined.
    left: usize,
    pub(super) records: Vec<Record>,
    /// The last key that was examined.
    pub(super) reached: Option<KeyHash>,
}

impl Listing {
    pub(super) fn new(start: Bound<KeyHash>, last: KeyHash, limit: usize, examined: usize) -> Self {
        Self { start, last, limit, left: examined, records: Vec::new(), reached: None }
    }

    fn is_over(&self) -> bool {
        self.records.len() >= self.limit || self.left == 0
    }
}
