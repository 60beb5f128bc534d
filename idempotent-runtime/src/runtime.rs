//! The Tokio runtime that a request belongs to, and whether it still exists.
//!
//! A client's timers and sockets belong to the runtime that created them. When its caller is gone,
//! and perhaps the runtime too, the engine continues a request on its own thread: such a timer
//! panics when polled, and such a socket never answers.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, LazyLock};
use std::task::Poll;

use tokio::runtime::{Handle, Id};
use tokio::task::JoinHandle;

use crate::lock::Mutex;

/// For each runtime, a task that ends when the runtime does and not before.
static SENTINELS: LazyLock<Mutex<HashMap<Id, Arc<JoinHandle<()>>>>> = LazyLock::new(Mutex::default);

/// Returns a task that ends when `runtime` does.
pub(crate) fn sentinel(runtime: &Handle) -> Arc<JoinHandle<()>> {
    let mut sentinels = SENTINELS.lock();
    if let Some(sentinel) = sentinels.get(&runtime.id()) {
        return Arc::clone(sentinel);
    }
    sentinels.retain(|_, sentinel| !sentinel.is_finished());
    let sentinel = Arc::new(runtime.spawn(std::future::pending()));
    sentinels.insert(runtime.id(), Arc::clone(&sentinel));
    sentinel
}

/// A separate value for each runtime: what a stalled runtime leaves unfinished does not block the
/// others. The value of a runtime that has ended is dropped at the next access.
pub(crate) struct PerRuntime<T>(Mutex<HashMap<Id, Owned<T>>>);

struct Owned<T> {
    value: T,
    runtime: Arc<JoinHandle<()>>,
}

impl<T> Default for PerRuntime<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> PerRuntime<T> {
    /// Applies `look` to the value of the calling runtime, which is created by `make` if it is
    /// missing.
    pub(crate) fn with<A>(&self, make: impl FnOnce() -> T, look: impl FnOnce(&mut T) -> A) -> A {
        let runtime = Handle::current();
        let mut all = self.0.lock();
        let ended: Vec<_> = all.extract_if(|_, owned| owned.runtime.is_finished()).collect();
        let make = || Owned { value: make(), runtime: sentinel(&runtime) };
        let answer = look(&mut all.entry(runtime.id()).or_insert_with(make).value);
        drop(all);
        // Closing what they hold may take a moment, so not under the lock.
        drop(ended);
        answer
    }

    /// The value of `runtime`, if it has one.
    #[cfg(feature = "redis")]
    pub(crate) fn of(&self, runtime: Id) -> Option<T>
    where
        T: Clone,
    {
        let all = self.0.lock();
        all.get(&runtime).map(|owned| owned.value.clone())
    }

    /// The number of runtimes that have a value.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.lock().len()
    }
}

/// Returns the output of `request`, or `None` if the runtime on which this was first polled has
/// ended. `request` is not polled then.
pub(crate) async fn while_runtime_lives<A>(request: impl Future<Output = A>) -> Option<A> {
    let home = Handle::current();
    let sentinel = sentinel(&home);
    let mut request = pin!(request);
    poll_fn(|cx| {
        let is_elsewhere = Handle::try_current().map_or(true, |here| here.id() != home.id());
        if is_elsewhere && sentinel.is_finished() {
            return Poll::Ready(None);
        }
        request.as_mut().poll(cx).map(Some)
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::future::Future as _;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};
    use std::time::Duration;

    use super::{PerRuntime, while_runtime_lives};

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn each_runtime_has_its_own_and_one_that_has_ended_leaves_none() {
        let (one, other) = (runtime(), runtime());
        let all = PerRuntime::default();
        let count = || {
            all.with(
                || 0,
                |count| {
                    *count += 1;
                    *count
                },
            )
        };
        assert_eq!([one.block_on(async { count() }), one.block_on(async { count() })], [1, 2]);
        assert_eq!(other.block_on(async { count() }), 1);
        drop(one);
        assert_eq!(other.block_on(async { count() }), 2);
        assert_eq!(all.len(), 1, "that of the runtime that ended is gone");
    }

    #[expect(clippy::disallowed_methods, reason = "the client's timers are those of Tokio")]
    #[test]
    fn a_request_whose_runtime_has_ended_is_not_polled() {
        let (home, elsewhere) = (runtime(), runtime());
        let mut timer =
            pin!(while_runtime_lives(async { tokio::time::sleep(Duration::from_secs(600)).await }));
        let mut cx = Context::from_waker(Waker::noop());
        let poll = home.block_on(async { timer.as_mut().poll(&mut cx) });
        assert_eq!(poll, Poll::Pending);
        let poll = elsewhere.block_on(async { timer.as_mut().poll(&mut cx) });
        assert_eq!(poll, Poll::Pending, "its runtime lives");
        drop(home);
        // The timer itself would panic.
        let poll = elsewhere.block_on(async { timer.as_mut().poll(&mut cx) });
        assert_eq!(poll, Poll::Ready(None));
    }
}
