//! Sending one statement, and a pooled connection to send it on.

use std::sync::Arc;
use std::time::Duration;

use sqlx::mysql::{MySqlArguments, MySqlRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Error, MySql, MySqlConnection};

use super::builder::LOCK_WAIT_SECONDS;
use super::error::{
    connection_error, has_conflict, is_demoted, no_connection, number, store_error,
};
use super::waits::{self, ReadBack};
use crate::sql::{Answer, Demotions, Lease, Pools, in_time, is_settled};
use crate::store::{Operation, StoreError, StoreErrorKind};

/// The number of times that a statement is sent while the server rolls it back because of others.
pub(super) const ATTEMPTS: usize = 10;

/// The statement that begins a transaction. `BEGIN` is not a statement in MariaDB's `sql_mode`
/// ORACLE.
pub(super) const START: &str = "START TRANSACTION";

const IN_TRANSACTION: &str =
    "a session of the pool is in a transaction that other code has begun and not ended";
/// What the store writes in such a session is never committed.
pub(super) const NO_AUTOCOMMIT: &str = "`autocommit` is off in the sessions of the pool: what the store writes would never be committed";

pub(super) type Bound<'q> = Query<'q, MySql, MySqlArguments>;

pub(super) fn query(statement: &Arc<str>) -> Bound<'static> {
    sqlx::query(AssertSqlSafe(Arc::clone(statement)))
}

/// The source of connections, and the time that a request on one of them may take.
#[derive(Clone)]
pub(super) struct Connections {
    pub(super) pools: Pools<MySql>,
    pub(super) response_timeout: Duration,
    /// True if the pool's sessions give up waiting for a lock before the client gives up the
    /// answer.
    pub(super) has_bounds: bool,
    pub(super) read_back: ReadBack,
    pub(super) demotions: Demotions,
}

impl Connections {
    /// Returns the same for renewals: one sends, and another is available if the first is stuck.
    pub(super) fn for_renewals(&self) -> Self {
        Self { pools: self.pools.for_renewals(2), ..self.clone() }
    }

    pub(super) async fn lease(&self, operation: Operation) -> Answer<Lease<MySql>> {
        let failed = |operation, error| connection_error(operation, error, self.are_local());
        let begun = self.read_back.begun();
        self.pools.lease(operation, self.response_timeout, failed).await.map_err(|error| {
            let error = not_sent(operation, error);
            match self.read_back.refusal_since(begun) {
                Some(refusal) => StoreError::new(StoreErrorKind::Config, operation)
                    .with_detail(refusal)
                    .with_source(error),
                None => error,
            }
        })
    }

    /// Returns the connection to its pool if it can be used again after `failure`, the error of the
    /// last request on it. Otherwise it is closed.
    pub(super) fn end(&self, lease: Lease<MySql>, failure: Option<&StoreError>) {
        if self.is_usable(failure) {
            lease.end();
        }
    }

    fn is_usable(&self, failure: Option<&StoreError>) -> bool {
        is_settled(failure) && !(failure.is_some_and(is_demoted) && self.demotions.seen())
    }

    fn are_local(&self) -> bool {
        self.pools.connecting().get_socket().is_some()
    }

    /// Returns a connection whose waits for locks are shorter than the wait for its answer.
    /// [`end_impatient`](Self::end_impatient) returns it to its pool.
    pub(super) async fn impatient(&self, operation: Operation) -> Answer<Lease<MySql>> {
        let mut lease = self.lease(operation).await?;
        if !self.has_bounds {
            let bounding =
                Box::pin(waits::bound_outside_of_transactions(&mut lease, LOCK_WAIT_SECONDS));
            let bounding = async {
                match bounding.await {
                    Ok(true) => Ok(()),
                    // The connection is closed with the lease.
                    Ok(false) => Err(StoreError::new(StoreErrorKind::Refused, operation)
                        .with_detail(IN_TRANSACTION)),
                    // Another session may be as it should be.
                    Err(error) if number(&error).is_some_and(has_no_autocommit) => {
                        Err(StoreError::new(StoreErrorKind::Refused, operation)
                            .with_detail(NO_AUTOCOMMIT)
                            .with_source(error))
                    }
                    Err(error) => Err(connection_error(operation, error, true)),
                }
            };
            in_time(operation, self.response_timeout, bounding)
                .await
                .map_err(|error| not_sent(operation, error))?;
        }
        Ok(lease)
    }

    /// Ends the lease like [`end`](Self::end), and restores the session's waits.
    pub(super) fn end_impatient(&self, lease: Lease<MySql>, failure: Option<&StoreError>) {
        if !self.is_usable(failure) {
            drop(lease);
        } else if self.has_bounds {
            lease.end();
        } else {
            lease.end_after(|connection| Box::pin(waits::restore(connection)));
        }
    }

    /// Returns the number of rows that one writing statement found. Safe to call again after every
    /// error.
    pub(super) async fn write<'q>(
        &self,
        operation: Operation,
        statement: impl Fn() -> Bound<'q> + Send,
    ) -> Answer<u64> {
        let mut lease = self.impatient(operation).await?;
        let writing = async {
            execute(&mut lease, statement).await.map_err(|error| store_error(operation, error))
        };
        let result = in_time(operation, self.response_timeout, writing).await;
        self.end_impatient(lease, result.as_ref().err());
        result
    }

    /// Returns the rows that one reading statement finds.
    pub(super) async fn rows(
        &self,
        operation: Operation,
        statement: Bound<'_>,
    ) -> Answer<Vec<MySqlRow>> {
        let mut lease = self.lease(operation).await?;
        let result = self.fetch(operation, &mut lease, statement).await;
        self.end(lease, result.as_ref().err());
        result
    }

    /// Returns the rows that one statement locks.
    pub(super) async fn locked_rows(
        &self,
        operation: Operation,
        statement: Bound<'_>,
    ) -> Answer<Vec<MySqlRow>> {
        let mut lease = self.impatient(operation).await?;
        let result = self.fetch(operation, &mut lease, statement).await;
        self.end_impatient(lease, result.as_ref().err());
        result
    }

    async fn fetch(
        &self,
        operation: Operation,
        connection: &mut MySqlConnection,
        statement: Bound<'_>,
    ) -> Answer<Vec<MySqlRow>> {
        let reading = async {
            statement.fetch_all(connection).await.map_err(|error| store_error(operation, error))
        };
        in_time(operation, self.response_timeout, reading).await
    }
}

fn has_no_autocommit(number: u16) -> bool {
    waits::AUTOCOMMIT_IS_OFF.contains(&number)
}

/// Converts the only error with an unknown outcome, that of the time limit: the request was not
/// sent.
fn not_sent(operation: Operation, error: StoreError) -> StoreError {
    if error.is_outcome_unknown() { no_connection(operation).with_source(error) } else { error }
}

/// Runs a statement that is its own transaction, and returns the number of rows that it found. If
/// the server rolled it back because of others, that was all of it, and it is sent again.
pub(super) async fn execute<'q>(
    connection: &mut MySqlConnection,
    statement: impl Fn() -> Bound<'q> + Send,
) -> Result<u64, Error> {
    let mut attempts = 1..ATTEMPTS;
    loop {
        match statement().execute(&mut *connection).await {
            Err(error) if has_conflict(&error) && attempts.next().is_some() => {}
            result => return result.map(|done| done.rows_affected()),
        }
    }
}
