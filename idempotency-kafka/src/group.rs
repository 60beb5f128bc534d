//! This member of the group: the partitions that it has, and its messages.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use idempotency::inbox::Offsets;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance};
use rdkafka::message::{BorrowedMessage, OwnedMessage};
use rdkafka::{ClientContext, Message as _, Offset, TopicPartitionList};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::message::{KeyOf, Place, TopicMessage, lane_of_key, lane_of_partition};
use crate::suspects::Suspects;

/// So many unfinished messages of a partition are in hand at most,
const MOST_UNFINISHED: usize = 1_000;
/// with so many bytes, and the last one.
const MOST_BYTES: usize = 4 << 20;
/// So many are received behind one that is not finished.
const MOST_BEHIND: usize = 10_000;

/// What the rebalances of the client and the calls of the consumer share.
pub(crate) struct Group {
    state: Mutex<State>,
    /// Messages wait that did not before, or the dead letters come back.
    pub(crate) changed: Notify,
}

pub(crate) struct State {
    key: Option<KeyOf>,
    by_key: bool,
    /// The topic for dead letters.
    dead_letters: Option<String>,
    topics: Topics,
    /// The number of assignments so far.
    assignments: u64,
    /// The lanes that are held back, and what has come for them where they are keys.
    held_back: HashMap<u64, VecDeque<Arc<TopicMessage>>>,
    /// The assignment of the partition from which the last message was handed out.
    last_turn: u64,
    is_stopping: bool,
    /// When the client was polled last. It answers its group while it is polled.
    looked_at: Instant,
    /// How many messages the consumer has.
    in_hand: usize,
}

/// An assignment of a partition.
struct Partition {
    assignment: u64,
    lane: u64,
    /// Messages that the consumer gets next.
    waiting: VecDeque<Arc<TopicMessage>>,
    offsets: Offsets,
    /// The offset of the message that came last.
    latest: Option<i64>,
    /// The sizes of those that are not finished, by their offsets, and the sum.
    unfinished: BTreeMap<i64, usize>,
    bytes: usize,
    suspects: Suspects,
    is_paused: bool,
}

impl Group {
    pub(crate) fn new(by_key: bool, key: Option<KeyOf>, dead_letters: Option<String>) -> Self {
        let state = State {
            key,
            by_key,
            dead_letters,
            topics: HashMap::new(),
            assignments: 0,
            held_back: HashMap::new(),
            last_turn: 0,
            is_stopping: false,
            looked_at: Instant::now(),
            in_hand: 0,
        };
        Self { state: Mutex::new(state), changed: Notify::new() }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Group {}

/// Called within a poll of the client. What was stored of a partition that goes is committed by the
/// client, and handlers that run are not waited for: whoever gets their messages meets the record.
impl ConsumerContext for Group {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let mut state = self.lock();
        match rebalance {
            Rebalance::Assign(partitions) => state.assign(partitions),
            Rebalance::Revoke(partitions) => state.revoke(partitions),
            // The client gives all of them up.
            Rebalance::Error(_) => state.revoke_all(),
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Assign(partitions) = rebalance {
            // The client keeps a pause of an earlier assignment.
            note(consumer.resume(partitions), "a partition is not resumed");
            self.lock().steer(consumer);
            self.changed.notify_one();
        }
    }
}

impl Partition {
    fn new(assignment: u64, lane: u64, begun_ahead: usize) -> Self {
        Self {
            assignment,
            lane,
            waiting: VecDeque::new(),
            offsets: Offsets::new(),
            latest: None,
            unfinished: BTreeMap::new(),
            bytes: 0,
            suspects: Suspects::new(begun_ahead),
            is_paused: false,
        }
    }
}

impl State {
    /// How many unfinished messages of a partition an earlier consumer had in hand at most.
    fn begun_ahead(&self) -> usize {
        if self.by_key { MOST_UNFINISHED } else { 1 }
    }

    fn assign(&mut self, partitions: &TopicPartitionList) {
        let begun_ahead = self.begun_ahead();
        for element in partitions.elements() {
            self.assignments += 1;
            let (topic, partition) = (element.topic(), element.partition());
            let lane = lane_of_partition(topic, partition);
            let assigned = Partition::new(self.assignments, lane, begun_ahead);
            self.topics.entry(topic.into()).or_default().insert(partition, assigned);
        }
        self.forget_what_is_gone();
    }

    fn revoke(&mut self, partitions: &TopicPartitionList) {
        for element in partitions.elements() {
            if let Some(topic) = self.topics.get_mut(element.topic()) {
                topic.remove(&element.partition());
            }
        }
        self.forget_what_is_gone();
    }

    pub(crate) fn revoke_all(&mut self) {
        self.topics.clear();
        self.forget_what_is_gone();
    }

    /// Drops what was not handed out: whoever has its partition now receives it.
    fn forget_what_is_gone(&mut self) {
        let Self { topics, held_back, .. } = self;
        topics.retain(|_, partitions| !partitions.is_empty());
        for parked in held_back.values_mut() {
            parked.retain(|message| partition_of(topics, message).is_some());
        }
    }

    /// The topic of the dead letters, if a partition of it is assigned: what is buried would be
    /// consumed, and buried again, without end.
    pub(crate) fn comes_back(&self) -> Option<&str> {
        self.dead_letters.as_deref().filter(|topic| self.topics.contains_key(*topic))
    }

    /// Takes a message in that the client has returned.
    pub(crate) fn take(&mut self, message: &BorrowedMessage<'_>, consumer: &impl Consumer<Group>) {
        self.admit(message.detach());
        self.steer_one(message.topic(), message.partition(), consumer);
    }

    fn admit(&mut self, message: OwnedMessage) {
        let begun_ahead = self.begun_ahead();
        let of_topic = self.topics.get_mut(message.topic());
        let assigned = of_topic.and_then(|all| all.get_mut(&message.partition()));
        // It is another member's, which receives it.
        let Some(partition) = assigned else { return };
        // The client has gone back without an assignment: the topic was created again, or its log cut
        // off. What came before may be other messages at these offsets, and finishes none of them.
        if partition.latest.is_some_and(|latest| message.offset() <= latest) {
            self.assignments += 1;
            let is_paused = partition.is_paused;
            *partition = Partition::new(self.assignments, partition.lane, begun_ahead);
            partition.is_paused = is_paused;
        }
        partition.latest = Some(message.offset());
        let lane = if self.by_key { lane_of_key(&message) } else { partition.lane };
        let assignment = partition.assignment;
        let place = Place { assignment, lane, has_proof: partition.suspects.has_proof().clone() };
        partition.offsets.received(message.offset());
        let message = Arc::new(TopicMessage::new(message, place, self.key.clone()));
        partition.bytes += message.size();
        partition.unfinished.insert(message.offset(), message.size());
        match self.held_back.get_mut(&lane) {
            Some(parked) if self.by_key => parked.push_back(message),
            _ => partition.waiting.push_back(message),
        }
    }

    /// Notes that the client is polled.
    pub(crate) fn looks(&mut self) {
        self.looked_at = Instant::now();
    }

    pub(crate) fn looked_at(&self) -> Instant {
        self.looked_at
    }

    /// Lets no partition go on.
    pub(crate) fn stop(&mut self, consumer: &impl Consumer<Group>) {
        self.is_stopping = true;
        self.partitions_mut().for_each(|partition| partition.waiting.clear());
        self.held_back.clear();
        self.steer(consumer);
    }

    /// Returns true if messages of the client are to be taken in: the consumer has more room than
    /// waits for it, or a partition has nothing that waits. Its messages may be behind those of others.
    pub(crate) fn is_hungry(&self, room: usize) -> bool {
        let (mut waiting, mut goes_on) = (0, false);
        for partition in self.partitions().filter(|partition| !self.is_held(partition)) {
            if !partition.is_paused && partition.waiting.is_empty() {
                return true;
            }
            waiting += partition.waiting.len();
            goes_on |= !partition.is_paused;
        }
        // Rebalances come by the client too.
        (goes_on || self.topics.is_empty()) && waiting < room
    }

    /// Hands messages out, at most so many: of each partition one, by turns.
    pub(crate) fn hand_out(&mut self, room: usize) -> Vec<Arc<TopicMessage>> {
        let mut messages = Vec::new();
        let (by_key, last) = (self.by_key, self.last_turn);
        let Self { topics, held_back, .. } = self;
        let is_held = |partition: &Partition| !by_key && held_back.contains_key(&partition.lane);
        let all = topics.values_mut().flat_map(BTreeMap::values_mut);
        let mut turns: VecDeque<_> =
            all.filter(|one| !one.waiting.is_empty() && !is_held(one)).collect();
        // Behind the one that had the last turn.
        turns.make_contiguous().sort_by_key(|one| (one.assignment <= last, one.assignment));
        while messages.len() < room
            && let Some(partition) = turns.pop_front()
        {
            messages.extend(partition.waiting.pop_front());
            self.last_turn = partition.assignment;
            if !partition.waiting.is_empty() {
                turns.push_back(partition);
            }
        }
        self.in_hand += messages.len();
        messages
    }

    pub(crate) fn in_hand(&self) -> usize {
        self.in_hand
    }

    /// Notes that the consumer has so many messages less.
    pub(crate) fn returned(&mut self, messages: usize) {
        self.in_hand = self.in_hand.saturating_sub(messages);
    }

    /// Returns true if the partition is still that of the message. Otherwise whoever has it now
    /// receives the message.
    pub(crate) fn is_ours(&self, message: &TopicMessage) -> bool {
        partition_of(&self.topics, message).is_some()
    }

    /// Notes that a message is finished, and stores the offset that follows from it. `has_run`: its
    /// handler has run now and has succeeded.
    pub(crate) fn finish(
        &mut self,
        message: &TopicMessage,
        has_run: bool,
        consumer: &impl Consumer<Group>,
    ) {
        if let Some(next) = self.finished(message, has_run) {
            let mut offsets = TopicPartitionList::with_capacity(1);
            let stored = offsets
                .add_partition_offset(message.topic(), message.partition(), Offset::Offset(next))
                .and_then(|()| consumer.store_offsets(&offsets));
            note(stored, "an offset is not stored: the message comes again");
        }
        self.steer_one(message.topic(), message.partition(), consumer);
    }

    /// Returns the offset to be stored, if it has advanced.
    ///
    /// An answer of an earlier assignment stores nothing: the present one began at an offset before
    /// the message, and receives it again.
    fn finished(&mut self, message: &TopicMessage, has_run: bool) -> Option<i64> {
        let (partition, offset) = (partition_of_mut(&mut self.topics, message)?, message.offset());
        partition.bytes -= partition.unfinished.remove(&offset)?;
        if has_run {
            partition.suspects.ran(offset);
        }
        let next = partition.offsets.finished(offset)?;
        partition.suspects.finished_before(next);
        Some(next)
    }

    /// Lets a message come again that was not handled, unless the consumer stops.
    pub(crate) fn comes_again(&mut self, message: &Arc<TopicMessage>) {
        if !self.is_stopping
            && let Some(partition) = partition_of_mut(&mut self.topics, message)
        {
            partition.waiting.push_front(message.clone());
        }
    }

    /// Holds a lane back, or lets it go on.
    pub(crate) fn hold(&mut self, lane: u64, is_held: bool) {
        let Self { topics, held_back, by_key, .. } = self;
        if !is_held {
            for message in held_back.remove(&lane).into_iter().flatten() {
                if let Some(partition) = partition_of_mut(topics, &message) {
                    partition.waiting.push_back(message);
                }
            }
            return;
        }
        let parked = held_back.entry(lane).or_default();
        if *by_key {
            for partition in topics.values_mut().flat_map(BTreeMap::values_mut) {
                let (of_lane, others) =
                    partition.waiting.drain(..).partition(|message| message.place.lane == lane);
                partition.waiting = others;
                parked.extend::<VecDeque<_>>(of_lane);
            }
        }
    }

    fn is_held(&self, partition: &Partition) -> bool {
        !self.by_key && self.held_back.contains_key(&partition.lane)
    }

    fn partitions(&self) -> impl Iterator<Item = &Partition> {
        self.topics.values().flat_map(BTreeMap::values)
    }

    fn partitions_mut(&mut self) -> impl Iterator<Item = &mut Partition> {
        self.topics.values_mut().flat_map(BTreeMap::values_mut)
    }

    /// Pauses the partitions that have to wait, and resumes the others.
    fn steer(&mut self, consumer: &impl Consumer<Group>) {
        let all: Vec<(Arc<str>, i32)> = self
            .topics
            .iter()
            .flat_map(|(topic, partitions)| {
                partitions.keys().map(|number| (topic.clone(), *number))
            })
            .collect();
        for (topic, number) in all {
            self.steer_one(&topic, number, consumer);
        }
    }

    fn steer_one(&mut self, topic: &str, number: i32, consumer: &impl Consumer<Group>) {
        let partition = self.topics.get_mut(topic).and_then(|all| all.get_mut(&number));
        let Some(partition) = partition else { return };
        let waits = self.is_stopping || partition.waits();
        if waits == partition.is_paused {
            return;
        }
        partition.is_paused = waits;
        let mut one = TopicPartitionList::with_capacity(1);
        one.add_partition(topic, number);
        let steered = if waits { consumer.pause(&one) } else { consumer.resume(&one) };
        note(steered, "a partition is not paused, or not resumed");
    }
}

impl Partition {
    /// Returns true if it has to wait for its own messages. One that waits goes on at half of the
    /// bounds: a pause drops what the client has fetched.
    fn waits(&self) -> bool {
        let bound = |most: usize| if self.is_paused { most / 2 } else { most };
        self.unfinished.len() >= bound(MOST_UNFINISHED)
            || self.bytes >= bound(MOST_BYTES)
            || self.offsets.len() >= bound(MOST_BEHIND)
    }
}

type Topics = HashMap<Arc<str>, BTreeMap<i32, Partition>>;

/// The partition in the assignment of the message, if it is the present one.
fn partition_of<'t>(topics: &'t Topics, message: &TopicMessage) -> Option<&'t Partition> {
    let partition = topics.get(message.topic())?.get(&message.partition())?;
    Some(partition).filter(|partition| partition.assignment == message.place.assignment)
}

fn partition_of_mut<'t>(
    topics: &'t mut Topics,
    message: &TopicMessage,
) -> Option<&'t mut Partition> {
    let partition = topics.get_mut(message.topic())?.get_mut(&message.partition())?;
    Some(partition).filter(|partition| partition.assignment == message.place.assignment)
}

/// A partition that went meanwhile has no offset and no pause here.
fn note<E: std::fmt::Display>(result: Result<(), E>, what: &str) {
    if let Err(error) = result {
        tracing::debug!(%error, "{what}");
    }
}

#[cfg(test)]
mod tests {
    use idempotency::inbox::Message as _;
    use rdkafka::Timestamp;

    use super::*;

    fn assigned(by_key: bool) -> (State, TopicPartitionList) {
        let group = Group::new(by_key, None, None);
        let mut partitions = TopicPartitionList::new();
        partitions.add_partition_range("orders", 0, 1);
        let mut state = group.state.into_inner().unwrap();
        state.assign(&partitions);
        (state, partitions)
    }

    fn message(partition: i32, offset: i64, key: Option<&str>) -> OwnedMessage {
        let (key, time) = (key.map(|key| key.as_bytes().to_vec()), Timestamp::CreateTime(1));
        OwnedMessage::new(None, key, "orders".to_owned(), time, partition, offset, None)
    }

    fn receive(state: &mut State, offsets: std::ops::Range<i64>) -> Vec<Arc<TopicMessage>> {
        offsets.for_each(|offset| state.admit(message(0, offset, None)));
        state.hand_out(usize::MAX)
    }

    #[test]
    fn an_answer_of_an_earlier_assignment_stores_nothing() {
        let (mut state, partitions) = assigned(false);
        let earlier = receive(&mut state, 3..7);
        assert_eq!(state.finished(&earlier[0], true), Some(4));
        state.revoke(&partitions);
        assert_eq!(state.finished(&earlier[1], true), None, "it is another member's");
        state.assign(&partitions);
        // What was stored is not committed: it begins earlier.
        let again = receive(&mut state, 2..7);
        for late in &earlier[1..] {
            assert_eq!(state.finished(late, true), None, "{late:?}");
        }
        assert_eq!(state.finished(&again[0], true), Some(3));
        assert_eq!(state.finished(&again[4], true), None);
        assert!(again[1..4].iter().all(|message| state.finished(message, false).is_some()));
    }

    #[test]
    fn an_assignment_without_a_revocation_begins_from_nothing() {
        let (mut state, partitions) = assigned(false);
        let earlier = receive(&mut state, 0..2);
        state.assign(&partitions);
        let again = receive(&mut state, 0..1);
        assert_eq!(state.finished(&earlier[0], true), None);
        assert_eq!(state.finished(&again[0], false), Some(1));
    }

    #[test]
    fn what_was_not_handed_out_is_dropped_with_its_partition() {
        let (mut state, partitions) = assigned(false);
        state.admit(message(0, 0, None));
        state.admit(message(1, 0, None));
        state.hold(state.topics["orders"][&0].lane, true);
        state.admit(message(0, 1, None));
        let mut first = TopicPartitionList::new();
        first.add_partition("orders", 0);
        state.revoke(&first);
        let left = state.hand_out(usize::MAX);
        assert_eq!(left.iter().map(|one| one.partition()).collect::<Vec<_>>(), [1]);
        state.revoke(&partitions);
        assert!(state.topics.is_empty());
    }

    #[test]
    fn an_offset_that_comes_again_in_one_assignment_is_of_another_message() {
        let (mut state, _) = assigned(false);
        let first = receive(&mut state, 3..6);
        assert_eq!(state.finished(&first[0], true), Some(4));
        // The topic was created again, and has other messages at the same offsets.
        let again = receive(&mut state, 0..6);
        assert_eq!(state.finished(&first[1], true), None);
        assert_eq!(state.finished(&first[2], true), None);
        assert!((0..4).all(|at| state.finished(&again[at], true).is_some()));
        assert_eq!(state.topics["orders"][&0].unfinished.len(), 2);
        assert_eq!(state.finished(&again[4], true), Some(5));
    }

    #[test]
    fn a_partition_waits_at_its_bounds_and_goes_on_at_half_of_them() {
        let (mut state, _) = assigned(true);
        let bound = i64::try_from(MOST_UNFINISHED).unwrap();
        let all = receive(&mut state, 0..bound - 1);
        let waits = |state: &State| state.topics["orders"][&0].waits();
        assert!(!waits(&state));
        let last = receive(&mut state, bound - 1..bound);
        assert!(waits(&state) && !state.topics["orders"][&1].waits());
        state.topics.get_mut("orders").unwrap().get_mut(&0).unwrap().is_paused = true;
        state.finished(&last[0], true);
        assert!(waits(&state));
        for message in &all[all.len() / 2..] {
            state.finished(message, true);
        }
        assert!(!waits(&state));
    }

    #[test]
    fn a_partition_waits_at_its_bytes() {
        let (mut state, _) = assigned(false);
        let large = |offset| {
            let (payload, time) = (Some(vec![0; MOST_BYTES / 4]), Timestamp::CreateTime(1));
            OwnedMessage::new(payload, None, "orders".to_owned(), time, 0, offset, None)
        };
        let waits = |state: &State| state.topics["orders"][&0].waits();
        (0..3).for_each(|offset| state.admit(large(offset)));
        assert!(!waits(&state));
        state.admit(large(3));
        assert!(waits(&state));
        let first = state.hand_out(1).remove(0);
        state.finished(&first, true);
        assert!(!waits(&state));
    }

    #[test]
    fn partitions_take_turns_and_those_that_are_held_have_none() {
        let (mut state, _) = assigned(false);
        for (partition, count) in [(0, 5), (1, 2)] {
            (0..count).for_each(|offset| state.admit(message(partition, offset, None)));
        }
        let hand_out = |state: &mut State, room| -> Vec<_> {
            state.hand_out(room).iter().map(|one| (one.partition(), one.offset())).collect()
        };
        assert_eq!(hand_out(&mut state, 1), [(0, 0)]);
        assert_eq!(hand_out(&mut state, 2), [(1, 0), (0, 1)]);
        let lane = state.topics["orders"][&0].lane;
        state.hold(lane, true);
        assert_eq!(hand_out(&mut state, 9), [(1, 1)]);
        assert!(state.is_hungry(1), "the other has nothing");
        state.admit(message(1, 2, None));
        assert!(!state.is_hungry(1));
        state.hold(lane, false);
        assert_eq!(hand_out(&mut state, 9), [(0, 2), (1, 2), (0, 3), (0, 4)]);
    }

    #[test]
    fn a_key_that_is_held_is_passed_over_and_keeps_its_order() {
        let (mut state, _) = assigned(true);
        for (offset, key) in [(0, "a"), (1, "b"), (2, "a")] {
            state.admit(message(0, offset, Some(key)));
        }
        let hand_out = |state: &mut State| -> Vec<_> {
            state.hand_out(9).iter().map(|one| one.offset()).collect()
        };
        let lane = state.topics["orders"][&0].waiting[0].lane().unwrap();
        state.hold(lane, true);
        state.admit(message(0, 3, Some("a")));
        assert_eq!(hand_out(&mut state), [1]);
        assert!(state.is_hungry(1), "nothing waits but for the key");
        state.hold(lane, false);
        assert_eq!(hand_out(&mut state), [0, 2, 3]);
    }

    #[test]
    fn lanes_are_partitions_or_keys_and_none_for_those_without() {
        for by_key in [false, true] {
            let (mut state, _) = assigned(by_key);
            for (partition, offset, key) in [
                (0, 0, Some("a")),
                (0, 1, Some("a")),
                (0, 2, Some("b")),
                (1, 0, Some("a")),
                (0, 3, None),
                (0, 4, None),
            ] {
                state.admit(message(partition, offset, key));
            }
            let waiting = |partition: i32| &state.topics["orders"][&partition].waiting;
            let lanes: Vec<_> = waiting(0).iter().map(|one| one.lane().unwrap()).collect();
            assert_eq!(lanes[0], lanes[1]);
            assert_ne!(Some(lanes[0]), waiting(1)[0].lane(), "another partition");
            assert_eq!(lanes[0] == lanes[2], !by_key);
            assert_eq!(lanes[3] == lanes[4], !by_key);
        }
    }
}
