//! Connections for one request each.

use std::sync::Arc;
use std::time::Duration;

use sqlx::Postgres;
use sqlx::postgres::PgRow;

use super::bounds::{Asked, Bounds};
use super::error::{connection_error, is_read_only};
use super::request::{Manner, Request};
use crate::sql::{Answer, Demotions, Lease, Pools, in_time, is_settled};
use crate::store::{StoreError, StoreErrorKind};

/// Where connections come from, and how requests are sent on them.
#[derive(Clone)]
pub(super) struct Sessions {
    pools: Pools<Postgres>,
    prepares: bool,
    response_timeout: Duration,
    asked: Asked,
    /// The same bounds, for what has to bring its own.
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
        // Bytes in a text can be read in one of their two forms only.
        let bounded =
            format!("{}SET LOCAL bytea_output = hex; ", Bounds::of(response_timeout).before());
        Self { pools, prepares, response_timeout, asked, bounded: bounded.into(), demotions }
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
        let failed = |operation, error| connection_error(operation, error, self.are_local());
        self.pools.lease(operation, self.response_timeout, failed).await.map_err(|error| {
            // The one error of an unknown outcome here is that of the time limit, and nothing was
            // sent.
            if !error.is_outcome_unknown() {
                return error;
            }
            let detail = format!(
                "no connection within {:?}: all are busy, or the server takes none",
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

    /// Gives the connection back if it can be used again after `failure`, what the last request on
    /// it failed with. Else it is closed.
    pub(super) fn end(&self, lease: Lease<Postgres>, failure: Option<&StoreError>) {
        let is_demoted = failure.is_some_and(is_read_only) && self.demotions.seen();
        if is_settled(failure) && !is_demoted {
            lease.end();
        }
    }

    /// How a statement is sent that says itself how long it may take.
    fn bounded(&self) -> Manner<'_> {
        Manner::TextAfter(&self.bounded)
    }

    /// How what reads is sent. It waits for a locked table before anything in it could say for how
    /// long. So its session says so, or a text before it, in which there is nothing that a log of
    /// the server's must not have.
    pub(super) fn reading(&self) -> Manner<'_> {
        if self.prepares && self.asked.are_kept() { Manner::Prepared } else { self.bounded() }
    }

    /// How what writes is sent. See [`Statements::new`](super::statements::Statements::new) for
    /// what bounds it without its session. As a text it would put results into the server's log,
    /// when it fails for example.
    pub(super) fn writing(&self) -> Manner<'_> {
        if self.prepares { Manner::Prepared } else { self.bounded() }
    }

    /// The rows that the one statement of `request` reads.
    pub(super) async fn rows(
        &self,
        operation: &'static str,
        request: Request<'_>,
    ) -> Answer<Vec<PgRow>> {
        self.send(operation, request, Self::reading).await
    }

    /// The rows that the one statement of `request` returns, which writes.
    pub(super) async fn written(
        &self,
        operation: &'static str,
        request: Request<'_>,
    ) -> Answer<Vec<PgRow>> {
        self.send(operation, request, Self::writing).await
    }

    async fn send(
        &self,
        operation: &'static str,
        request: Request<'_>,
        manner: fn(&Self) -> Manner<'_>,
    ) -> Answer<Vec<PgRow>> {
        let mut lease = self.lease(operation).await?;
        // The first connection may just have been asked for its bounds.
        let sending = request.send(operation, &mut lease, manner(self));
        let result = in_time(operation, self.response_timeout, sending).await;
        self.end(lease, result.as_ref().err());
        result
    }
}
