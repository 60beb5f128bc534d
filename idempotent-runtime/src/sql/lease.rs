//! A pooled connection for the time of one request.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use sqlx::Database;
use sqlx::pool::PoolConnection;
use tokio::runtime::Handle;

use super::{Abandoned, Acquired};
#[cfg(feature = "sqlite")]
use crate::runtime::while_runtime_lives;

/// A connection that goes back to its pool only when its request was answered. Dropped before that,
/// because the request took too long or its future was dropped, it is [abandoned](Abandoned): the
/// next request must not wait for an answer that may never come.
pub(crate) struct Lease<DB: Database> {
    connection: Option<PoolConnection<DB>>,
    answered: bool,
    patience: Duration,
    abandoned: Abandoned,
    /// Pools give connections back in a task, and the future of a request may be dropped outside of
    /// its runtime.
    runtime: Handle,
}

/// What is done to a connection before it goes back to its pool.
#[cfg(feature = "mysql")]
pub(crate) type Tidying<'c> =
    std::pin::Pin<Box<dyn Future<Output = Result<(), sqlx::Error>> + Send + 'c>>;

impl<DB: Database> Lease<DB> {
    /// `patience`: how long the connection may take to answer when it is given back.
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

    /// Gives the connection back.
    #[cfg(any(feature = "mysql", feature = "postgres"))]
    pub(crate) fn end(mut self) {
        self.answered = true;
    }

    /// Gives the connection back, and waits until the pool has it: the task that would do it comes
    /// only when the caller's worker is free again, which a body may block as soon as its claim is
    /// answered. For databases that are asked without a network.
    #[cfg(feature = "sqlite")]
    #[expect(
        clippy::disallowed_methods,
        reason = "the patience with a server is real time, whatever clock records have"
    )]
    pub(crate) async fn give_back(mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        // Of a kilobyte, and part of every request's future.
        let returning = Box::pin(connection.return_to_pool());
        // It may start a task, for which there has to be a runtime.
        drop(connection);
        while_runtime_lives(tokio::time::timeout(self.patience, returning)).await;
    }

    /// Gives the connection back when it is as its next user expects it, for which nobody waits.
    /// Closed if that fails.
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
            // The pool asks a connection that comes back whether it is alive, and by itself would
            // wait for the answer without end, and let nobody have another connection in its place.
            let (patience, returning) = (self.patience, connection.return_to_pool());
            self.runtime
                .spawn(async move { tokio::time::timeout(patience, returning).await.is_ok() });
        } else {
            self.runtime.spawn(self.abandoned.clone().close(connection));
        }
    }
}
