//! A future that is created when it is first polled.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

pin_project! {
    /// The future returned by [`on_first_poll`].
    #[must_use = "futures do nothing unless polled"]
    pub struct OnFirstPoll<M, F> {
        #[pin]
        stage: Stage<M, F>,
    }
}

pin_project! {
    // The variants share their space: the whole is as large as the largest of them.
    #[project = StageProjection]
    #[project_replace = StageOwned]
    enum Stage<M, F> {
        Unmade { make: M },
        Made { #[pin] future: F },
        Making,
    }
}

/// Returns a future that `make` creates when it is first polled, as in an `async fn`.
pub fn on_first_poll<M, F>(make: M) -> OnFirstPoll<M, F>
where
    M: FnOnce() -> F,
    F: Future,
{
    OnFirstPoll { stage: Stage::Unmade { make } }
}

impl<M, F> Future for OnFirstPoll<M, F>
where
    M: FnOnce() -> F,
    F: Future,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let mut stage = self.project().stage;
        if let StageProjection::Unmade { .. } = stage.as_mut().project()
            && let StageOwned::Unmade { make } = stage.as_mut().project_replace(Stage::Making)
        {
            stage.set(Stage::Made { future: make() });
        }
        match stage.project() {
            StageProjection::Made { future } => future.poll(context),
            _ => panic!("a call was polled again after making it had panicked"),
        }
    }
}

impl<M, F> fmt::Debug for OnFirstPoll<M, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnFirstPoll")
    }
}
