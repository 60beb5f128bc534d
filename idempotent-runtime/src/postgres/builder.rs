//! Building a store: the server, the table's name, and how its connections are set up.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _, PgPool};
use tokio::runtime::Handle;

use super::address::Source;
use super::bounds::{Asked, Bounds};
use super::session::Sessions;
use super::statements::Statements;
use super::{Inner, PostgresAddress, PostgresStore, check, look};
use crate::clock::SystemClock;
use crate::paused::explained;
use crate::sql::transaction::OwnIdentity;
use crate::sql::{Demotions, Fences, Pools, PurgeMark, TableName, Watchers};
use crate::store::bounds::check_timeout;
use crate::store::{Operation, StoreError, StoreErrorKind};

const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);
const CONNECTIONS: u32 = 10;
/// The idle time up to which a connection is assumed to be alive.
const FRESH: Duration = Duration::from_secs(1);
/// The time within which a connection that was idle for longer must show that it is alive.
const PING: Duration = Duration::from_millis(500);

/// Builds a [`PostgresStore`]. Created by [`PostgresStore::builder`].
///
/// ```no_run
/// # use idempotency::store::{PostgresStore, StoreError};
/// # async fn connect() -> Result<(), StoreError> {
/// let store = PostgresStore::builder("postgres://shop:password@db.internal/shop?sslmode=verify-full")
///     .table("shop.payments_idempotency")
///     .max_connections(20)
///     .connect()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "`connect` makes the store"]
pub struct PostgresStoreBuilder {
    source: Result<Source, StoreError>,
    table: String,
    max_connections: u32,
    response_timeout: Duration,
    prepares: bool,
}

impl PostgresStoreBuilder {
    pub(super) fn new(address: impl PostgresAddress) -> Self {
        Self::of(address.source())
    }

    fn of(source: Result<Source, StoreError>) -> Self {
        Self {
            source,
            table: TableName::DEFAULT.into(),
            max_connections: CONNECTIONS,
            response_timeout: RESPONSE_TIMEOUT,
            prepares: true,
        }
    }

    /// Sets the table's name, `table` or `schema.table`. Services that share a database each need a
    /// table of their own, or a namespace of the engine. The default is `idempotency_records`, in
    /// the schema that the role's `search_path` selects.
    pub fn table(mut self, name: impl Into<String>) -> Self {
        self.table = name.into();
        self
    }

    /// Sets the maximum number of connections that the store opens for each Tokio runtime that
    /// calls it, besides two for renewals. The default is 10. A pool that the store was given has
    /// its own limit.
    pub fn max_connections(mut self, connections: u32) -> Self {
        self.max_connections = connections.max(1);
        self
    }

    /// Sets the time that a request may wait for a connection, and then for its answer, before it
    /// is given up. The default is 2 seconds.
    pub fn response_timeout(mut self, timeout: Duration) -> Self {
        self.response_timeout = timeout;
        self
    }

    /// Sends every statement as one text, with its values in it, and requires nothing of the
    /// session: for poolers that give each transaction another session and do not support prepared
    /// statements, like `PgBouncer` before 1.21. The server then has to plan each statement.
    pub fn without_prepared_statements(mut self) -> Self {
        self.prepares = false;
        self
    }

    /// Connects, and checks that the server can keep the promise.
    ///
    /// # Errors
    /// [`Config`](StoreErrorKind::Config) when the address or the table's name is invalid or the
    /// server refuses the role, [`Refused`](StoreErrorKind::Refused) when there is no connection to
    /// it or it is a standby, [`Unsupported`](StoreErrorKind::Unsupported) when it is older than
    /// version 13.
    pub async fn connect(self) -> Result<PostgresStore, StoreError> {
        let store = self.build()?;
        explained(check::server(&store.0)).await?;
        Ok(store)
    }

    /// Builds a store that connects on first use. Nothing is checked.
    ///
    /// # Errors
    /// [`Config`](StoreErrorKind::Config) when the address or the table's name is invalid, or this
    /// is called outside of a Tokio runtime, which a pool of connections needs.
    pub fn build(self) -> Result<PostgresStore, StoreError> {
        check_timeout("response_timeout", self.response_timeout)?;
        let table = TableName::parse(&self.table)?;
        if Handle::try_current().is_err() {
            return Err(StoreError::new(StoreErrorKind::Config, Operation::Connect)
                .with_detail("a pool of connections is made inside a Tokio runtime"));
        }
        let (prepares, response_timeout) = (self.prepares, self.response_timeout);
        let sessions = match self.source? {
            Source::Server(options) => {
                own_sessions(*options, self.max_connections, response_timeout, prepares)
            }
            Source::Pool(pool) => sessions_of(pool, response_timeout, prepares),
        };
        Ok(store(sessions, table))
    }

    pub(super) fn in_pool(pool: PgPool) -> PostgresStore {
        store(sessions_of(pool, RESPONSE_TIMEOUT, true), TableName::default())
    }
}

impl fmt::Debug for PostgresStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The client's options print their password.
        f.debug_struct("PostgresStoreBuilder").field("table", &self.table).finish_non_exhaustive()
    }
}

/// Creates the sessions of a pool of the user. Their bounds are not checked.
fn sessions_of(pool: PgPool, response_timeout: Duration, prepares: bool) -> Sessions {
    let asked = Asked::new(Bounds::of(response_timeout), false);
    let demotions = Demotions::of(pool.options().get_max_connections());
    Sessions::new(Pools::given(pool), prepares, response_timeout, asked, demotions)
}

fn own_sessions(
    options: PgConnectOptions,
    connections: u32,
    response_timeout: Duration,
    prepares: bool,
) -> Sessions {
    let bounds = Bounds::of(response_timeout);
    // A pooler rejects settings that it does not know. No column is a floating-point number.
    let mut options = options.extra_float_digits(None);
    if options.get_application_name().is_none() {
        options = options.application_name("idempotency");
    }
    if prepares {
        options = options.options([("default_transaction_isolation", "read committed")]);
        options = options.options(bounds.settings());
    } else {
        // The client logs whole statements, which would contain results.
        options = options.statement_cache_capacity(0).disable_statement_logging();
    }
    let (asked, demotions) = (Asked::new(bounds, prepares), Demotions::of(connections));
    let found = demotions.clone();
    let mut pool = PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(response_timeout)
        .test_before_acquire(false)
        .before_acquire(move |connection, metadata| {
            let is_demoted = found.are_younger_than(metadata.age);
            Box::pin(async move {
                Ok(!is_demoted && (metadata.idle_for < FRESH || is_alive(connection.ping()).await))
            })
        });
    if prepares {
        let asked = asked.clone();
        pool =
            pool.after_connect(move |connection, _| Box::pin(asked.clone().read_back(connection)));
    }
    Sessions::new(Pools::own(pool, options), prepares, response_timeout, asked, demotions)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the patience with a server is real time, whatever clock records have"
)]
async fn is_alive(ping: impl Future<Output = Result<(), sqlx::Error>>) -> bool {
    tokio::time::timeout(PING, ping).await.is_ok_and(|answer| answer.is_ok())
}

fn store(sessions: Sessions, table: TableName) -> PostgresStore {
    let statements = Statements::new(&table, Some(Bounds::of(sessions.response_timeout()).locks));
    let in_transactions = Statements::new(&table, None);
    let watchers = {
        let (sessions, statement) = (sessions.clone(), Arc::clone(&statements.seen));
        Watchers::new(Arc::new(SystemClock::new()), move |keys| {
            look(sessions.clone(), Arc::clone(&statement), keys)
        })
    };
    let renewals = sessions.for_renewals();
    PostgresStore(Arc::new(Inner {
        sessions,
        renewals,
        statements,
        in_transactions,
        table,
        watchers,
        fences: Fences::default(),
        purge_mark: PurgeMark::default(),
        identity: OwnIdentity::default(),
    }))
}

#[cfg(test)]
mod tests {
    use super::PostgresStoreBuilder;

    #[test]
    fn passwords_are_not_printed() {
        let builder = PostgresStoreBuilder::new("postgres://user:secret@host/shop");
        assert!(!format!("{builder:?}").contains("secret"));
    }
}
