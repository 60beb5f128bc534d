//! Which messages of an assignment may have been begun before, by a process that died of one.
//!
//! Kafka does not count deliveries. An assignment begins at the committed offset, and the message
//! that killed an earlier consumer may be far behind it: all that was finished since the last commit
//! comes first. What was finished successfully is on record, and is recognised now; what became a
//! dead letter may run again. So neither of these says anything.
//!
//! A message that **runs now and is acknowledged** was not finished by the earlier consumer. When a
//! message began there, at most `begun_ahead` messages before it were unfinished: none but itself
//! where a partition is a lane, as many as are in hand where a key is one. So long as fewer than
//! that many have run among those that are finished without a gap, each message is a suspect, and
//! the one that killed is among them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The state of one assignment.
#[derive(Debug)]
pub(crate) struct Suspects {
    /// Read by the messages of the assignment.
    has_proof: Arc<AtomicBool>,
    /// How many have to run before the end of the suspicion.
    left: usize,
    /// Those that have run and are finished, behind one that is not.
    ran: BTreeSet<i64>,
}

impl Suspects {
    /// Begins with an assignment. `begun_ahead`: how many unfinished messages of a partition are in
    /// hand at most, in the earlier consumer.
    pub(crate) fn new(begun_ahead: usize) -> Self {
        let has_proof = Arc::new(AtomicBool::new(begun_ahead == 0));
        Self { has_proof, left: begun_ahead, ran: BTreeSet::new() }
    }

    /// True once no later message is a suspect.
    pub(crate) fn has_proof(&self) -> &Arc<AtomicBool> {
        &self.has_proof
    }

    /// Notes that the message at `offset` has run and is acknowledged.
    pub(crate) fn ran(&mut self, offset: i64) {
        if self.left > 0 {
            self.ran.insert(offset);
        }
    }

    /// Notes that all messages before the offset `next` are finished.
    pub(crate) fn finished_before(&mut self, next: i64) {
        let behind = self.ran.split_off(&next);
        let ahead = std::mem::replace(&mut self.ran, behind).len();
        self.left = self.left.saturating_sub(ahead);
        if self.left == 0 {
            self.ran.clear();
            self.has_proof.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use idempotency::inbox::Offsets;
    use proptest::prelude::*;

    use super::*;

    /// A partition, of which each message has a key.
    struct Model {
        keys: Vec<u8>,
        /// On record: a consumer recognises them.
        on_record: BTreeSet<i64>,
        /// Those that are a dead letter each time they run.
        dead: BTreeSet<i64>,
        kills: i64,
        begun_ahead: usize,
        committed: i64,
    }

    impl Model {
        /// Consumes until the message that kills begins. Returns true if it was a suspect. `picks`:
        /// which of the messages that may run ends next, and whether the offset is committed then.
        fn consume(
            &mut self,
            picks: &mut impl Iterator<Item = (prop::sample::Index, bool)>,
        ) -> bool {
            let mut suspects = Suspects::new(self.begun_ahead);
            let mut offsets = Offsets::new();
            let (mut next, mut in_hand) = (self.committed, Vec::<i64>::new());
            let last = i64::try_from(self.keys.len()).unwrap();
            loop {
                while in_hand.len() < self.begun_ahead && next < last {
                    offsets.received(next);
                    in_hand.push(next);
                    next += 1;
                }
                // The first of each key may run.
                let key = |offset: i64| self.keys[usize::try_from(offset).unwrap()];
                let first = |offset: &&i64| {
                    in_hand
                        .iter()
                        .take_while(|other| other < offset)
                        .all(|other| key(*other) != key(**offset))
                };
                let may_run: Vec<i64> = in_hand.iter().filter(first).copied().collect();
                let (pick, commits) = picks.next().unwrap();
                let offset = *pick.get(&may_run);
                if offset == self.kills {
                    return !suspects.has_proof().load(Ordering::Relaxed);
                }
                in_hand.retain(|other| *other != offset);
                if !self.dead.contains(&offset) && self.on_record.insert(offset) {
                    suspects.ran(offset);
                }
                if let Some(stored) = offsets.finished(offset) {
                    suspects.finished_before(stored);
                    if commits {
                        self.committed = stored;
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn the_message_that_killed_is_a_suspect_each_time(
            keys in prop::collection::vec(0_u8..6, 30..60),
            begun_ahead in 1_usize..8,
            dead in prop::collection::btree_set(0_i64..30, 0..6),
            kills in 5_i64..30,
            picks in prop::collection::vec((any::<prop::sample::Index>(), prop::bool::weighted(0.1)), 2_000),
        ) {
            let keys = if begun_ahead == 1 { vec![0; keys.len()] } else { keys };
            let (on_record, dead) = (BTreeSet::new(), dead.into_iter().filter(|at| *at != kills).collect());
            let mut model = Model { keys, on_record, dead, kills, begun_ahead, committed: 0 };
            let mut picks = picks.into_iter().cycle();
            // The first consumer may have handled many before, and suspects none then.
            model.consume(&mut picks);
            for death in 0..12 {
                prop_assert!(model.consume(&mut picks), "death {}", death);
            }
        }
    }

    #[test]
    fn a_duplicate_and_a_dead_letter_prove_nothing_and_one_that_ran_does() {
        let mut suspects = Suspects::new(1);
        suspects.finished_before(7);
        assert!(!suspects.has_proof().load(Ordering::Relaxed));
        suspects.ran(9);
        suspects.finished_before(9);
        assert!(!suspects.has_proof().load(Ordering::Relaxed), "one before it is not finished");
        suspects.finished_before(10);
        assert!(suspects.has_proof().load(Ordering::Relaxed));
    }
}
