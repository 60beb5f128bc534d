//! The kill points around the requests of a store.

use std::fmt;
use std::sync::Arc;

use idempotent_runtime::key::KeyHash;
use idempotent_runtime::store::{
    Abandon, AdminOutcome, Capabilities, Census, CensusBudget, Checkpoint, Claim, ClaimOutcome,
    Commit, DynStore, Facets, Page, Park, PurgeOutcome, Record, Release, Remove, Renewal, Resolve,
    Scan, Store, StoreError, Token, Watch, WriteOutcome,
};

use super::{
    AFTER_CLAIM, AFTER_COMMIT, AFTER_PARK, AFTER_RESOLVE, AFTER_SEND, BEFORE_COMMIT, BEFORE_PARK,
    BEFORE_RESOLVE, BEFORE_SEND, DURING_PARK, DURING_RENEWAL, DURING_RESOLVE, KillPoints,
    after_checkpoint, before_checkpoint, during_checkpoint,
};

/// Stops at the points around the requests that change a record. Every request goes to the store
/// inside.
#[derive(Clone)]
pub struct KillPointStore {
    inner: Arc<dyn DynStore>,
    points: KillPoints,
}

impl fmt::Debug for KillPointStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KillPointStore")
            .field("inner", &DynStore::name(&*self.inner))
            .finish_non_exhaustive()
    }
}

impl KillPointStore {
    /// Wraps `inner`.
    pub fn new(inner: Arc<dyn DynStore>, points: KillPoints) -> Self {
        Self { inner, points }
    }

    /// Reaches `point` while the request is in flight, before its answer is read.
    async fn on_its_way<T: Send + 'static>(
        &self,
        point: &str,
        request: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        if !self.points.has(point) {
            return request.await;
        }
        // In a task of its own it continues while this one waits.
        let request = tokio::spawn(request);
        self.points.reach(point).await;
        match request.await {
            Ok(answer) => answer,
            Err(ended) => match ended.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => std::future::pending().await,
            },
        }
    }
}

macro_rules! through {
    ($($method:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {
        #[deny(clippy::missing_trait_methods)]
        impl Store for KillPointStore {
            fn name(&self) -> &'static str {
                DynStore::name(&*self.inner)
            }

            fn capabilities(&self) -> Capabilities {
                DynStore::capabilities(&*self.inner)
            }

            fn facets(&self) -> Facets<'_> {
                Facets::none()
            }

            async fn claim(&self, claim: Claim) -> Result<ClaimOutcome, StoreError> {
                self.points.reach(BEFORE_SEND).await;
                let answer = self.on_its_way(AFTER_SEND, DynStore::claim(self.inner.clone(), claim)).await;
                if matches!(answer, Ok(ClaimOutcome::Granted(_))) {
                    self.points.reach(AFTER_CLAIM).await;
                }
                answer
            }

            async fn renew(&self, renewals: Vec<Renewal>) -> Result<Vec<WriteOutcome>, StoreError> {
                self.on_its_way(DURING_RENEWAL, DynStore::renew(self.inner.clone(), renewals)).await
            }

            async fn complete(&self, commit: Commit) -> Result<WriteOutcome, StoreError> {
                self.points.reach(BEFORE_COMMIT).await;
                let answer = DynStore::complete(self.inner.clone(), commit).await;
                if answer.as_ref().is_ok_and(|written| written.is_done()) {
                    self.points.reach(AFTER_COMMIT).await;
                }
                answer
            }

            async fn checkpoint(&self, checkpoint: Checkpoint) -> Result<WriteOutcome, StoreError> {
                let number = checkpoint.sequence;
                self.points.reach(&before_checkpoint(number)).await;
                let request = DynStore::checkpoint(self.inner.clone(), checkpoint);
                let answer = self.on_its_way(&during_checkpoint(number), request).await;
                if answer.as_ref().is_ok_and(|written| written.is_done()) {
                    self.points.reach(&after_checkpoint(number)).await;
                }
                answer
            }

            async fn park(&self, park: Park) -> Result<WriteOutcome, StoreError> {
                self.points.reach(BEFORE_PARK).await;
                let answer = self.on_its_way(DURING_PARK, DynStore::park(self.inner.clone(), park)).await;
                if answer.as_ref().is_ok_and(|written| written.is_done()) {
                    self.points.reach(AFTER_PARK).await;
                }
                answer
            }

            async fn resolve(&self, resolve: Resolve) -> Result<AdminOutcome, StoreError> {
                self.points.reach(BEFORE_RESOLVE).await;
                let answer = self.on_its_way(DURING_RESOLVE, DynStore::resolve(self.inner.clone(), resolve)).await;
                if matches!(answer, Ok(AdminOutcome::Applied)) {
                    self.points.reach(AFTER_RESOLVE).await;
                }
                answer
            }
            $(
                async fn $method(&self, $($argument: $type),*) -> Result<$answer, StoreError> {
                    DynStore::$method(self.inner.clone(), $($argument),*).await
                }
            )*
        }
    };
}

through! {
    release(release: Release) -> WriteOutcome;
    abandon(abandon: Abandon) -> WriteOutcome;
    fence(key: KeyHash, token: Token) -> Option<u64>;
    read(key: KeyHash) -> Option<Record>;
    watch(key: KeyHash) -> Watch;
    remove(remove: Remove) -> AdminOutcome;
    scan(scan: Scan) -> Page;
    census(budget: CensusBudget) -> Census;
    purge(limit: usize) -> PurgeOutcome;
}
