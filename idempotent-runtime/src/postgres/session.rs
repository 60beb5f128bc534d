//! Connections for one request each.

use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{PgPool, Postgres};

use super::error::connection_error;
use super::request::Request;
use crate::sql::{Abandoned, Answer, Lease, in_time, is_answered};
use crate::store::{StoreError, StoreErrorKind};

/// A pool, and how requests are sent on its connections.
#[derive(Clone, Debug)]
pub(super) struct Sessions {
    pool: PgPool,
    abandoned: Abandoned,
    prepares: bool,
    response_timeout: Duration,
}

impl Sessions {
    pub(super) fn new(pool: PgPool, prepares: bool, response_timeout: Duration) -> Self {
        Self { abandoned: Abandoned::of(&pool), pool, prepares, response_timeout }
    }

    /// The same on connections of a pool for renewals.
    pub(super) fn in_pool(&self, pool: PgPool, abandoned: Abandoned) -> Self {
        Self { pool, abandoned, ..self.clone() }
    }

    pub(super) fn pool(&self) -> &PgPool {
        &self.pool
    }

    pub(super) fn prepares(&self) -> bool {
        self.prepares
    }

    pub(super) fn response_timeout(&self) -> Duration {
        self.response_timeout
    }

    pub(super) async fn lease(&self, operation: &'static str) -> Answer<Lease<Postgres>> {
        // Of many kilobytes, because it may have to make a connection, and part of every request's future.
        let connecting = Box::pin(self.pool.acquire());
        let connecting = async { connecting.await.map_err(|error| connection_error(operation, error)) };
        let connection = in_time(operation, self.response_timeout, connecting).await;
        connection.map(|connection| Lease::new(connection, self.response_timeout, self.abandoned.clone())).map_err(
            |error| {
                // The one error of an unknown outcome here is that of the time limit, and nothing was sent.
                if !error.is_outcome_unknown() {
                    return error;
                }
                let detail =
                    format!("no connection within {:?}: all are busy, or the server takes none", self.response_timeout);
                StoreError::new(StoreErrorKind::Refused, operation).with_detail(detail).with_source(error)
            },
        )
    }

    /// The rows that the one statement of `request` returns.
    pub(super) async fn rows(&self, operation: &'static str, request: Request<'_>) -> Answer<Vec<PgRow>> {
        let mut lease = self.lease(operation).await?;
        let result =
            in_time(operation, self.response_timeout, request.send(operation, &mut lease, self.prepares)).await;
        if is_answered(&result) {
            lease.end();
        }
        result
    }
}
