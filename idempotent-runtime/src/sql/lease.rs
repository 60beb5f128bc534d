//! A pooled connection for the time of one request.

use std::ops::{Deref, DerefMut};

use sqlx::Database;
use sqlx::pool::PoolConnection;
use tokio::runtime::Handle;

/// A connection that goes back to its pool only when its request was answered. Dropped before that, because the request
/// took too long or its future was dropped, it is closed: the next request must not wait for an answer that may never
/// come.
pub(crate) struct Lease<DB: Database> {
    connection: Option<PoolConnection<DB>>,
    answered: bool,
    /// Pools give connections back in a task, and the future of a request may be dropped outside of its runtime.
    runtime: Handle,
}

impl<DB: Database> Lease<DB> {
    pub(crate) fn new(connection: PoolConnection<DB>) -> Self {
        Self { connection: Some(connection), answered: false, runtime: Handle::current() }
    }

    /// Gives the connection back.
    pub(crate) fn end(mut self) {
        self.answered = true;
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
    fn drop(&mut self) {
        let _entered = self.runtime.enter();
        if let Some(mut connection) = self.connection.take()
            && !self.answered
        {
            connection.close_on_drop();
        }
    }
}
