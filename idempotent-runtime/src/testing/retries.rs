//! Calls to a service as its clients will send them: twice, and concurrently.

use std::future::{Future, poll_fn};
use std::panic::Location;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake as _, Waker};

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::oneshot;

use super::crashes::{LET_IT_WAIT, Woken, running_tasks, settle};
use crate::watch::Watch;

/// Runs the same call twice, one after the other, and asserts that both had one effect and the same
/// result.
///
/// `effects` counts outside of the code under test: rows, files, messages at a fake provider. It is
/// called once the tasks that the calls spawned have ended, which are awaited for as long as one of
/// them ends every 200 ms, for five seconds at most. Tasks that do nothing for longer cannot be
/// distinguished from those that never end, and their later effects are not counted. Neither are
/// those of tasks of a `LocalSet` that wait, nor of tasks in whose place others have ended. Tokio does
/// not report work on threads, `spawn_blocking` included: a call must wait for it, or its effect may
/// come after the count.
///
/// ```
/// # use std::sync::atomic::{AtomicUsize, Ordering};
/// # use std::time::Duration;
/// # use idempotency::{Error, Idempotency, store::MemoryStore, testing::assert_runs_once};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # let engine = Idempotency::new(MemoryStore::new());
/// let mails = AtomicUsize::new(0);
/// let send = || engine.call("mails.welcome", "ada").ttl(Duration::from_secs(60)).run(|| async {
///     mails.fetch_add(1, Ordering::SeqCst);
///     Ok::<_, Error>("sent".to_owned())
/// });
/// assert_runs_once(send, || mails.load(Ordering::SeqCst)).await;
/// # }
/// ```
///
/// # Panics
/// If the second call has another result than the first, or there is not exactly one more effect
/// than before. Also if one of the calls fails.
#[track_caller]
pub fn assert_runs_once<F, T, E>(
    call: impl FnMut() -> F,
    effects: impl Fn() -> usize,
) -> impl Future<Output = T>
where
    F: Future<Output = Result<T, E>>,
    T: PartialEq + std::fmt::Debug,
    E: std::fmt::Debug,
{
    let caller = Location::caller();
    async move {
        let mut call = call;
        let (before, idle) = (effects(), running_tasks());
        let first = call()
            .await
            .unwrap_or_else(|error| panic!("the first call at {caller} failed: {error:?}"));
        let second = call()
            .await
            .unwrap_or_else(|error| panic!("the second call at {caller} failed: {error:?}"));
        assert_eq!(first, second, "the second call at {caller} returned another result");
        // A mail is often sent in a task of its own, by the second call as well.
        settle(idle).await;
        let after = effects();
        assert!(
            after >= before,
            "the count at {caller} goes down, from {before} to {after}: it counts no effects"
        );
        let made = after - before;
        assert_eq!(made, 1, "two calls at {caller} had {made} effects");
        first
    }
}

/// Runs `count` calls concurrently, and returns their results in the order of their numbers, from
/// zero. It returns once the tasks that the calls spawned have ended. As with [`assert_runs_once`],
/// tasks that do nothing for longer than 200 ms are not awaited.
///
/// # Panics
/// If it could not test anything: fewer than two calls are not concurrent, and neither are calls of
/// which none ever waited before another one began, here or in the tasks that they spawn. Let the
/// fake wait, with `tokio::task::yield_now().await`, before its effect and after it.
///
/// If several of the calls come to an operation of an engine, a body of it must wait while another
/// call of it comes or is under way, wherever else the calls wait. If no body began, because all
/// were answered or refused, one call must come while another one is under way.
///
/// # What it does not see
///
/// - Code without a guard: whether a call waits between its check and its effect, or only before
///   both. The fake must wait there.
/// - Calls in tasks on a runtime with several threads, in a `LocalSet` and on threads: they count as
///   concurrent if they have not ended when the last one has been created, whether or not they ran
///   at the same time. Pass the future itself, or use a runtime with one thread, which
///   `#[tokio::test]` does. A guarded call in a task counts as code without a guard, unless the task
///   is that of its own `detach`ed body or was spawned
///   [`in_current_call`](crate::InCurrentCall::in_current_call).
/// - Effects of work on threads, `spawn_blocking` included, for which a call does not wait.
///
/// ```
/// # use std::sync::atomic::{AtomicUsize, Ordering};
/// # use std::time::Duration;
/// # use idempotency::{Error, Idempotency, store::MemoryStore, testing::run_concurrently};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # let engine = Idempotency::new(MemoryStore::new());
/// let seats = AtomicUsize::new(0);
/// let book = |_| engine.call("seats.book", "12A").ttl(Duration::from_secs(60)).run(|| async {
///     tokio::task::yield_now().await;
///     Ok::<_, Error>(seats.fetch_add(1, Ordering::SeqCst))
/// });
/// let answers = run_concurrently(64, book).await;
/// assert!(answers.into_iter().all(|answer| answer.is_ok_and(|seat| seat == 0)));
/// assert_eq!(seats.load(Ordering::SeqCst), 1);
/// # }
/// ```
#[track_caller]
pub fn run_concurrently<F: Future>(
    count: usize,
    call: impl FnMut(usize) -> F,
) -> impl Future<Output = Vec<F::Output>> {
    let caller = Location::caller();
    assert!(
        count >= 2,
        "run_concurrently at {caller} could not look: {count} calls are not concurrent"
    );
    async move {
        // Before the calls are created: one that is spawned is a task of its own.
        let (idle, watch) = (running_tasks(), Arc::new(Watch::default()));
        let mut calls: Vec<_> = (0..count)
            .scan(call, |call, number| Some(Concurrent::new(&watch, number, call)))
            .collect();
        let (mut were_at_once, mut tasks_wait) = (false, None);
        poll_fn(|cx| {
            for next in 0..calls.len() {
                if !calls[next].is_to_be_polled(cx) {
                    continue;
                }
                // Not this one, which is about to go on.
                let mut others = calls.iter().enumerate().filter(|(other, _)| *other != next);
                were_at_once |= others.any(|(_, other)| other.waits());
                calls[next].poll(&watch, next);
            }
            if tasks_wait.is_none() {
                tasks_wait = Some(first_tasks_wait(&calls));
            }
            let is_over = calls.iter().all(|call| call.answer.is_some());
            if is_over { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        if let Some(Some(tasks_wait)) = tasks_wait {
            were_at_once |= tasks_wait.await.unwrap_or(false);
        }
        settle(idle).await;
        check_that_calls_met(&watch, were_at_once, caller);
        calls.into_iter().filter_map(|call| call.answer).collect()
    }
}

/// One of several calls that run concurrently.
struct Concurrent<F: Future> {
    call: Pin<Box<F>>,
    answer: Option<F::Output>,
    woken: Arc<Woken>,
    wait: Wait,
}

/// What is known of a call that has not returned.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// It was not polled yet.
    ToBegin,
    /// It waits, and what it does happens where it is polled.
    Here,
    /// It has spawned a task, and may wait for that alone. The task may never wait.
    MaybeForTask,
}

impl<F: Future> Concurrent<F> {
    fn new(watch: &Arc<Watch>, number: usize, create: &mut impl FnMut(usize) -> F) -> Self {
        let tasks = running_tasks();
        let call = Box::pin(watch.enter(number, || create(number)));
        let wait = if running_tasks() > tasks { Wait::MaybeForTask } else { Wait::ToBegin };
        let woken = Arc::new(Woken::default());
        woken.wake_by_ref();
        Self { call, answer: None, woken, wait }
    }

    /// Returns true if the call has not returned and was woken.
    fn is_to_be_polled(&self, cx: &Context<'_>) -> bool {
        self.answer.is_none() && self.woken.take(cx)
    }

    fn waits(&self) -> bool {
        self.answer.is_none() && self.wait == Wait::Here
    }

    fn poll(&mut self, watch: &Arc<Watch>, number: usize) {
        let tasks = running_tasks();
        let waker = Waker::from(self.woken.clone());
        let polled =
            watch.enter(number, || self.call.as_mut().poll(&mut Context::from_waker(&waker)));
        match polled {
            Poll::Ready(answer) => self.answer = Some(answer),
            // It has woken itself: no task of its own has run yet.
            Poll::Pending if self.woken.is_woken() => self.wait = Wait::Here,
            Poll::Pending if self.wait == Wait::MaybeForTask || running_tasks() > tasks => {
                self.wait = Wait::MaybeForTask;
            }
            Poll::Pending => self.wait = Wait::Here,
        }
    }
}

/// Finds out whether a task of one of `calls`, which have all been polled once, waits while that of
/// a later one begins. Returns `None` if no call has spawned a task.
///
/// A runtime with one thread polls new tasks in the order in which they were spawned. So a task that
/// is spawned now is polled after each of them, and a call that was not woken until then waits for a
/// task that has waited.
fn first_tasks_wait<F: Future>(calls: &[Concurrent<F>]) -> Option<oneshot::Receiver<bool>> {
    let (_, earlier) = calls.split_last()?;
    let earlier: Vec<_> = earlier
        .iter()
        .filter(|call| call.answer.is_none() && call.wait == Wait::MaybeForTask)
        .map(|call| call.woken.clone())
        .collect();
    let runtime = Handle::try_current().ok().filter(|_| !earlier.is_empty())?;
    let (sender, receiver) = oneshot::channel();
    if runtime.runtime_flavor() != RuntimeFlavor::CurrentThread {
        // Its threads poll tasks in any order: those that have not ended count as under way.
        let _ = sender.send(true);
        return Some(receiver);
    }
    for woken in &earlier {
        woken.watch();
    }
    spawn_last(running_tasks() + 1, move || {
        let _ = sender.send(earlier.iter().any(|woken| !woken.was_woken_since()));
    });
    Some(receiver)
}

/// Runs `look` in a task that is polled after all the others. Those may spawn some in turn, so this
/// is repeated until as many tasks run as before.
fn spawn_last(tasks: usize, look: impl FnOnce() + Send + 'static) {
    let last: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async move {
        let now = running_tasks();
        if now == tasks {
            look();
        } else {
            spawn_last(now, look);
        }
    });
    tokio::spawn(last);
}

/// Panics if no call was under way when another one came.
fn check_that_calls_met(watch: &Watch, were_at_once: bool, caller: &Location<'_>) {
    let mut operations = watch.operations();
    operations.retain(|(_, seen)| seen.callers.len() > 1);
    for (operation, seen) in &operations {
        // A detached body may begin only after the others were refused for its claim.
        let body_was_met = seen.body_was_met || (seen.has_waited && seen.calls_met);
        assert!(
            body_was_met || seen.begun_in.is_empty(),
            "run_concurrently at {caller} could not look: no body of `{operation}` waited while \
             another call of it was under way; {LET_IT_WAIT}, and let the calls come to it at once"
        );
        assert!(
            body_was_met || seen.calls_met,
            "run_concurrently at {caller} could not look: no call of `{operation}` was under way \
             when another one came, because no body began: each call returned an earlier result, \
             or was refused"
        );
    }
    assert!(
        were_at_once || !operations.is_empty(),
        "run_concurrently at {caller} could not look: no call ever waited while another was to \
         come, so each ended before the next began, here or in a task that it spawned; \
         {LET_IT_WAIT}"
    );
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::task::yield_now;

    use super::{assert_runs_once, run_concurrently};

    #[tokio::test]
    async fn calls_run_at_once_and_answer_in_order() {
        let (running, most) = (Cell::new(0), Cell::new(0));
        let call = |number| {
            let (running, most) = (&running, &most);
            async move {
                running.set(running.get() + 1);
                most.set(running.get().max(most.get()));
                yield_now().await;
                running.set(running.get() - 1);
                number
            }
        };
        assert_eq!(run_concurrently(5, call).await, [0, 1, 2, 3, 4]);
        assert_eq!(most.get(), 5);
    }

    #[tokio::test]
    #[should_panic(expected = "had 2 effects")]
    async fn a_call_that_runs_twice_is_reported() {
        let effects = Cell::new(0);
        let call = || async {
            effects.set(effects.get() + 1);
            Ok::<_, ()>(())
        };
        assert_runs_once(call, || effects.get()).await;
    }

    /// A call whose effect is in a task of its own, which outlasts it.
    async fn spawns(effects: Arc<AtomicUsize>) -> Result<(), ()> {
        yield_now().await;
        tokio::spawn(async move {
            for _ in 0..100 {
                yield_now().await;
            }
            effects.fetch_add(1, Ordering::SeqCst)
        });
        Ok(())
    }

    #[tokio::test]
    #[should_panic(expected = "had 2 effects")]
    async fn a_call_that_runs_twice_in_a_local_set_is_reported() {
        let effects = &Rc::new(Cell::new(0));
        let call = || async {
            yield_now().await;
            let effects = effects.clone();
            tokio::task::spawn_local(async move { effects.set(effects.get() + 1) });
            Ok::<_, ()>(())
        };
        let local = tokio::task::LocalSet::new();
        local.run_until(assert_runs_once(call, || effects.get())).await;
    }

    #[tokio::test]
    #[should_panic(expected = "had 2 effects")]
    async fn a_call_that_runs_twice_in_the_background_is_reported() {
        let effects = Arc::new(AtomicUsize::new(0));
        assert_runs_once(|| spawns(effects.clone()), || effects.load(Ordering::SeqCst)).await;
    }

    #[tokio::test]
    async fn effects_in_the_background_are_there_when_calls_at_once_are_over() {
        let effects = Arc::new(AtomicUsize::new(0));
        run_concurrently(3, |_| spawns(effects.clone())).await;
        assert_eq!(effects.load(Ordering::SeqCst), 3);
    }

    /// The tasks of the calls are there before the calls are polled, and gone after them.
    #[tokio::test]
    async fn effects_in_the_background_of_calls_that_are_tasks_are_there_when_these_are_over() {
        let effects = Arc::new(AtomicUsize::new(0));
        run_concurrently(3, |_| tokio::spawn(spawns(effects.clone()))).await;
        assert_eq!(effects.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    #[should_panic(expected = "had 2 effects")]
    async fn a_call_in_a_task_that_runs_twice_in_the_background_is_reported() {
        let effects = Arc::new(AtomicUsize::new(0));
        let call = || tokio::spawn(spawns(effects.clone()));
        let _ = assert_runs_once(call, || effects.load(Ordering::SeqCst)).await;
    }

    #[tokio::test]
    #[should_panic(expected = "could not look: no call ever waited")]
    async fn tasks_in_tasks_that_never_wait_are_reported() {
        run_concurrently(64, |_| {
            tokio::spawn(async { tokio::spawn(async { tokio::spawn(async {}).await }).await })
        })
        .await;
    }

    #[tokio::test]
    async fn tasks_in_tasks_that_wait_are_at_once() {
        run_concurrently(64, |_| tokio::spawn(async { tokio::spawn(yield_now()).await })).await;
    }

    #[tokio::test]
    #[should_panic(expected = "could not look: no call ever waited")]
    async fn a_last_task_that_waits_alone_is_reported() {
        run_concurrently(3, |number| {
            tokio::spawn(async move {
                if number == 2 {
                    yield_now().await;
                }
            })
        })
        .await;
    }

    #[tokio::test]
    #[should_panic(expected = "could not look: no call ever waited")]
    async fn a_last_call_that_waits_alone_is_reported() {
        run_concurrently(3, async |number| {
            if number == 2 {
                yield_now().await;
            }
        })
        .await;
    }

    #[tokio::test]
    #[should_panic(expected = "could not look: no call ever waited")]
    async fn calls_that_are_not_at_once_are_reported() {
        run_concurrently(5, |_| async {}).await;
    }

    #[tokio::test]
    #[should_panic(expected = "could not look: 1 calls are not concurrent")]
    async fn one_call_alone_is_reported() {
        run_concurrently(1, |_| yield_now()).await;
    }
}
