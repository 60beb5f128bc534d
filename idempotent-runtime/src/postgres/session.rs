//! Connections for one request each.

use std::time::Duration;

use sqlx::Postgres;
use sqlx::postgres::PgRow;

use super::error::connection_error;
use super::request::Request;
use crate::sql::{Answer, Lease, Pools, in_time, is_answered};
use crate::store::{StoreError, StoreErrorKind};

/// Where connections come from, and how requests are sent on them.
#[derive(Clone)]
pub(super) struct Sessions {
    pools: Pools<Postgres>,
    prepares: bool,
    response_timeout: Duration,
}

impl Sessions {
    pub(super) fn new(pools: Pools<Postgres>, prepares: bool, response_timeout: Duration) -> Self {
        Self { pools, prepares, response_timeout }
    }

    /// The same on connections for renewals: one sends, another is there where the first is stuck.
    pub(super) fn for_renewals(&self) -> Self {
        Self { pools: self.pools.for_renewals(2), ..self.clone() }
    }

    pub(super) fn prepares(&self) -> bool {
        self.prepares
    }

    pub(super) fn response_timeout(&self) -> Duration {
        self.response_timeout
    }

    pub(super) async fn lease(&self, operation: &'static str) -> Answer<Lease<Postgres>> {
        // Of many kilobytes, because it may have to make a connection, and part of every request's future.
        let connecting = Box::pin(self.pools.acquire());
        let connecting = async {
            let connecting = connecting.await;
            connecting.map_err(|error| connection_error(operation, error, self.are_local()))
        };
        let acquired = in_time(operation, self.response_timeout, connecting).await;
        acquired.map(|acquired| Lease::new(acquired, self.response_timeout)).map_err(|error| {
            // The one error of an unknown outcome here is that of the time limit, and nothing was sent.
            if !error.is_outcome_unknown() {
                return error;
            }
            let detail =
                format!("no connection within {:?}: all are busy, or the server takes none", self.response_timeout);
            StoreError::new(StoreErrorKind::Refused, operation).with_detail(detail).with_source(error)
        })
    }

    fn are_local(&self) -> bool {
        let connecting = self.pools.connecting();
        connecting.get_socket().is_some() || connecting.get_host().starts_with('/')
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
