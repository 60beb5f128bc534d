//! The object-safe twin of [`Store`]: sealed, and implemented for every store.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use super::{
    Abandon, AdminOutcome, Capabilities, Census, CensusBudget, Checkpoint, Claim, ClaimOutcome,
    Commit, Facets, Page, Park, PurgeOutcome, Record, Release, Remove, Renewal, Resolve, Scan,
    Store, StoreError, Token, Watch, WriteOutcome,
};
use crate::key::KeyHash;

type StoreFuture<T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send>>;

mod sealed {
    pub trait Sealed {}
    impl<S: super::Store> Sealed for S {}
}

macro_rules! twin {
    ($($method:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {
        /// [`Store`] as a trait object: `Arc<dyn DynStore>`.
        ///
        /// Implemented for every store and for nothing else. The futures own what they need, so
        /// that a request that was sent can be followed to its answer after its caller is gone.
        pub trait DynStore: sealed::Sealed + std::fmt::Debug + Send + Sync + 'static {
            #[doc = "See [`Store::name`]."]
            fn name(&self) -> &'static str;
            #[doc = "See [`Store::capabilities`]."]
            fn capabilities(&self) -> Capabilities;
            #[doc = "See [`Store::facets`]."]
            fn facets(&self) -> Facets<'_>;
            $(
                #[doc = concat!("See [`Store::", stringify!($method), "`].")]
                fn $method(self: Arc<Self>, $($argument: $type),*) -> StoreFuture<$answer>;
            )*
        }

        impl<S: Store> DynStore for S {
            fn name(&self) -> &'static str {
                Store::name(self)
            }

            fn capabilities(&self) -> Capabilities {
                Store::capabilities(self)
            }

            fn facets(&self) -> Facets<'_> {
                Store::facets(self)
            }
            $(
                fn $method(self: Arc<Self>, $($argument: $type),*) -> StoreFuture<$answer> {
                    Box::pin(async move { Store::$method(&*self, $($argument),*).await })
                }
            )*
        }

        /// Every operation goes to the store inside.
        #[deny(clippy::missing_trait_methods)]
        impl<S: Store> Store for Arc<S> {
            fn name(&self) -> &'static str {
                Store::name(&**self)
            }

            fn capabilities(&self) -> Capabilities {
                Store::capabilities(&**self)
            }

            fn facets(&self) -> Facets<'_> {
                Store::facets(&**self)
            }
            $(
                async fn $method(&self, $($argument: $type),*) -> Result<$answer, StoreError> {
                    Store::$method(&**self, $($argument),*).await
                }
            )*
        }

        /// A store chosen at run time. Every operation goes to the store inside.
        #[deny(clippy::missing_trait_methods)]
        impl Store for Arc<dyn DynStore> {
            fn name(&self) -> &'static str {
                DynStore::name(&**self)
            }

            fn capabilities(&self) -> Capabilities {
                DynStore::capabilities(&**self)
            }

            fn facets(&self) -> Facets<'_> {
                DynStore::facets(&**self)
            }
            $(
                async fn $method(&self, $($argument: $type),*) -> Result<$answer, StoreError> {
                    DynStore::$method(Self::clone(self), $($argument),*).await
                }
            )*
        }
    };
}

twin! {
    claim(claim: Claim) -> ClaimOutcome;
    renew(renewals: Vec<Renewal>) -> Vec<WriteOutcome>;
    complete(commit: Commit) -> WriteOutcome;
    release(release: Release) -> WriteOutcome;
    abandon(abandon: Abandon) -> WriteOutcome;
    park(park: Park) -> WriteOutcome;
    checkpoint(checkpoint: Checkpoint) -> WriteOutcome;
    fence(key: KeyHash, token: Token) -> Option<u64>;
    read(key: KeyHash) -> Option<Record>;
    watch(key: KeyHash) -> Watch;
    resolve(resolve: Resolve) -> AdminOutcome;
    remove(remove: Remove) -> AdminOutcome;
    scan(scan: Scan) -> Page;
    census(budget: CensusBudget) -> Census;
    purge(limit: usize) -> PurgeOutcome;
}
