//! Calls that are dropped at every point at which they can be.

use std::future::{Future, poll_fn};
use std::panic::Location;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::coop::{consume_budget, has_budget_remaining};

use crate::lock::Mutex;
use crate::watch::{Watch, inside};

/// The number of attempts to reach a point that a call did not come to: a network's latency varies.
const TRIES: usize = 3;

/// The time that the rest of the world gets after a call was woken, so that messages in flight
/// arrive.
const LINGER: Duration = Duration::from_millis(2);

/// The longest wait without any task ending. Tasks that calls left behind are awaited for as long
/// as some of them end within this time; tasks that do nothing for longer cannot be distinguished
/// from those that never end.
const QUIET: Duration = Duration::from_millis(200);

/// The turns that all tasks get which are ready.
const TURNS: usize = 64;

/// The longest wait for such tasks in total.
const PATIENCE: Duration = Duration::from_secs(5);

/// Drops a call at each point at which it waits, as a timeout, a `select!` or a disconnected client
/// does, and lets `check` examine the result. Returns the number of points.
///
/// `call` creates a call and `check` examines it. Both receive its number, starting at one, so that
/// each call can have a key of its own. The first call is not dropped. `check` also receives the
/// output of a call that finished: a network may answer so soon that there is nothing to wait for.
///
/// `check` runs for each call again at the end, without an output, because a request in flight or a
/// spawned task may have had its effect by then. It must therefore count the effects of each key
/// separately, and must not remove them.
///
/// Each point is reached from both sides. A call is dropped when it begins to wait: what it has
/// sent may be in flight. And it is dropped when it was woken and is about to continue: what it
/// waited for has happened, but it does not know. On Tokio, the call also waits for what is ready
/// at once: sockets, channels, locks, timers and spawned tasks yield, as Tokio makes them do if
/// they are ready too often in a row. And a [step](crate::Context::step) waits once between its end
/// and the record of its result.
///
/// ```
/// # use std::collections::HashMap;
/// # use std::sync::Mutex;
/// # use std::time::Duration;
/// # use idempotency::{Error, ErrorKind, Idempotency, store::MemoryStore, testing::crash_at_every_await};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # let engine = Idempotency::new(MemoryStore::new());
/// let charges = Mutex::new(HashMap::new());
/// let charge = |key: usize| engine.call("payments.charge", key as u64).ttl(Duration::from_secs(60)).run({
///     let charges = &charges;
///     move || async move {
///         *charges.lock().unwrap().entry(key).or_insert(0) += 1;
///         tokio::task::yield_now().await; // the response travels
///         Ok::<_, Error>(())
///     }
/// });
/// let points = crash_at_every_await(charge, async |key, _| {
///     match charge(key).await {
///         Err(error) => assert_eq!(error.kind(), ErrorKind::InDoubt), // an operator decides
///         Ok(()) => assert_eq!(charges.lock().unwrap()[&key], 1),
///     }
///     assert!(charges.lock().unwrap().get(&key).is_none_or(|&count| count <= 1), "charged twice");
/// })
/// .await;
/// assert!(points >= 1);
/// # }
/// ```
///
/// # Panics
/// If it could not test anything, or not each operation of an engine that the calls came to:
///
/// - No call ever waited for something outside, or none in the body of this operation, so there was
///   no point to drop it at. Let the fake wait, with `tokio::task::yield_now().await`, before its
///   effect and after it. The waits of the engine inside the body, for its store and for other
///   calls, do not count, and neither does an edge's wait for its
///   [turn](crate::edge::Turn::wait).
/// - The body of this operation did not begin in the calls that were dropped: they returned an
///   earlier result, or were refused. Give each number a key of its own.
/// - At least two tasks, and at least half as many as calls were dropped, are still running at the
///   end, with effects that were not checked. Let them end sooner, with shorter timers or
///   `tokio::time::pause()`.
///
/// # What it does not see
///
/// - Points that later calls do not reach: the search ends where calls return before their point, as
///   they do once a stock, a limit or a rate that each number uses up has ended. Let there be more of it
///   than calls.
/// - Tasks are awaited for as long as one of them ends every 200 ms, for five seconds at most. Fewer
///   tasks that do nothing for longer cannot be distinguished from connections and workers, and
///   their later effects are not checked. Neither are those of tasks of a `LocalSet` that wait, nor
///   of tasks in whose place others have ended.
/// - Work on threads, `spawn_blocking` included, goes on when a call is dropped, and Tokio does not
///   report it. It is awaited for 20 ms after the last drop, and its later effects are not checked:
///   let the fake of what takes longer be a task, or make it fast.
/// - A drop does not end what runs in a task of its own, as a `detach`ed body and an HTTP handler
///   do. There it shows that a caller may leave, not what is left behind by a process that ends in
///   the middle. A guarded call in a task that the call spawns without
///   [`in_current_call`](crate::InCurrentCall::in_current_call) is not one of the operations above.
/// - Code without a guard: whether it gets as far as its effect in the calls that are dropped.
/// - A guarded body whose fake waits before its effect and not after it: no crash comes between the
///   effect and the end of the body. After a step, the engine waits.
#[track_caller]
pub fn crash_at_every_await<F: Future>(
    call: impl FnMut(usize) -> F,
    check: impl AsyncFnMut(usize, Option<F::Output>),
) -> impl Future<Output = usize> {
    let caller = Location::caller();
    async move {
        let (mut call, mut check) = (call, check);
        let idle = running_tasks();
        let watch = Arc::new(Watch::default());
        let output = to_its_end(watch.enter(1, || call(1)), (&watch, 1)).await;
        check(1, Some(output)).await;
        settle(idle).await;
        let idle = running_tasks();

        let (mut calls, mut crashes, mut points) = (1, 0, 0);
        'turns: for turn in 1.. {
            'waits: for wait in 0.. {
                for moment in [Moment::BeginsToWait, Moment::IsAboutToGoOn] {
                    let mut tries = 0;
                    loop {
                        calls += 1;
                        let watched = (&watch, calls);
                        let call = watch.enter(calls, || call(calls));
                        let end = until(call, watched, Point { turn, wait }, moment).await;
                        let is_met = matches!(end, End::Dropped { is_met: true });
                        crashes += usize::from(matches!(end, End::Dropped { .. }));
                        check(calls, end.output()).await;
                        tries += 1;
                        match (is_met, wait) {
                            (true, _) => break,
                            (false, _) if tries < TRIES => {}
                            (false, 0) => break 'turns,
                            (false, _) => break 'waits,
                        }
                    }
                }
                points += 1;
            }
        }
        assert!(
            crashes > 0,
            "crash_at_every_await at {caller} could not look: no call ever waited for something \
             outside, so there was no point at which to drop it; {LET_IT_WAIT}"
        );
        linger(LINGER * 10).await;
        settle(idle).await;
        for number in 1..=calls {
            check(number, None).await;
        }
        // A retry that was refused for now, or its tasks.
        if running_tasks() > idle {
            settle(idle).await;
            for number in 1..=calls {
                check(number, None).await;
            }
            settle(idle).await;
        }
        check_that_bodies_were_dropped(&watch, caller);
        let left = running_tasks().saturating_sub(idle);
        assert!(
            left < 2 || left * 2 < crashes,
            "crash_at_every_await at {caller} could not look: {crashes} calls were dropped, and \
             {left} tasks that calls left behind still run, with effects that were not observed; \
             let them end sooner, with shorter timers or `tokio::time::pause()`"
        );
        points
    }
}

pub(super) const LET_IT_WAIT: &str = "let the fake of what is outside wait, \
    `tokio::task::yield_now().await`, before its effect and after it";

/// The number of calls after the first in which a body begins at least, if each has a key of its
/// own: its first wait is a point, which is met from both sides.
const DROPPED_IN_A_BODY: usize = 2;

/// Panics if the calls came to an operation and were not dropped in its body.
fn check_that_bodies_were_dropped(watch: &Watch, caller: &Location<'_>) {
    for (operation, seen) in watch.operations() {
        assert!(
            seen.begun_in.iter().filter(|&&number| number > 1).count() >= DROPPED_IN_A_BODY,
            "crash_at_every_await at {caller} could not look: no call after the first was dropped \
             in the middle of `{operation}`, because its body did not begin: the call returned an \
             earlier result, or was refused; give each number a key of its own, here and in the \
             calls inside, and let its body run"
        );
        assert!(
            seen.has_waited_inside || !seen.has_begun_inside,
            "crash_at_every_await at {caller} could not look: no call ever waited for something \
             outside in the body of `{operation}`, so there was no point at which to drop it \
             there; {LET_IT_WAIT}"
        );
    }
}

/// A side of a point.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Moment {
    BeginsToWait,
    IsAboutToGoOn,
}

/// A place in a call. The number of waits for a network differs from call to call. The number of
/// forced yields does not, so places are counted from there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Point {
    /// The number of forced yields.
    turn: usize,
    /// The number of waits since then.
    wait: usize,
}

/// The end of a call.
enum End<T> {
    /// Dropped at the point, or at a later one if it did not stop there.
    Dropped {
        is_met: bool,
    },
    Returned(T),
}

impl<T> End<T> {
    fn output(self) -> Option<T> {
        match self {
            Self::Dropped { .. } => None,
            Self::Returned(output) => Some(output),
        }
    }
}

/// Polls `call`, which has a number in the watch, until it returns.
async fn to_its_end<F: Future>(call: F, (watch, number): (&Arc<Watch>, usize)) -> F::Output {
    let mut call = pin!(call);
    poll_fn(|cx| watch.enter(number, || call.as_mut().poll(cx))).await
}

/// Polls `call`, which has a number in the watch, until it waits at `point`, then drops it.
async fn until<F: Future>(
    call: F,
    (watch, number): (&Arc<Watch>, usize),
    point: Point,
    moment: Moment,
) -> End<F::Output> {
    let mut call = pin!(call);
    let woken = Arc::new(Woken::default());
    woken.wake_by_ref();
    let mut turns = Turns::default();
    let mut reached = Point { turn: 0, wait: 0 };
    loop {
        // One poll of the call per poll of the task, so that Tokio has granted a new budget.
        woken.wait().await;
        if reached >= point {
            linger(LINGER).await;
            return End::Dropped { is_met: reached == point };
        }
        let poll = poll_fn(|cx| {
            let output = watch.enter(number, || turns.poll(call.as_mut(), &woken, cx));
            Poll::Ready((output, has_budget_remaining()))
        });
        match poll.await {
            (Poll::Ready(output), _) => return End::Returned(output),
            (Poll::Pending, true) => reached.wait += 1,
            (Poll::Pending, false) => reached = Point { turn: reached.turn + 1, wait: 0 },
        }
        if reached >= point && moment == Moment::BeginsToWait {
            return End::Dropped { is_met: reached == point };
        }
    }
}

/// Leaves a call one Tokio operation in each poll, so that it waits before the next one whether or
/// not that is ready.
#[derive(Default)]
struct Turns {
    /// The number of operations that Tokio allows in a poll. `None` before the first poll, which
    /// gets none.
    budget: Option<usize>,
}

impl Turns {
    /// More than Tokio's budget: without a runtime there is no limit, and there are no forced
    /// yields.
    const UNBOUNDED: usize = 10_000;

    fn poll<F: Future>(
        &mut self,
        call: Pin<&mut F>,
        woken: &Arc<Woken>,
        cx: &mut Context<'_>,
    ) -> Poll<F::Output> {
        match self.budget {
            None => self.budget = Some(spend(Self::UNBOUNDED, cx)),
            Some(Self::UNBOUNDED) => {}
            // Other futures of this task may have spent some. If nothing is left, the call makes no
            // progress in this poll.
            Some(budget) => {
                let spent = spend(budget.saturating_sub(1), cx);
                if !has_budget_remaining() {
                    self.budget = Some(spent);
                }
            }
        }
        let waker = Waker::from(woken.clone());
        inside(|| call.poll(&mut Context::from_waker(&waker)))
    }
}

/// Spends what is left of this poll's budget: the next operation waits, whether or not it is ready.
pub(crate) fn spend_budget(cx: &mut Context<'_>) {
    spend(Turns::UNBOUNDED, cx);
}

/// Spends at most `count` operations of this poll's budget, and returns how many there were.
fn spend(count: usize, cx: &mut Context<'_>) -> usize {
    (0..count)
        .take_while(|_| has_budget_remaining() && pin!(consume_budget()).poll(cx).is_ready())
        .count()
}

/// A waker that records whether the call was woken since it was last polled.
#[derive(Default)]
pub(super) struct Woken {
    is_set: AtomicBool,
    /// It was woken since [`watch`](Self::watch).
    was_set: AtomicBool,
    task: Mutex<Option<Waker>>,
}

impl Woken {
    /// Returns true if the call was woken since the last time. If not, the task is woken with it.
    pub(super) fn take(&self, cx: &Context<'_>) -> bool {
        // In this order, as in `wait`.
        *self.task.lock() = Some(cx.waker().clone());
        self.is_set.swap(false, Ordering::AcqRel)
    }

    pub(super) fn is_woken(&self) -> bool {
        self.is_set.load(Ordering::Acquire)
    }

    /// Begins to watch for a wake-up, whatever [`take`](Self::take) takes.
    pub(super) fn watch(&self) {
        self.was_set.store(self.is_woken(), Ordering::Release);
    }

    pub(super) fn was_woken_since(&self) -> bool {
        self.was_set.load(Ordering::Acquire)
    }

    /// Resolves when the call was woken, but never before the next poll of the task.
    async fn wait(&self) {
        let mut is_next_poll = false;
        poll_fn(|cx| {
            // Store the waker first, then check the flag; `wake_by_ref` sets the flag first, then
            // takes the waker. A wake-up between these two steps therefore finds the waker, and no
            // wake-up is lost.
            *self.task.lock() = Some(cx.waker().clone());
            if !self.is_set.load(Ordering::Acquire) {
                is_next_poll = true;
                return Poll::Pending;
            }
            if !std::mem::replace(&mut is_next_poll, true) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            self.is_set.store(false, Ordering::Release);
            Poll::Ready(())
        })
        .await;
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.was_set.store(true, Ordering::Release);
        self.is_set.store(true, Ordering::Release);
        let task = self.task.lock().take();
        if let Some(task) = task {
            task.wake();
        }
    }
}

/// Lets `time` pass for the rest of the world. Other threads see real time; a paused Tokio clock
/// does not move.
async fn linger(time: Duration) {
    if Handle::try_current().is_ok() {
        let _ = tokio::task::spawn_blocking(move || sleep(time)).await;
    }
}

/// Waits until no more than `idle` tasks run, or the others show no sign of ending. A paused clock
/// continues meanwhile.
///
/// Tasks that are ready run first, however many there are: those of a `LocalSet` are not counted, and
/// one of a call is not noticed if one from before the call has ended meanwhile.
pub(super) async fn settle(idle: usize) {
    const LOOK: Duration = Duration::from_millis(5);
    for _ in 0..TURNS {
        tokio::task::yield_now().await;
    }
    let (mut running, mut quiet, mut waited) = (running_tasks(), Duration::ZERO, Duration::ZERO);
    while running > idle && quiet < QUIET && waited < PATIENCE {
        let (sender, looked) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            sleep(LOOK);
            sender.send(())
        });
        let _ = looked.await;
        let now = running_tasks();
        quiet = if now == running { quiet + LOOK } else { Duration::ZERO };
        (running, waited) = (now, waited + LOOK);
    }
}

/// Returns the number of the runtime's tasks, or zero without a runtime.
pub(super) fn running_tasks() -> usize {
    Handle::try_current().map_or(0, |runtime| runtime.metrics().num_alive_tasks())
}

#[expect(
    clippy::disallowed_methods,
    reason = "sockets and threads of a test take real time, whatever clock it has"
)]
fn sleep(time: Duration) {
    std::thread::sleep(time);
}
