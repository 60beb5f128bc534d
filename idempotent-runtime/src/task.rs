//! Futures that carry an engine, or the running call, into the task that polls them.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tokio::task::futures::TaskLocalFuture;

use crate::engine::Idempotency;
use crate::engine::task_state::TaskState;

/// Gives a future an engine of its own.
pub trait WithEngine: Future {
    /// Wraps the future so that the calls it makes use `engine` in place of the installed one.
    /// Tests swap the store this way.
    ///
    /// Everything else, as the [`Context`](crate::Context) and the
    /// [report](crate::with_report), is that of the code that polls the future. Tasks that it
    /// spawns inherit nothing: see [`InCurrentCall`].
    ///
    /// ```
    /// # use std::time::Duration;
    /// use idempotency::{Error, Idempotency, WithEngine as _, store::MemoryStore};
    ///
    /// # async fn charge() -> Result<u64, Error> { Ok(7) }
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let engine = Idempotency::new(MemoryStore::new());
    /// let receipt = charge().with_engine(&engine).await?;
    /// let task = tokio::spawn(charge().with_engine(&engine));
    /// assert_eq!(task.await??, receipt);
    /// # Ok(())
    /// # }
    /// ```
    fn with_engine(self, engine: &Idempotency) -> OnEngine<Self>
    where
        Self: Sized,
    {
        OnEngine { stage: Stage::Unpolled { engine: engine.clone(), future: self } }
    }
}

impl<F: Future> WithEngine for F {}

pin_project! {
    /// The future returned by [`WithEngine::with_engine`].
    #[must_use = "futures do nothing unless polled"]
    pub struct OnEngine<F> {
        #[pin]
        stage: Stage<F>,
    }
}

pin_project! {
    #[project = StageProjection]
    #[project_replace = StageOwned]
    enum Stage<F> {
        // The surroundings are those of the task that polls it, which is not known before.
        Unpolled { engine: Idempotency, future: F },
        Polled { #[pin] future: TaskLocalFuture<TaskState, F> },
        Between,
    }
}

impl<F: Future> Future for OnEngine<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let mut stage = self.project().stage;
        if let StageProjection::Unpolled { .. } = stage.as_mut().project()
            && let StageOwned::Unpolled { engine, future } =
                stage.as_mut().project_replace(Stage::Between)
        {
            let future = TaskState::current().with_engine(engine).wrap(future);
            stage.set(Stage::Polled { future });
        }
        match stage.project() {
            StageProjection::Polled { future } => future.poll(context),
            _ => unreachable!("nothing fails between the two stages"),
        }
    }
}

impl<F> fmt::Debug for OnEngine<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnEngine")
    }
}

/// Carries the running call into another task.
pub trait InCurrentCall: Future {
    /// Wraps the future so that it has the engine and the [`Context`](crate::Context) of the code
    /// that calls this, wherever it is polled.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use idempotency::{Context, Error, Idempotency, InCurrentCall, store::MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Error> {
    /// # let engine = Idempotency::new(MemoryStore::new());
    /// let call = engine.call("reports.build", 7).ttl(Duration::from_secs(60)).run(|| async {
    ///     let part = tokio::spawn(async { Context::current().attempt() }.in_current_call());
    ///     Ok::<_, Error>(part.await.unwrap_or_default())
    /// });
    /// assert_eq!(call.await?, 1);
    /// # Ok(())
    /// # }
    /// ```
    fn in_current_call(self) -> InCall<Self>
    where
        Self: Sized,
    {
        InCall { future: TaskState::current().wrap(self) }
    }
}

impl<F: Future> InCurrentCall for F {}

pin_project! {
    /// The future returned by [`InCurrentCall::in_current_call`].
    #[must_use = "futures do nothing unless polled"]
    pub struct InCall<F> {
        #[pin]
        future: TaskLocalFuture<TaskState, F>,
    }
}

impl<F: Future> Future for InCall<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        self.project().future.poll(context)
    }
}

impl<F> fmt::Debug for InCall<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InCall")
    }
}
