//! Stores that wrap another one: they keep every rule, and what the store inside can do beyond the
//! operations stays, or is left out on purpose.

mod conformance;
mod counting;
mod delaying;
mod facets;
mod failing;
#[cfg(all(feature = "redis", feature = "near-cache"))]
mod pushes;
mod sealing;
mod transactions;

/// The operations that a wrapper treats alike: each goes through its `around`.
macro_rules! around {
    ($($method:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {$(
        async fn $method(
            &self,
            $($argument: $type),*
        ) -> Result<$answer, idempotency::store::StoreError> {
            self.around(stringify!($method), self.inner.$method($($argument),*)).await
        }
    )*};
}

/// Every operation of a store.
macro_rules! all_around {
    () => {
        crate::around! {
            claim(claim: idempotency::store::Claim) -> idempotency::store::Claimed;
            renew(renewals: Vec<idempotency::store::Renewal>) -> Vec<idempotency::store::Written>;
            complete(commit: idempotency::store::Commit) -> idempotency::store::Written;
            release(release: idempotency::store::Release) -> idempotency::store::Written;
            abandon(abandon: idempotency::store::Abandon) -> idempotency::store::Written;
            park(park: idempotency::store::Park) -> idempotency::store::Written;
            checkpoint(checkpoint: idempotency::store::Checkpoint) -> idempotency::store::Written;
            fence(
                key: idempotency::key::KeyHash,
                token: idempotency::store::Token
            ) -> Option<u64>;
            read(key: idempotency::key::KeyHash) -> Option<idempotency::store::Record>;
            watch(key: idempotency::key::KeyHash) -> idempotency::store::Watch;
            resolve(resolve: idempotency::store::Resolve) -> idempotency::store::Changed;
            remove(remove: idempotency::store::Remove) -> idempotency::store::Changed;
            scan(scan: idempotency::store::Scan) -> idempotency::store::Page;
            purge(limit: usize) -> idempotency::store::Purged;
        }
    };
}

use {all_around, around};
