//! Messages in hand that wait for their turn, by lane.

use std::collections::{BTreeMap, VecDeque};

/// The identity of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum LaneId {
    /// A lane that the source has named.
    Named(u64),
    /// The lane of a single message.
    Single(u64),
}

/// Messages that wait. Of each lane one message at most is out.
#[derive(Debug)]
pub(super) struct Lanes<M> {
    all: BTreeMap<LaneId, Lane<M>>,
    /// Lanes in which a message waits and none is out, in the order in which that came about.
    ready: VecDeque<LaneId>,
    singles: u64,
}

#[derive(Debug)]
struct Lane<M> {
    waiting: VecDeque<M>,
    is_out: bool,
}

impl<M> Lanes<M> {
    pub(super) fn new() -> Self {
        Self { all: BTreeMap::new(), ready: VecDeque::new(), singles: 0 }
    }

    /// Adds a message behind the others of its lane.
    pub(super) fn push(&mut self, lane: Option<u64>, message: M) {
        let id = lane.map_or_else(
            || {
                self.singles += 1;
                LaneId::Single(self.singles)
            },
            LaneId::Named,
        );
        let lane =
            self.all.entry(id).or_insert_with(|| Lane { waiting: VecDeque::new(), is_out: false });
        if lane.waiting.is_empty() && !lane.is_out {
            self.ready.push_back(id);
        }
        lane.waiting.push_back(message);
    }

    /// Puts a message that is out before the others of its lane. It can be taken once its turn has
    /// [ended](Self::back).
    pub(super) fn push_front(&mut self, id: LaneId, message: M) {
        if let Some(lane) = self.all.get_mut(&id) {
            lane.waiting.push_front(message);
        }
    }

    /// How many lanes have a message that can be taken.
    pub(super) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Returns true if a message can be taken.
    pub(super) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Takes the next message. Its lane waits until it is [back](Self::back).
    pub(super) fn take(&mut self) -> Option<(LaneId, M)> {
        let id = self.ready.pop_front()?;
        let lane = self.all.get_mut(&id)?;
        let message = lane.waiting.pop_front()?;
        lane.is_out = true;
        Some((id, message))
    }

    /// Ends the turn of the message that is out.
    pub(super) fn back(&mut self, id: LaneId) {
        let Some(lane) = self.all.get_mut(&id) else { return };
        if lane.waiting.is_empty() {
            self.all.remove(&id);
        } else if std::mem::take(&mut lane.is_out) {
            self.ready.push_back(id);
        }
    }

    /// Takes the messages that wait behind the one that is out.
    pub(super) fn take_behind(&mut self, id: LaneId) -> VecDeque<M> {
        self.all.get_mut(&id).map(|lane| std::mem::take(&mut lane.waiting)).unwrap_or_default()
    }

    /// Takes all messages that wait.
    pub(super) fn take_all(&mut self) -> Vec<M> {
        self.ready.clear();
        let lanes = self.all.values_mut();
        lanes.flat_map(|lane| std::mem::take(&mut lane.waiting)).collect()
    }

    /// The messages that wait.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &M> {
        self.all.values().flat_map(|lane| &lane.waiting)
    }

    /// How many messages of the lane wait.
    pub(super) fn len_of(&self, lane: u64) -> usize {
        self.all.get(&LaneId::Named(lane)).map_or(0, |lane| lane.waiting.len())
    }

    pub(super) fn len(&self) -> usize {
        self.all.values().map(|lane| lane.waiting.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_message_of_a_lane_is_out_at_a_time_and_in_order() {
        let mut lanes = Lanes::new();
        for (lane, message) in
            [(Some(1), "a"), (Some(1), "b"), (Some(2), "c"), (None, "d"), (None, "e")]
        {
            lanes.push(lane, message);
        }
        let out: Vec<_> = std::iter::from_fn(|| lanes.take()).collect();
        assert_eq!(
            out.iter().map(|(_, message)| *message).collect::<Vec<_>>(),
            ["a", "c", "d", "e"]
        );
        assert!(!lanes.is_ready());
        assert_eq!(lanes.len(), 1);
        lanes.push(Some(1), "f");
        assert!(!lanes.is_ready(), "its lane is out");
        lanes.back(out[0].0);
        let (lane, message) = lanes.take().unwrap();
        assert_eq!((lane, message), (LaneId::Named(1), "b"));
        assert_eq!(lanes.take_behind(lane), ["f"]);
        lanes.back(lane);
        assert!(!lanes.is_ready());
        assert_eq!(lanes.len(), 0);
    }

    #[test]
    fn a_message_that_is_put_back_is_taken_before_those_behind_it() {
        let mut lanes = Lanes::new();
        for message in ["a", "b"] {
            lanes.push(Some(1), message);
        }
        let (lane, first) = lanes.take().unwrap();
        lanes.push_front(lane, first);
        assert_eq!((lanes.ready(), lanes.len()), (0, 2), "it is out");
        lanes.back(lane);
        assert_eq!(lanes.take(), Some((lane, "a")));
        lanes.back(lane);
        assert_eq!(lanes.take(), Some((lane, "b")));
    }

    #[test]
    fn a_lane_that_is_empty_takes_no_room() {
        let mut lanes = Lanes::new();
        for message in 0..1000 {
            lanes.push(Some(message), message);
            lanes.push(None, message);
        }
        while let Some((lane, _)) = lanes.take() {
            lanes.back(lane);
        }
        assert!(lanes.all.is_empty());
    }

    #[test]
    fn all_that_waits_is_taken_and_the_lanes_of_those_that_are_out_go_on() {
        let mut lanes = Lanes::new();
        lanes.push(Some(1), "a");
        lanes.push(Some(1), "b");
        lanes.push(None, "c");
        let (lane, _) = lanes.take().unwrap();
        let mut all = lanes.take_all();
        all.sort_unstable();
        assert_eq!(all, ["b", "c"]);
        assert_eq!(lanes.waiting().count(), 0);
        lanes.back(lane);
        lanes.push(Some(1), "d");
        assert_eq!(lanes.take().map(|(_, message)| message), Some("d"));
    }
}
