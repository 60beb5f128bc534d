//! The pools from which a store takes its connections.

use std::sync::Arc;
#[cfg(any(feature = "mysql", feature = "postgres"))]
use std::time::{Duration, Instant};

use sqlx::pool::{PoolConnection, PoolOptions};
use sqlx::{Connection, Database, Error, Pool};
use tokio::runtime::Handle;
#[cfg(feature = "sqlite")]
use tokio::sync::Semaphore;

use super::Abandoned;
#[cfg(any(feature = "mysql", feature = "postgres"))]
use super::{Answer, Lease, in_time, starved::Starved};
use crate::runtime::PerRuntime;
#[cfg(any(feature = "mysql", feature = "postgres"))]
use crate::store::{Operation, StoreError};

type Options<DB> = <<DB as Database>::Connection as Connection>::Options;

/// The source of connections.
///
/// A connection works only as long as the runtime lives in which it was opened, and only as fast as
/// that runtime, and a pool takes it back in a task there. With one pool for all runtimes, each
/// runtime that stands still between its calls, or whose executor a body blocks, would keep a
/// connection, until none is left. So a store's own pools are one for each runtime: a runtime that
/// stands still holds nothing that another one waits for.
pub(crate) struct Pools<DB: Database>(Arc<Source<DB>>);

enum Source<DB: Database> {
    /// The user's pool, whose connections belong to whichever runtimes opened them.
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

/// The settings of the store's own pools.
struct Like<DB: Database> {
    options: PoolOptions<DB>,
    connecting: Connecting<DB>,
    /// Creates the limits for abandoned connections of one of them.
    abandoned: fn(&Pool<DB>) -> Abandoned,
}

enum Connecting<DB: Database> {
    /// With these options.
    Options(Arc<Options<DB>>),
    /// Like this pool, whose user may give it other credentials at any time.
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

/// A connection, and the limits for connections of its pool whose request was given up.
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

    /// Returns true if they are a pool of the user.
    #[cfg(feature = "sqlite")]
    pub(crate) fn are_given(&self) -> bool {
        matches!(&*self.0, Source::Given { .. })
    }

    /// The maximum number of connections, if they are a pool of the user.
    #[cfg(feature = "sqlite")]
    pub(crate) fn most_given(&self) -> Option<usize> {
        let Source::Given { pool, .. } = &*self.0 else { return None };
        let most = usize::try_from(pool.options().get_max_connections()).unwrap_or(usize::MAX);
        Some(most.min(Semaphore::MAX_PERMITS))
    }

    /// The options with which the next connection is opened.
    #[cfg(any(feature = "postgres", feature = "mysql"))]
    pub(crate) fn connecting(&self) -> Arc<Options<DB>> {
        match &*self.0 {
            Source::Given { pool, .. } => pool.connect_options(),
            Source::Own { like, .. } => like.connecting.now(),
        }
    }

    /// Creates pools with `options`, one for each runtime.
    pub(crate) fn own(options: PoolOptions<DB>, connecting: Options<DB>) -> Self {
        let connecting = Connecting::Options(Arc::new(connecting));
        Self::made(Like { options, connecting, abandoned: Abandoned::of })
    }

    fn made(like: Like<DB>) -> Self {
        Self(Arc::new(Source::Own { like, made: PerRuntime::default() }))
    }

    /// Creates the pools for renewals, with at most `connections` each, which connect as these do:
    /// neither a blocked executor of the user nor requests that hold all other connections keep a
    /// lease from being renewed. An engine has one thread for renewals, so there are as many pools
    /// as engines that share the store.
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

    /// Returns a connection for one request, within `patience`. `failed` converts the error if
    /// there is none.
    #[cfg(any(feature = "mysql", feature = "postgres"))]
    #[expect(
        clippy::disallowed_methods,
        reason = "the patience with a server is real time, whatever clock records have"
    )]
    pub(crate) async fn lease(
        &self,
        operation: Operation,
        patience: Duration,
        failed: impl FnOnce(Operation, Error) -> StoreError,
    ) -> Answer<Lease<DB>> {
        let since = Instant::now();
        // Boxed: it has many kilobytes, because it may have to open a connection, and it is part of
        // every request's future.
        let connecting = Box::pin(self.acquire());
        let connecting = async { connecting.await.map_err(|error| failed(operation, error)) };
        let acquired = in_time(operation, patience, connecting).await;
        if let Source::Given { pool, starved, .. } = &*self.0 {
            starved.waited(pool, since.elapsed(), patience);
        }
        acquired.map(|acquired| Lease::new(acquired, patience))
    }

    /// Returns a connection that belongs to the current runtime, if the pools are the store's own.
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
            // The runtime may have changed during the await: the engine continues a request whose
            // caller is gone, on a runtime of its own. A connection opened here for the pool of the
            // caller's runtime would end up in that pool, and one of the caller's runtime may never
            // answer. So this one is detached, and the pool of the current runtime is used.
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
