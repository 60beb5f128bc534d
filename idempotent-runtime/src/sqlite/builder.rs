//! Opening a store: the file, the table's name, and how its connections are set up.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Sqlite, SqlitePool};

use super::error::is_busy;
use super::statements::Statements;
use super::{Connections, Inner, SqliteStore, lock_bound, look};
use crate::clock::{Clock, SystemClock};
use crate::paused::explained;
use crate::sql::transaction::OwnIdentity;
use crate::sql::{Fences, Pools, TableName, Watchers};
use crate::store::bounds::check_timeout;
use crate::store::{Operation, StoreError, StoreErrorKind};

const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);
const READERS: u32 = 4;

/// Builds a [`SqliteStore`]. Created by [`SqliteStore::builder`].
///
/// ```no_run
/// # use idempotency::store::{SqliteStore, StoreError};
/// # async fn open() -> Result<(), StoreError> {
/// let store = SqliteStore::builder("shop.db").table("payments_idempotency").open().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "`open` makes the store"]
pub struct SqliteStoreBuilder {
    path: PathBuf,
    table: String,
    clock: Arc<dyn Clock>,
    response_timeout: Duration,
}

impl SqliteStoreBuilder {
    pub(super) fn at(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            table: TableName::DEFAULT.into(),
            clock: Arc::new(SystemClock::new()),
            response_timeout: RESPONSE_TIMEOUT,
        }
    }

    /// Sets the table's name. Services that share a file each need a table of their own, or a
    /// namespace of the engine. The default is `idempotency_records`.
    pub fn table(mut self, name: impl Into<String>) -> Self {
        self.table = name.into();
        self
    }

    /// Sets the clock on which leases and expiry are judged. All processes that share a file need
    /// the same time. The default is the machine's clock.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Sets the time that a request may wait for a connection, and then for its answer, before it
    /// is given up. The default is 2 seconds. A statement waits for the file's lock for three
    /// quarters of that, so that the answer says that nothing happened.
    pub fn response_timeout(mut self, timeout: Duration) -> Self {
        self.response_timeout = timeout;
        self
    }

    /// Opens the file, and creates it and the table if they do not exist.
    ///
    /// # Errors
    /// [`Config`](StoreErrorKind::Config) when the file cannot be opened or created, the table's
    /// name is invalid, or the table was made by a newer release.
    pub async fn open(self) -> Result<SqliteStore, StoreError> {
        check_timeout("response_timeout", self.response_timeout)?;
        explained(self.open_file()).await
    }

    async fn open_file(self) -> Result<SqliteStore, StoreError> {
        let table = TableName::parse(&self.table)?;
        if table.schema().is_some() {
            // An index is created in the schema of its table, which must not be named with it.
            return Err(StoreError::new(StoreErrorKind::Config, Operation::Connect).with_detail(
                format!("`{}` has a schema: on SQLite the table is one of `main`", self.table),
            ));
        }
        let options = SqliteConnectOptions::new()
            .filename(&self.path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(lock_bound(self.response_timeout));
        // Nothing is sent over a network: an open connection works.
        let pool = || {
            SqlitePoolOptions::new()
                .test_before_acquire(false)
                .acquire_timeout(self.response_timeout)
        };
        let writer = Pools::own(pool().max_connections(1), options.clone());
        let readers = Pools::own(pool().max_connections(READERS), options);
        let store = store(readers, writer, table, self.clock, self.response_timeout);
        connect_first(&store, self.response_timeout).await?;
        store.migrate().await?;
        Ok(store)
    }

    pub(super) fn in_pool(pool: SqlitePool) -> SqliteStore {
        let clock = Arc::new(SystemClock::new());
        let pools = Pools::given(pool);
        store(pools.clone(), pools, TableName::default(), clock, RESPONSE_TIMEOUT)
    }
}

/// Opens the first connection. Where two processes create the file at once, SQLite refuses one of them
/// the change to its write-ahead log, whatever the `busy_timeout`: it could wait for the other for ever.
async fn connect_first(store: &SqliteStore, patience: Duration) -> Result<(), StoreError> {
    let clock = SystemClock::new();
    let end = clock.monotonic().saturating_add(patience);
    loop {
        match store.0.writer.lease(Operation::Connect).await {
            Err(error) if is_busy(&error) && clock.monotonic() < end => {
                clock.sleep(Duration::from_millis(10)).await;
            }
            opened => {
                opened?.give_back().await;
                return Ok(());
            }
        }
    }
}

fn store(
    readers: Pools<Sqlite>,
    writer: Pools<Sqlite>,
    table: TableName,
    clock: Arc<dyn Clock>,
    response_timeout: Duration,
) -> SqliteStore {
    let statements = Statements::new(&table);
    let aside = writer.for_renewals(1);
    // A second connection beside a pool of the user might never get access (`locking_mode`), see
    // another database (one in memory), or block a transaction beside which only this process
    // writes.
    let is_given = writer.are_given();
    let renewals = if is_given { writer.clone() } else { aside.clone() };
    let pools = [readers, writer, renewals, aside];
    let [readers, writer, renewals, aside] =
        pools.map(|pools| Connections::new(pools, response_timeout));
    let watchers = {
        let (readers, statement, clock) =
            (readers.clone(), Arc::clone(&statements.seen), Arc::clone(&clock));
        // Other processes write in real time, whatever clock records are judged on.
        Watchers::new(Arc::new(SystemClock::new()), move |keys| {
            look(readers.clone(), Arc::clone(&statement), Arc::clone(&clock), keys)
        })
    };
    SqliteStore(Arc::new(Inner {
        readers,
        writer,
        renewals,
        aside,
        is_given,
        statements,
        table,
        watchers,
        clock,
        response_timeout,
        identity: OwnIdentity::default(),
        fences: Fences::default(),
    }))
}

/// Returns the path in `sqlite:path` or `sqlite://path`.
pub(super) fn path_of(url: &str) -> Result<PathBuf, StoreError> {
    let unfit = |detail: &str| {
        Err(StoreError::new(StoreErrorKind::Config, Operation::Connect).with_detail(detail))
    };
    let Some(path) = url.strip_prefix("sqlite:") else {
        return unfit("the URL of an SQLite store begins with `sqlite:`");
    };
    let path = path.strip_prefix("//").unwrap_or(path);
    match path {
        "" => unfit("the URL names no file: write `sqlite:events.db`"),
        ":memory:" => unfit("an in-memory database is lost with the process: use `memory:`"),
        _ if path.contains('?') => unfit(
            "the URL of an SQLite store takes no parameters; `SqliteStore::builder` has settings",
        ),
        _ => Ok(PathBuf::from(path)),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::path_of;

    #[test]
    fn urls_name_files() {
        for (url, path) in [
            ("sqlite:events.db", "events.db"),
            ("sqlite://events.db", "events.db"),
            ("sqlite:///var/events.db", "/var/events.db"),
            ("sqlite:/var/events.db", "/var/events.db"),
        ] {
            assert_eq!(path_of(url).unwrap(), Path::new(path), "{url}");
        }
        for url in
            ["sqlite:", "sqlite://", "sqlite::memory:", "sqlite:a.db?mode=ro", "postgres://a"]
        {
            assert!(path_of(url).is_err(), "{url}");
        }
    }
}
