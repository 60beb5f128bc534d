//! This member of the group: the partitions that it has, and its messages.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use idempotency::inbox::Offsets;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance};
use rdkafka::message::{BorrowedMessage, OwnedMessage};
use rdkafka::{ClientContext, Message as _, Offset, TopicPartitionList};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::message::{KeyOf, Place, TopicMessage, lane_of_key, lane_of_partition};
use crate::suspects::Suspects;

/// So many unfinished messages of a partition are in hand at most.
const MOST_UNFINISHED: usize = 1_000;
/// So many are received behind one that is not finished.
const MOST_BEHIND: usize = 10_000;
/// So many wait here for keys whose first message waits for its next try, for each partition.
const MOST_PARKED: usize = 100;
/// So many wait here while the consumer has no room.
const MOST_WAITING: usize = 100;

/// What the rebalances of the client and the calls of the consumer share.
pub(crate) struct Group {
    state: Mutex<State>,
    /// Messages wait that did not before.
    pub(crate) changed: Notify,
}

pub(crate) struct State {
    key: Option<KeyOf>,
    by_key: bool,
    topics: HashMap<Arc<str>, BTreeMap<i32, Partition>>,
    /// The number of assignments so far.
    assignments: u64,
    /// Messages that the consumer gets next.
    waiting: VecDeque<Arc<TopicMessage>>,
    /// The lanes that are held back, and what has come for them.
    held_back: HashMap<u64, VecDeque<Arc<TopicMessage>>>,
    /// Messages that come again at a time, and a number for those of the same time.
    resting: BTreeMap<(Instant, u64), Arc<TopicMessage>>,
    rests: u64,
    has_room: bool,
    /// How many messages the consumer has.
    in_hand: usize,
}

/// An assignment of a partition.
struct Partition {
    assignment: u64,
    lane: u64,
    offsets: Offsets,
    unfinished: BTreeSet<i64>,
    /// Those that are dead letters which have not arrived.
    stuck: BTreeSet<i64>,
    /// How many wait in lanes that are held back.
    parked: usize,
    suspects: Suspects,
    is_paused: bool,
}

impl Group {
    pub(crate) fn new(by_key: bool, key: Option<KeyOf>) -> Self {
        let state = State {
            key,
            by_key,
            topics: HashMap::new(),
            assignments: 0,
            waiting: VecDeque::new(),
            held_back: HashMap::new(),
            resting: BTreeMap::new(),
            rests: 0,
            has_room: true,
            in_hand: 0,
        };
        Self { state: Mutex::new(state), changed: Notify::new() }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many messages wait for the consumer.
    pub(crate) fn waits(&self) -> usize {
        self.lock().waiting.len()
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
        }
    }
}

impl State {
    fn assign(&mut self, partitions: &TopicPartitionList) {
        let begun_ahead = if self.by_key { MOST_UNFINISHED } else { 1 };
        for element in partitions.elements() {
            self.assignments += 1;
            let (topic, partition) = (element.topic(), element.partition());
            let assigned = Partition {
                assignment: self.assignments,
                lane: lane_of_partition(topic, partition),
                offsets: Offsets::new(),
                unfinished: BTreeSet::new(),
                stuck: BTreeSet::new(),
                parked: 0,
                suspects: Suspects::new(begun_ahead),
                is_paused: false,
            };
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
        let Self { topics, waiting, held_back, resting, .. } = self;
        let is_ours = |message: &Arc<TopicMessage>| partition_of(topics, message).is_some();
        waiting.retain(is_ours);
        for parked in held_back.values_mut() {
            parked.retain(is_ours);
        }
        resting.retain(|_, message| partition_of(topics, message).is_some());
    }

    /// Takes a message in that the client has returned.
    pub(crate) fn take(&mut self, message: &BorrowedMessage<'_>, consumer: &impl Consumer<Group>) {
        self.admit(message.detach());
        self.steer_one(message.topic(), message.partition(), consumer);
    }

    fn admit(&mut self, message: OwnedMessage) {
        let of_topic = self.topics.get_mut(message.topic());
        let assigned = of_topic.and_then(|all| all.get_mut(&message.partition()));
        // It is another member's, which receives it.
        let Some(partition) = assigned else { return };
        let lane = if self.by_key { lane_of_key(&message) } else { partition.lane };
        let assignment = partition.assignment;
        let place = Place { assignment, lane, has_proof: partition.suspects.has_proof().clone() };
        partition.offsets.received(message.offset());
        partition.unfinished.insert(message.offset());
        let message = Arc::new(TopicMessage::new(message, place, self.key.clone()));
        if let Some(parked) = self.held_back.get_mut(&lane) {
            partition.parked += 1;
            parked.push_back(message);
        } else {
            self.waiting.push_back(message);
        }
    }

    /// Notes whether the consumer has room. While it has none, some messages may wait here: a pause
    /// drops what the client has fetched.
    pub(crate) fn has_room(&mut self, has_room: bool, consumer: &impl Consumer<Group>) {
        let goes_on = has_room || self.waiting.len() < MOST_WAITING;
        if std::mem::replace(&mut self.has_room, goes_on) != goes_on {
            self.steer(consumer);
        }
    }

    /// Lets no partition go on.
    pub(crate) fn stop(&mut self, consumer: &impl Consumer<Group>) {
        self.has_room = false;
        self.waiting.clear();
        self.resting.clear();
        self.held_back.clear();
        self.steer(consumer);
    }

    /// Hands messages out, at most so many.
    pub(crate) fn hand_out(&mut self, room: usize) -> Vec<Arc<TopicMessage>> {
        while let Some(first) = self.resting.first_entry()
            && first.key().0 <= Instant::now()
        {
            self.waiting.push_back(first.remove());
        }
        let messages: Vec<_> = self.waiting.drain(..room.min(self.waiting.len())).collect();
        self.in_hand += messages.len();
        messages
    }

    /// When a message comes again.
    pub(crate) fn next_rest(&self) -> Option<Instant> {
        self.resting.first_key_value().map(|((at, _), _)| *at)
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
        partition.stuck.remove(&offset);
        if !partition.unfinished.remove(&offset) {
            return None;
        }
        if has_run {
            partition.suspects.ran(offset);
        }
        let next = partition.offsets.finished(offset)?;
        partition.suspects.finished_before(next);
        Some(next)
    }

    /// Lets a message come again after `pause`. `is_stuck`: its partition stops until it is finished.
    pub(crate) fn rest(
        &mut self,
        message: &Arc<TopicMessage>,
        pause: Duration,
        is_stuck: bool,
        consumer: &impl Consumer<Group>,
    ) {
        let Some(partition) = partition_of_mut(&mut self.topics, message) else { return };
        if is_stuck {
            partition.stuck.insert(message.offset());
        }
        self.rests += 1;
        self.resting.insert((Instant::now() + pause, self.rests), message.clone());
        self.steer_one(message.topic(), message.partition(), consumer);
    }

    /// Holds a lane back, or lets it go on.
    pub(crate) fn hold(&mut self, lane: u64, is_held: bool, consumer: &impl Consumer<Group>) {
        if is_held {
            let parked = self.held_back.entry(lane).or_default();
            let (of_lane, others) =
                self.waiting.drain(..).partition(|message| message.place.lane == lane);
            self.waiting = others;
            parked.extend::<VecDeque<_>>(of_lane);
        } else {
            self.waiting.extend(self.held_back.remove(&lane).into_iter().flatten());
        }
        self.count_parked();
        self.steer(consumer);
    }

    fn count_parked(&mut self) {
        let Self { topics, held_back, .. } = self;
        topics.values_mut().flat_map(BTreeMap::values_mut).for_each(|one| one.parked = 0);
        for message in held_back.values().flatten() {
            if let Some(partition) = partition_of_mut(topics, message) {
                partition.parked += 1;
            }
        }
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
        let lane_waits = !self.by_key && self.held_back.contains_key(&partition.lane);
        let waits = !self.has_room || lane_waits || partition.waits();
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
        !self.stuck.is_empty()
            || self.parked > bound(MOST_PARKED)
            || self.unfinished.len() >= bound(MOST_UNFINISHED)
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
        let group = Group::new(by_key, None);
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
        let lane = state.waiting[0].lane().unwrap();
        state.held_back.insert(lane, VecDeque::new());
        state.admit(message(0, 1, None));
        let mut first = TopicPartitionList::new();
        first.add_partition("orders", 0);
        state.revoke(&first);
        let left = state.hand_out(usize::MAX);
        assert_eq!(left.iter().map(|one| one.partition()).collect::<Vec<_>>(), [1]);
        assert!(state.held_back[&lane].is_empty());
        state.revoke(&partitions);
        assert!(state.topics.values().all(BTreeMap::is_empty));
    }

    #[test]
    fn a_message_that_is_delivered_again_in_one_assignment_is_unfinished_once() {
        let (mut state, _) = assigned(false);
        let first = receive(&mut state, 0..2);
        let again = receive(&mut state, 0..1);
        assert_eq!(state.finished(&first[0], true), Some(1));
        assert_eq!(state.finished(&again[0], false), None);
        assert_eq!(state.finished(&first[1], true), Some(2));
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
            let lanes: Vec<_> = state.waiting.iter().map(|one| one.lane().unwrap()).collect();
            assert_eq!(lanes[0], lanes[1]);
            assert_ne!(lanes[0], lanes[3], "another partition");
            assert_eq!(lanes[0] == lanes[2], !by_key);
            assert_eq!(lanes[4] == lanes[5], !by_key);
        }
    }
}
