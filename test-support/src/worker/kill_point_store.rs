//! The points at the requests of a store.

use std::pin::pin;
use std::task::Poll;

use idempotent_runtime::key::KeyHash;
use idempotent_runtime::store::{
    Abandon, Capabilities, Changed, Checkpoint, Claim, Claimed, Commit, Page, Park, Purged, Record, Release, Remove,
    Renewal, Resolve, Scan, Store, StoreError, Token, Watch, Written,
};

use super::{AFTER_CLAIM, AFTER_COMMIT, AFTER_SEND, BEFORE_COMMIT, BEFORE_SEND, DURING_RENEWAL, KillPoints};

/// Stops at the points around claims, renewals and commits. Everything goes to the store inside.
#[derive(Clone, Debug)]
pub struct KillPointStore<S> {
    inner: S,
    points: KillPoints,
}

impl<S> KillPointStore<S> {
    /// Around `inner`.
    pub fn new(inner: S, points: KillPoints) -> Self {
        Self { inner, points }
    }

    /// Reaches `point` after the request was handed to the client of the store, and before its answer is looked at.
    /// Clients send in a task of their own, which goes on while this one waits.
    async fn on_its_way<T>(&self, point: &str, request: impl Future<Output = T>) -> T {
        let mut request = pin!(request);
        let first = std::future::poll_fn(|context| Poll::Ready(request.as_mut().poll(context))).await;
        self.points.reach(point).await;
        match first {
            Poll::Ready(answer) => answer,
            Poll::Pending => request.await,
        }
    }
}

macro_rules! through {
    ($($method:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {
        #[deny(clippy::missing_trait_methods)]
        impl<S: Store> Store for KillPointStore<S> {
            fn name(&self) -> &'static str {
                self.inner.name()
            }

            fn capabilities(&self) -> Capabilities {
                self.inner.capabilities()
            }

            async fn claim(&self, claim: Claim) -> Result<Claimed, StoreError> {
                self.points.reach(BEFORE_SEND).await;
                let answer = self.on_its_way(AFTER_SEND, self.inner.claim(claim)).await;
                if matches!(answer, Ok(Claimed::Mine(_))) {
                    self.points.reach(AFTER_CLAIM).await;
                }
                answer
            }

            async fn renew(&self, renewals: Vec<Renewal>) -> Result<Vec<Written>, StoreError> {
                self.on_its_way(DURING_RENEWAL, self.inner.renew(renewals)).await
            }

            async fn complete(&self, commit: Commit) -> Result<Written, StoreError> {
                self.points.reach(BEFORE_COMMIT).await;
                let answer = self.inner.complete(commit).await;
                if answer.as_ref().is_ok_and(|written| written.is_done()) {
                    self.points.reach(AFTER_COMMIT).await;
                }
                answer
            }
            $(
                async fn $method(&self, $($argument: $type),*) -> Result<$answer, StoreError> {
                    self.inner.$method($($argument),*).await
                }
            )*
        }
    };
}

through! {
    release(release: Release) -> Written;
    abandon(abandon: Abandon) -> Written;
    park(park: Park) -> Written;
    checkpoint(checkpoint: Checkpoint) -> Written;
    fence(key: KeyHash, token: Token) -> Option<u64>;
    read(key: KeyHash) -> Option<Record>;
    watch(key: KeyHash) -> Watch;
    resolve(resolve: Resolve) -> Changed;
    remove(remove: Remove) -> Changed;
    scan(scan: Scan) -> Page;
    purge(limit: usize) -> Purged;
}
