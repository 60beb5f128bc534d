//! A pooled connection for one request.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use sqlx::Database;
use sqlx::pool::PoolConnection;
use tokio::runtime::Handle;

use super::{Abandoned, Acquired};

/// A connection that returns to its pool only if its request was answered. Dropped before that,
/// because the request took too long or its future was dropped, it is [abandoned](Abandoned): the
/// next request must not wait for an answer that may never arrive.
pub(crate) struct Lease<DB: Database> {
    connection: Option<PoolConnection<DB>>,
    answered: bool,
    patience: Duration,
    abandoned: Abandoned,
    /// Pools take connections back in a task, and the future of a request may be dropped outside of
    /// its runtime.
    runtime: Handle,
}

/// The preparation of a connection for its next user, before it returns to its pool.
#[cfg(feature = "mysql")]
pub(crate) type Tidying<'c> =
    std::pin::Pin<Box<dyn Future<Output = Result<(), sqlx::Error>> + Send + 'c>>;

impl<DB: Database> Lease<DB> {
    /// Creates a lease. `patience` is the time that the connection may take to answer when it is
    /// returned.
    pub(crate) fn new(acquired: Acquired<DB>, patience: Duration) -> Self {
        let Acquired { connection, abandoned } = acquired;
        Self {
            connection: Some(connection),
            answered: false,
            patience,
            abandoned,
            runtime: Handle::current(),
        }
    }

    /// Returns the connection to its pool.
    pub(crate) fn end(mut self) {
        self.answered = true;
    }

    /// Returns the connection once it is as its next user expects it, in the background. Closes it
    /// if that fails.
    #[cfg(feature = "mysql")]
    #[expect(
        clippy::disallowed_methods,
        reason = "the patience with a server is real time, whatever clock records have"
    )]
    pub(crate) fn end_after(
        mut self,
        tidy: impl for<'c> FnOnce(&'c mut DB::Connection) -> Tidying<'c> + Send + 'static,
    ) {
        let (runtime, patience) = (self.runtime.clone(), self.patience);
        runtime.spawn(async move {
            if tokio::time::timeout(patience, tidy(&mut self)).await.is_ok_and(|done| done.is_ok())
            {
                self.end();
            }
        });
    }
}

const THERE: &str = "the connection is there until the lease is dropped";

impl<DB: Database> Deref for Lease<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &DB::Connection {
        self.connection.as_deref().expect(THERE)
    }
}

impl<DB: Database> DerefMut for Lease<DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        self.connection.as_deref_mut().expect(THERE)
    }
}

impl<DB: Database> Drop for Lease<DB> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the patience with a server is real time, whatever clock records have"
    )]
    fn drop(&mut self) {
        let _entered = self.runtime.enter();
        let Some(mut connection) = self.connection.take() else { return };
        if self.answered {
            // The pool pings a connection that is returned. By itself it would wait without limit
            // for the answer, and let no other connection take its place.
            let (patience, returning) = (self.patience, connection.return_to_pool());
            self.runtime
                .spawn(async move { tokio::time::timeout(patience, returning).await.is_ok() });
        } else {
            self.runtime.spawn(self.abandoned.clone().close(connection));
        }
    }
}
