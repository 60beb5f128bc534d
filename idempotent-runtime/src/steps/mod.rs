//! Steps of a body whose results are recorded one by one, so that a later attempt continues where
//! an earlier one ended.

mod checkpoint;
mod identity;
mod journal;
mod policy;
mod run;
mod underway;
mod view;

use std::fmt;
use std::time::Duration;

pub use policy::StepRetry;
pub use run::{StepBody, StepOnce, StepRetried, StepRun};
pub use view::{StepOutcome, StepView};

pub(crate) use identity::StepId;
pub(crate) use journal::Journal;
pub(crate) use view::shown;

use underway::{Plan, admit};

use crate::context::Context;
use crate::outcome::{CallError, StoredValue};

impl Context {
    /// A part of the body whose result is recorded. Runs `body`, unless an earlier attempt has
    /// recorded its result, which is then returned instead.
    /// [`OnCrash::Resume`](crate::OnCrash::Resume) is the policy that makes use of it.
    ///
    /// A step is identified by its name and its index, which is zero here;
    /// [`step_at`](Self::step_at) takes one. Each identity is used once in an attempt. Steps can
    /// run concurrently, with `join!` for example.
    ///
    /// **Effects.** The result is recorded after `body` has returned. If the process dies in
    /// between, the next attempt runs the step again, unless it is
    /// [`at_most_once`](Step::at_most_once). An `Err` means that nothing happened, and nothing is
    /// recorded for it. If steps are recorded and the body returns an error that is released, the
    /// record is not removed: the next call resumes, or, under
    /// [`OnCrash::Hold`](crate::OnCrash::Hold), the record is in doubt.
    ///
    /// **Tasks.** A step can run in a task of its own, with
    /// [`in_current_call`](crate::InCurrentCall::in_current_call). If a body returns an error
    /// while such a step runs, it is not known what the step will do: the record is not removed in
    /// this case either. A step that comes after the end of the body is rejected. A body that
    /// returns a result must wait for its tasks first: in a later attempt, in which everything else
    /// is replayed, it would be faster than a task whose step is recorded. The step has then not
    /// been requested, and the call fails with `Decode`.
    ///
    /// `body` is `|| async { … }` or `async || { … }` and returns `Result<T, E>`, with a `T` like
    /// that of the results of a call and an `E` with `From<Error>`. These bounds are checked where
    /// the step is awaited: with a bound here, the compiler would take every closure for one that
    /// runs once, and none could be retried.
    ///
    /// **Size.** All recorded steps of a call share one limit,
    /// [`max_result_size`](crate::Builder::max_result_size), and each step writes all of them
    /// again: return what later steps need and no more.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use idempotency::{Context, Error, Idempotency, OnCrash, store::MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Error> {
    /// # let engine = Idempotency::new(MemoryStore::new());
    /// # async fn reserve() -> Result<u32, Error> { Ok(17) }
    /// # async fn pay(key: String) -> Result<String, Error> { Ok(key) }
    /// let fulfil = engine.call("orders.fulfil", 7).ttl(Duration::from_secs(60)).on_crash(OnCrash::Resume).run(|| async {
    ///     let context = Context::current();
    ///     let place = context.step("reserve", || reserve()).await?;
    ///     let payment = context.step("charge", || pay(context.derive_key("provider"))).at_most_once().await?;
    ///     Ok::<_, Error>((place, payment))
    /// });
    /// assert_eq!(fulfil.await?.0, 17);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of `body`, and [`Error`](crate::Error) converted into `E`:
    ///
    /// | [`ErrorKind`](crate::ErrorKind) | |
    /// |---|---|
    /// | `NotStored` | the step ran, and the store did not confirm within [`commit_timeout`](crate::Builder::commit_timeout) that its result is recorded |
    /// | `StoreUnavailable` | the step did not run: the store did not confirm whether an earlier checkpoint, or the start of this step, is recorded |
    /// | `Superseded` | this attempt no longer holds the claim, or the body has ended; nothing further runs |
    /// | `StepInterrupted` | see [`at_most_once`](Step::at_most_once) and [`timeout`](Step::timeout) |
    /// | `Decode` | the recorded result does not fit the type |
    /// | `TooLarge`, `Encode` | the result cannot be recorded. The step ran, is marked as such and never runs again: later attempts get the same error. Or there was no room for that mark, and it did not run |
    /// | `Config` | this attempt has used the identity before |
    /// | `Unsupported` | in a transaction (`tx`), inside another step (in a task only if it was spawned with [`in_current_call`](crate::InCurrentCall::in_current_call)), and on SQLite where its record would wait for the transaction around it |
    pub fn step<B>(&self, name: &str, body: B) -> Step<StepOnce<B>> {
        self.step_at(name, 0, body)
    }

    /// Like [`step`](Self::step), for steps of the same name that are distinguished by an index:
    /// the number of an item, or its position in the input. The index is part of the identity, so
    /// it must stand for the same item in every attempt.
    ///
    /// **Never count finished items.** With `JoinSet::join_next`, `FuturesUnordered` or
    /// `buffer_unordered`, the first item that is ready differs between attempts. Counted with
    /// `enumerate` or a variable, an item would get the recorded result of another one. This cannot
    /// be detected, because a recorded step does not run its body. So count before anything runs
    /// and pass the index along, or derive it from the item: its number in the database, or a name
    /// of its own, `context.step(&format!("item {}", item.id), …)`.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use idempotency::{Context, Error, Idempotency, OnCrash, store::MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Error> {
    /// # let engine = Idempotency::new(MemoryStore::new());
    /// # async fn pack(item: &str) -> Result<usize, Error> { Ok(item.len()) }
    /// let pack_all = engine.call("orders.pack", 7).ttl(Duration::from_secs(60)).on_crash(OnCrash::Resume).run(|| async {
    ///     let mut weight = 0;
    ///     for (index, item) in (0..).zip(["lamp", "table"]) {
    ///         weight += Context::current().step_at("item", index, || pack(item)).await?;
    ///     }
    ///     Ok::<_, Error>(weight)
    /// });
    /// assert_eq!(pack_all.await?, 9);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`step`](Self::step).
    pub fn step_at<B>(&self, name: &str, index: u64, body: B) -> Step<StepOnce<B>> {
        let id = StepId { name: name.into(), index };
        Step {
            plan: Plan { context: self.clone(), id, at_most_once: false, timeout: None },
            body: StepOnce::new(body),
        }
    }
}

/// A step of a body, created by [`Context::step`]. `.await` runs or replays it.
///
/// Tokio's `join!` accepts it as it is; where a [`Future`] is required, use
/// [`IntoFuture::into_future`].
#[must_use = "a step does nothing until it is awaited"]
pub struct Step<B> {
    plan: Plan,
    body: B,
}

impl<B> Step<B> {
    /// Records that the step is about to run before it does. If the attempt ends after that without
    /// a result of the step, later attempts get
    /// [`StepInterrupted`](crate::ErrorKind::StepInterrupted) instead of a second run. The body can
    /// match on that, find out what happened and continue; an error policy can hold it for an
    /// operator.
    ///
    /// An `Err` of the step means that nothing happened, and removes the mark. If the store did not
    /// confirm the mark, the step does not run, and later attempts may still find it interrupted.
    /// Where the operation is [disabled](crate::Idempotency::disable) nothing is recorded, and the
    /// step runs in every call.
    pub fn at_most_once(mut self) -> Self {
        self.plan.at_most_once = true;
        self
    }

    /// Ends a try of the step that takes longer, on the engine's clock, and drops its future: its
    /// outcome is unknown. After the last try the step returns
    /// [`StepInterrupted`](crate::ErrorKind::StepInterrupted). The next attempt runs it again,
    /// unless it is [`at_most_once`](Self::at_most_once): then this attempt does not retry it
    /// either.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.plan.timeout = Some(timeout);
        self
    }
}

impl<B> Step<StepOnce<B>> {
    /// Retries the step after an `Err`, and after a [`timeout`](Self::timeout), according to
    /// `policy`. It returns the error of the last try. The tries belong to one attempt of the call:
    /// they are not recorded.
    ///
    /// The body is called once for each try. It must be `FnMut`: clone inside it what a try
    /// consumes.
    pub fn retry<F>(self, policy: StepRetry) -> Step<StepRetried<B>>
    where
        B: FnMut() -> F,
    {
        Step { plan: self.plan, body: self.body.retried(policy.pauses()) }
    }
}

impl<B, F, T, E> IntoFuture for Step<B>
where
    B: StepBody<Future = F>,
    F: Future<Output = Result<T, E>>,
    T: StoredValue,
    E: CallError,
{
    type Output = Result<T, E>;
    type IntoFuture = StepRun<B, F, T, E>;

    fn into_future(self) -> Self::IntoFuture {
        StepRun::new(self.body, Box::pin(admit(self.plan)))
    }
}

impl<B> fmt::Debug for Step<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Step").field("id", &self.plan.id).finish_non_exhaustive()
    }
}
