//! Connecting: the URL, the table's name, and how connections are set up.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, MySqlPool};

use super::error::connection_error;
use super::query::Connections;
use super::statements::Statements;
use super::{Inner, MySqlStore, check, watch};
use crate::clock::SystemClock;
use crate::sql::{RENEWAL_CONNECTIONS, RenewalPool, TableName, Watchers, in_time};
use crate::store::{StoreError, StoreErrorKind};

const OPERATION: &str = "connect";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);
const CONNECTIONS: u32 = 10;
/// A connection that was used within this time is taken to work: asking costs a round trip.
const TRUSTED: Duration = Duration::from_secs(1);
/// Every statement is its own transaction. A lock is waited for shorter than an answer, so that the answer says that
/// nothing happened.
const SESSION: &str = "
    SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED;
    SET SESSION autocommit = 1, innodb_lock_wait_timeout = 1, sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'";

/// Builds a [`MySqlStore`]. Made by [`MySqlStore::builder`].
///
/// ```no_run
/// # use idempotent_runtime::store::{MySqlStore, StoreError};
/// # async fn connect() -> Result<(), StoreError> {
/// let builder = MySqlStore::builder("mysql://user:password@mysql.internal/shop");
/// let store = builder.table("payments_idempotency").max_connections(20).connect().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "`connect` makes the store"]
pub struct MySqlStoreBuilder {
    url: String,
    table: String,
    max_connections: u32,
    connect_timeout: Duration,
    response_timeout: Duration,
}

impl MySqlStoreBuilder {
    pub(super) fn at(url: String) -> Self {
        Self {
            url,
            table: TableName::DEFAULT.into(),
            max_connections: CONNECTIONS,
            connect_timeout: CONNECT_TIMEOUT,
            response_timeout: RESPONSE_TIMEOUT,
        }
    }

    /// The table's name, as `table` or `database.table`. Services that share a database get a table each, or a namespace
    /// of the engine each. The default is `idempotency_records` in the database that the URL names.
    pub fn table(mut self, name: impl Into<String>) -> Self {
        self.table = name.into();
        self
    }

    /// How many connections requests have at most, at least 1. The default is 10. Renewals have up to two of their own.
    pub fn max_connections(mut self, connections: u32) -> Self {
        self.max_connections = connections.max(1);
        self
    }

    /// How long connecting may take. The default is 5 seconds.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long an answer may take before its connection is given up. The default is 2 seconds. The server waits for a
    /// lock for one second.
    pub fn response_timeout(mut self, timeout: Duration) -> Self {
        self.response_timeout = timeout;
        self
    }

    /// Connects, and checks that the server can keep what the store promises.
    ///
    /// # Errors
    /// [`Config`](StoreErrorKind::Config) when the URL or the table's name is unfit, the server refuses the user, or is
    /// older than MariaDB 10.5 or MySQL 8.0; [`Refused`](StoreErrorKind::Refused) when it cannot be reached.
    pub async fn connect(self) -> Result<MySqlStore, StoreError> {
        let table = TableName::parse(&self.table)?;
        let options = options_of(&self.url)?;
        let checking = async {
            let failed = |error| connection_error(OPERATION, error);
            let mut connection = options.connect().await.map_err(failed)?;
            check::server(&mut connection).await?;
            // The server closes it by itself if this does not reach it.
            let _ = connection.close().await;
            Ok(())
        };
        in_time(OPERATION, self.connect_timeout, checking).await?;
        let pool = pool_options(self.response_timeout).max_connections(self.max_connections).connect_lazy_with(options);
        Ok(store(pool, table, self.response_timeout))
    }

    pub(super) fn in_pool(pool: MySqlPool) -> MySqlStore {
        store(pool, TableName::default(), RESPONSE_TIMEOUT)
    }
}

impl fmt::Debug for MySqlStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL may hold a password.
        f.debug_struct("MySqlStoreBuilder").field("table", &self.table).finish_non_exhaustive()
    }
}

fn pool_options(acquire_timeout: Duration) -> MySqlPoolOptions {
    MySqlPoolOptions::new()
        .acquire_timeout(acquire_timeout)
        .test_before_acquire(false)
        .before_acquire(|connection, metadata| {
            Box::pin(async move {
                if metadata.idle_for > TRUSTED {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
        .after_connect(|connection, _| {
            Box::pin(async move { connection.execute(sqlx::raw_sql(SESSION)).await.map(|_| ()) })
        })
}

fn store(pool: MySqlPool, table: TableName, response_timeout: Duration) -> MySqlStore {
    let statements = Arc::new(Statements::new(&table));
    let renewals = {
        // The settings of the caller's connections are those of renewals too.
        let (options, connect_options) = (pool.options().clone(), pool.connect_options());
        RenewalPool::new(move || {
            let options = options.clone().min_connections(0).max_connections(RENEWAL_CONNECTIONS);
            options.connect_lazy_with((*connect_options).clone())
        })
    };
    let connections = Connections { pool, response_timeout };
    let watchers = {
        let (connections, statements) = (connections.clone(), Arc::clone(&statements));
        Watchers::new(Arc::new(SystemClock::new()), move |keys| {
            watch::look(connections.clone(), Arc::clone(&statements), keys)
        })
    };
    let skips_locked = AtomicBool::new(true);
    MySqlStore(Arc::new(Inner { connections, renewals, statements, table, watchers, skips_locked }))
}

fn options_of(url: &str) -> Result<MySqlConnectOptions, StoreError> {
    let unfit = |detail| StoreError::new(StoreErrorKind::Config, OPERATION).with_detail(detail);
    if !["mysql://", "mariadb://"].iter().any(|scheme| url.starts_with(scheme)) {
        return Err(unfit("the URL of a MySQL store begins with `mysql://` or `mariadb://`"));
    }
    url.parse::<MySqlConnectOptions>().map_err(|error| unfit("the URL is unfit").with_source(error))
}

#[cfg(test)]
mod tests {
    use super::{MySqlStoreBuilder, options_of};
    use crate::store::StoreErrorKind;

    #[test]
    fn urls_of_other_stores_are_refused() {
        for url in ["mysql://user:password@host:3307/shop?ssl-mode=REQUIRED", "mariadb://host/shop"] {
            assert_eq!(options_of(url).unwrap().get_database(), Some("shop"), "{url}");
        }
        for url in ["postgres://host/shop", "mysql:shop", "mysql://ho st/", "mysql://host/?ssl-mode=perhaps", ""] {
            let error = options_of(url).unwrap_err();
            assert_eq!(error.kind(), StoreErrorKind::Config, "{url}");
        }
    }

    #[test]
    fn passwords_are_not_printed() {
        let builder = MySqlStoreBuilder::at(String::from("mysql://user:secret@host/shop"));
        assert!(!format!("{builder:?}").contains("secret"));
    }
}
