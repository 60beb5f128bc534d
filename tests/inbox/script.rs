//! A broker in memory: a test says what it delivers, and sees what it is answered.

use std::fmt;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use idempotency::inbox::{Delivery, Disposition, Message, Order, Source};
use tokio::sync::Notify;

/// A message, and its lane.
#[derive(Debug)]
pub(crate) struct Mail {
    pub id: u64,
    pub lane: Option<u64>,
}

impl Message for Mail {
    fn delivery(&self) -> Delivery<'_> {
        Delivery::new(self.id)
    }

    fn lane(&self) -> Option<u64> {
        self.lane
    }

    fn label(&self) -> &'static str {
        "mail"
    }
}

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
    /// The most that a request had room for.
    largest_room: usize,
    /// What the last request had room for.
    room: usize,
    kept: Vec<Vec<u64>>,
    is_closed: bool,
    refuses_dispositions: bool,
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
        let mails = ids.into_iter().map(|id| Arc::new(Mail { id, lane: None }));
        self.change(|state| state.queue.extend(mails));
    }

    pub fn deliver_in_lane(&self, lane: u64, ids: impl IntoIterator<Item = u64>) {
        let mails = ids.into_iter().map(|id| Arc::new(Mail { id, lane: Some(lane) }));
        self.change(|state| state.queue.extend(mails));
    }

    pub fn close(&self) {
        self.change(|state| state.is_closed = true);
    }

    pub fn refuse_dispositions(&self, refuses: bool) {
        self.change(|state| state.refuses_dispositions = refuses);
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

    /// Resolves when `condition` is true of the broker.
    pub async fn is(&self, condition: impl Fn(&Self) -> bool) {
        loop {
            let changed = self.changed.notified();
            if condition(self) {
                return;
            }
            changed.await;
        }
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
                let count = room.min(state.queue.len());
                if count > 0 {
                    return Ok(state.queue.drain(..count).collect());
                }
            }
            changed.await;
        }
    }

    async fn settle(&self, settled: Vec<(Arc<Mail>, Disposition)>) -> Result<(), Closed> {
        assert!(!settled.is_empty());
        if self.state().refuses_dispositions {
            return Err(Closed);
        }
        let settled = settled.into_iter().map(|(mail, disposition)| (mail.id, disposition));
        self.change(|state| state.settled.extend(settled));
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
}

/// Never stops a consumer.
pub(crate) async fn never() {
    pending::<()>().await;
}
