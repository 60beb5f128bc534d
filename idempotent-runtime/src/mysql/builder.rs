//! Building a store: the server, the table's name, and how its connections are set up.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions};
use sqlx::{Connection as _, MySql, MySqlPool};

use super::address::Source;
use super::query::Connections;
use super::statements::Statements;
use super::waits::{ReadBack, ReadBound};
use super::{Inner, MySqlAddress, MySqlStore, check, watch};
use crate::clock::SystemClock;
use crate::paused::explained;
use crate::sql::transaction::OwnIdentity;
use crate::sql::{Demotions, Fences, Pools, PurgeMark, TableName, Watchers};
use crate::store::bounds::check_timeout;
use crate::store::{Operation, StoreError, StoreErrorKind};

const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);
const CONNECTIONS: u32 = 10;
/// The idle time up to which a connection is assumed to be alive: checking costs a round trip.
const FRESH: Duration = Duration::from_secs(1);
/// The time within which a connection that was idle for longer must show that it is alive.
const PING: Duration = Duration::from_millis(500);
/// The time that the server lets a write wait for a lock: shorter than the wait for an answer, so
/// that the answer says that nothing happened. A claim that keeps waiting after the client has
/// stopped listening would leave a record without an owner.
pub(super) const LOCK_WAIT_SECONDS: u128 = 1;
/// The shortest wait for an answer: longer than the server waits for a lock.
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(1_500);
/// The settings of a session: every statement is its own transaction.
const SESSION: &str = "
    SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED;
    SET SESSION autocommit = 1, sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'";

/// Builds a [`MySqlStore`]. Created by [`MySqlStore::builder`].
///
/// ```no_run
/// # use idempotency::store::{MySqlStore, StoreError};
/// # async fn connect() -> Result<(), StoreError> {
/// let store = MySqlStore::builder("mysql://user:password@mysql.internal/shop")
///     .table("payments_idempotency")
///     .max_connections(20)
///     .connect()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "`connect` makes the store"]
pub struct MySqlStoreBuilder {
    source: Result<Source, StoreError>,
    table: String,
    max_connections: u32,
    response_timeout: Duration,
}

impl MySqlStoreBuilder {
    pub(super) fn new(address: impl MySqlAddress) -> Self {
        Self {
            source: address.source(),
            table: TableName::DEFAULT.into(),
            max_connections: CONNECTIONS,
            response_timeout: RESPONSE_TIMEOUT,
        }
    }

    /// Sets the table's name, `table` or `database.table`. Services that share a database each need
    /// a table of their own, or a namespace of the engine. The default is `idempotency_records` in
    /// the connection's database.
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
    /// is given up. The default is 2 seconds, the minimum 1.5 seconds: the server waits for the
    /// lock of a row or a table for one second, and a request given up before that could still be
    /// written after its caller has stopped waiting.
    pub fn response_timeout(mut self, timeout: Duration) -> Self {
        self.response_timeout = timeout;
        self
    }

    /// Connects, and checks that the server can keep the promise.
    ///
    /// # Errors
    /// [`Config`](StoreErrorKind::Config) when the address, the table's name or the time limit is
    /// invalid, the server refuses the user, or is older than MariaDB 10.5 or MySQL 8.0;
    /// [`Refused`](StoreErrorKind::Refused) when there is no connection to it.
    pub async fn connect(self) -> Result<MySqlStore, StoreError> {
        let store = self.build()?;
        explained(check::server(&store.0)).await?;
        Ok(store)
    }

    /// Builds a store that connects on first use. Nothing is checked. Call it in the Tokio runtime
    /// in which the store is used.
    ///
    /// # Errors
    /// [`Config`](StoreErrorKind::Config) when the address, the table's name or the time limit is
    /// invalid.
    pub fn build(self) -> Result<MySqlStore, StoreError> {
        check_timeout("response_timeout", self.response_timeout)?;
        if self.response_timeout < SHORTEST_TIMEOUT {
            return Err(StoreError::new(StoreErrorKind::Config, Operation::Connect).with_detail(format!(
                "`response_timeout` is {:?}; it must be from {SHORTEST_TIMEOUT:?} to a day: the \
                 server waits for a lock for a second, and a claim that is given up before that \
                 would be written when no caller waits for it any more",
                self.response_timeout
            )));
        }
        let table = TableName::parse(&self.table)?;
        let response_timeout = self.response_timeout;
        let connections = match self.source? {
            Source::Server(options) => {
                let (read_back, demotions) =
                    (ReadBack::default(), Demotions::of(self.max_connections));
                let pools = own_pools(
                    *options,
                    self.max_connections,
                    response_timeout,
                    &read_back,
                    &demotions,
                );
                Connections { pools, response_timeout, has_bounds: true, read_back, demotions }
            }
            Source::Pool(pool) => of_others(pool, response_timeout),
        };
        Ok(store(connections, table))
    }

    pub(super) fn in_pool(pool: MySqlPool) -> MySqlStore {
        store(of_others(pool, RESPONSE_TIMEOUT), TableName::default())
    }
}

impl fmt::Debug for MySqlStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The client's options print their password.
        f.debug_struct("MySqlStoreBuilder").field("table", &self.table).finish_non_exhaustive()
    }
}

fn of_others(pool: MySqlPool, response_timeout: Duration) -> Connections {
    let (read_back, demotions) =
        (ReadBack::default(), Demotions::of(pool.options().get_max_connections()));
    Connections {
        pools: Pools::given(pool),
        response_timeout,
        has_bounds: false,
        read_back,
        demotions,
    }
}

fn own_pools(
    options: MySqlConnectOptions,
    connections: u32,
    response_timeout: Duration,
    read_back: &ReadBack,
    demotions: &Demotions,
) -> Pools<MySql> {
    let (read_back, demotions) = (read_back.clone(), demotions.clone());
    let pool = MySqlPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(response_timeout)
        .test_before_acquire(false)
        .before_acquire(move |connection, metadata| {
            let is_demoted = demotions.are_younger_than(metadata.age);
            Box::pin(async move {
                Ok(!is_demoted && (metadata.idle_for < FRESH || is_alive(connection.ping()).await))
            })
        })
        .after_connect(move |connection, _| {
            let read_back = read_back.clone();
            Box::pin(async move { read_back.begin(connection, SESSION, LOCK_WAIT_SECONDS).await })
        });
    Pools::own(pool, options)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the patience with a server is real time, whatever clock records have"
)]
async fn is_alive(ping: impl Future<Output = Result<(), sqlx::Error>>) -> bool {
    tokio::time::timeout(PING, ping).await.is_ok_and(|answer| answer.is_ok())
}

fn store(connections: Connections, table: TableName) -> MySqlStore {
    let bound = ReadBound { locks: LOCK_WAIT_SECONDS, whole: connections.response_timeout };
    let statements = Arc::new(Statements::new(&table, Some(bound)));
    let in_transactions = Statements::new(&table, None);
    let renewals = connections.for_renewals();
    let watchers = {
        let (connections, statements) = (connections.clone(), Arc::clone(&statements));
        Watchers::new(Arc::new(SystemClock::new()), move |keys| {
            watch::look(connections.clone(), Arc::clone(&statements), keys)
        })
    };
    let (skips_locked, knows_index) = (AtomicBool::new(true), AtomicBool::new(true));
    MySqlStore(Arc::new(Inner {
        connections,
        renewals,
        statements,
        in_transactions,
        table,
        watchers,
        fences: Fences::default(),
        purge_mark: PurgeMark::default(),
        skips_locked,
        knows_index,
        identity: OwnIdentity::default(),
    }))
}

#[cfg(test)]
mod tests {
    use super::{Duration, MySqlStoreBuilder, StoreErrorKind};

    #[tokio::test]
    async fn an_answer_is_waited_for_longer_than_the_server_waits_for_a_lock() {
        let builder = || MySqlStoreBuilder::new("mysql://host/shop");
        let error = builder().response_timeout(Duration::from_millis(1_499)).build().unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Config);
        assert!(error.to_string().contains("lock for a second"), "{error}");
        builder().response_timeout(Duration::from_millis(1_500)).build().unwrap();
    }

    #[test]
    fn passwords_are_not_printed() {
        let builder = MySqlStoreBuilder::new("mysql://user:secret@host/shop");
        assert!(!format!("{builder:?}").contains("secret"));
    }
}
