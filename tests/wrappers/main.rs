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
    ($($operation:ident $method:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {$(
        async fn $method(
            &self,
            $($argument: $type),*
        ) -> Result<$answer, idempotency::store::StoreError> {
            self.around(idempotency::store::Operation::$operation, self.inner.$method($($argument),*)).await
        }
    )*};
}

/// Every operation of a store.
macro_rules! all_around {
    () => {
        crate::around! {
            Claim claim(claim: idempotency::store::Claim) -> idempotency::store::ClaimOutcome;
            Renew renew(renewals: Vec<idempotency::store::Renewal>) -> Vec<idempotency::store::WriteOutcome>;
            Complete complete(commit: idempotency::store::Commit) -> idempotency::store::WriteOutcome;
            Release release(release: idempotency::store::Release) -> idempotency::store::WriteOutcome;
            Abandon abandon(abandon: idempotency::store::Abandon) -> idempotency::store::WriteOutcome;
            Park park(park: idempotency::store::Park) -> idempotency::store::WriteOutcome;
            Checkpoint checkpoint(checkpoint: idempotency::store::Checkpoint) -> idempotency::store::WriteOutcome;
            Fence fence(
                key: idempotency::key::KeyHash,
                token: idempotency::store::Token
            ) -> Option<u64>;
            Read read(key: idempotency::key::KeyHash) -> Option<idempotency::store::Record>;
            Watch watch(key: idempotency::key::KeyHash) -> idempotency::store::Watch;
            Resolve resolve(resolve: idempotency::store::Resolve) -> idempotency::store::AdminOutcome;
            Remove remove(remove: idempotency::store::Remove) -> idempotency::store::AdminOutcome;
            Scan scan(scan: idempotency::store::Scan) -> idempotency::store::Page;
            Census census(budget: idempotency::store::CensusBudget) -> idempotency::store::Census;
            Purge purge(limit: usize) -> idempotency::store::PurgeOutcome;
        }
    };
}

use {all_around, around};
