//! A broker that is not real: it delivers again what was not settled, loses requests, and ends
//! connections.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use idempotency::clock::Clock as _;
use idempotency::inbox::{Delivery, Disposition, Message, Offsets, Order, Settled, Source};
use idempotency::key::KeyHash;
use idempotency_test_support::history::Rule;
use idempotency_test_support::random::Random;
use tokio::sync::Notify;

use super::mutant::Mutant;
use super::plan::{Kind, Plan};
use crate::life::Life;
use crate::log::Entry;
use crate::plan::millis_below;
use crate::world::World;

/// How long a request to the broker takes at most.
const LATENCY: Duration = Duration::from_millis(200);
/// How often a consumer looks for messages whose time has come.
const LOOK: Duration = Duration::from_secs(1);

pub struct Broker {
    pub world: Arc<World>,
    pub plan: Plan,
    pub mutant: Option<Mutant>,
    state: Mutex<State>,
    changed: Notify,
    /// The record of each message.
    records: BTreeMap<u64, KeyHash>,
}

struct State {
    messages: Vec<Held>,
    connections: u64,
    /// The process of each connection.
    processes: BTreeMap<u64, String>,
    /// Those of a log.
    partitions: BTreeMap<u64, Partition>,
    random: Random,
}

struct Held {
    lane: u64,
    place: Place,
    /// It was answered with an end at least once.
    has_ended: bool,
    is_copied: bool,
    deliveries: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Queued { from: Duration },
    Out { connection: u64, until: Duration },
    Acked,
}

#[derive(Default)]
struct Partition {
    /// The connection of its consumer; zero if it has none.
    connection: u64,
    /// The offset at which the next consumer begins.
    stored: i64,
    /// The offset that is delivered next.
    next: i64,
}

/// A message, as one connection has it.
pub struct Mail {
    pub id: u64,
    lane: Option<u64>,
    connection: u64,
}

impl Message for Mail {
    fn delivery(&self) -> Delivery<'_> {
        Delivery::new(self.id).payload(b"the same each time")
    }

    fn lane(&self) -> Option<u64> {
        self.lane
    }

    fn label(&self) -> &'static str {
        "simulated"
    }
}

impl Broker {
    pub fn new(
        world: Arc<World>,
        plan: Plan,
        mutant: Option<Mutant>,
        mut random: Random,
        records: BTreeMap<u64, KeyHash>,
    ) -> Self {
        let queued = Place::Queued { from: Duration::ZERO };
        let messages = (0..plan.messages).map(|_| Held {
            lane: random.below(plan.lanes),
            place: queued,
            has_ended: false,
            is_copied: false,
            deliveries: 0,
        });
        let messages = messages.collect();
        let partitions = (0..plan.lanes).map(|lane| (lane, Partition::default())).collect();
        let processes = BTreeMap::new();
        let state = State { messages, connections: 0, processes, partitions, random };
        Self { world, plan, mutant, state: Mutex::new(state), changed: Notify::new(), records }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection of a process. Of a log, other consumers lose some of their partitions.
    pub fn connect<const ORDER: u8>(self: &Arc<Self>, life: &Arc<Life>) -> Connection<ORDER> {
        let mut state = self.state();
        state.connections += 1;
        let number = state.connections;
        state.processes.insert(number, life.name.clone());
        // A rebalance: the newcomer gets its share.
        let State { partitions, random, .. } = &mut *state;
        for partition in partitions.values_mut() {
            if random.chance(50) {
                partition.connection = 0;
            }
        }
        drop(state);
        self.changed.notify_waiters();
        Connection {
            broker: self.clone(),
            life: life.clone(),
            number: Mutex::new(number),
            offsets: Mutex::default(),
            held: Mutex::default(),
        }
    }

    /// Ends a connection: what was delivered on it comes again.
    fn cut(state: &mut State, number: u64, now: Duration) {
        for held in &mut state.messages {
            if matches!(held.place, Place::Out { connection, .. } if connection == number) {
                held.place = Place::Queued { from: now };
            }
        }
        for partition in state.partitions.values_mut() {
            if partition.connection == number {
                partition.connection = 0;
            }
        }
    }

    /// The time until a message is due, or a little more.
    fn next_due(&self) -> Duration {
        let now = self.world.now();
        let due = |held: &Held| match held.place {
            Place::Queued { from } if from > now => Some(from),
            Place::Out { until, .. } => Some(until),
            _ => None,
        };
        let next = self.state().messages.iter().filter_map(due).min();
        next.map_or(LOOK, |next| next.saturating_sub(now).clamp(Duration::from_millis(1), LOOK))
    }

    /// A connection has ended.
    pub fn loses(&self, number: u64) {
        Self::cut(&mut self.state(), number, self.world.now());
        self.changed.notify_waiters();
    }

    /// A process is gone, with its connections.
    pub fn loses_process(&self, life: &Life) {
        let mut state = self.state();
        let of_process = state.processes.iter().filter(|(_, name)| **name == life.name);
        let lost: Vec<_> = of_process.map(|(number, _)| *number).collect();
        for number in lost {
            Self::cut(&mut state, number, self.world.now());
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Notes that something happened which runs are about.
    pub fn note(&self, process: &Life, what: &'static str) {
        let (at, process) = (self.world.now(), process.name.clone());
        self.world.log.write(Entry::InTransaction { at, process, what });
    }

    /// Whether each message has come to an end.
    pub fn is_done(&self) -> bool {
        self.state().messages.iter().all(|held| match self.plan.kind {
            Kind::Log => held.has_ended,
            _ => held.place == Place::Acked,
        })
    }

    pub async fn done(&self) {
        while !self.is_done() {
            tokio::time::sleep(LOOK).await;
        }
    }

    pub fn lane(&self, id: u64) -> u64 {
        self.state().messages[index(id)].lane
    }

    /// Whether the message is among the dead letters.
    pub fn is_copied(&self, id: u64) -> bool {
        self.state().messages[index(id)].is_copied
    }

    pub fn ids(&self) -> std::ops::Range<u64> {
        0..self.plan.messages
    }

    fn broken(&self, rule: Rule, id: u64, seen: &str) {
        self.world.log.broken(self.world.now(), rule, &format!("m{id}"), 0, seen.to_owned());
    }

    /// Notes that the broker will not deliver a message again, and looks whether it may be so.
    fn ends(&self, held: &mut Held, id: u64) {
        held.has_ended = true;
        let record = self.world.server.record(self.records[&id]);
        let is_stored = record.is_some_and(|record| record.state.is_answer());
        if !is_stored && !held.is_copied {
            self.broken(Rule::NoMessageLost, id, "is acked without a result or a dead letter");
        }
    }

    /// A request to the broker: returns whether it arrives, and whether it is answered.
    async fn request(&self, life: &Life) -> (bool, bool) {
        let (latency, arrives, answered) = {
            let mut state = self.state();
            let lost = if self.world.is_calm() { 0 } else { self.plan.lost };
            let random = &mut state.random;
            (millis_below(random, LATENCY), !random.chance(lost), !random.chance(lost))
        };
        tokio::time::sleep(latency).await;
        life.goes_on().await;
        (arrives, arrives && answered)
    }
}

fn index(id: u64) -> usize {
    usize::try_from(id).expect("there are few messages")
}

/// A request was lost, or its answer.
#[derive(Debug)]
pub struct Lost;

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("lost")
    }
}

impl std::error::Error for Lost {}

/// A connection of one consumer. `ORDER`: 0 none, 1 that of a log, 2 that of groups.
pub struct Connection<const ORDER: u8> {
    broker: Arc<Broker>,
    life: Arc<Life>,
    number: Mutex<u64>,
    offsets: Mutex<BTreeMap<u64, Offsets>>,
    /// The lanes that the consumer holds back.
    held: Mutex<BTreeSet<u64>>,
}

impl<const ORDER: u8> Connection<ORDER> {
    pub fn number(&self) -> u64 {
        *self.number.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn offsets(&self) -> MutexGuard<'_, BTreeMap<u64, Offsets>> {
        self.offsets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, room: usize) -> Vec<Arc<Mail>> {
        let (broker, number, now) = (&self.broker, self.number(), self.broker.world.now());
        let mut state = broker.state();
        let mail = |id, lane| Arc::new(Mail { id, lane, connection: number });
        if broker.plan.kind == Kind::Log {
            return self.take_of_log(&mut state, room, mail);
        }
        for held in &mut state.messages {
            if matches!(held.place, Place::Out { until, .. } if until <= now) {
                held.place = Place::Queued { from: now };
            }
        }
        let is_grouped = broker.plan.kind == Kind::Groups;
        let mut taken = Vec::new();
        let mut blocked = BTreeSet::new();
        for id in broker.ids() {
            let held = &mut state.messages[index(id)];
            match held.place {
                Place::Queued { from }
                    if from <= now && taken.len() < room && !blocked.contains(&held.lane) =>
                {
                    held.place =
                        Place::Out { connection: number, until: now + broker.plan.patience };
                    if broker.mutant == Some(Mutant::AckedBeforeCommit) {
                        held.place = Place::Acked;
                        broker.ends(held, id);
                    }
                    let lane = is_grouped && broker.mutant != Some(Mutant::LanesIgnored);
                    taken.push(mail(id, lane.then_some(held.lane)));
                }
                Place::Acked => {}
                // Out with another request, or not due: those behind it in its group wait.
                _ if is_grouped => {
                    blocked.insert(held.lane);
                }
                _ => {}
            }
        }
        taken
    }

    fn take_of_log(
        &self,
        state: &mut State,
        room: usize,
        mail: impl Fn(u64, Option<u64>) -> Arc<Mail>,
    ) -> Vec<Arc<Mail>> {
        let number = self.number();
        let mut taken = Vec::new();
        let State { messages, partitions, .. } = state;
        for (lane, partition) in partitions {
            if partition.connection == 0 {
                partition.connection = number;
                partition.next = partition.stored;
                self.offsets().remove(lane);
            }
            if partition.connection != number {
                self.offsets().remove(lane);
                continue;
            }
            if self.held.lock().unwrap_or_else(PoisonError::into_inner).contains(lane) {
                continue;
            }
            for id in self.broker.ids().skip(index(u64::try_from(partition.next).unwrap_or(0))) {
                if taken.len() == room {
                    break;
                }
                partition.next = i64::try_from(id).expect("there are few messages") + 1;
                if messages[index(id)].lane == *lane {
                    let mut offsets = self.offsets();
                    offsets.entry(*lane).or_default().received(partition.next - 1);
                    let is_alone = self.broker.mutant == Some(Mutant::LanesIgnored);
                    taken.push(mail(id, (!is_alone).then_some(*lane)));
                }
            }
        }
        taken
    }

    /// Applies one disposition that has arrived.
    fn apply(&self, mail: &Mail, disposition: Disposition, now: Duration) {
        let broker = &self.broker;
        let mut state = broker.state();
        if broker.plan.kind == Kind::Log {
            if matches!(disposition, Disposition::Ack | Disposition::DeadLetter(_)) {
                self.store_offset(&mut state, mail);
            }
            return;
        }
        let held = &mut state.messages[index(mail.id)];
        let is_out =
            matches!(held.place, Place::Out { connection, .. } if connection == mail.connection);
        match disposition {
            // It may end a delivery on another connection.
            Disposition::Ack | Disposition::DeadLetter(_) => {
                held.place = Place::Acked;
                broker.ends(held, mail.id);
            }
            Disposition::Postpone(_) if broker.mutant == Some(Mutant::AckedWhileInProgress) => {
                held.place = Place::Acked;
                broker.ends(held, mail.id);
            }
            Disposition::Retry(after) | Disposition::Postpone(after) if is_out => {
                held.place = Place::Queued { from: now + after };
            }
            _ => {}
        }
    }

    fn store_offset(&self, state: &mut State, mail: &Mail) {
        let State { messages, partitions, .. } = state;
        let lane = messages[index(mail.id)].lane;
        let offset = i64::try_from(mail.id).expect("there are few messages");
        self.broker.ends(&mut messages[index(mail.id)], mail.id);
        let mut next = self.offsets().get_mut(&lane).and_then(|offsets| offsets.finished(offset));
        if self.broker.mutant == Some(Mutant::OffsetBeyondUnfinished) {
            next = Some(offset + 1);
        }
        let partition = partitions.entry(lane).or_default();
        if let Some(next) = next.filter(|_| partition.connection == mail.connection) {
            // What is before it is never delivered again.
            for id in self.broker.ids().take(index(u64::try_from(next).unwrap_or(0))) {
                let held = &messages[index(id)];
                if held.lane == lane && !held.has_ended {
                    self.broker.broken(
                        Rule::NoMessageLost,
                        id,
                        "is before the offset that was stored",
                    );
                }
            }
            partition.stored = partition.stored.max(next);
        }
    }
}

impl<const ORDER: u8> Source for Connection<ORDER> {
    type Message = Mail;
    type Error = Lost;
    const ORDER: Order = match ORDER {
        0 => Order::Free,
        1 => Order::HoldLane,
        _ => Order::ReturnLane,
    };

    async fn receive(&self, room: usize) -> Result<Vec<Arc<Mail>>, Lost> {
        if room == 0 {
            pending::<()>().await;
        }
        loop {
            self.life.goes_on().await;
            let taken = self.take(room);
            if !taken.is_empty() {
                self.count(&taken);
                return Ok(taken);
            }
            tokio::select! {
                biased;
                () = self.broker.changed.notified() => {}
                () = self.broker.world.clock.sleep(self.broker.next_due()) => {}
            }
        }
    }

    async fn settle(&self, settled: Vec<Settled<Mail>>) -> Result<(), Lost> {
        let mut result = Ok(());
        for Settled { message: mail, disposition, .. } in settled {
            if let Disposition::DeadLetter(reason) = disposition {
                self.broker.note(&self.life, reason.as_str());
                let copy = || self.broker.state().messages[index(mail.id)].is_copied = true;
                if self.broker.mutant == Some(Mutant::AckedBeforeDeadLetter) {
                    self.apply(&mail, disposition, self.broker.world.now());
                }
                let (arrives, is_answered) = self.broker.request(&self.life).await;
                if arrives {
                    copy();
                }
                if !is_answered {
                    result = Err(Lost);
                    // Not confirmed: the original comes again, of a queue when its time is over.
                    self.comes_again(&mail);
                    continue;
                }
            }
            let (arrives, is_answered) = self.broker.request(&self.life).await;
            if arrives {
                self.apply(&mail, disposition, self.broker.world.now());
            }
            if !is_answered {
                result = Err(Lost);
                self.comes_again(&mail);
            }
        }
        result
    }

    fn patience(&self) -> Option<Duration> {
        Some(self.broker.plan.patience)
    }

    async fn keep(&self, held: Vec<Arc<Mail>>) -> Result<(), Lost> {
        let (arrives, is_answered) = self.broker.request(&self.life).await;
        if arrives {
            let until = self.broker.world.now() + self.broker.plan.patience;
            let mut state = self.broker.state();
            for mail in held {
                let place = &mut state.messages[index(mail.id)].place;
                if matches!(place, Place::Out { connection, .. } if *connection == mail.connection)
                {
                    *place = Place::Out { connection: mail.connection, until };
                }
            }
        }
        if is_answered { Ok(()) } else { Err(Lost) }
    }

    fn hold_lane(&self, lane: u64, is_held: bool) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.remove(&lane);
        held.extend(is_held.then_some(lane));
        self.broker.changed.notify_waiters();
    }

    async fn stop(&self) -> Result<(), Lost> {
        let (_, is_answered) = self.broker.request(&self.life).await;
        if is_answered { Ok(()) } else { Err(Lost) }
    }
}

impl<const ORDER: u8> Connection<ORDER> {
    fn count(&self, taken: &[Arc<Mail>]) {
        for mail in taken {
            let deliveries = {
                let deliveries = &mut self.broker.state().messages[index(mail.id)].deliveries;
                *deliveries += 1;
                *deliveries
            };
            if deliveries == 2 {
                self.broker.note(&self.life, "a second delivery");
            }
        }
    }

    /// Of a log: reads its partition once more from where it was stored, as after a lost
    /// connection.
    fn comes_again(&self, mail: &Mail) {
        if self.broker.plan.kind != Kind::Log {
            return;
        }
        let mut state = self.broker.state();
        let lane = state.messages[index(mail.id)].lane;
        if let Some(partition) = state.partitions.get_mut(&lane)
            && partition.connection == mail.connection
        {
            partition.next = partition.stored;
        }
    }

    /// Connects again: what was delivered before comes again.
    pub fn reconnect(&self) {
        let mut state = self.broker.state();
        let before = self.number();
        Broker::cut(&mut state, before, self.broker.world.now());
        state.connections += 1;
        let number = state.connections;
        state.processes.insert(number, self.life.name.clone());
        *self.number.lock().unwrap_or_else(PoisonError::into_inner) = number;
    }
}
