//! Calling a service as its clients will: twice, at once, and with callers that are gone in the middle.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

/// Makes the same call twice, one after the other, and asserts that it had one effect and one answer. `effects` counts
/// outside of the code under test: rows, files, messages at a fake provider.
///
/// ```
/// # use std::sync::atomic::{AtomicUsize, Ordering};
/// # use std::time::Duration;
/// # use idempotent_runtime::{Error, Idempotency, store::MemoryStore, testing::assert_runs_once};
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
/// When the second call has another answer than the first, or there is not exactly one more effect than before.
#[track_caller]
pub fn assert_runs_once<F, T, E>(call: impl FnMut() -> F, effects: impl Fn() -> usize) -> impl Future<Output = T>
where
    F: Future<Output = Result<T, E>>,
    T: PartialEq + std::fmt::Debug,
    E: std::fmt::Debug,
{
    let caller = std::panic::Location::caller();
    async move {
        let mut call = call;
        let before = effects();
        let first = call().await.unwrap_or_else(|error| panic!("the first call at {caller} failed: {error:?}"));
        let second = call().await.unwrap_or_else(|error| panic!("the second call at {caller} failed: {error:?}"));
        assert_eq!(first, second, "the second call at {caller} has another answer");
        let made = effects() - before;
        assert_eq!(made, 1, "two calls at {caller} had {made} effects");
        first
    }
}

/// Makes `count` calls at once, and gives their answers in the order of their numbers, from zero.
///
/// ```
/// # use std::sync::atomic::{AtomicUsize, Ordering};
/// # use std::time::Duration;
/// # use idempotent_runtime::{Error, Idempotency, store::MemoryStore, testing::run_concurrently};
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
pub async fn run_concurrently<F: Future>(count: usize, call: impl FnMut(usize) -> F) -> Vec<F::Output> {
    let mut calls: Vec<_> = (0..count).map(call).map(Box::pin).collect();
    let mut answers: Vec<_> = calls.iter().map(|_| None).collect();
    poll_fn(|cx| {
        let mut is_over = true;
        for (call, answer) in calls.iter_mut().zip(&mut answers) {
            if answer.is_none() {
                match call.as_mut().poll(cx) {
                    Poll::Ready(output) => *answer = Some(output),
                    Poll::Pending => is_over = false,
                }
            }
        }
        if is_over { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    answers.into_iter().flatten().collect()
}

/// Drops a call at each point at which it can be dropped, one point after the other, as a time-out, a `select!` or a
/// client that leaves does; after each, lets `check` look at what is left.
///
/// `call` makes the call for a point; points are numbered from one, so that each can have a key of its own. `check` gets
/// the number, and the output of a call that came to its end before that point. The last round is the first whose call
/// ends. Gives how many points there were.
///
/// ```
/// # use std::sync::atomic::{AtomicUsize, Ordering};
/// # use std::time::Duration;
/// # use idempotent_runtime::{Error, ErrorKind, Idempotency, store::MemoryStore, testing::crash_at_every_await};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # let engine = Idempotency::new(MemoryStore::new());
/// let charges = AtomicUsize::new(0);
/// let charge = |key: usize| engine.call("payments.charge", key as u64).ttl(Duration::from_secs(60)).run(|| async {
///     charges.fetch_add(1, Ordering::SeqCst);
///     tokio::task::yield_now().await; // the way back
///     Ok::<_, Error>(())
/// });
/// let points = crash_at_every_await(charge, async |key, _| {
///     let before = charges.swap(0, Ordering::SeqCst);
///     match charge(key).await {
///         Err(error) if error.kind() == ErrorKind::InDoubt => assert!(before <= 1), // somebody looks
///         answer => assert!(answer.is_ok()),
///     }
///     assert!(before + charges.swap(0, Ordering::SeqCst) <= 1, "charged twice");
/// })
/// .await;
/// assert!(points >= 1);
/// # }
/// ```
pub async fn crash_at_every_await<F: Future>(
    mut call: impl FnMut(usize) -> F,
    mut check: impl AsyncFnMut(usize, Option<F::Output>),
) -> usize {
    for point in 1.. {
        let output = until_point(call(point), point).await;
        let is_over = output.is_some();
        check(point, output).await;
        if is_over {
            return point - 1;
        }
    }
    unreachable!("a call has fewer points than there are numbers")
}

/// Polls `call` until it has waited `point` times; its output if it ends before that.
async fn until_point<F: Future>(call: F, point: usize) -> Option<F::Output> {
    let (mut call, mut waits) = (pin!(call), 0);
    poll_fn(|cx| match call.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => {
            waits += 1;
            if waits == point { Poll::Ready(None) } else { Poll::Pending }
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::{assert_runs_once, crash_at_every_await, run_concurrently};

    #[tokio::test]
    async fn every_point_is_crashed_at_once() {
        let reached = Cell::new(0);
        let call = |_| async {
            for _ in 0..3 {
                reached.set(reached.get() + 1);
                tokio::task::yield_now().await;
            }
            "done"
        };
        let mut seen = Vec::new();
        let points = crash_at_every_await(call, async |point, output| seen.push((point, output, reached.take()))).await;
        assert_eq!(points, 3);
        assert_eq!(seen, [(1, None, 1), (2, None, 2), (3, None, 3), (4, Some("done"), 3)]);
    }

    #[tokio::test]
    async fn calls_run_at_once_and_answer_in_order() {
        let (running, most) = (Cell::new(0), Cell::new(0));
        let call = |number| {
            let (running, most) = (&running, &most);
            async move {
                running.set(running.get() + 1);
                most.set(running.get().max(most.get()));
                tokio::task::yield_now().await;
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
}
