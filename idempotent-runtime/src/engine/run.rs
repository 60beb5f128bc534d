//! The generic shell around a body: a thin future over the engine's core, one instance per
//! annotated function.

use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use tracing::Instrument as _;

use super::Unprotected;
use super::admission::{Admission, admit};
use super::call::Call;
use super::finish::CallerGets;
use super::followed::Followed;
use super::owner::Owner;
use super::request::CheckedCall;
use super::task_state::TaskState;
use super::verify::Cleared;
use crate::error::{Error, ErrorKind};
use crate::outcome::{Answer, Codec, Reader, Writer};
use crate::watch::{BodyWatch, engine_waits, of_engine};

type Core<T> = Pin<Box<dyn Future<Output = T> + Send>>;

pin_project! {
    /// The future of a guarded call.
    ///
    /// Nothing happens until it is polled. If it is dropped before the body started, it releases
    /// its claim. If it is dropped while the body runs, the outcome is unknown. If it is dropped
    /// after that, the result is stored in the background.
    #[must_use = "futures do nothing unless polled"]
    pub struct Run<R, B, F, P> {
        reader: Reader<R>,
        #[pin]
        stage: Stage<R, B, F, P>,
    }
}

pin_project! {
    // The body closure and the body's future share their space: the whole is as large as the larger
    // of the two.
    #[project = StageProjection]
    #[project_replace = StageOwned]
    enum Stage<R, B, F, P> {
        Admission { core: Core<Admission>, body: B, writer: Writer<R, P> },
        Body { #[pin] future: F, guard: Guard, writer: Writer<R, P> },
        Bypass { #[pin] future: F, task_state: TaskState, watch: BodyWatch, unprotected: Unprotected },
        Finish { core: Followed<CallerGets>, result: R },
        Over,
    }
}

/// The owner and the task's state of a body that started. If it is dropped with the body, the outcome is
/// left to the policy.
struct Guard {
    owner: Box<Owner>,
    task_state: TaskState,
    watch: BodyWatch,
}

impl Guard {
    /// Runs the user's code with its task's state, and records a panic.
    fn run<T>(&mut self, code: impl FnOnce() -> T) -> std::thread::Result<T> {
        let answer = catch_unwind(AssertUnwindSafe(|| self.task_state.enter(code)));
        if answer.is_err() {
            self.owner.note_panic();
        }
        answer
    }

    /// Polls the body.
    fn poll<F: Future>(
        &mut self,
        body: Pin<&mut F>,
        cx: &mut Context<'_>,
    ) -> std::thread::Result<Poll<F::Output>> {
        let answer = {
            let polling = self.watch.polls(cx);
            let answer = catch_unwind(AssertUnwindSafe(|| self.task_state.enter(|| body.poll(cx))));
            polling.ended(matches!(answer, Ok(Poll::Pending)));
            answer
        };
        if answer.is_err() {
            self.owner.note_panic();
        }
        answer
    }
}

impl<R, B, F, P> Run<R, B, F, P>
where
    B: FnOnce() -> F,
    F: Future<Output = R>,
{
    /// Continues a call that was admitted before.
    pub(crate) fn admitted(admission: Admission, codec: Codec<R, P>, body: B) -> Self {
        let core: Core<Admission> = Box::pin(std::future::ready(admission));
        Self { reader: codec.reader, stage: Stage::Admission { core, body, writer: codec.writer } }
    }
}

/// Runs `call`. See [`Call::run`].
pub fn run<R, P, F, B>(call: Call, codec: Codec<R, P>, body: B) -> Run<R, B, F, P>
where
    B: FnOnce() -> F,
    F: Future<Output = R>,
{
    let core = Box::pin(admit(call.request));
    Run { reader: codec.reader, stage: Stage::Admission { core, body, writer: codec.writer } }
}

impl<R, P, F, B> Future for Run<R, B, F, P>
where
    B: FnOnce() -> F,
    F: Future<Output = R>,
{
    type Output = R;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<R> {
        let mut this = self.project();
        loop {
            match this.stage.as_mut().project() {
                StageProjection::Admission { core, .. } => {
                    let admission = ready!(of_engine(core.as_mut().poll(cx)));
                    let StageOwned::Admission { body, writer, .. } =
                        this.stage.as_mut().project_replace(Stage::Over)
                    else {
                        continue;
                    };
                    let next = match admission {
                        Admission::Answer(answer) => {
                            return Poll::Ready(this.reader.answer(answer));
                        }
                        Admission::Bypass(task_state, unprotected) => Stage::Bypass {
                            watch: BodyWatch::begins(&task_state),
                            future: task_state.enter(body),
                            task_state,
                            unprotected,
                        },
                        Admission::Run(mut owner) => match owner.start() {
                            // The owner is dropped here, which releases the claim.
                            Err(error) => {
                                return Poll::Ready(this.reader.answer(Answer::Refused(error)));
                            }
                            Ok(task_state) => {
                                let watch = BodyWatch::begins(&task_state);
                                let mut guard = Guard { owner, task_state, watch };
                                let future =
                                    guard.run(body).unwrap_or_else(|panic| resume_unwind(panic));
                                Stage::Body { future, guard, writer }
                            }
                        },
                    };
                    this.stage.set(next);
                }
                StageProjection::Body { future, guard, .. } => {
                    let polled = guard.poll(future, cx);
                    let result = match polled {
                        Ok(Poll::Pending) => return Poll::Pending,
                        Ok(Poll::Ready(result)) => Ok(result),
                        Err(panic) => Err(panic),
                    };
                    // The outcome of a panic is settled here, whatever the caller does with the
                    // panic and with this future.
                    let StageOwned::Body { mut guard, writer, .. } =
                        this.stage.as_mut().project_replace(Stage::Over)
                    else {
                        continue;
                    };
                    let result = result.unwrap_or_else(|panic| resume_unwind(panic));
                    let (result, ending) = guard
                        .run(|| writer.ending(result))
                        .unwrap_or_else(|panic| resume_unwind(panic));
                    this.stage.set(Stage::Finish { core: guard.owner.finish(ending), result });
                }
                StageProjection::Bypass { future, task_state, watch, .. } => {
                    let polling = watch.polls(cx);
                    let polled = task_state.enter(|| future.poll(cx));
                    polling.ended(polled.is_pending());
                    let result = ready!(polled);
                    this.stage.set(Stage::Over);
                    return Poll::Ready(result);
                }
                StageProjection::Finish { core, .. } => {
                    let verdict = ready!(of_engine(Pin::new(core).poll(cx)));
                    let StageOwned::Finish { result, .. } =
                        this.stage.as_mut().project_replace(Stage::Over)
                    else {
                        continue;
                    };
                    return Poll::Ready(match verdict {
                        CallerGets::Own => result,
                        CallerGets::Instead(answer) => this.reader.instead(answer, result),
                    });
                }
                StageProjection::Over => panic!("a guarded call was polled after it had returned"),
            }
        }
    }
}

impl<R, B, F, P> fmt::Debug for Run<R, B, F, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Run")
    }
}

/// Runs `call`, in a task of its own from the moment that its body may start: the body continues
/// when the caller is gone.
pub fn run_detached<R, P, F, B>(call: Call, codec: Codec<R, P>, body: B) -> impl Future<Output = R>
where
    R: Send + 'static,
    P: Send + 'static,
    B: FnOnce() -> F + Send + 'static,
    F: Future<Output = R> + Send + 'static,
{
    // Created out here: an `async fn` would reserve space for the call too.
    let admission = Box::pin(admit(call.request));
    async move {
        match engine_waits(admission).await {
            Admission::Answer(answer) => codec.reader.answer(answer),
            admission => detach(admission, codec, body).await,
        }
    }
}

/// The future of a body that can continue without its caller: `Send + 'static`.
pub trait DetachedBody: Future + Sized {
    /// Runs `call` as [`run_detached`] does.
    #[doc(hidden)]
    fn run<P, B>(
        call: Call,
        codec: Codec<Self::Output, P>,
        body: B,
    ) -> impl Future<Output = Self::Output>
    where
        P: Send + 'static,
        B: FnOnce() -> Self + Send + 'static;

    /// Runs the body of a call that has been verified.
    #[doc(hidden)]
    fn run_verified<P, B>(
        claim: Cleared<Self::Output, P>,
        body: B,
    ) -> impl Future<Output = Self::Output>
    where
        P: Send + 'static,
        B: FnOnce() -> Self + Send + 'static;
}

impl<F: Future<Output: Send + 'static> + Send + 'static> DetachedBody for F {
    fn run<P, B>(call: Call, codec: Codec<F::Output, P>, body: B) -> impl Future<Output = F::Output>
    where
        P: Send + 'static,
        B: FnOnce() -> F + Send + 'static,
    {
        run_detached(call, codec, body)
    }

    fn run_verified<P, B>(claim: Cleared<F::Output, P>, body: B) -> impl Future<Output = F::Output>
    where
        P: Send + 'static,
        B: FnOnce() -> F + Send + 'static,
    {
        claim.run_detached(body)
    }
}

/// Runs the body of an admitted call in a task of its own, which begins at once. The returned
/// future waits for its result, and is small: it does not contain the body.
pub(super) fn detach<R, P, F, B>(
    admission: Admission,
    codec: Codec<R, P>,
    body: B,
) -> impl Future<Output = R> + use<R, P, F, B>
where
    R: Send + 'static,
    P: Send + 'static,
    B: FnOnce() -> F + Send + 'static,
    F: Future<Output = R> + Send + 'static,
{
    let (refusals, call) = (codec.reader.of_refusals(), admission.call());
    in_its_own_task(call, refusals, Run::admitted(admission, codec, body))
}

/// Starts `rest`, the remainder of `call`, in a task of its own, with the state of the caller's
/// task and its span.
/// The returned future waits for its result, and is small: it does not contain `rest`.
pub(crate) fn in_its_own_task<R, F>(
    call: Option<Arc<CheckedCall>>,
    refusals: Reader<R>,
    rest: F,
) -> impl Future<Output = R> + use<R, F>
where
    R: Send + 'static,
    F: Future<Output = R> + Send + 'static,
{
    let task = tokio::spawn(TaskState::current().wrap(rest).in_current_span());
    async move {
        match task.await {
            Ok(result) => result,
            Err(error) => {
                if let Ok(panic) = error.try_into_panic() {
                    resume_unwind(panic)
                }
                // Only the end of its runtime cancels the task. The caller may be on another
                // runtime.
                let error = call.map_or_else(
                    || Error::new(ErrorKind::InDoubt),
                    |call| call.refused(ErrorKind::InDoubt),
                );
                refusals.answer(Answer::Refused(error.with_detail(
                    "the runtime of its task ended: its record says what became of it",
                )))
            }
        }
    }
}
