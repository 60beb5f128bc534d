//! The pools that a store takes its connections from.

use std::sync::Arc;
#[cfg(any(feature = "mysql", feature = "postgres"))]
use std::time::{Duration, Instant};

use sqlx::pool::{PoolConnection, PoolOptions};
use sqlx::{Connection, Database, Error, Pool};
use tokio::runtime::Handle;

use super::Abandoned;
#[cfg(any(feature = "mysql", feature = "postgres"))]
use super::{Answer, Lease, in_time, starved::Starved};
use crate::runtime::PerRuntime;
#[cfg(any(feature = "mysql", feature = "postgres"))]
use crate::store::StoreError;

type Options<DB> = <<DB as Database>::Connection as Connection>::Options;

/// Where connections come from.
///
/// A connection works only while the runtime lives in which it was made, and only as fast as that
/// one, and a pool takes it back in a task there. Of one pool for all, runtimes that stand still
/// between their calls, or whose executor a body blocks, would keep one connection each, until
/// there is none left for anybody. So a store's own pools are one for each runtime: one that stands
/// still has nothing that another one waits for.
pub(crate) struct Pools<DB: Database>(Arc<Source<DB>>);

enum Source<DB: Database> {
    /// The user's, whose connections belong to whichever runtimes made them.
    Given {
        pool: Pool<DB>,
        abandoned: Abandoned,
        #[cfg(any(feature = "mysql", feature = "postgres"))]
        starved: Starved,
    },
    Own {
        like: Like<DB>,
        made: PerRuntime<Made<DB>>,
    },
}

/// How the pools are made.
struct Like<DB: Database> {
    options: PoolOptions<DB>,
    connecting: Connecting<DB>,
    /// Makes the count of what is abandoned in one of them.
    abandoned: fn(&Pool<DB>) -> Abandoned,
}

enum Connecting<DB: Database> {
    /// As this says.
    Options(Arc<Options<DB>>),
    /// As this pool does, whose user may give it other credentials at any time.
    Pool(Pool<DB>),
}

impl<DB: Database> Connecting<DB> {
    fn now(&self) -> Arc<Options<DB>> {
        match self {
            Self::Options(options) => Arc::clone(options),
            Self::Pool(pool) => pool.connect_options(),
        }
    }
}

struct Made<DB: Database> {
    pool: Pool<DB>,
    connecting: Arc<Options<DB>>,
    abandoned: Abandoned,
}

/// A connection, and the count of those of its pool whose request was given up.
pub(crate) struct Acquired<DB: Database> {
    pub(crate) connection: PoolConnection<DB>,
    pub(crate) abandoned: Abandoned,
}

impl<DB: Database> Clone for Pools<DB> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<DB: Database> Pools<DB> {
    pub(crate) fn given(pool: Pool<DB>) -> Self {
        let abandoned = Abandoned::of(&pool);
        Self(Arc::new(Source::Given {
            pool,
            abandoned,
            #[cfg(any(feature = "mysql", feature = "postgres"))]
            starved: Starved::default(),
        }))
    }

    /// Whether they are a pool of the user's.
    #[cfg(feature = "sqlite")]
    pub(crate) fn are_given(&self) -> bool {
        matches!(&*self.0, Source::Given { .. })
    }

    /// How the next connection is made.
    #[cfg(any(feature = "postgres", feature = "mysql"))]
    pub(crate) fn connecting(&self) -> Arc<Options<DB>> {
        match &*self.0 {
            Source::Given { pool, .. } => pool.connect_options(),
            Source::Own { like, .. } => like.connecting.now(),
        }
    }

    /// One with `options` for each runtime.
    pub(crate) fn own(options: PoolOptions<DB>, connecting: Options<DB>) -> Self {
        let connecting = Connecting::Options(Arc::new(connecting));
        Self::made(Like { options, connecting, abandoned: Abandoned::of })
    }

    fn made(like: Like<DB>) -> Self {
        Self(Arc::new(Source::Own { like, made: PerRuntime::default() }))
    }

    /// Those for renewals, of `connections` each, made as these make theirs: neither a blocked
    /// executor of the user nor requests that hold all other connections keep a lease from being
    /// renewed. An engine has one thread for renewals, so there are as many pools as engines that
    /// share the store.
    pub(crate) fn for_renewals(&self, connections: u32) -> Self {
        let (options, connecting) = match &*self.0 {
            Source::Given { pool, .. } => (pool.options().clone(), Connecting::Pool(pool.clone())),
            Source::Own { like, .. } => {
                (like.options.clone(), Connecting::Options(like.connecting.now()))
            }
        };
        let options = options.min_connections(0).max_connections(connections);
        Self::made(Like { options, connecting, abandoned: Abandoned::of_renewals })
    }

    /// A connection within `patience`, for the time of one request. `failed` tells what it means
    /// that there is none.
    #[cfg(any(feature = "mysql", feature = "postgres"))]
    #[expect(
        clippy::disallowed_methods,
        reason = "the patience with a server is real time, whatever clock records have"
    )]
    pub(crate) async fn lease(
        &self,
        operation: &'static str,
        patience: Duration,
        failed: impl FnOnce(&'static str, Error) -> StoreError,
    ) -> Answer<Lease<DB>> {
        let since = Instant::now();
        // Of many kilobytes, because it may have to make a connection, and part of every request's
        // future.
        let connecting = Box::pin(self.acquire());
        let connecting = async { connecting.await.map_err(|error| failed(operation, error)) };
        let acquired = in_time(operation, patience, connecting).await;
        if let Source::Given { pool, starved, .. } = &*self.0 {
            starved.waited(pool, since.elapsed(), patience);
        }
        acquired.map(|acquired| Lease::new(acquired, patience))
    }

    /// A connection that belongs to the runtime that asks, where the pools are the store's own.
    pub(crate) async fn acquire(&self) -> Result<Acquired<DB>, Error> {
        let (like, made) = match &*self.0 {
            Source::Given { pool, abandoned, .. } => {
                let connection = pool.acquire().await?;
                return Ok(Acquired { connection, abandoned: abandoned.clone() });
            }
            Source::Own { like, made } => (like, made),
        };
        loop {
            let runtime = Handle::current().id();
            let (pool, abandoned) = made.with(|| like.make(), |made| made.up_to_date(like));
            let connection = pool.acquire().await?;
            if Handle::current().id() == runtime {
                return Ok(Acquired { connection, abandoned });
            }
            // The engine goes on with a request whose caller is gone, on a runtime of its own. A
            // connection that was made here for a pool of the caller's runtime would end up there,
            // and one of the caller's runtime may never answer.
            drop(connection.detach());
        }
    }
}

impl<DB: Database> Like<DB> {
    fn make(&self) -> Made<DB> {
        let connecting = self.connecting.now();
        let pool = self.options.clone().connect_lazy_with((*connecting).clone());
        Made { abandoned: (self.abandoned)(&pool), pool, connecting }
    }
}

impl<DB: Database> Made<DB> {
    fn up_to_date(&mut self, like: &Like<DB>) -> (Pool<DB>, Abandoned) {
        let connecting = like.connecting.now();
        if !Arc::ptr_eq(&connecting, &self.connecting) {
            self.pool.set_connect_options((*connecting).clone());
            self.connecting = connecting;
        }
        (self.pool.clone(), self.abandoned.clone())
    }
}
