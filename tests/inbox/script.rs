//! A broker in memory: a test says what it delivers, and sees what it is answered.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use idempotency::inbox::{Delivery, Disposition, Message, Order, Settled, Source};
use idempotency::key::KeyHash;
use tokio::sync::Notify;

/// A message, and its lane.
#[derive(Debug)]
pub(crate) struct Mail {
    pub id: u64,
    pub lane: Option<u64>,
    /// The code that panics.
    pub panics_in: Option<Hook>,
}

/// Code of a message.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Hook {
    Delivery,
    Lane,
    Label,
}

impl Mail {
    fn may_panic(&self, hook: Hook) {
        assert!(self.panics_in != Some(hook), "on purpose");
    }
}

impl Message for Mail {
    fn delivery(&self) -> Delivery<'_> {
        self.may_panic(Hook::Delivery);
        Delivery::new(self.id)
    }

    fn lane(&self) -> Option<u64> {
        self.may_panic(Hook::Lane);
        self.lane
    }

    fn label(&self) -> &'static str {
        self.may_panic(Hook::Label);
        "mail"
    }
}

/// How long a condition may take to come true, in real time.
const DEADLINE: Duration = Duration::from_secs(60);

/// The answer about a message that was not tried.
pub(crate) const BACK: Disposition = Disposition::Postpone(Duration::ZERO);

/// The connection to the broker has ended.
#[derive(Debug)]
pub(crate) struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("closed")
    }
}

impl std::error::Error for Closed {}

#[derive(Default)]
struct State {
    queue: Vec<Arc<Mail>>,
    settled: Vec<(u64, Disposition)>,
    /// The records and attempts of those that were settled.
    tried: Vec<(u64, Option<KeyHash>, u32)>,
    held_lanes: Vec<u64>,
    /// Those that another consumer has now.
    gone: Vec<u64>,
    is_stopped: bool,
    /// The most that a request had room for.
    largest_room: usize,
    /// What the last request had room for.
    room: usize,
    kept: Vec<Vec<u64>>,
    is_closed: bool,
    refused_reports: usize,
    reports: Reports,
    /// What it makes of those with a dead letter.
    dead_letters: Reports,
}

/// What the broker makes of a report.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Reports {
    #[default]
    Taken,
    Refused,
    /// They wait.
    Delayed,
}

/// A broker that promises the order `ORDER`: 0 none, 1 the lane is held, 2 the lane goes back.
#[derive(Clone)]
pub(crate) struct Broker<const ORDER: u8 = 0> {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
    patience: Option<Duration>,
}

impl<const ORDER: u8> Broker<ORDER> {
    pub fn new() -> Self {
        Self { state: Arc::default(), changed: Arc::default(), patience: None }
    }

    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience: Some(patience), ..self }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_waiters();
    }

    pub fn deliver(&self, ids: impl IntoIterator<Item = u64>) {
        let mails = ids.into_iter().map(|id| Arc::new(Mail { id, lane: None, panics_in: None }));
        self.change(|state| state.queue.extend(mails));
    }

    pub fn deliver_in_lane(&self, lane: u64, ids: impl IntoIterator<Item = u64>) {
        let mail = |id| Arc::new(Mail { id, lane: Some(lane), panics_in: None });
        let mails = ids.into_iter().map(mail);
        self.change(|state| state.queue.extend(mails));
    }

    pub fn deliver_one_that_panics(&self, id: u64, hook: Hook) {
        let mail = Arc::new(Mail { id, lane: None, panics_in: Some(hook) });
        self.change(|state| state.queue.push(mail));
    }

    pub fn tried(&self) -> Vec<(u64, Option<KeyHash>, u32)> {
        self.state().tried.clone()
    }

    pub fn refused_reports(&self) -> usize {
        self.state().refused_reports
    }

    pub fn held_lanes(&self) -> Vec<u64> {
        self.state().held_lanes.clone()
    }

    /// Delivers these to another consumer.
    pub fn give_away(&self, ids: impl IntoIterator<Item = u64>) {
        self.change(|state| state.gone.extend(ids));
    }

    pub fn is_stopped(&self) -> bool {
        self.state().is_stopped
    }

    pub fn close(&self) {
        self.change(|state| state.is_closed = true);
    }

    pub fn refuse_dispositions(&self, refuses: bool) {
        let reports = if refuses { Reports::Refused } else { Reports::Taken };
        self.change(|state| state.reports = reports);
    }

    /// Lets reports wait, or go on.
    pub fn delay_reports(&self, delays: bool) {
        let reports = if delays { Reports::Delayed } else { Reports::Taken };
        self.change(|state| state.reports = reports);
    }

    /// Lets reports with a dead letter wait, or refuses them, or takes them.
    pub fn delay_dead_letters(&self, delays: bool) {
        let reports = if delays { Reports::Delayed } else { Reports::Taken };
        self.change(|state| state.dead_letters = reports);
    }

    pub fn refuse_dead_letters(&self, refuses: bool) {
        let reports = if refuses { Reports::Refused } else { Reports::Taken };
        self.change(|state| state.dead_letters = reports);
    }

    /// What the broker was answered, in order.
    pub fn settled(&self) -> Vec<(u64, Disposition)> {
        self.state().settled.clone()
    }

    pub fn acked(&self) -> usize {
        self.settled().iter().filter(|(_, disposition)| *disposition == Disposition::Ack).count()
    }

    pub fn kept(&self) -> Vec<Vec<u64>> {
        self.state().kept.clone()
    }

    pub fn largest_room(&self) -> usize {
        self.state().largest_room
    }

    pub fn room(&self) -> usize {
        self.state().room
    }

    pub fn queued(&self) -> usize {
        self.state().queue.len()
    }

    /// Resolves when `condition` is true of the broker. Panics if it does not come true.
    pub async fn is(&self, condition: impl Fn(&Self) -> bool) {
        let comes_true = async {
            loop {
                let changed = self.changed.notified();
                if condition(self) {
                    return;
                }
                changed.await;
            }
        };
        let is_in_time = tokio::time::timeout(DEADLINE, comes_true).await.is_ok();
        assert!(is_in_time, "the broker does not come to be as asked: {:?}", self.settled());
    }

    /// Resolves when so many messages are settled.
    pub async fn has_settled(&self, count: usize) {
        self.is(|broker| broker.state().settled.len() >= count).await;
    }
}

impl<const ORDER: u8> Source for Broker<ORDER> {
    type Message = Mail;
    type Error = Closed;
    const ORDER: Order = match ORDER {
        0 => Order::Free,
        1 => Order::HoldLane,
        _ => Order::ReturnLane,
    };

    async fn receive(&self, room: usize) -> Result<Vec<Arc<Mail>>, Closed> {
        self.change(|state| {
            state.room = room;
            state.largest_room = state.largest_room.max(room);
        });
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.state();
                if state.is_closed {
                    return Err(Closed);
                }
                let State { queue, held_lanes, .. } = &mut *state;
                let is_held =
                    |mail: &Mail| mail.lane.is_some_and(|lane| held_lanes.contains(&lane));
                let received: Vec<_> =
                    queue.extract_if(.., |mail| !is_held(mail)).take(room).collect();
                if !received.is_empty() {
                    return Ok(received);
                }
            }
            changed.await;
        }
    }

    async fn settle(&self, settled: Vec<Settled<Mail>>) -> Result<(), Closed> {
        assert!(!settled.is_empty());
        let is_dead =
            settled.iter().any(|one| matches!(one.disposition, Disposition::DeadLetter(_)));
        let made = |state: &State| {
            let Some(reports) = is_dead.then_some(state.dead_letters) else { return state.reports };
            if reports == Reports::Taken { state.reports } else { reports }
        };
        self.is(|broker| made(&broker.state()) != Reports::Delayed).await;
        if made(&self.state()) == Reports::Refused {
            self.change(|state| state.refused_reports += 1);
            return Err(Closed);
        }
        self.change(|state| {
            for Settled { message, disposition, record, attempt, .. } in settled {
                state.settled.push((message.id, disposition));
                state.tried.push((message.id, record, attempt));
            }
        });
        Ok(())
    }

    fn patience(&self) -> Option<Duration> {
        self.patience
    }

    async fn keep(&self, held: Vec<Arc<Mail>>) -> Result<(), Closed> {
        let mut held: Vec<u64> = held.iter().map(|mail| mail.id).collect();
        held.sort_unstable();
        self.change(|state| state.kept.push(held));
        Ok(())
    }

    fn hold_lane(&self, lane: u64, is_held: bool) {
        self.change(|state| {
            state.held_lanes.retain(|held| *held != lane);
            state.held_lanes.extend(is_held.then_some(lane));
        });
    }

    fn is_gone(&self, mail: &Mail) -> bool {
        self.state().gone.contains(&mail.id)
    }

    async fn stop(&self) -> Result<(), Closed> {
        self.change(|state| {
            let is_early = |(id, end): &(u64, _)| *end == BACK && !state.gone.contains(id);
            let has_returned = state.settled.iter().any(is_early);
            assert!(ORDER == 2 || !has_returned, "what waits goes back after that");
            state.is_stopped = true;
        });
        Ok(())
    }
}

/// Never stops a consumer, which has to end by itself.
pub(crate) async fn never() {
    tokio::time::sleep(DEADLINE).await;
    panic!("the consumer goes on");
}
