//! A request to the store that continues in the background when its caller is dropped.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::keeper::{Keeper, Task};

/// A future that continues in the background when its owner is dropped: a request that was sent is
/// followed to its answer.
pub(crate) struct Followed<T: Send + 'static> {
    future: Option<Following<T>>,
    keeper: Arc<Keeper>,
    afterwards: Option<Afterwards<T>>,
}

/// A request that is on its way.
pub(crate) type Following<T> = Pin<Box<dyn Future<Output = T> + Send>>;

type Afterwards<T> = Box<dyn FnOnce(Following<T>) -> Task + Send>;

impl<T: Send + 'static> Followed<T> {
    pub(crate) fn new(
        keeper: &Arc<Keeper>,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Self {
        Self { future: Some(Box::pin(future)), keeper: keeper.clone(), afterwards: None }
    }

    /// Passes the request to `afterwards` if its owner is dropped and no other caller takes its
    /// answer.
    pub(crate) fn and_if_dropped<F>(
        mut self,
        afterwards: impl FnOnce(Following<T>) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.afterwards = Some(Box::new(move |following| Box::pin(afterwards(following))));
        self
    }
}

impl<T: Send + 'static> Future for Followed<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        // Taken out while it is polled: a future that panics has ended, and is not passed to the
        // background.
        let Some(mut future) = self.future.take() else { return Poll::Pending };
        let polled = future.as_mut().poll(cx);
        if polled.is_pending() {
            self.future = Some(future);
        }
        polled
    }
}

impl<T: Send + 'static> Drop for Followed<T> {
    fn drop(&mut self) {
        let Some(future) = self.future.take() else { return };
        let afterwards = self.afterwards.take();
        self.keeper.finish_left_behind(async move {
            match afterwards {
                Some(afterwards) => afterwards(future).await,
                None => drop(future.await),
            }
        });
    }
}
