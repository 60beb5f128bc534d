//! Callers that are gone in the middle of a call, at every point at which they can be.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::panic::Location;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::coop::{consume_budget, has_budget_remaining};

/// How often a point is looked for that calls do not come to: networks answer sooner and later.
const TRIES: usize = 3;

/// What the world gets after a call was woken, so that what was on its way arrives.
const LINGER: Duration = Duration::from_millis(2);

/// Tasks that calls left behind are waited for as long as some of them end, each time for this
/// long. Those that do nothing for longer cannot be told from those that never end.
const QUIET: Duration = Duration::from_millis(200);

/// The longest wait for them.
const PATIENCE: Duration = Duration::from_secs(5);

/// Drops a call at each point at which it waits, as a time-out, a `select!` or a client that leaves
/// does, and lets `check` look at what is left. Gives how many points there were.
///
/// `call` makes a call, and `check` looks at it; both get its number, from one, so that each can
/// have a key of its own. The first call is left in peace. `check` also gets the output of a call
/// that came to its end: a network may answer so soon that there is nothing to wait for. It looks
/// at each call again at the end, without an output: a request that was on its way, or a spawned
/// task, may have had its effect by then. So it counts the effects of each key by themselves, and
/// does not take them away.
///
/// Each point is met from both sides: when the call begins to wait, and what it has sent may be on
/// its way; and when it was woken and is about to go on, so what it waited for has happened, and it
/// does not know. On Tokio, what is ready at once is waited for as well: sockets, channels, locks,
/// timers and spawned tasks are told that it is another task's turn, as Tokio tells those that are
/// ready too often in a row.
///
/// ```
/// # use std::collections::HashMap;
/// # use std::sync::Mutex;
/// # use std::time::Duration;
/// # use idempotent_runtime::{Error, ErrorKind, Idempotency, store::MemoryStore, testing::crash_at_every_await};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # let engine = Idempotency::new(MemoryStore::new());
/// let charges = Mutex::new(HashMap::new());
/// let charge = |key: usize| engine.call("payments.charge", key as u64).ttl(Duration::from_secs(60)).run({
///     let charges = &charges;
///     move || async move {
///         *charges.lock().unwrap().entry(key).or_insert(0) += 1;
///         tokio::task::yield_now().await; // the way back
///         Ok::<_, Error>(())
///     }
/// });
/// let points = crash_at_every_await(charge, async |key, _| {
///     match charge(key).await {
///         Err(error) => assert_eq!(error.kind(), ErrorKind::InDoubt), // somebody looks
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
/// When it could not look. No call ever waited for something outside, so there was no point to drop
/// it at: let the fake of it wait, with `tokio::task::yield_now().await`, before its effect and
/// after it. Or half as many tasks as calls were dropped still run at the end, two at least, and
/// nobody saw their effects: let them end sooner, with shorter timers or `tokio::time::pause()`.
/// Tasks are waited for as long as one of them ends every 200 ms, for five seconds at most; fewer
/// of them that do nothing for longer cannot be told from connections and workers, and what they do
/// later is not seen.
#[track_caller]
pub fn crash_at_every_await<F: Future>(
    call: impl FnMut(usize) -> F,
    check: impl AsyncFnMut(usize, Option<F::Output>),
) -> impl Future<Output = usize> {
    let caller = Location::caller();
    async move {
        let (mut call, mut check) = (call, check);
        let idle = running_tasks();
        let output = call(1).await;
        check(1, Some(output)).await;
        settle(idle).await;
        let idle = running_tasks();

        let (mut calls, mut crashes, mut points) = (1, 0, 0);
        let mut bodies = Bodies::default();
        'turns: for turn in 1.. {
            'waits: for wait in 0.. {
                for moment in [Moment::BeginsToWait, Moment::IsAboutToGoOn] {
                    let mut tries = 0;
                    loop {
                        calls += 1;
                        let end =
                            until(call(calls), Point { turn, wait }, moment, &mut bodies).await;
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
            crashes > 0 && (bodies.have_waited || !bodies.have_begun),
            "crash_at_every_await at {caller} could not look: no call ever waited for something outside, so there was no point \
             to drop it at; let the fake of what is outside wait, `tokio::task::yield_now().await`, before its effect and after it"
        );
        linger(LINGER * 10).await;
        settle(idle).await;
        for number in 1..=calls {
            check(number, None).await;
        }
        // A retry that was told to come again, or its tasks.
        if running_tasks() > idle {
            settle(idle).await;
            for number in 1..=calls {
                check(number, None).await;
            }
            settle(idle).await;
        }
        let left = running_tasks().saturating_sub(idle);
        assert!(
            left < 2 || left * 2 < crashes,
            "crash_at_every_await at {caller} could not look: {crashes} calls were dropped, and {left} tasks that calls left \
             behind still run, with effects that nobody has seen; let them end sooner, with shorter timers or \
             `tokio::time::pause()`"
        );
        points
    }
}

/// Which side of a point.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Moment {
    BeginsToWait,
    IsAboutToGoOn,
}

/// A place in a call. How often a network makes it wait differs from call to call; where it is told
/// that it is another task's turn does not, so places are counted from there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Point {
    /// How often the call was told so.
    turn: usize,
    /// How often it has waited for something since then.
    wait: usize,
}

/// What became of a call.
enum End<T> {
    /// At the point, or at a later one where it did not come to that.
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

/// Polls `call` until it waits at `point`, and drops it then.
async fn until<F: Future>(
    call: F,
    point: Point,
    moment: Moment,
    bodies: &mut Bodies,
) -> End<F::Output> {
    let mut call = pin!(call);
    let woken = Arc::new(Woken::default());
    woken.wake_by_ref();
    let mut turns = Turns::default();
    let mut reached = Point { turn: 0, wait: 0 };
    loop {
        // Each poll is one of the task, so that Tokio has given it a new budget.
        woken.wait().await;
        if reached >= point {
            linger(LINGER).await;
            return End::Dropped { is_met: reached == point };
        }
        let poll = poll_fn(|cx| {
            let output = turns.poll(call.as_mut(), &woken, bodies, cx);
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

/// Leaves a call one operation of Tokio in each poll, so that it waits before the next one whether
/// or not that is ready.
#[derive(Default)]
struct Turns {
    /// How many operations Tokio allows in a poll; `None` before the first, in which there are
    /// none.
    budget: Option<usize>,
}

impl Turns {
    /// More than Tokio's: without a runtime there is no bound, and no turns.
    const UNBOUNDED: usize = 10_000;

    fn poll<F: Future>(
        &mut self,
        call: Pin<&mut F>,
        woken: &Arc<Woken>,
        bodies: &mut Bodies,
        cx: &mut Context<'_>,
    ) -> Poll<F::Output> {
        match self.budget {
            None => self.budget = Some(spend(Self::UNBOUNDED, cx)),
            Some(Self::UNBOUNDED) => {}
            // Others in this task may have spent some. With nothing left the call gets no further
            // in this poll.
            Some(budget) => {
                let spent = spend(budget.saturating_sub(1), cx);
                if !has_budget_remaining() {
                    self.budget = Some(spent);
                }
            }
        }
        let waker = Waker::from(woken.clone());
        BODIES.set(Some(*bodies));
        let output = call.poll(&mut Context::from_waker(&waker));
        *bodies = BODIES.take().unwrap_or(*bodies);
        output
    }
}

/// What the guarded bodies did that were polled here.
#[derive(Clone, Copy, Default)]
struct Bodies {
    have_begun: bool,
    have_waited: bool,
}

thread_local! {
    /// Of the call that is polled now; `None` outside of [`crash_at_every_await`].
    static BODIES: Cell<Option<Bodies>> = const { Cell::new(None) };
}

/// The engine is about to poll a body for the first time. On the way to it, a `select!` may have
/// left what Tokio allows, and the body's first operation is to be a point like all others.
pub(crate) fn body_begins(cx: &mut Context<'_>) {
    if let Some(bodies) = BODIES.get() {
        BODIES.set(Some(Bodies { have_begun: true, ..bodies }));
        spend(Turns::UNBOUNDED, cx);
    }
}

/// The body that the engine has polled waits.
pub(crate) fn body_waits() {
    if let Some(bodies) = BODIES.get() {
        BODIES.set(Some(Bodies { have_waited: true, ..bodies }));
    }
}

/// Takes at most `count` operations of the budget of this poll; gives how many there were.
fn spend(count: usize, cx: &mut Context<'_>) -> usize {
    (0..count)
        .take_while(|_| has_budget_remaining() && pin!(consume_budget()).poll(cx).is_ready())
        .count()
}

/// Whether the call was woken since it was polled.
#[derive(Default)]
struct Woken {
    is_woken: AtomicBool,
    task: Mutex<Option<Waker>>,
}

impl Woken {
    /// Resolves when the call was woken, and never before the next poll of the task.
    async fn wait(&self) {
        let mut is_next_poll = false;
        poll_fn(|cx| {
            // First the waker, then the look: a wake-up between them finds the waker.
            *self.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
            if !self.is_woken.load(Ordering::Acquire) {
                is_next_poll = true;
                return Poll::Pending;
            }
            if !std::mem::replace(&mut is_next_poll, true) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            self.is_woken.store(false, Ordering::Release);
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
        self.is_woken.store(true, Ordering::Release);
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.wake();
        }
    }
}

/// Lets `time` pass for the rest of the world: for other threads really, for a clock of Tokio that
/// is paused not at all.
async fn linger(time: Duration) {
    if Handle::try_current().is_ok() {
        let _ = tokio::task::spawn_blocking(move || sleep(time)).await;
    }
}

/// Waits until no more tasks run than `idle`, or the others show no sign of ending. A paused clock
/// goes on meanwhile.
pub(super) async fn settle(idle: usize) {
    const LOOK: Duration = Duration::from_millis(5);
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

/// How many tasks the runtime has, if there is one.
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
