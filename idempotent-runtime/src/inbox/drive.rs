//! What a consumer has in hand, and what it does next.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::future::{Future, pending};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{Id, JoinError, JoinSet};

use super::burials::{Burials, Buried};
use super::calling::Calling;
use super::consumer::{ConsumeError, Drained};
use super::handled::{DeadReason, Disposition};
use super::intake::Intake;
use super::lanes::{LaneId, Lanes};
use super::observed::Observed;
use super::resting::Resting;
use super::source::{Message as _, Order, Settled, Source};
use super::worker::Worked;
use crate::clock::{Clock, Sleep};
use crate::error::ErrorKind;
use crate::record::RecordHandle;

/// Dispositions are reported together: so many, or fewer where fewer handlers run at the same time:
/// those that wait for a report take the room of others.
const BATCH: usize = 10;
/// The longest time for which one waits for others while messages are handled.
const FLUSH: Duration = Duration::from_millis(50);
/// The least time between two requests to leave messages here, or to keep the connection alive.
const LEAST_PATIENCE: Duration = Duration::from_millis(100);
const IN_DOUBT: Disposition = Disposition::DeadLetter(DeadReason::InDoubt);
/// The time between two looks at a store that does not answer.
const LOOK_EVERY: Duration = Duration::from_secs(1);

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;
/// A request to the source, and how many messages it is about.
type Counted<T> = (usize, Boxed<T>);
type Received<S> = Result<Vec<Arc<<S as Source>::Message>>, <S as Source>::Error>;
type Reported<S> = Result<(), <S as Source>::Error>;

/// The state of a consumer that runs.
pub(super) struct Drive<S: Source> {
    source: Arc<S>,
    clock: Arc<dyn Clock>,
    intake: Arc<Intake>,
    resting: Arc<Resting>,
    calling: Arc<Calling>,
    places: Arc<Semaphore>,
    stopping: Stopping,
    probe: RecordHandle,
    /// How many messages may be in hand, but for those that wait where lanes are held.
    prefetch: usize,
    /// How many may wait behind another one of their lane, where lanes are held.
    most_behind: usize,
    /// So many dispositions are reported without waiting for more.
    batch: usize,
    drain: Duration,
    /// True if a message in doubt may have no record.
    pub(super) forgets_doubts: bool,

    lanes: Lanes<Arc<S::Message>>,
    tasks: Tasks,
    running: HashMap<Id, (LaneId, Arc<S::Message>)>,
    /// Those of them that hang. Their lanes go on without them, or their places go to others where
    /// lanes are held.
    hanging: HashSet<Id>,
    /// How many places are to be taken back from others, since what hung has ended.
    lent: usize,
    unsettled: Vec<Settled<S::Message>>,
    /// The lanes that the source holds back.
    held_back: BTreeSet<u64>,
    /// The lanes whose first message waits for its next try.
    resting_lanes: BTreeSet<u64>,
    /// Dead letters, where lanes are held.
    burials: Burials<S::Message>,
    /// The lanes of messages that go back to the broker before those behind them: those that are not
    /// reported yet, and those of the report on its way.
    returned: Vec<LaneId>,
    reported: Vec<LaneId>,

    /// The request for messages, and for how many.
    receiving: Option<Counted<Received<S>>>,
    /// The report of dispositions, and of how many.
    settling: Option<Counted<Reported<S>>>,
    /// The dead letters of the report on its way. One whose time with the broker ends before its
    /// copy is confirmed would be delivered again, and handled again.
    burying: Vec<Arc<S::Message>>,
    keeping: Option<Boxed<Reported<S>>>,
    looking: Option<Boxed<()>>,
    /// The wait for a place among the running handlers. It keeps its turn, also while other things
    /// happen: messages that are tried again want places too.
    placing: Option<Boxed<Option<OwnedSemaphorePermit>>>,
    /// The notice to the source that the consumer stops.
    closing: Option<Boxed<Reported<S>>>,
    flush: Option<Sleep>,
    keep: Option<Sleep>,
    /// The next look for handlers that hang, where the source has no patience.
    watch: Option<Sleep>,
    /// The end of the drain. Present once the consumer stops.
    end: Option<Sleep>,
    failure: Option<ConsumeError<S::Error>>,
}

/// The notice to the workers that the consumer stops, or is gone.
struct Stopping(Arc<Observed<bool>>);

impl Drop for Stopping {
    fn drop(&mut self) {
        self.0.change(|stops| *stops = true);
    }
}

/// The tasks of running messages. When the consumer is gone they go on: a handler that is cut off
/// leaves a doubt behind, one that ends leaves a result.
struct Tasks(JoinSet<Worked>);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.detach_all();
    }
}

/// What has happened.
enum Event<S: Source> {
    Stop,
    Received(Received<S>),
    Worked(Result<(Id, Worked), JoinError>),
    Settled(Reported<S>),
    Buried(Result<Buried<S::Message>, JoinError>),
    Kept(Reported<S>),
    Place(Option<OwnedSemaphorePermit>),
    /// The store is to be looked at.
    Look,
    Looked,
    /// The intake is paused, or goes on.
    Intake,
    /// A message has begun, or ceased, to wait for its next try.
    Rests,
    Closed(Reported<S>),
    Flush,
    Keep,
    Watch,
    End,
}

impl<S: Source> Drive<S> {
    #[expect(clippy::too_many_arguments, reason = "the parts of one consumer, which calls it once")]
    pub(super) fn new(
        source: S,
        clock: Arc<dyn Clock>,
        (intake, resting, calling): (Arc<Intake>, Arc<Resting>, Arc<Calling>),
        places: Arc<Semaphore>,
        stopping: Arc<Observed<bool>>,
        probe: RecordHandle,
        concurrency: usize,
        drain: Duration,
    ) -> Self {
        Self {
            source: Arc::new(source),
            clock,
            intake,
            resting,
            calling,
            places,
            stopping: Stopping(stopping),
            probe,
            prefetch: concurrency.saturating_mul(2),
            most_behind: concurrency,
            batch: BATCH.min(concurrency),
            drain,
            forgets_doubts: false,
            lanes: Lanes::new(),
            tasks: Tasks(JoinSet::new()),
            running: HashMap::new(),
            hanging: HashSet::new(),
            lent: 0,
            unsettled: Vec::new(),
            held_back: BTreeSet::new(),
            resting_lanes: BTreeSet::new(),
            burials: Burials::new(),
            returned: Vec::new(),
            reported: Vec::new(),
            closing: None,
            receiving: None,
            settling: None,
            burying: Vec::new(),
            keeping: None,
            looking: None,
            placing: None,
            flush: None,
            keep: None,
            watch: None,
            end: None,
            failure: None,
        }
    }

    /// Runs until `stop` resolves or something fails, and drains what is in hand then. `work`
    /// returns the future of one message.
    pub(super) async fn run<W, F>(
        mut self,
        stop: impl Future<Output = ()>,
        work: W,
    ) -> Result<Drained, ConsumeError<S::Error>>
    where
        W: Fn(Arc<S::Message>, OwnedSemaphorePermit) -> F,
        F: Future<Output = Worked> + Send + 'static,
    {
        let mut stop = pin!(stop);
        while !self.is_drained() {
            self.prepare();
            match self.next(stop.as_mut()).await {
                Event::Stop => self.stop(),
                Event::Received(received) => self.received(received),
                Event::Place(place) => {
                    self.placing = None;
                    if let Some(place) = place {
                        if self.lent > 0 {
                            self.lent -= 1;
                            place.forget();
                        } else {
                            self.start(place, &work);
                        }
                    }
                }
                Event::Worked(worked) => self.worked(worked),
                Event::Settled(settled) => {
                    self.reported();
                    warn_of(
                        settled,
                        "dispositions did not reach the broker, which delivers their messages again",
                    );
                }
                Event::Buried(buried) => self.buried(buried),
                Event::Kept(kept) => {
                    self.keeping = None;
                    warn_of(kept, "the broker was not asked to leave messages with this consumer");
                }
                Event::Look => self.look(),
                Event::Looked => {
                    self.looking = None;
                    self.intake.look_succeeded();
                }
                Event::Intake => {}
                Event::Rests => self.rests(),
                Event::Closed(closed) => {
                    self.closing = None;
                    warn_of(closed, "the broker was not asked to deliver no more messages");
                }
                Event::Flush => self.settle(),
                Event::Keep => self.keep_held(),
                Event::Watch => {
                    self.watch = None;
                    self.leave_what_hangs();
                }
                Event::End => break,
            }
        }
        match self.failure {
            Some(failure) => Err(failure),
            None => Ok(Drained { left: self.in_hand() }),
        }
    }

    fn is_stopping(&self) -> bool {
        self.end.is_some()
    }

    fn is_drained(&self) -> bool {
        self.is_stopping() && self.in_hand() == 0 && self.closing.is_none()
    }

    fn in_hand(&self) -> usize {
        let settling = self.settling.as_ref().map_or(0, |(count, _)| *count);
        let waiting = self.lanes.len() + self.burials.len();
        waiting + self.running.len() + self.unsettled.len() + settling
    }

    /// How many more messages the source may deliver.
    ///
    /// Where lanes are held, those that wait take no room of other lanes: for a message before them,
    /// for their next try, for their dead letter, for a handler that hangs. Of each lane they are few,
    /// and the source has a bound for all lanes.
    fn room(&self) -> usize {
        if self.intake.is_paused() {
            return 0;
        }
        if S::ORDER != Order::HoldLane {
            return self.prefetch.saturating_sub(self.in_hand());
        }
        let settling = self.settling.as_ref().map_or(0, |(count, _)| *count);
        let waiting = self.resting_lanes.len() + self.hanging.len();
        let working = self.running.len().saturating_sub(waiting) + self.lanes.ready();
        self.prefetch.saturating_sub(working + self.unsettled.len() + settling)
    }

    /// Begins what is due: a request for messages, a report of dispositions, the timers.
    fn prepare(&mut self) {
        if !self.is_stopping() {
            let room = self.room();
            // One with room stays as it is: it can return too many only by what a lane that goes on
            // had behind it.
            let stays = self.receiving.as_ref().is_some_and(|(of, _)| (*of == 0) == (room == 0));
            if !stays {
                let source = self.source.clone();
                let clock = self.clock.clone();
                let request = async move {
                    loop {
                        let received = source.receive(room).await;
                        if room > 0 || received.as_ref().map_or(true, |some| !some.is_empty()) {
                            return received;
                        }
                        // It keeps the connection alive, and has to be asked again for that.
                        clock.sleep(LEAST_PATIENCE).await;
                    }
                };
                self.receiving = Some((room, Box::pin(request)));
            }
        }
        let starts = self.lanes.is_ready() && !self.intake.is_paused() && !self.is_stopping();
        if !starts {
            self.placing = None;
        } else if self.placing.is_none() {
            let place = self.places.clone().acquire_owned();
            self.placing = Some(Box::pin(async move { place.await.ok() }));
        }
        if self.keep.is_none()
            && let Some(patience) = self.source.patience()
        {
            self.keep = Some(self.clock.sleep((patience / 3).max(LEAST_PATIENCE)));
        }
        if S::ORDER == Order::HoldLane && self.watch.is_none() && !self.running.is_empty() {
            self.watch = Some(self.clock.sleep(self.calling.look_every().max(LEAST_PATIENCE)));
        }
        if self.closing.is_none() {
            self.burials.report(&self.source, &self.clock, &self.stopping.0);
        }
        if self.can_settle() && !self.unsettled.is_empty() {
            // No other will join them soon.
            let is_idle = self.running.is_empty() && self.lanes.len() == 0;
            if self.unsettled.len() >= self.batch || is_idle {
                self.settle();
            } else if self.flush.is_none() {
                self.flush = Some(self.clock.sleep(FLUSH));
            }
        }
    }

    fn can_settle(&self) -> bool {
        self.settling.is_none() && self.closing.is_none()
    }

    /// Waits for what happens next. All that it waits for is kept in `self`: nothing is lost when
    /// something else happens first.
    async fn next(&mut self, stop: Pin<&mut impl Future<Output = ()>>) -> Event<S> {
        let is_stopping = self.is_stopping();
        let is_paused = self.intake.is_paused();
        let can_settle = self.can_settle();
        tokio::select! {
            biased;
            () = stop, if !is_stopping => Event::Stop,
            () = of(&mut self.end) => Event::End,
            closed = of(&mut self.closing) => Event::Closed(closed),
            Some(worked) = self.tasks.0.join_next_with_id() => Event::Worked(worked),
            settled = of_counted(&mut self.settling) => Event::Settled(settled),
            Some(buried) = self.burials.next() => Event::Buried(buried),
            () = of(&mut self.looking) => Event::Looked,
            () = self.intake.is_to_be_looked_at(), if self.looking.is_none() => Event::Look,
            () = self.intake.changed(is_paused) => Event::Intake,
            () = self.resting.changed(), if !is_stopping => Event::Rests,
            kept = of(&mut self.keeping) => Event::Kept(kept),
            () = of(&mut self.keep) => Event::Keep,
            () = of(&mut self.watch) => Event::Watch,
            () = of(&mut self.flush), if can_settle => Event::Flush,
            place = of(&mut self.placing) => Event::Place(place),
            received = of_counted(&mut self.receiving) => Event::Received(received),
        }
    }

    /// Stops: nothing more is received, and what waits goes back to the broker.
    fn stop(&mut self) {
        if self.is_stopping() {
            return;
        }
        self.end = Some(self.clock.sleep(self.drain));
        self.receiving = None;
        let waiting = self.lanes.take_all().into_iter();
        self.unsettled.extend(waiting.map(Settled::untried));
        for lane in std::mem::take(&mut self.held_back) {
            self.source.hold_lane(lane, false);
        }
        let source = self.source.clone();
        self.closing = Some(Box::pin(async move { source.stop().await }));
        self.stopping.0.change(|stops| *stops = true);
    }

    fn fail(&mut self, failure: ConsumeError<S::Error>) {
        self.failure.get_or_insert(failure);
        self.stop();
    }

    fn received(&mut self, received: Received<S>) {
        self.receiving = None;
        match received {
            Ok(messages) => messages.into_iter().for_each(|message| self.take_in(message)),
            Err(error) => self.fail(ConsumeError::Source(error)),
        }
    }

    fn take_in(&mut self, message: Arc<S::Message>) {
        let Ok(lane) = catch_unwind(AssertUnwindSafe(|| message.lane())) else {
            tracing::error!("the lane of a message cannot be read: its code has panicked");
            let disposition = Disposition::DeadLetter(DeadReason::InvalidKey);
            let settled = Settled { message, disposition, record: None, attempt: 0 };
            if S::ORDER == Order::HoldLane {
                self.burials.add(None, settled);
            } else {
                self.unsettled.push(settled);
            }
            return;
        };
        self.lanes.push(lane, message);
        if let Some(lane) = lane {
            self.steer(LaneId::Named(lane));
        }
    }

    /// Looks which messages wait for their next try.
    fn rests(&mut self) {
        if S::ORDER != Order::HoldLane {
            return;
        }
        let rests = |(id, (lane, _)): (&Id, &(LaneId, _))| match lane {
            LaneId::Named(lane) if self.resting.contains(*id) => Some(*lane),
            _ => None,
        };
        let resting: BTreeSet<u64> = self.running.iter().filter_map(rests).collect();
        let before = std::mem::replace(&mut self.resting_lanes, resting);
        let changed: Vec<u64> = before.symmetric_difference(&self.resting_lanes).copied().collect();
        for lane in changed {
            self.steer(LaneId::Named(lane));
        }
        let resting = &self.resting;
        let ended: Vec<Id> = self.hanging.extract_if(|id| resting.contains(*id)).collect();
        for _ in ended {
            self.take_place_back();
        }
    }

    /// Holds a lane back if its first message waits for its next try or for its dead letter, or if
    /// enough wait behind it, and lets it go on otherwise.
    fn steer(&mut self, lane: LaneId) {
        let LaneId::Named(lane) = lane else { return };
        if S::ORDER != Order::HoldLane || self.is_stopping() {
            return;
        }
        let is_held = self.held_back.contains(&lane);
        // One that is held goes on at half of the bound: it may cost the source something.
        let bound = if is_held { self.most_behind / 2 } else { self.most_behind };
        let holds = self.resting_lanes.contains(&lane)
            || self.burials.hold(lane)
            || self.lanes.len_of(lane) > bound;
        if holds == is_held {
            return;
        }
        if holds {
            self.held_back.insert(lane);
        } else {
            self.held_back.remove(&lane);
        }
        self.source.hold_lane(lane, holds);
    }

    fn start<W, F>(&mut self, place: OwnedSemaphorePermit, work: &W)
    where
        W: Fn(Arc<S::Message>, OwnedSemaphorePermit) -> F,
        F: Future<Output = Worked> + Send + 'static,
    {
        if let Some((lane, message)) = self.lanes.take() {
            if self.source.is_gone(&message) {
                self.unsettled.push(Settled::untried(message));
                self.burials.forget(lane);
                self.lanes.back(lane);
            } else {
                let task = self.tasks.0.spawn(work(message.clone(), place));
                self.running.insert(task.id(), (lane, message));
            }
            self.steer(lane);
        }
    }

    fn worked(&mut self, worked: Result<(Id, Worked), JoinError>) {
        let (id, worked) = match worked {
            Ok((id, worked)) => (id, Some(worked)),
            // The runtime ends, or code of the source has panicked: nothing is known.
            Err(error) => (error.id(), None),
        };
        let Some((lane, message)) = self.running.remove(&id) else { return };
        let hung = self.hanging.remove(&id);
        let has_lane = !hung || S::ORDER == Order::HoldLane;
        if hung && S::ORDER == Order::HoldLane {
            self.take_place_back();
        }
        let (mut is_returned, mut is_dead) = (false, false);
        match worked {
            Some(Worked::Settle { disposition, record, attempt })
                if S::ORDER == Order::HoldLane
                    && matches!(disposition, Disposition::DeadLetter(_)) =>
            {
                is_dead = true;
                let settled = Settled { message, disposition, record, attempt };
                self.burials.add(Some(lane), settled);
            }
            Some(Worked::Settle { disposition, record, attempt }) => {
                self.burials.forget(lane);
                self.unsettled.push(Settled { message, disposition, record, attempt });
                let is_back =
                    matches!(disposition, Disposition::Retry(_) | Disposition::Postpone(_));
                is_returned = is_back && has_lane && S::ORDER == Order::ReturnLane;
                if is_returned {
                    self.return_behind(lane);
                }
            }
            Some(Worked::ShutDown) => {
                self.unsettled.push(Settled::untried(message));
                self.stop();
            }
            Some(Worked::Misconfigured(error)) => self.fail(ConsumeError::Refused(error)),
            None => tracing::error!("the work on a message was cut off; it is not settled"),
        }
        if is_returned {
            // Closed until the broker knows: what it delivers before is behind this one.
            self.returned.push(lane);
        } else if has_lane && !is_dead {
            self.lanes.back(lane);
        }
        self.rests();
        self.steer(lane);
    }

    /// Lets the lane of a dead letter go on, with its message again if the broker has no copy.
    fn buried(&mut self, buried: Result<Buried<S::Message>, JoinError>) {
        let Some(buried) = self.burials.ended(buried) else { return };
        let lane = buried.lane;
        if !buried.is_confirmed && self.is_stopping() {
            self.unsettled.push(Settled::untried(buried.settled.message));
        } else if !buried.is_confirmed {
            // What may have had its effect is not handled again where no record says so.
            let is_forgotten = self.forgets_doubts && buried.settled.disposition == IN_DOUBT;
            match lane {
                Some(lane) if !is_forgotten => self.lanes.push_front(lane, buried.settled.message),
                _ => return self.burials.add_again(buried),
            }
        }
        if let Some(lane) = lane {
            self.lanes.back(lane);
            self.steer(lane);
        }
    }

    /// Takes the place back that others got for one whose handler hung, and has ended.
    fn take_place_back(&mut self) {
        if self.places.forget_permits(1) == 0 {
            self.lent += 1;
        }
    }

    /// Lets the lanes go on whose handler hangs, where the broker can deliver its message again: what
    /// waits behind it goes back too, or it would keep the whole lane from other consumers. Where it
    /// cannot, the lane waits, and other lanes get the place of the handler.
    fn leave_what_hangs(&mut self) {
        let hangs = |id: &&Id| !self.hanging.contains(*id) && self.calling.hangs(**id);
        let hanging: Vec<_> = self.running.keys().filter(hangs).copied().collect();
        for id in hanging {
            self.hanging.insert(id);
            if S::ORDER == Order::HoldLane {
                self.places.add_permits(1);
                continue;
            }
            let Some((lane, _)) = self.running.get(&id) else { continue };
            let lane = *lane;
            if S::ORDER == Order::ReturnLane && self.return_behind(lane) {
                self.returned.push(lane);
            } else {
                self.lanes.back(lane);
            }
        }
    }

    /// Returns to the broker what waits in the lane. Returns true if something did.
    fn return_behind(&mut self, lane: LaneId) -> bool {
        let behind = self.lanes.take_behind(lane);
        let is_some = !behind.is_empty();
        self.unsettled.extend(behind.into_iter().map(Settled::untried));
        is_some
    }

    /// Opens the lanes of the messages whose return was reported. What has come for them meanwhile
    /// was delivered before the broker knew, and goes back too: such a lane stays closed until that
    /// is reported.
    fn reported(&mut self) {
        self.settling = None;
        self.burying.clear();
        for lane in std::mem::take(&mut self.reported) {
            if self.return_behind(lane) {
                self.returned.push(lane);
            } else {
                self.lanes.back(lane);
            }
        }
    }

    fn settle(&mut self) {
        self.flush = None;
        if self.unsettled.is_empty() {
            return;
        }
        let settled = std::mem::take(&mut self.unsettled);
        self.reported.append(&mut self.returned);
        let is_dead = |one: &&Settled<_>| matches!(one.disposition, Disposition::DeadLetter(_));
        self.burying.extend(settled.iter().filter(is_dead).map(|one| one.message.clone()));
        let (count, source) = (settled.len(), self.source.clone());
        let report = async move { source.settle(settled).await };
        self.settling = Some((count, Box::pin(report)));
    }

    fn keep_held(&mut self) {
        self.keep = None;
        self.leave_what_hangs();
        let waiting = self.lanes.waiting();
        let is_kept = |(id, _): &(&Id, _)| !self.calling.hangs(**id);
        let running = self.running.iter().filter(is_kept).map(|(_, (_, message))| message);
        let unsettled = self.unsettled.iter().map(|settled| &settled.message);
        let burying = self.burying.iter().chain(self.burials.messages());
        let held: Vec<_> =
            waiting.chain(running).chain(unsettled).chain(burying).cloned().collect();
        if held.is_empty() || self.keeping.is_some() {
            return;
        }
        let source = self.source.clone();
        self.keeping = Some(Box::pin(async move { source.keep(held).await }));
    }

    /// Begins to look at the store until it answers.
    fn look(&mut self) {
        let (probe, clock) = (self.probe.clone(), self.clock.clone());
        let intake = self.intake.clone();
        self.looking = Some(Box::pin(async move {
            // Whatever else it says, it answers.
            while probe
                .inspect()
                .await
                .is_err_and(|error| error.kind() == ErrorKind::StoreUnavailable)
            {
                intake.look_failed();
                clock.sleep(LOOK_EVERY).await;
            }
        }));
    }
}

fn warn_of<E: std::error::Error>(result: Result<(), E>, what: &str) {
    if let Err(error) = result {
        tracing::warn!(%error, "{what}");
    }
}

/// Waits for the future, if there is one.
async fn of<T>(future: &mut Option<Boxed<T>>) -> T {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}

async fn of_counted<T>(future: &mut Option<Counted<T>>) -> T {
    match future {
        Some((_, future)) => future.await,
        None => pending().await,
    }
}
