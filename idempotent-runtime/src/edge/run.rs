//! Runs the calls of edges.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context as Task, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;

use super::outcome::{EdgeOutcome, EdgeResult, End, Raw, codec};
use super::turn::{Attempt, Turn};
use crate::context::Context;
use crate::engine::{Admission, Call, Run, Verified, admit, ask, in_its_own_task, verify};
use crate::policy::Verdict;
use crate::watch::engine_waits;

pin_project! {
    /// The future of a body, as the engine runs it.
    pub(super) struct Body<F> {
        #[pin]
        future: F,
        max_ttl: Duration,
    }
}

impl<F: Future<Output = (T, End)>, T> Future for Body<F> {
    type Output = Raw<T>;

    fn poll(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Raw<T>> {
        let this = self.project();
        this.future.poll(task).map(|(value, end)| Raw::Ended(value, end.within(*this.max_ttl)))
    }
}

/// Returns `body` as the engine runs it. Not an `async` block, which would have room for both the
/// body and its future.
pub(super) fn of_body<B, F>(body: B, max_ttl: Duration) -> impl FnOnce() -> Body<F> + use<B, F>
where
    B: FnOnce(Turn) -> F,
{
    move || Body { future: body(Turn::here()), max_ttl }
}

/// Returns `question` as the engine calls it.
fn of_question<Q, A>(
    question: Q,
    max_ttl: Duration,
) -> impl FnOnce(Context) -> Question<A> + use<Q, A>
where
    Q: FnOnce(Attempt) -> A,
{
    move |context| Question { future: question(Attempt::of(context)), max_ttl }
}

pin_project! {
    /// The future of a verification callback, as the engine runs it.
    struct Question<A> {
        #[pin]
        future: A,
        max_ttl: Duration,
    }
}

impl<A: Future<Output = Verdict<EdgeResult>>> Future for Question<A> {
    type Output = Result<Verdict<EdgeResult>, std::convert::Infallible>;

    fn poll(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Self::Output> {
        let this = self.project();
        this.future.poll(task).map(|verdict| {
            Ok(match verdict {
                Verdict::Completed(result) => Verdict::Completed(result.within(*this.max_ttl)),
                verdict => verdict,
            })
        })
    }
}

/// Runs a call where its caller polls it.
pub(super) async fn run<T, B, F>(call: Call, body: B) -> EdgeOutcome<T>
where
    B: FnOnce() -> Body<F>,
    F: Future<Output = (T, End)>,
{
    crate::engine::run(call, codec(), body).await.into()
}

/// Like [`run`], for a call with a verification callback.
pub(super) async fn run_verifying<T, Q, A, B, F>(
    call: Call,
    question: Q,
    max_ttl: Duration,
    body: B,
) -> EdgeOutcome<T>
where
    Q: FnOnce(Attempt) -> A,
    A: Future<Output = Verdict<EdgeResult>>,
    B: FnOnce() -> Body<F>,
    F: Future<Output = (T, End)>,
{
    match verify(call, codec(), of_question(question, max_ttl)).await {
        Verified::Answered(raw) => raw.into(),
        Verified::Mine(cleared) => cleared.run(body).await.into(),
    }
}

/// Runs a call, in a task of its own from the moment that its body may start. `settled` is called
/// there with the outcome.
pub(super) async fn run_detached<T, B, F, W>(call: Call, body: B, settled: W) -> EdgeOutcome<T>
where
    T: Send + 'static,
    B: FnOnce() -> Body<F> + Send + 'static,
    F: Future<Output = (T, End)> + Send + 'static,
    W: FnOnce(&EdgeOutcome<T>) + Send + 'static,
{
    let codec = codec();
    match engine_waits(admit(call.request)).await {
        Admission::Answer(answer) => codec.reader.answer(answer).into(),
        admission => detach(admission, body, settled).await,
    }
}

/// Like [`run_detached`], for a call with a verification callback: it runs in the task too. A call
/// that is refused or replayed spawns no task.
pub(super) async fn run_detached_verifying<T, Q, A, B, F, W>(
    call: Call,
    question: Q,
    max_ttl: Duration,
    body: B,
    settled: W,
) -> EdgeOutcome<T>
where
    T: Send + 'static,
    Q: FnOnce(Attempt) -> A + Send + 'static,
    A: Future<Output = Verdict<EdgeResult>> + Send + 'static,
    B: FnOnce() -> Body<F> + Send + 'static,
    F: Future<Output = (T, End)> + Send + 'static,
    W: FnOnce(&EdgeOutcome<T>) + Send + 'static,
{
    let admission = engine_waits(Box::pin(admit(call.request))).await;
    let call = admission.call();
    match admission {
        Admission::Answer(answer) => codec().reader.answer(answer).into(),
        Admission::Run(running) if running.must_ask() => {
            let codec = codec();
            let refusals = codec.reader.of_refusals();
            let rest = async move {
                Raw::Decided(match ask(running, codec, of_question(question, max_ttl)).await {
                    Verified::Answered(raw) => raw.into(),
                    Verified::Mine(cleared) => settle(cleared.run(body), settled).await,
                })
            };
            in_its_own_task(call, refusals, rest).await.into()
        }
        admission => detach(admission, body, settled).await,
    }
}

/// Runs the body of an admitted call in a task of its own.
async fn detach<T, B, F, W>(admission: Admission, body: B, settled: W) -> EdgeOutcome<T>
where
    T: Send + 'static,
    B: FnOnce() -> Body<F> + Send + 'static,
    F: Future<Output = (T, End)> + Send + 'static,
    W: FnOnce(&EdgeOutcome<T>) + Send + 'static,
{
    let (call, codec) = (admission.call(), codec());
    let refusals = codec.reader.of_refusals();
    let running = Run::admitted(admission, codec, body);
    let rest = async move { Raw::Decided(settle(running, settled).await) };
    in_its_own_task(call, refusals, rest).await.into()
}

async fn settle<T>(
    running: impl Future<Output = Raw<T>>,
    settled: impl FnOnce(&EdgeOutcome<T>),
) -> EdgeOutcome<T> {
    let outcome = running.await.into();
    settled(&outcome);
    outcome
}
