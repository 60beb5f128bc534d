//! Connections for one request each.

use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{PgPool, Postgres};

use super::error::connection_error;
use super::request::Request;
use crate::sql::{Answer, Lease, in_time, is_answered};
use crate::store::{StoreError, StoreErrorKind};

/// A pool, and how requests are sent on its connections.
#[derive(Clone, Debug)]
pub(super) struct Sessions {
    pool: PgPool,
    prepares: bool,
    response_timeout: Duration,
}

impl Sessions {
    pub(super) fn new(pool: PgPool, prepares: bool, response_timeout: Duration) -> Self {
        Self { pool, prepares, response_timeout }
    }

    /// The same on connections of another pool.
    pub(super) fn in_pool(&self, pool: PgPool) -> Self {
        Self { pool, ..self.clone() }
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

    #[expect(
        clippy::disallowed_methods,
        reason = "the patience with a server is real time, whatever clock records have"
    )]
    pub(super) async fn lease(&self, operation: &'static str) -> Answer<Lease<Postgres>> {
        let Ok(acquired) = tokio::time::timeout(self.response_timeout, self.pool.acquire()).await else {
            let detail =
                format!("no connection within {:?}: all are busy, or the server takes none", self.response_timeout);
            return Err(StoreError::new(StoreErrorKind::Refused, operation).with_detail(detail));
        };
        let connection = acquired.map_err(|error| connection_error(operation, error))?;
        Ok(Lease::new(connection, self.response_timeout))
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
