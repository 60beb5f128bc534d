//! The object-safe twin of [`Store`]: sealed, and implemented for every store.

use std::any::Any;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use super::{
    Abandon, Capabilities, Changed, Checkpoint, Claim, Claimed, Commit, Page, Park, Purged, Record,
    Release, Remove, Renewal, Resolve, Scan, Store, StoreError, Token, Watch, Written,
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
        pub trait DynStore: sealed::Sealed + Send + Sync + 'static {
            #[doc = "See [`Store::name`]."]
            fn name(&self) -> &'static str;
            #[doc = "See [`Store::capabilities`]."]
            fn capabilities(&self) -> Capabilities;
            #[doc(hidden)]
            fn as_any(&self) -> &dyn Any;
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

            fn as_any(&self) -> &dyn Any {
                self
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
            $(
                async fn $method(&self, $($argument: $type),*) -> Result<$answer, StoreError> {
                    DynStore::$method(Self::clone(self), $($argument),*).await
                }
            )*
        }
    };
}

twin! {
    claim(claim: Claim) -> Claimed;
    renew(renewals: Vec<Renewal>) -> Vec<Written>;
    complete(commit: Commit) -> Written;
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

/// Finds the store of type `S` in `store`, also behind one or more `Arc`s.
#[cfg(any(
    feature = "memory",
    feature = "postgres",
    feature = "mysql",
    feature = "sqlite",
    all(feature = "redis", feature = "near-cache")
))]
pub(crate) fn find<S: Store>(store: &dyn DynStore) -> Option<&S> {
    let any = store.as_any();
    if let Some(erased) = any.downcast_ref::<Arc<dyn DynStore>>() {
        return find(&**erased);
    }
    any.downcast_ref::<S>().or_else(|| any.downcast_ref::<Arc<S>>().map(|shared| &**shared))
}
