//! Dead letters where lanes are held: each is reported apart from all others. Its lane waits for the
//! report, and nothing else does.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};

use super::lanes::LaneId;
use super::observed::Observed;
use super::source::{Settled, Source};
use crate::clock::Clock;

/// The first pause of a message whose dead letter has not reached the broker, and the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(5 * 60);

/// The dead letters that wait for their report, and those whose report is on its way.
pub(super) struct Burials<M> {
    waiting: Vec<Waiting<M>>,
    reports: JoinSet<Buried<M>>,
    /// The messages of the reports on their way. One whose time with the broker ends before its copy
    /// is confirmed would be delivered again, and handled again.
    on_their_way: Vec<Arc<M>>,
    /// The lanes of all of them.
    lanes: BTreeSet<u64>,
    /// How often the dead letter of the first message of a lane has not reached the broker.
    undelivered: BTreeMap<LaneId, u32>,
}

/// A dead letter that waits for its report.
struct Waiting<M> {
    /// `None`: the message has none that could be read.
    lane: Option<LaneId>,
    settled: Settled<M>,
    /// How often it has not reached the broker.
    failures: u32,
}

/// The end of a report of a dead letter.
pub(super) struct Buried<M> {
    /// `None`: the message has none that could be read.
    pub(super) lane: Option<LaneId>,
    pub(super) settled: Settled<M>,
    /// The broker has it. Otherwise the pause after that is over.
    pub(super) is_confirmed: bool,
    failures: u32,
}

impl<M> Burials<M> {
    pub(super) fn new() -> Self {
        Self {
            waiting: Vec::new(),
            reports: JoinSet::new(),
            on_their_way: Vec::new(),
            lanes: BTreeSet::new(),
            undelivered: BTreeMap::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.reports.len()
    }

    pub(super) fn messages(&self) -> impl Iterator<Item = &Arc<M>> {
        self.waiting.iter().map(|waiting| &waiting.settled.message).chain(&self.on_their_way)
    }

    /// Returns true if the lane waits for its dead letter.
    pub(super) fn hold(&self, lane: u64) -> bool {
        self.lanes.contains(&lane)
    }

    /// Adds the dead letter of the first message of the lane.
    pub(super) fn add(&mut self, lane: Option<LaneId>, settled: Settled<M>) {
        let failures = lane.and_then(|lane| self.undelivered.get(&lane)).copied().unwrap_or(0);
        self.push(Waiting { lane, settled, failures });
    }

    /// Adds a dead letter that has not reached the broker.
    pub(super) fn add_again(&mut self, Buried { lane, settled, failures, .. }: Buried<M>) {
        self.push(Waiting { lane, settled, failures: failures.saturating_add(1) });
    }

    fn push(&mut self, waiting: Waiting<M>) {
        if let Some(LaneId::Named(lane)) = waiting.lane {
            self.lanes.insert(lane);
        }
        self.waiting.push(waiting);
    }

    /// Forgets how often the dead letter of the first message of the lane has not arrived: it has
    /// ended otherwise.
    pub(super) fn forget(&mut self, lane: LaneId) {
        self.undelivered.remove(&lane);
    }

    /// Begins the reports of all that wait.
    pub(super) fn report<S>(
        &mut self,
        source: &Arc<S>,
        clock: &Arc<dyn Clock>,
        stopping: &Arc<Observed<bool>>,
    ) where
        S: Source<Message = M>,
        M: Send + Sync + 'static,
    {
        for Waiting { lane, settled, failures } in std::mem::take(&mut self.waiting) {
            self.on_their_way.push(settled.message.clone());
            let (source, clock, stopping) = (source.clone(), clock.clone(), stopping.clone());
            self.reports.spawn(async move {
                let is_confirmed =
                    bury(&*source, again(&settled), failures, &*clock, &stopping).await;
                Buried { lane, settled, is_confirmed, failures }
            });
        }
    }

    /// Returns the end of a report, or `None` if none is on its way.
    pub(super) async fn next(&mut self) -> Option<Result<Buried<M>, JoinError>>
    where
        M: 'static,
    {
        self.reports.join_next().await
    }

    /// Takes the end of a report. Returns `None` if the runtime ends.
    pub(super) fn ended(&mut self, buried: Result<Buried<M>, JoinError>) -> Option<Buried<M>> {
        let buried = buried.ok()?;
        let Buried { lane, settled, is_confirmed, .. } = &buried;
        self.on_their_way.retain(|message| !Arc::ptr_eq(message, &settled.message));
        if let Some(LaneId::Named(lane)) = lane {
            self.lanes.remove(lane);
        }
        match lane {
            Some(lane) if *is_confirmed => self.forget(*lane),
            Some(lane) => {
                let failures = self.undelivered.entry(*lane).or_default();
                *failures = failures.saturating_add(1);
            }
            None => {}
        }
        Some(buried)
    }
}

fn again<M>(settled: &Settled<M>) -> Settled<M> {
    Settled { message: settled.message.clone(), ..*settled }
}

/// Returns true if the broker has confirmed the dead letter. Otherwise it pauses before that, for
/// longer after each failure, unless the consumer stops.
async fn bury<S: Source>(
    source: &S,
    settled: Settled<S::Message>,
    failures: u32,
    clock: &dyn Clock,
    stopping: &Observed<bool>,
) -> bool {
    let (mut settled, mut report) = (Some(settled), None);
    // A source whose code panics at one message must not end the consumer for all others.
    let reported = poll_fn(|cx| {
        let poll = catch_unwind(AssertUnwindSafe(|| {
            let begin = || Box::pin(source.settle(settled.take().into_iter().collect()));
            report.get_or_insert_with(begin).as_mut().poll(cx)
        }));
        poll.map_or_else(
            |_| Poll::Ready(Err(String::from("the code of the source has panicked"))),
            |poll| poll.map_err(|error| error.to_string()),
        )
    });
    let Err(error) = reported.await else { return true };
    let pause = FIRST_PAUSE.saturating_mul(1 << failures.min(9)).min(LONGEST_PAUSE);
    tracing::warn!(
        %error,
        ?pause,
        "a dead letter has not reached the broker: its lane waits, and its message is tried again \
         after a pause"
    );
    tokio::select! {
        biased;
        _ = stopping.when(|stops| *stops) => {}
        () = clock.sleep(pause) => {}
    }
    false
}
