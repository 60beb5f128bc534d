//! The offsets of one partition of a log.

use std::collections::BTreeMap;

/// Which offset of a partition can be stored while its messages finish in any order: the one behind
/// the last that is finished together with all before it.
///
/// A log such as Kafka's keeps one offset for each consumer and partition, and a consumer that
/// restarts begins there. To store an offset beyond an unfinished message loses that message.
///
/// ```
/// use idempotency::inbox::Offsets;
///
/// let mut offsets = Offsets::new();
/// for offset in [7, 8, 9] {
///     offsets.received(offset);
/// }
/// assert_eq!(offsets.finished(8), None); // 7 is not finished
/// assert_eq!(offsets.finished(7), Some(9));
/// assert_eq!(offsets.finished(9), Some(10));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Offsets {
    /// The offsets in hand, and whether each is finished.
    in_hand: BTreeMap<i64, bool>,
}

impl Offsets {
    /// Creates the state of a partition of which nothing is in hand.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes that the message at `offset` was received. One that is received again, after the
    /// partition went back, is unfinished again.
    pub fn received(&mut self, offset: i64) {
        self.in_hand.insert(offset, false);
    }

    /// Notes that the message at `offset` is finished. Returns the offset to be stored, if it has
    /// advanced: that of the next message to be received after a restart.
    ///
    /// An offset that is not in hand changes nothing: it was received before the partition went to
    /// another consumer.
    pub fn finished(&mut self, offset: i64) -> Option<i64> {
        *self.in_hand.get_mut(&offset)? = true;
        let mut next = None;
        while let Some(first) = self.in_hand.first_entry().filter(|first| *first.get()) {
            next = Some(first.remove_entry().0.saturating_add(1));
        }
        next
    }

    /// The number of messages that are in hand and cannot be stored yet.
    pub fn len(&self) -> usize {
        self.in_hand.len()
    }

    /// Returns true if nothing is in hand.
    pub fn is_empty(&self) -> bool {
        self.in_hand.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_offset_is_stored_beyond_an_unfinished_message(
            first in -3_i64..3,
            gaps in prop::collection::vec(1_i64..4, 1..40),
            picks in prop::collection::vec(any::<prop::sample::Index>(), 1..80),
        ) {
            let received: Vec<i64> = gaps
                .iter()
                .scan(first, |at, gap| { *at += gap; Some(*at) })
                .collect();
            let mut offsets = Offsets::new();
            for offset in &received {
                offsets.received(*offset);
            }
            let mut unfinished: BTreeSet<i64> = received.iter().copied().collect();
            let mut stored = i64::MIN;
            for pick in picks {
                let offset = *pick.get(&received);
                unfinished.remove(&offset);
                if let Some(next) = offsets.finished(offset) {
                    prop_assert!(next > stored);
                    stored = next;
                }
                prop_assert!(unfinished.iter().all(|offset| *offset >= stored));
                // As far as it can be.
                let behind = received.iter().filter(|offset| **offset < stored).count();
                let finished = received.iter().take_while(|offset| !unfinished.contains(offset)).count();
                prop_assert_eq!(behind, finished);
            }
            prop_assert_eq!(offsets.is_empty(), unfinished.is_empty());
        }
    }

    #[test]
    fn an_offset_of_an_earlier_assignment_stores_nothing() {
        let mut offsets = Offsets::new();
        offsets.received(7);
        assert_eq!(offsets.finished(3), None);
        assert_eq!(offsets.len(), 1);
        assert_eq!(offsets.finished(7), Some(8));
        assert_eq!(offsets.finished(7), None, "it was stored");
    }
}
