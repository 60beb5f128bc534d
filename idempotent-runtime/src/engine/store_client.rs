//! The client of the store: the one place where the engine talks to its store.
//!
//! It repeats requests until their answer is known, gives up a try that takes too long, and explains
//! a store that only seems silent because a test has paused the clock. The senders decide on the
//! token of a request, which makes it safe to repeat.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::retry::{Budget, pauses, repeated};
use crate::clock::Clock;
use crate::events::{Interest, Observers, What};
use crate::key::KeyHash;
use crate::paused::explain;
use crate::store::{
    Abandon, AdminOutcome, Capabilities, Census, CensusBudget, Checkpoint, Claim, ClaimOutcome,
    Commit, DynStore, Facets, Operation, Page, Park, PurgeOutcome, Record, Release, Remove,
    Renewal, Resolve, Scan, StoreError, StoreErrorKind, Token, Watch, WriteOutcome,
};

/// The store of an engine, as the engine sees it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct StoreClient {
    store: Arc<dyn DynStore>,
    clock: Arc<dyn Clock>,
    /// The longest time of one try: one that takes longer is given up, and its outcome is unknown.
    /// The tries of a claim are bounded by its sender, and a purge is not bounded.
    patience: Duration,
    observers: Observers,
}

/// The answer to a claim.
pub(crate) struct ClaimReply {
    pub(crate) claimed: ClaimOutcome,
    /// True if an earlier try may still be on its way, and be applied after a release.
    pub(crate) repeated: bool,
}

impl StoreClient {
    pub(super) fn new(
        store: Arc<dyn DynStore>,
        clock: Arc<dyn Clock>,
        patience: Duration,
        observers: Observers,
    ) -> Self {
        Self { store, clock, patience, observers }
    }

    pub(super) fn observers(&self) -> &Observers {
        &self.observers
    }

    pub(crate) fn name(&self) -> &'static str {
        DynStore::name(&*self.store)
    }

    pub(crate) fn capabilities(&self) -> Capabilities {
        DynStore::capabilities(&*self.store)
    }

    pub(crate) fn facets(&self) -> Facets<'_> {
        DynStore::facets(&*self.store)
    }

    /// The store itself, for what a transaction of the user's does with it.
    pub(crate) fn in_transaction(&self) -> &dyn DynStore {
        &*self.store
    }

    /// Returns true if both are clients of the same store.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.store, &other.store)
    }

    /// Sends `claim` with its token until its answer is known, or until `stops` says after the
    /// failure of a try that nothing is sent any more. Not bounded: the caller gives it up, and
    /// follows it to its answer.
    pub(super) async fn claim(
        &self,
        claim: Arc<Claim>,
        stops: impl Fn(&StoreError) -> bool,
    ) -> Result<ClaimReply, StoreError> {
        let mut request = Measured::new(self, Operation::Claim);
        let start = self.clock.monotonic();
        let end = start.saturating_add(self.patience);
        let (mut unknown, mut slept) = (None, Duration::ZERO);
        for pause in pauses() {
            request.tries += 1;
            match self.store.clone().claim(Claim::clone(&claim)).await {
                Err(error) if error.is_transient() && self.clock.monotonic() + pause < end => {
                    self.clock.sleep(pause).await;
                    slept += pause;
                    if stops(&error) {
                        return request.answered(Err(unknown.unwrap_or(error)));
                    }
                    if error.is_outcome_unknown() {
                        unknown = Some(error);
                    }
                }
                // An earlier try may have been applied: this refusal does not settle it.
                Err(error) => {
                    let error = unknown.unwrap_or(error);
                    let real = self.clock.monotonic().saturating_sub(start);
                    return request.answered(Err(explain(error, slept, real)));
                }
                Ok(claimed) => {
                    return request
                        .answered(Ok(ClaimReply { claimed, repeated: unknown.is_some() }));
                }
            }
        }
        request.answered(Err(unknown.unwrap_or_else(|| unavailable(Operation::Claim))))
    }

    /// Stores a result. `commit` is asked for each try: what it may write again depends on the time.
    pub(super) async fn complete(
        &self,
        budget: Budget,
        mut commit: impl FnMut() -> Commit,
    ) -> Result<WriteOutcome, StoreError> {
        let request = || self.store.clone().complete(commit());
        self.repeat(Operation::Complete, budget, request).await
    }

    pub(super) async fn release(
        &self,
        budget: Budget,
        release: Release,
    ) -> Result<WriteOutcome, StoreError> {
        self.repeat(Operation::Release, budget, || self.store.clone().release(release)).await
    }

    /// Sends `release` once. A store that panics has failed: the request has a task of its own.
    pub(super) async fn release_once(&self, release: Release) -> Result<WriteOutcome, StoreError> {
        self.once(Operation::Release, self.patience, self.store.clone().release(release)).await
    }

    pub(super) async fn park(
        &self,
        budget: Budget,
        park: Park,
    ) -> Result<WriteOutcome, StoreError> {
        self.repeat(Operation::Park, budget, || self.store.clone().park(park)).await
    }

    /// Leaves a record to the next call, for as long as `may` agrees before each try. Returns `None`
    /// once it does not.
    pub(super) async fn abandon(
        &self,
        budget: Budget,
        abandon: Abandon,
        may: impl Fn() -> bool,
    ) -> Result<Option<WriteOutcome>, StoreError> {
        let request = || {
            let request = may().then(|| self.store.clone().abandon(abandon));
            async move {
                match request {
                    Some(request) => request.await.map(Some),
                    None => Ok(None),
                }
            }
        };
        self.repeat(Operation::Abandon, budget, request).await
    }

    pub(crate) async fn checkpoint(
        &self,
        budget: Budget,
        checkpoint: Checkpoint,
    ) -> Result<WriteOutcome, StoreError> {
        let request = || self.store.clone().checkpoint(checkpoint.clone());
        self.repeat(Operation::Checkpoint, budget, request).await
    }

    pub(crate) async fn fence(
        &self,
        key: KeyHash,
        token: Token,
    ) -> Result<Option<u64>, StoreError> {
        let request = || self.store.clone().fence(key, token);
        self.repeat(Operation::Fence, Budget::of(self.patience), request).await
    }

    pub(super) async fn read(
        &self,
        budget: Budget,
        key: KeyHash,
    ) -> Result<Option<Record>, StoreError> {
        self.repeat(Operation::Read, budget, || self.store.clone().read(key)).await
    }

    pub(super) async fn scan(&self, budget: Budget, scan: &Scan) -> Result<Page, StoreError> {
        self.repeat(Operation::Scan, budget, || self.store.clone().scan(scan.clone())).await
    }

    /// Counts the records for as long as `allowed` says. A try after one that failed has what is left
    /// of that time, and none begins when there is nothing left: a store without time counts nothing
    /// and reports no error. A try that goes on for longer than a request may is given up.
    pub(super) async fn census(&self, allowed: &CensusBudget) -> Result<Census, StoreError> {
        let begins = self.clock.monotonic();
        let whole = allowed.time.saturating_add(self.patience);
        let request = || {
            let mut allowed = allowed.clone();
            let passed = self.clock.monotonic().saturating_sub(begins);
            allowed.time = allowed.time.saturating_sub(passed);
            self.store.clone().census(allowed)
        };
        let budget = Budget::of(allowed.time).with_overtime(self.patience);
        self.repeat_within(whole, Operation::Census, budget, request).await
    }

    pub(super) async fn watch(&self, budget: Budget, key: KeyHash) -> Result<Watch, StoreError> {
        self.repeat(Operation::Watch, budget, || self.store.clone().watch(key)).await
    }

    /// Sends an operator's answer. `tries` follows each try.
    pub(super) async fn resolve(
        &self,
        resolve: &Resolve,
        tries: &Tries,
    ) -> Result<AdminOutcome, StoreError> {
        let request = || tries.follow(self.store.clone().resolve(resolve.clone()));
        self.repeat(Operation::Resolve, Budget::of(self.patience), request).await
    }

    /// Removes a record for an operator. `tries` follows each try.
    pub(super) async fn remove(
        &self,
        remove: Remove,
        tries: &Tries,
    ) -> Result<AdminOutcome, StoreError> {
        let request = || tries.follow(self.store.clone().remove(remove));
        self.repeat(Operation::Remove, Budget::of(self.patience), request).await
    }

    /// Removes a count. See [`uncount`](super::uncount).
    pub(super) async fn remove_count(&self, remove: Remove) -> Result<AdminOutcome, StoreError> {
        let request = || self.store.clone().remove(remove);
        self.repeat(Operation::Remove, Budget::of(self.patience), request).await
    }

    /// Renews leases, once, for at most `patience`. A store that panics has failed: the request has
    /// a task of its own.
    pub(super) async fn renew(
        &self,
        patience: Duration,
        renewals: Vec<Renewal>,
    ) -> Result<Vec<WriteOutcome>, StoreError> {
        self.once(Operation::Renew, patience, self.store.clone().renew(renewals)).await
    }

    /// Removes a batch of expired records, once. Not bounded: no caller waits for it.
    pub(super) async fn purge(&self, limit: usize) -> Result<PurgeOutcome, StoreError> {
        let mut request = Measured::new(self, Operation::Purge);
        request.tries = 1;
        request.answered(self.store.clone().purge(limit).await)
    }

    async fn repeat<T, F>(
        &self,
        operation: Operation,
        budget: Budget,
        request: impl FnMut() -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        self.repeat_within(self.patience, operation, budget, request).await
    }

    /// Repeats a request whose tries may each take `patience`.
    async fn repeat_within<T, F>(
        &self,
        patience: Duration,
        operation: Operation,
        budget: Budget,
        mut request: impl FnMut() -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let mut measured = Measured::new(self, operation);
        let tries = &mut measured.tries;
        let request = || {
            *tries += 1;
            request()
        };
        let answer = repeated(&*self.clock, operation, patience, budget, request).await;
        measured.answered(answer)
    }

    async fn once<T: Send + 'static>(
        &self,
        operation: Operation,
        patience: Duration,
        request: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let mut measured = Measured::new(self, operation);
        measured.tries = 1;
        let mut request = tokio::spawn(request);
        let answer = tokio::select! {
            biased;
            answer = &mut request => {
                answer.unwrap_or_else(|panic| {
                    let detail = panic.to_string();
                    Err(unavailable(operation).with_detail(detail).with_source(panic))
                })
            }
            () = self.clock.sleep(patience) => Err(no_answer_within(operation, patience)),
        };
        request.abort();
        measured.answered(answer)
    }
}

/// A request on its way, for those who count and time requests. One that is dropped was given up.
struct Measured<'client> {
    client: &'client StoreClient,
    operation: Operation,
    /// `None` if no observer wants to know.
    since: Option<Duration>,
    tries: u32,
}

impl<'client> Measured<'client> {
    fn new(client: &'client StoreClient, operation: Operation) -> Self {
        let is_wanted = client.observers.want(Interest::STORE);
        let since = is_wanted.then(|| client.clock.monotonic());
        Self { client, operation, since, tries: 0 }
    }

    fn answered<T>(mut self, answer: Result<T, StoreError>) -> Result<T, StoreError> {
        self.report(answer.as_ref().map(drop).map_err(StoreError::kind));
        answer
    }

    /// Reports the end of the request, once.
    fn report(&mut self, result: Result<(), StoreErrorKind>) {
        let Some(since) = self.since.take() else { return };
        let duration = self.client.clock.monotonic().saturating_sub(since);
        let (store, request, tries) = (self.client.name(), self.operation, self.tries);
        let what = What::Store { store, request, result, duration, tries };
        self.client.observers.tell(None, None, what);
    }
}

impl Drop for Measured<'_> {
    fn drop(&mut self) {
        if self.tries > 0 {
            self.report(Err(StoreErrorKind::Unavailable));
        }
    }
}

/// The state of the tries of a change that were not answered.
#[derive(Default)]
pub(super) struct Tries(AtomicBool);

impl Tries {
    /// Runs one try. A try that is dropped because it took too long may still be applied.
    async fn follow(
        &self,
        change: impl Future<Output = Result<AdminOutcome, StoreError>>,
    ) -> Result<AdminOutcome, StoreError> {
        let before = self.0.swap(true, Ordering::Relaxed);
        let answer = change.await;
        if !answer.as_ref().is_err_and(StoreError::is_outcome_unknown) {
            self.0.store(before, Ordering::Relaxed);
        }
        answer
    }

    pub(super) fn may_be_applied(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

fn unavailable(operation: Operation) -> StoreError {
    StoreError::new(StoreErrorKind::Unavailable, operation)
}

/// The error of a request that was given up after `patience`.
pub(super) fn no_answer_within(operation: Operation, patience: Duration) -> StoreError {
    unavailable(operation).with_detail(format!("no answer within {patience:?}"))
}
