//! Calls to a service as its clients will send them: twice, and concurrently.

use std::future::{Future, poll_fn};
use std::panic::Location;
use std::task::Poll;

use super::crashes::{running_tasks, settle};

/// Runs the same call twice, one after the other, and asserts that both had one effect and the same
/// result.
///
/// `effects` counts outside of the code under test: rows, files, messages at a fake provider. It is
/// called once the tasks that the calls spawned have ended, which are awaited for as long as one of
/// them ends every 200 ms, for five seconds at most. Tasks that do nothing for longer cannot be
/// distinguished from those that never end, and their later effects are not counted. Tokio does not
/// report work on threads, `spawn_blocking` included: a call must wait for it, or its effect may
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
/// which none ever waited before another one began. Let the fake wait, with
/// `tokio::task::yield_now().await`.
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
        let (idle, mut were_at_once) = (running_tasks(), false);
        let mut calls: Vec<_> = (0..count).map(call).map(Box::pin).collect();
        let mut answers: Vec<_> = calls.iter().map(|_| None).collect();
        poll_fn(|cx| {
            let mut is_over = true;
            for (call, answer) in calls.iter_mut().zip(&mut answers) {
                if answer.is_none() {
                    were_at_once |= !is_over;
                    match call.as_mut().poll(cx) {
                        Poll::Ready(output) => *answer = Some(output),
                        Poll::Pending => is_over = false,
                    }
                }
            }
            if is_over { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        assert!(
            were_at_once,
            "run_concurrently at {caller} could not look: no call ever waited while another was to come, so each ended before \
             the next began; let the fake of what is outside wait, `tokio::task::yield_now().await`, before its effect and after it"
        );
        settle(idle).await;
        answers.into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
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
