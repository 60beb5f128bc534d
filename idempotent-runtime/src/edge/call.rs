//! A call whose key, scope and fingerprints an edge has computed.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use super::limits;
use super::outcome::{EdgeOutcome, EdgeResult, End};
use super::run::{of_body, run, run_detached, run_detached_verifying, run_verifying};
use super::turn::{Attempt, Turn};
use crate::Idempotency;
use crate::engine::Extensions;
use crate::engine::task_state::TaskState;
use crate::engine::{Call, NoVerify, RecordHandle, Unprotected, Verify, count, uncount};
use crate::error::{Error, ErrorKind};
use crate::key::Fingerprint;
use crate::key::Key;
use crate::policy::{OnConflict, OnCrash, Verdict};
use crate::watch::BodyWatch;

/// A call of an edge: its key, scope and fingerprints are values that the edge has computed, and
/// its body encodes its own result.
///
/// The options are those of [`Call`]. A call does nothing until one of its `run` functions is
/// polled.
///
/// ```
/// # use std::time::Duration;
/// # use idempotency::{Idempotency, OnConflict, OnCrash, key::Fingerprint, store::MemoryStore};
/// use idempotency::edge::{EdgeCall, EdgeOutcome, EdgeResult};
/// use idempotency::key::Key;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), idempotency::Error> {
/// # let engine = Idempotency::new(MemoryStore::new());
/// let call = EdgeCall::new(&engine, "mail", Key::of("message-7"), Duration::from_secs(86_400))
///     .scope(Some(Key::of("tenant-1")))
///     .fingerprint(Fingerprint::of("the payload")?)
///     .on_conflict(OnConflict::Reject)
///     .on_crash(OnCrash::Retry);
/// let outcome = call.run(async |_| ((), EdgeResult::completed("sent").into())).await;
/// assert!(matches!(outcome, EdgeOutcome::Executed(())));
/// # Ok(())
/// # }
/// ```
#[must_use = "a call does nothing until it runs"]
pub struct EdgeCall<V = NoVerify> {
    engine: Idempotency,
    operation: Arc<str>,
    call: Call,
    extensions: Extensions,
    question: V,
}

impl EdgeCall {
    /// Creates a call of `operation` with `key`, whose result is kept for `ttl`. An invalid key or
    /// `ttl` is reported when the call runs.
    pub fn new(
        engine: &Idempotency,
        operation: impl Into<Arc<str>>,
        key: Key,
        ttl: Duration,
    ) -> Self {
        let operation = operation.into();
        Self {
            engine: engine.clone(),
            call: Call::named(engine, operation.clone(), key).ttl(ttl),
            operation,
            extensions: Extensions::default(),
            question: NoVerify,
        }
    }

    /// Sets the behaviour of the next caller if this one disappears in the middle of the body, or
    /// its body ends as [`End::Unknown`]. The default is [`OnCrash::Hold`].
    pub fn on_crash(self, on_crash: OnCrash) -> Self {
        Self { call: self.call.on_crash(on_crash), ..self }
    }

    /// Lets the next caller verify with the outside world if this one disappears in the middle of
    /// the body, or its body ends as [`End::Unknown`]. See [`Call::on_crash_verify`], also for when
    /// this is safe.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use idempotency::{Idempotency, Verdict, store::MemoryStore};
    /// use idempotency::edge::{Attempt, EdgeCall, EdgeOutcome, EdgeResult, End};
    /// use idempotency::key::Key;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let engine = Idempotency::new(MemoryStore::new());
    /// let send = |end: End| {
    ///     EdgeCall::new(&engine, "mail", Key::of(&7), Duration::from_secs(60))
    ///         .settle(Duration::ZERO)
    ///         .on_crash_verify(async |_: Attempt| {
    ///             Verdict::Completed(EdgeResult::completed("sent"))
    ///         })
    ///         .run(async move |_| ((), end))
    /// };
    /// assert!(matches!(send(End::Unknown).await, EdgeOutcome::Executed(())));
    /// // The provider's books show that it was sent.
    /// assert!(matches!(send(End::Released).await, EdgeOutcome::Replayed { .. }));
    /// # }
    /// ```
    pub fn on_crash_verify<Q, A>(self, question: Q) -> EdgeCall<Verify<Q>>
    where
        Q: FnOnce(Attempt) -> A,
        A: Future<Output = Verdict<EdgeResult>>,
    {
        let Self { engine, operation, call, extensions, question: NoVerify } = self;
        let question = Verify(question);
        EdgeCall { engine, operation, call: call.verifying(), extensions, question }
    }
}

impl<V> EdgeCall<V> {
    fn with(mut self, set: impl FnOnce(Call) -> Call) -> Self {
        self.call = set(self.call);
        self
    }

    /// Sets the tenant part of the key; `None` is no scope. Two scopes never see each other's
    /// records.
    pub fn scope(self, scope: Option<Key>) -> Self {
        self.with(|call| call.in_scope(scope))
    }

    /// Sets the fingerprint, which a retry must repeat. See [`Call::fingerprint`].
    pub fn fingerprint(self, fingerprint: Fingerprint) -> Self {
        self.with(|call| call.with_fingerprint(fingerprint))
    }

    /// Declares what the fingerprint of this call was in an earlier release; `None` if it had none.
    /// Can be used more than once. See [`Call::former_fingerprint`].
    pub fn former_fingerprint(self, former: Option<Fingerprint>) -> Self {
        self.with(|call| call.with_former_fingerprint(former))
    }

    /// Sets the behaviour when another caller is running the call. See [`Call::on_conflict`].
    pub fn on_conflict(self, on_conflict: OnConflict) -> Self {
        self.with(|call| call.on_conflict(on_conflict))
    }

    /// Sets the time that the claim lives without renewal. See [`Call::lease`].
    pub fn lease(self, lease: Duration) -> Self {
        self.with(|call| call.lease(lease))
    }

    /// Sets the delay before the verification of [`on_crash_verify`](EdgeCall::on_crash_verify).
    /// See [`Call::settle`].
    pub fn settle(self, delay: Duration) -> Self {
        self.with(|call| call.settle(delay))
    }

    /// Sets the time after the expiry of its record during which a late call is refused. See
    /// [`Call::after_expiry`].
    pub fn after_expiry(self, refuse_for: Duration) -> Self {
        self.with(|call| call.after_expiry(refuse_for))
    }

    /// Sets the version of the edge's encoding. A result of another version is refused
    /// ([`Decode`](ErrorKind::Decode)) instead of being read as something else, and the body does
    /// not run again. The default is zero, which JSON results of plain calls have.
    ///
    /// An encoding that is to be read after it has changed also has a version in its own bytes.
    pub fn version(self, version: u32) -> Self {
        self.with(|call| call.version(version))
    }

    /// Keeps counting attempts when a claim is released. See [`Call::count_attempts`].
    pub fn count_attempts(self) -> Self {
        self.with(Call::count_attempts)
    }

    /// Puts `value` into the scope of the body and of the verification, where
    /// [`Extensions::current`] finds it by its type. An outer value of the same type is hidden.
    pub fn extension<T: Send + Sync + 'static>(mut self, value: T) -> Self {
        self.extensions = self.extensions.with(Arc::new(value));
        self
    }

    /// Returns the error with which the call is refused before anything is looked up, because an
    /// option, the key or the scope is invalid.
    ///
    /// # Errors
    /// [`Config`](ErrorKind::Config), [`MissingKey`](ErrorKind::MissingKey) and
    /// [`InvalidKey`](ErrorKind::InvalidKey).
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use idempotency::{ErrorKind, Idempotency, store::MemoryStore};
    /// use idempotency::edge::EdgeCall;
    /// use idempotency::key::Key;
    ///
    /// # let engine = Idempotency::new(MemoryStore::new());
    /// let call = |ttl| EdgeCall::new(&engine, "mail", Key::of(&7), ttl);
    /// assert!(call(Duration::from_secs(60)).check().is_ok());
    /// assert_eq!(call(Duration::ZERO).check().unwrap_err().kind(), ErrorKind::Config);
    /// ```
    pub fn check(self) -> Result<(), Error> {
        self.call.request.checked().map(drop).map_err(Error::of_call)
    }

    /// Returns a handle to the record of this call, for
    /// [`inspect`](RecordHandle::inspect), [`resolve`](RecordHandle::resolve) and
    /// [`forget`](RecordHandle::forget).
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use idempotency::{Idempotency, record::State, store::MemoryStore};
    /// use idempotency::edge::{EdgeCall, EdgeResult};
    /// use idempotency::key::Key;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), idempotency::Error> {
    /// # let engine = Idempotency::new(MemoryStore::new());
    /// let call = EdgeCall::new(&engine, "mail", Key::of(&7), Duration::from_secs(60));
    /// let record = call.record();
    /// let _ = call.run(async |_| ((), EdgeResult::failed("no such address").into())).await;
    /// assert_eq!(record.inspect().await?.unwrap().state, State::Failed);
    /// # Ok(())
    /// # }
    /// ```
    pub fn record(&self) -> RecordHandle {
        self.call.record(&self.engine, &self.operation)
    }

    /// Counts one more begin of this call, and returns the number of all that were counted under its
    /// name and key: for calls whose own record is rolled back when their process dies. They are
    /// forgotten when none has been counted for the `ttl`. Give it a name of its own: the count is a
    /// record, and no call can run under its key.
    ///
    /// # Errors
    /// Those of a claim.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use idempotency::{Idempotency, store::MemoryStore};
    /// use idempotency::edge::EdgeCall;
    /// use idempotency::key::Key;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), idempotency::Error> {
    /// # let engine = Idempotency::new(MemoryStore::new());
    /// let begun = || EdgeCall::new(&engine, "mail/begun", Key::of(&7), Duration::from_secs(60));
    /// assert_eq!(begun().count().await?, 1);
    /// assert_eq!(begun().count().await?, 2);
    /// begun().uncount().await?;
    /// assert_eq!(begun().count().await?, 1);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn count(self) -> Result<u32, Error> {
        let (task_state, call, ..) = self.parts();
        task_state.wrap(count(call)).await.map_err(Error::of_call)
    }

    /// Forgets what was [counted](Self::count) under the name and the key of this call: the next one
    /// is the first again.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn uncount(self) -> Result<(), Error> {
        let (task_state, call, ..) = self.parts();
        task_state.wrap(uncount(call)).await.map_err(Error::of_call)
    }

    /// Returns the future of a body that runs without a claim and without a record, for an edge
    /// that fails open. **A repetition runs the body again.** Use it only if
    /// [`EdgeOutcome::may_fail_open`] is true of the call's outcome.
    ///
    /// The body has a [`Context`](crate::Context), which derives the same keys as one with a claim:
    /// services downstream can still recognise a repetition. A shutdown waits for the future and
    /// counts it, until it is dropped. Spawn it if the body is to go on without its caller.
    ///
    /// # Errors
    /// [`ShuttingDown`](ErrorKind::ShuttingDown), [`MissingKey`](ErrorKind::MissingKey) and
    /// [`InvalidKey`](ErrorKind::InvalidKey).
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use idempotency::{Idempotency, store::MemoryStore};
    /// use idempotency::edge::{Attempt, EdgeCall};
    /// use idempotency::key::Key;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), idempotency::Error> {
    /// # let engine = Idempotency::new(MemoryStore::new());
    /// let call = EdgeCall::new(&engine, "mail", Key::of(&7), Duration::from_secs(60));
    /// let is_protected = || async { Attempt::current().unwrap().is_protected() };
    /// assert!(!call.run_unprotected(is_protected)?.await);
    /// # Ok(())
    /// # }
    /// ```
    pub fn run_unprotected<T, B, F>(
        self,
        body: B,
    ) -> Result<impl Future<Output = T> + use<T, B, F, V>, Error>
    where
        B: FnOnce() -> F,
        F: Future<Output = T>,
    {
        let task_state = TaskState::current();
        let unprotected = Unprotected::enter(&self.engine.inner, &task_state)
            .ok_or_else(|| Error::new(ErrorKind::ShuttingDown).of_operation(&self.operation))
            .map_err(Error::of_call)?;
        let key = self.record().hash().map_err(Error::of_call)?;
        let context = unprotected.context(&self.operation, key);
        let task_state = task_state.of_edge(&self.engine, &self.extensions).of_body(context);
        // The body is called inside too: it may be a part of what is protected elsewhere.
        let watch = BodyWatch::begins(&task_state);
        Ok(task_state.wrap(async move {
            let _until_it_has_ended = unprotected;
            watch.around(body()).await
        }))
    }

    /// Returns the error of a `result` that is larger than the engine stores.
    #[cfg(feature = "__sql")]
    pub(crate) fn refuses(&self, result: &EdgeResult) -> Option<Error> {
        let (size, limit) = (result.bytes().len(), limits(&self.engine).max_result_size);
        (size > limit).then(|| {
            let detail = format!("it takes {size} bytes and the limit is {limit}");
            let error = Error::new(ErrorKind::TooLarge).of_operation(&self.operation);
            error.with_detail(detail).of_call()
        })
    }

    /// Returns the scope of the call, the call, and the largest retention of a result.
    pub(crate) fn parts(self) -> (TaskState, Call, Duration, V) {
        let task_state = TaskState::current().of_edge(&self.engine, &self.extensions);
        (task_state, self.call, limits(&self.engine).max_ttl, self.question)
    }
}

impl EdgeCall {
    /// Runs the call: returns the result that is on the record, or runs `body` under the claim. The
    /// body returns a value for its own caller, and the [`End`] that decides what the record keeps.
    ///
    /// The body runs where this future is polled. If it is dropped while the body runs, the outcome
    /// is unknown. Functions in the body that name no engine use the call's, unless the caller has
    /// [set](crate::WithEngine::with_engine) or [installed](Idempotency::install) another one.
    pub async fn run<T, B, F>(self, body: B) -> EdgeOutcome<T>
    where
        B: FnOnce(Turn) -> F,
        F: Future<Output = (T, End)>,
    {
        let (task_state, call, max_ttl, NoVerify) = self.parts();
        task_state.wrap(run(call, of_body(body, max_ttl))).await
    }

    /// Like [`run`](Self::run), but the body runs in a task of its own: it goes on when this future
    /// is dropped. A call that waits for another one, or is refused or replayed, spawns no task.
    ///
    /// `settled` is called in that task with the outcome once that is decided, so also if the
    /// caller is gone. It is not called for a call that is refused or replayed before there is a
    /// task; one whose claim is lost before the body begins is refused in the task, and `settled`
    /// gets that outcome, [`Refused`](EdgeOutcome::Refused) without `own`.
    ///
    /// # Panics
    /// If the body panics. Its outcome is unknown.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use idempotency::{Idempotency, store::MemoryStore};
    /// use idempotency::edge::{EdgeCall, EdgeOutcome, EdgeResult};
    /// use idempotency::key::Key;
    /// use tokio::sync::oneshot;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let engine = Idempotency::new(MemoryStore::new());
    /// let (acknowledge, acknowledged) = oneshot::channel();
    /// let call = EdgeCall::new(&engine, "mail", Key::of(&7), Duration::from_secs(60));
    /// let body = |_| async { ((), EdgeResult::completed("sent").into()) };
    /// let outcome = call.run_detached(body, |outcome: &EdgeOutcome<()>| {
    ///     let _ = acknowledge.send(outcome.error().is_none());
    /// });
    /// assert!(matches!(outcome.await, EdgeOutcome::Executed(())));
    /// assert_eq!(acknowledged.await, Ok(true));
    /// # }
    /// ```
    pub async fn run_detached<T, B, F, W>(self, body: B, settled: W) -> EdgeOutcome<T>
    where
        T: Send + 'static,
        B: FnOnce(Turn) -> F + Send + 'static,
        F: Future<Output = (T, End)> + Send + 'static,
        W: FnOnce(&EdgeOutcome<T>) + Send + 'static,
    {
        let (task_state, call, max_ttl, NoVerify) = self.parts();
        task_state.wrap(run_detached(call, of_body(body, max_ttl), settled)).await
    }
}

impl<Q, A> EdgeCall<Verify<Q>>
where
    Q: FnOnce(Attempt) -> A,
    A: Future<Output = Verdict<EdgeResult>>,
{
    /// Runs the call as [`EdgeCall::run`] does. After a crash it verifies first, and runs `body` if
    /// the verdict is [`Verdict::NotExecuted`].
    pub async fn run<T, B, F>(self, body: B) -> EdgeOutcome<T>
    where
        B: FnOnce(Turn) -> F,
        F: Future<Output = (T, End)>,
    {
        let (task_state, call, max_ttl, Verify(question)) = self.parts();
        task_state.wrap(run_verifying(call, question, max_ttl, of_body(body, max_ttl))).await
    }

    /// Runs the call as [`EdgeCall::run_detached`] does. After a crash it verifies first, also in
    /// the task: a caller that leaves interrupts neither the verification nor the body. `settled`
    /// is not called if the verification decides the call, or if the claim is lost before it.
    ///
    /// # Panics
    /// If the callback or the body panics.
    pub async fn run_detached<T, B, F, W>(self, body: B, settled: W) -> EdgeOutcome<T>
    where
        T: Send + 'static,
        Q: Send + 'static,
        A: Send + 'static,
        B: FnOnce(Turn) -> F + Send + 'static,
        F: Future<Output = (T, End)> + Send + 'static,
        W: FnOnce(&EdgeOutcome<T>) + Send + 'static,
    {
        let (task_state, call, max_ttl, Verify(question)) = self.parts();
        let body = of_body(body, max_ttl);
        task_state.wrap(run_detached_verifying(call, question, max_ttl, body, settled)).await
    }
}

impl<V> fmt::Debug for EdgeCall<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EdgeCall")
            .field("operation", &self.operation)
            .field("extensions", &self.extensions)
            .finish_non_exhaustive()
    }
}
