//! Which Tokio runtime a request belongs to, and whether that is still there.
//!
//! A client's timers and sockets belong to the runtime that made them. The engine goes on with a request on its own
//! thread when its caller is gone, and with it perhaps the runtime: such a timer panics when it is polled, and such a
//! socket never answers.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::task::Poll;

use tokio::runtime::{Handle, Id};
use tokio::task::JoinHandle;

/// A task on each runtime that ends with its runtime and not before.
static SENTINELS: LazyLock<Mutex<HashMap<Id, Arc<JoinHandle<()>>>>> = LazyLock::new(Mutex::default);

/// A task that ends when `runtime` does.
pub(crate) fn sentinel(runtime: &Handle) -> Arc<JoinHandle<()>> {
    let mut sentinels = SENTINELS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(sentinel) = sentinels.get(&runtime.id()) {
        return Arc::clone(sentinel);
    }
    sentinels.retain(|_, sentinel| !sentinel.is_finished());
    let sentinel = Arc::new(runtime.spawn(std::future::pending()));
    sentinels.insert(runtime.id(), Arc::clone(&sentinel));
    sentinel
}

/// The output of `request`, or nothing if the runtime ends on which this is polled first: `request` is not polled then.
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

    use super::while_runtime_lives;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[expect(clippy::disallowed_methods, reason = "the client's timers are those of Tokio")]
    #[test]
    fn a_request_whose_runtime_has_ended_is_not_polled() {
        let (home, elsewhere) = (runtime(), runtime());
        let mut timer = pin!(while_runtime_lives(async { tokio::time::sleep(Duration::from_secs(600)).await }));
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
