//! Connections for one request each.

use std::sync::Arc;
use std::time::Duration;

use sqlx::Postgres;
use sqlx::postgres::PgRow;

use super::bounds::{Asked, Bounds};
use super::error::{connection_error, is_read_only};
use super::request::{Manner, Request};
use crate::sql::{Answer, Demotions, Lease, Pools, in_time, is_settled};
use crate::store::{Operation, StoreError, StoreErrorKind};

/// The source of connections, and the manner in which requests are sent on them.
#[derive(Clone)]
pub(super) struct Sessions {
    pools: Pools<Postgres>,
    prepares: bool,
    response_timeout: Duration,
    asked: Asked,
    /// The same bounds, for statements that have to bring their own.
    bounded: Arc<str>,
    demotions: Demotions,
}

impl Sessions {
    pub(super) fn new(
        pools: Pools<Postgres>,
        prepares: bool,
        response_timeout: Duration,
        asked: Asked,
        demotions: Demotions,
    ) -> Self {
        // Bytes in a text answer can be read in only one of their two forms.
        let bounded =
            format!("{}SET LOCAL bytea_output = hex; ", Bounds::of(response_timeout).before());
        Self { pools, prepares, response_timeout, asked, bounded: bounded.into(), demotions }
    }

    /// Returns the same on connections for renewals: one sends, and another is available if the
    /// first is stuck.
    pub(super) fn for_renewals(&self) -> Self {
        Self { pools: self.pools.for_renewals(2), ..self.clone() }
    }

    pub(super) fn prepares(&self) -> bool {
        self.prepares
    }

    pub(super) fn response_timeout(&self) -> Duration {
        self.response_timeout
    }

    pub(super) async fn lease(&self, operation: Operation) -> Answer<Lease<Postgres>> {
        let failed = |operation, error| connection_error(operation, error, self.are_local());
        self.pools.lease(operation, self.response_timeout, failed).await.map_err(|error| {
            // The only error with an unknown outcome here is that of the time limit, and nothing
            // was sent.
            if !error.is_outcome_unknown() {
                return error;
            }
            let detail = format!(
                "no connection within {:?}: all are busy, or the server accepts none",
                self.response_timeout
            );
            StoreError::new(StoreErrorKind::Refused, operation)
                .with_detail(detail)
                .with_source(error)
        })
    }

    fn are_local(&self) -> bool {
        let connecting = self.pools.connecting();
        connecting.get_socket().is_some() || connecting.get_host().starts_with('/')
    }

    /// Returns the connection to its pool if it can be used again after `failure`, the error of the
    /// last request on it. Otherwise it is closed.
    pub(super) fn end(&self, lease: Lease<Postgres>, failure: Option<&StoreError>) {
        let is_demoted = failure.is_some_and(is_read_only) && self.demotions.seen();
        if is_settled(failure) && !is_demoted {
            lease.end();
        }
    }

    /// The manner for a statement that states itself how long it may take.
    fn bounded(&self) -> Manner<'_> {
        Manner::TextAfter(&self.bounded)
    }

    /// The manner for reads. A read waits for a locked table before anything in it could set a
    /// limit. So its session has the limit, or a text before it, which contains nothing that the
    /// server's log must not have.
    pub(super) fn reading(&self) -> Manner<'_> {
        if self.prepares && self.asked.are_kept() { Manner::Prepared } else { self.bounded() }
    }

    /// The manner for writes. See [`Statements::new`](super::statements::Statements::new) for what
    /// bounds them without their session. As a text, a write would put results into the server's
    /// log, for example when it fails.
    pub(super) fn writing(&self) -> Manner<'_> {
        if self.prepares { Manner::Prepared } else { self.bounded() }
    }

    /// Returns the rows that the one statement of `request` reads.
    pub(super) async fn rows(
        &self,
        operation: Operation,
        request: Request<'_>,
    ) -> Answer<Vec<PgRow>> {
        self.send(operation, request, Self::reading).await
    }

    /// Returns the rows that the one statement of `request`, a write, returns.
    pub(super) async fn written(
        &self,
        operation: Operation,
        request: Request<'_>,
    ) -> Answer<Vec<PgRow>> {
        self.send(operation, request, Self::writing).await
    }

    async fn send(
        &self,
        operation: Operation,
        request: Request<'_>,
        manner: fn(&Self) -> Manner<'_>,
    ) -> Answer<Vec<PgRow>> {
        let mut lease = self.lease(operation).await?;
        // Decided after the lease: a new connection may just have been checked for its bounds.
        let sending = request.send(operation, &mut lease, manner(self));
        let result = in_time(operation, self.response_timeout, sending).await;
        self.end(lease, result.as_ref().err());
        result
    }
}
