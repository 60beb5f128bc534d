//! The future of a step: a thin shell over the core, one instance per step.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pin_project_lite::pin_project;

use super::policy::Pauses;
use super::underway::{Admitted, Core, Underway, Writing};
use crate::clock::Sleep;
use crate::encoding::{Encoded, Redacted, decode, encode_part};
use crate::error::{Error, ErrorKind};
use crate::outcome::{CallError, StoredValue};
use crate::watch::{of_engine, step_waits_before_record};

/// The body of a step: runs once, or again after an error.
#[diagnostic::on_unimplemented(
    message = "a step takes a closure that returns a future",
    label = "not `|| async {{ … }}`",
    note = "the future returns a `Result<T, E>`: `context.step(\"charge\", || async {{ Ok::<_, PayError>(charge().await?) }})`"
)]
pub trait StepBody: sealed::Sealed {
    /// The future of one try.
    type Future;

    #[doc(hidden)]
    fn start(&mut self) -> Option<Self::Future>;

    #[doc(hidden)]
    fn next_pause(&mut self) -> Option<Duration>;
}

mod sealed {
    pub trait Sealed {}
    impl<B> Sealed for super::StepOnce<B> {}
    impl<B> Sealed for super::StepRetried<B> {}
}

/// A body that runs once.
pub struct StepOnce<B>(Option<B>);

/// A body that is retried after an error.
pub struct StepRetried<B> {
    body: Option<B>,
    pauses: Pauses,
}

impl<B> StepOnce<B> {
    pub(super) fn new(body: B) -> Self {
        Self(Some(body))
    }

    pub(super) fn retried(self, pauses: Pauses) -> StepRetried<B> {
        StepRetried { body: self.0, pauses }
    }
}

impl<B: FnOnce() -> F, F> StepBody for StepOnce<B> {
    type Future = F;

    fn start(&mut self) -> Option<F> {
        self.0.take().map(|body| body())
    }

    fn next_pause(&mut self) -> Option<Duration> {
        None
    }
}

impl<B: FnMut() -> F, F> StepBody for StepRetried<B> {
    type Future = F;

    fn start(&mut self) -> Option<F> {
        self.body.as_mut().map(|body| body())
    }

    fn next_pause(&mut self) -> Option<Duration> {
        self.pauses.next()
    }
}

impl<B> fmt::Debug for StepOnce<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StepOnce")
    }
}

impl<B> fmt::Debug for StepRetried<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StepRetried")
    }
}

pin_project! {
    /// The future of a step. Nothing happens until it is polled.
    #[must_use = "futures do nothing unless polled"]
    pub struct StepRun<B, F, T, E> {
        body: B,
        // As function pointers, these fix what the closure `B` does with `F` without bounds on the
        // future. With bounds, `join!` of steps that borrow could not be spawned: the compiler
        // forgets that the lifetimes in `B` and in `F` are the same.
        start: fn(&mut B) -> Option<F>,
        next_pause: fn(&mut B) -> Option<Duration>,
        #[pin]
        stage: Stage<F, T, E>,
    }
}

pin_project! {
    #[project = StageProjection]
    #[project_replace = StageOwned]
    enum Stage<F, T, E> {
        Asking { core: Core<Result<Admitted, Error>> },
        Starting { underway: Underway },
        Running { #[pin] future: F, underway: Underway, timer: Option<Sleep> },
        Pausing { sleep: Sleep, underway: Underway },
        Ended { underway: Underway, polled: Poll<Result<T, E>> },
        Recording { writing: Writing, result: Result<T, E> },
        Over,
    }
}

impl<B: StepBody<Future = F>, F, T, E> StepRun<B, F, T, E> {
    pub(super) fn new(body: B, core: Core<Result<Admitted, Error>>) -> Self {
        Self { body, start: B::start, next_pause: B::next_pause, stage: Stage::Asking { core } }
    }
}

impl<B, F, T, E> Future for StepRun<B, F, T, E>
where
    F: Future<Output = Result<T, E>>,
    T: StoredValue,
    E: CallError,
{
    type Output = Result<T, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T, E>> {
        let mut this = self.project();
        loop {
            let next = match this.stage.as_mut().project() {
                StageProjection::Asking { core } => match ready!(of_engine(core.as_mut().poll(cx)))
                {
                    Ok(Admitted::Run(underway)) => Ok(Stage::Starting { underway }),
                    Ok(Admitted::Replay(replay)) => Err(decode(replay.result.get().as_bytes())
                        .map_err(|error| {
                            let refused = replay.refused(ErrorKind::Decode);
                            E::from(
                                refused
                                    .with_detail("its type has changed")
                                    .with_source(Redacted::of(&error)),
                            )
                        })),
                    Err(error) => Err(Err(E::from(error))),
                },
                StageProjection::Starting { .. } => {
                    let StageOwned::Starting { underway } =
                        this.stage.as_mut().project_replace(Stage::Over)
                    else {
                        continue;
                    };
                    if let Err(error) = underway.begin() {
                        return Poll::Ready(Err(error.into()));
                    }
                    let timer = underway.timer();
                    let Some(future) = underway.enter(|| (this.start)(this.body)) else { continue };
                    Ok(Stage::Running { future, underway, timer })
                }
                StageProjection::Running { future, underway, timer } => {
                    let polled = underway.enter(|| future.poll(cx));
                    if polled.is_pending() {
                        match timer {
                            Some(timer) => ready!(timer.as_mut().poll(cx)),
                            None => return Poll::Pending,
                        }
                    }
                    let StageOwned::Running { underway, .. } =
                        this.stage.as_mut().project_replace(Stage::Over)
                    else {
                        continue;
                    };
                    let waits = polled.is_ready() && step_waits_before_record(cx);
                    this.stage.set(Stage::Ended { underway, polled });
                    if waits {
                        return Poll::Pending;
                    }
                    continue;
                }
                StageProjection::Ended { .. } => {
                    let StageOwned::Ended { underway, polled } =
                        this.stage.as_mut().project_replace(Stage::Over)
                    else {
                        continue;
                    };
                    match end_of_try(polled, &underway, || (this.next_pause)(this.body)) {
                        Ok(EndOfTry::Again(sleep)) => Ok(Stage::Pausing { sleep, underway }),
                        Ok(EndOfTry::Failed(error)) => record(underway.failed(), Err(error)),
                        Ok(EndOfTry::Finished(value)) => {
                            let (value, encoded) = match encode_part(&value) {
                                Ok(Encoded { body, value }) => (value, Ok(body)),
                                Err(error) => (value, Err(error)),
                            };
                            record(underway.finished(encoded), Ok(value))
                        }
                        Err(error) => Err(Err(error)),
                    }
                }
                StageProjection::Pausing { sleep, .. } => {
                    ready!(of_engine(sleep.as_mut().poll(cx)));
                    let StageOwned::Pausing { mut underway, .. } =
                        this.stage.as_mut().project_replace(Stage::Over)
                    else {
                        continue;
                    };
                    underway.begins_again();
                    Ok(Stage::Starting { underway })
                }
                StageProjection::Recording { writing, .. } => {
                    let recorded = ready!(of_engine(Pin::new(writing).poll(cx)));
                    let StageOwned::Recording { result, .. } =
                        this.stage.as_mut().project_replace(Stage::Over)
                    else {
                        continue;
                    };
                    Err(recorded.map_err(E::from).and(result))
                }
                StageProjection::Over => panic!("a step was polled after it had returned"),
            };
            match next {
                Ok(stage) => this.stage.set(stage),
                Err(result) => {
                    this.stage.set(Stage::Over);
                    return Poll::Ready(result);
                }
            }
        }
    }
}

enum EndOfTry<T, E> {
    Again(Sleep),
    Failed(E),
    Finished(T),
}

/// Decides what follows from one try, `Pending` if it took too long. An `Err` is returned by the
/// step at once.
fn end_of_try<T, E: CallError>(
    polled: Poll<Result<T, E>>,
    underway: &Underway,
    next_pause: impl FnOnce() -> Option<Duration>,
) -> Result<EndOfTry<T, E>, E> {
    match polled {
        Poll::Ready(Ok(value)) => Ok(EndOfTry::Finished(value)),
        Poll::Ready(Err(error)) => Ok(match next_pause() {
            Some(pause) => EndOfTry::Again(underway.pause(pause)),
            None => EndOfTry::Failed(error),
        }),
        Poll::Pending => {
            underway.timed_out()?;
            let pause = next_pause().ok_or_else(|| underway.interrupted())?;
            Ok(EndOfTry::Again(underway.pause(pause)))
        }
    }
}

/// Records the end of a step if there is something to record, otherwise returns the result.
fn record<F, T, E>(
    writing: Option<Writing>,
    result: Result<T, E>,
) -> Result<Stage<F, T, E>, Result<T, E>> {
    match writing {
        Some(writing) => Ok(Stage::Recording { writing, result }),
        None => Err(result),
    }
}

impl<B, F, T, E> fmt::Debug for StepRun<B, F, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StepRun")
    }
}
