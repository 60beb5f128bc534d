//! What the engine reports to the test helpers that make calls: which operations were called, which
//! bodies began, and which of them waited for something of the user's. Without the feature
//! `testing` all of it is empty, in `no_watch.rs`.
//!
//! A helper polls its calls in a task's state that names its [`Watch`], so calls in other tasks
//! report to it if that state goes with them: detached bodies, and futures `in_current_call`.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context as Task, Poll};

use pin_project_lite::pin_project;

use crate::engine::Inner;
use crate::engine::task_state::TaskState;
use crate::lock::Mutex;
use crate::testing::spend_budget;

/// What one helper has seen of the calls that it makes.
#[derive(Default)]
pub(crate) struct Watch(Mutex<Log>);

#[derive(Default)]
struct Log {
    /// The engines that each call has come to, in that order: an engine is the same one in all calls
    /// by its place here, as each call may create its own.
    engines: HashMap<usize, Vec<usize>>,
    operations: BTreeMap<Name, Seen>,
}

/// An operation, and the place of its engine among those of the call. `None` without an engine.
type Name = (String, Option<usize>);

/// What was seen of an operation.
#[derive(Clone, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is an observation of its own")]
pub(crate) struct Seen {
    /// The calls of the helper in which a body began.
    pub(crate) begun_in: BTreeSet<usize>,
    /// A body began that the helper drops together with its call.
    pub(crate) has_begun_inside: bool,
    /// A body waited, for something else than its turn and the engine.
    pub(crate) has_waited: bool,
    /// It was one that is dropped together with its call.
    pub(crate) has_waited_inside: bool,
    /// The calls of the helper that have called it outside of all bodies.
    pub(crate) callers: BTreeSet<usize>,
    /// A call of it came while another one was under way.
    pub(crate) calls_met: bool,
    /// A body of it waited while another call of it was under way, or came.
    pub(crate) body_was_met: bool,
    under_way: usize,
    waiting_bodies: usize,
}

impl Watch {
    /// Returns each operation that was called, by name, and what was seen of it.
    pub(crate) fn operations(&self) -> Vec<(String, Seen)> {
        let log = self.0.lock();
        log.operations.iter().map(|((name, _), seen)| (name.clone(), seen.clone())).collect()
    }

    /// Runs `code`, which is part of call `number` of a helper.
    pub(crate) fn enter<T>(self: &Arc<Self>, number: usize, code: impl FnOnce() -> T) -> T {
        TaskState::current().watched(Watched { watch: Arc::clone(self), number }).enter(code)
    }
}

/// A call of a helper.
#[derive(Clone)]
pub(crate) struct Watched {
    watch: Arc<Watch>,
    number: usize,
}

impl Watched {
    /// Returns the place of this operation in the log.
    fn locate(self, engine: Option<*const Inner>, operation: &str) -> Located {
        let mut log = self.watch.0.lock();
        let engine = engine.map(|engine| {
            let engines = log.engines.entry(self.number).or_default();
            let address = engine.addr();
            engines.iter().position(|&known| known == address).unwrap_or_else(|| {
                engines.push(address);
                engines.len() - 1
            })
        });
        let name = (operation.to_owned(), engine);
        log.operations.entry(name.clone()).or_default();
        drop(log);
        Located { watched: self, name }
    }
}

/// An operation in the log of a helper.
struct Located {
    watched: Watched,
    name: Name,
}

impl Located {
    fn note<T>(&self, note: impl FnOnce(&mut Seen) -> T) -> T {
        note(self.watched.watch.0.lock().operations.entry(self.name.clone()).or_default())
    }
}

/// A call that has come to the engine, until it has ended.
pub(crate) struct Arrival(Option<Box<Located>>);

/// Reports a call of `operation`, made in `task_state`.
pub(crate) fn call_arrives(
    engine: Option<*const Inner>,
    operation: &str,
    task_state: &TaskState,
) -> Arrival {
    let Some(watched) = task_state.watcher().cloned() else { return Arrival(None) };
    let number = watched.number;
    let located = watched.locate(engine, operation);
    located.note(|seen| {
        seen.callers.insert(number);
        seen.calls_met |= seen.under_way > 0;
        seen.body_was_met |= seen.waiting_bodies > 0;
        seen.under_way += 1;
    });
    Arrival(Some(Box::new(located)))
}

impl Drop for Arrival {
    fn drop(&mut self) {
        if let Some(located) = &self.0 {
            located.note(|seen| seen.under_way -= 1);
        }
    }
}

/// A body that has begun, until it has ended.
pub(crate) struct BodyWatch(Option<Box<WatchedBody>>);

struct WatchedBody {
    located: Located,
    has_been_polled: AtomicBool,
    /// It waits for its turn: its effect is still to come.
    is_in_line: AtomicBool,
    waits: AtomicBool,
}

impl BodyWatch {
    /// Reports a body that begins in `task_state`, which is its own.
    pub(crate) fn begins(task_state: &TaskState) -> Self {
        let (Some(watched), Some(context)) = (task_state.watcher(), task_state.context()) else {
            return Self(None);
        };
        let number = watched.number;
        let located = watched.clone().locate(Some(context.engine_ptr()), context.operation());
        located.note(|seen| {
            seen.begun_in.insert(number);
            seen.has_begun_inside |= IS_INSIDE.get();
        });
        Self(Some(Box::new(WatchedBody {
            located,
            has_been_polled: AtomicBool::new(false),
            is_in_line: AtomicBool::new(false),
            waits: AtomicBool::new(false),
        })))
    }

    /// Begins a poll of the body, in this task.
    pub(crate) fn polls(&self, cx: &mut Task<'_>) -> Polling<'_> {
        let Some(body) = self.0.as_deref() else { return Polling(None) };
        body.rests(false);
        // A `select!` on the way to the body may have left some of Tokio's budget. The body's first
        // operation must be a point like all others.
        if !body.has_been_polled.swap(true, Ordering::Relaxed) && IS_INSIDE.get() {
            spend_budget(cx);
        }
        let is_in_line = body.is_in_line.load(Ordering::Relaxed);
        let around = POLLED.replace(Some(Polled { is_in_line, ..Polled::default() }));
        Polling(Some((body, around)))
    }

    /// Runs `future`, which is the body.
    pub(crate) fn around<F: Future>(self, future: F) -> Around<F> {
        Around { future, watch: self }
    }
}

pin_project! {
    /// The future of [`BodyWatch::around`].
    pub(crate) struct Around<F> {
        #[pin]
        future: F,
        watch: BodyWatch,
    }
}

impl<F: Future> Future for Around<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Task<'_>) -> Poll<F::Output> {
        let this = self.project();
        let polling = this.watch.polls(cx);
        let polled = this.future.poll(cx);
        polling.ended(polled.is_pending());
        polled
    }
}

impl Drop for BodyWatch {
    fn drop(&mut self) {
        if let Some(body) = &self.0 {
            body.rests(false);
        }
    }
}

impl WatchedBody {
    fn rests(&self, waits: bool) {
        let has_waited = self.waits.swap(waits, Ordering::Relaxed);
        if has_waited == waits {
            return;
        }
        self.located.note(|seen| {
            if waits {
                seen.waiting_bodies += 1;
                seen.has_waited = true;
                seen.has_waited_inside |= IS_INSIDE.get();
                seen.body_was_met |= seen.under_way > 1;
            } else {
                seen.waiting_bodies -= 1;
            }
        });
    }
}

/// What a poll of a body has met so far.
#[derive(Clone, Copy, Default)]
struct Polled {
    /// The engine waits for its store, or for another call.
    engine_waits: bool,
    /// A body inside waits for something of the user's.
    body_waits: bool,
    is_in_line: bool,
}

thread_local! {
    /// The poll of the innermost body that is being polled.
    static POLLED: Cell<Option<Polled>> = const { Cell::new(None) };
    /// True while a helper polls a call that it will drop.
    static IS_INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// A poll of a body. The poll around it is the current one again when this is dropped.
pub(crate) struct Polling<'body>(Option<(&'body WatchedBody, Option<Polled>)>);

impl Polling<'_> {
    /// Notes the end of the poll.
    ///
    /// A body is pending for one of the futures in it, and which one is not known. So it waits for
    /// something of the user's only if the engine did not wait in it, or a body inside did: a helper
    /// rather says too often that it could not look.
    pub(crate) fn ended(mut self, is_pending: bool) {
        let Some((body, around)) = &mut self.0 else { return };
        let polled = POLLED.get().unwrap_or_default();
        body.is_in_line.store(polled.is_in_line, Ordering::Relaxed);
        if !is_pending {
            return;
        }
        let waits = (polled.body_waits || !polled.engine_waits) && !polled.is_in_line;
        body.rests(waits);
        if let Some(around) = around {
            around.body_waits |= waits;
            around.engine_waits |= !waits;
        }
    }
}

impl Drop for Polling<'_> {
    fn drop(&mut self) {
        if let Some((_, around)) = &self.0 {
            POLLED.set(*around);
        }
    }
}

fn note_in_poll(note: impl FnOnce(&mut Polled)) {
    if let Some(mut polled) = POLLED.get() {
        note(&mut polled);
        POLLED.set(Some(polled));
    }
}

/// Returns the result of a poll of the engine's own work, and notes if it waits.
pub(crate) fn of_engine<T>(polled: Poll<T>) -> Poll<T> {
    if polled.is_pending() {
        note_in_poll(|polled| polled.engine_waits = true);
    }
    polled
}

/// Runs the engine's own work.
pub(crate) fn engine_waits<F: Future>(work: F) -> OfEngine<F> {
    OfEngine { work }
}

pin_project! {
    /// The future of [`engine_waits`].
    pub(crate) struct OfEngine<F> {
        #[pin]
        work: F,
    }
}

impl<F: Future> Future for OfEngine<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Task<'_>) -> Poll<F::Output> {
        of_engine(self.project().work.poll(cx))
    }
}

/// Notes that the body which is being polled begins to wait for its turn, or no longer does.
pub(crate) fn body_is_in_line(is_in_line: bool) {
    note_in_poll(|polled| polled.is_in_line = is_in_line);
}

/// Runs `poll`, which polls a call that its helper will drop.
pub(crate) fn inside<T>(poll: impl FnOnce() -> T) -> T {
    /// Also if the call panics.
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            IS_INSIDE.set(self.0);
        }
    }
    let _before = Before(IS_INSIDE.replace(true));
    poll()
}

/// Returns true if a step that has ended is to wait once before its result is recorded, and has the
/// task woken. A fake that never waits would leave no point between its effect and the record.
pub(crate) fn step_waits_before_record(cx: &Task<'_>) -> bool {
    let waits = IS_INSIDE.get();
    if waits {
        cx.waker().wake_by_ref();
        note_in_poll(|polled| polled.engine_waits = true);
    }
    waits
}
