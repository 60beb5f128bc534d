//! The databases under test.

use std::time::Duration;

use idempotency::Idempotency;
use idempotency::store::SqliteStore;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
use sqlx::{SqliteConnection, SqlitePool};
use tempfile::TempDir;

use crate::scene::Database;
use crate::world::PATIENCE;

/// Many callers wait for few connections.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(120);

pub struct Sqlite(TempDir);

impl Database for Sqlite {
    type Sqlx = sqlx::Sqlite;

    async fn start() -> anyhow::Result<Self> {
        Ok(Self(tempfile::tempdir()?))
    }

    fn url(&self) -> String {
        self.0.path().join("effects.db").display().to_string()
    }

    async fn open(
        url: &str,
        connections: u32,
        _: Option<&str>,
    ) -> anyhow::Result<(SqlitePool, Idempotency)> {
        let options = SqliteConnectOptions::new().filename(url).create_if_missing(true);
        let options =
            options.journal_mode(SqliteJournalMode::Wal).busy_timeout(Duration::from_secs(20));
        let pool =
            SqlitePoolOptions::new().max_connections(connections).acquire_timeout(ACQUIRE_TIMEOUT);
        let pool = pool.connect_with(options).await?;
        sqlx::query("CREATE TABLE IF NOT EXISTS effects (name TEXT, value TEXT)")
            .execute(&pool)
            .await?;
        let store = SqliteStore::builder(url).response_timeout(PATIENCE).open().await?;
        Ok((pool, Idempotency::builder(store).claim_timeout(PATIENCE).build()?))
    }

    async fn add(
        connection: &mut SqliteConnection,
        key: &str,
        value: &str,
    ) -> Result<(), sqlx::Error> {
        let statement = sqlx::query("INSERT INTO effects VALUES (?, ?)").bind(key).bind(value);
        statement.execute(connection).await.map(drop)
    }

    async fn effects(pool: &SqlitePool) -> Result<Vec<(String, String)>, sqlx::Error> {
        sqlx::query_as("SELECT name, value FROM effects").fetch_all(pool).await
    }

    async fn kill_a_backend(&self) -> anyhow::Result<bool> {
        Ok(false)
    }
}

#[cfg(feature = "postgres")]
pub use postgres::Postgres;

#[cfg(feature = "postgres")]
mod postgres {
    use idempotency::Idempotency;
    use idempotency::store::PostgresStore;
    use idempotency_test_support::proxy::Protocol;
    use idempotency_test_support::server::{PostgresOptions, PostgresServer};
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
    use sqlx::{PgConnection, PgPool};

    use super::ACQUIRE_TIMEOUT;
    use crate::scene::{Database, Remote};
    use crate::world::PATIENCE;

    pub struct Postgres {
        server: PostgresServer,
        url: String,
        /// Whoever kills is not in the database whose connections are killed.
        killer: PgPool,
    }

    impl Remote for Postgres {
        const PROTOCOL: Protocol = Protocol::Postgres;

        fn address(&self) -> String {
            self.server.address()
        }
    }

    impl Database for Postgres {
        type Sqlx = sqlx::Postgres;

        async fn start() -> anyhow::Result<Self> {
            let server = PostgresServer::start(PostgresOptions::new()).await?;
            let url = server.database("effects").await?;
            let killer = PgPool::connect(&server.url()).await?;
            Ok(Self { server, url, killer })
        }

        fn url(&self) -> String {
            self.url.clone()
        }

        async fn open(
            url: &str,
            connections: u32,
            isolation: Option<&str>,
        ) -> anyhow::Result<(PgPool, Idempotency)> {
            let options: PgConnectOptions = url.parse()?;
            let isolation = isolation.map(|level| ("default_transaction_isolation", level));
            let pool =
                PgPoolOptions::new().max_connections(connections).acquire_timeout(ACQUIRE_TIMEOUT);
            let pool = pool.connect_with(options.options(isolation)).await?;
            let store = PostgresStore::builder(url).response_timeout(PATIENCE).connect().await?;
            store.migrate().await?;
            sqlx::query("CREATE TABLE IF NOT EXISTS effects (name text, value text)")
                .execute(&pool)
                .await?;
            Ok((pool, Idempotency::builder(store).claim_timeout(PATIENCE).build()?))
        }

        async fn add(
            connection: &mut PgConnection,
            key: &str,
            value: &str,
        ) -> Result<(), sqlx::Error> {
            let statement =
                sqlx::query("INSERT INTO effects VALUES ($1, $2)").bind(key).bind(value);
            statement.execute(connection).await.map(drop)
        }

        async fn effects(pool: &PgPool) -> Result<Vec<(String, String)>, sqlx::Error> {
            sqlx::query_as("SELECT name, value FROM effects").fetch_all(pool).await
        }

        async fn kill_a_backend(&self) -> anyhow::Result<bool> {
            let database = self.url.rsplit('/').next().unwrap_or_default();
            let killed = sqlx::query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE datname = $1 AND state IN ('active', 'idle in transaction') ORDER BY random() LIMIT 1",
            );
            Ok(killed.bind(database).fetch_optional(&self.killer).await?.is_some())
        }
    }
}

#[cfg(feature = "mysql")]
pub use mysql::MariaDb;

#[cfg(feature = "mysql")]
mod mysql {
    use idempotency::Idempotency;
    use idempotency::store::MySqlStore;
    use idempotency_test_support::proxy::Protocol;
    use idempotency_test_support::server::{MariaDbOptions, MariaDbServer};
    use sqlx::mysql::MySqlPoolOptions;
    use sqlx::{AssertSqlSafe, MySqlConnection, MySqlPool};

    use super::ACQUIRE_TIMEOUT;
    use crate::scene::{Database, Remote};
    use crate::world::PATIENCE;

    pub struct MariaDb {
        server: MariaDbServer,
        url: String,
        /// Whoever kills is not in the database whose connections are killed.
        killer: MySqlPool,
    }

    impl MariaDb {
        /// A database on `server`.
        pub async fn on(server: MariaDbServer) -> anyhow::Result<Self> {
            let url = server.database("effects").await?;
            let killer = MySqlPool::connect(&server.url()).await?;
            Ok(Self { server, url, killer })
        }
    }

    impl Remote for MariaDb {
        const PROTOCOL: Protocol = Protocol::MySql;

        fn address(&self) -> String {
            self.server.address()
        }
    }

    impl Database for MariaDb {
        type Sqlx = sqlx::MySql;

        async fn start() -> anyhow::Result<Self> {
            Self::on(MariaDbServer::start(MariaDbOptions::new()).await?).await
        }

        fn url(&self) -> String {
            self.url.clone()
        }

        async fn open(
            url: &str,
            connections: u32,
            isolation: Option<&str>,
        ) -> anyhow::Result<(MySqlPool, Idempotency)> {
            let set =
                isolation.map(|level| format!("SET SESSION TRANSACTION ISOLATION LEVEL {level}"));
            let pool = MySqlPoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(ACQUIRE_TIMEOUT);
            let pool = pool.after_connect(move |connection, _| {
                let set = set.clone();
                Box::pin(async move {
                    if let Some(set) = set {
                        sqlx::raw_sql(AssertSqlSafe(set)).execute(connection).await?;
                    }
                    Ok(())
                })
            });
            let pool = pool.connect(url).await?;
            let store = MySqlStore::builder(url).response_timeout(PATIENCE).connect().await?;
            store.migrate().await?;
            sqlx::query("CREATE TABLE IF NOT EXISTS effects (name VARCHAR(64), value VARCHAR(64))")
                .execute(&pool)
                .await?;
            Ok((pool, Idempotency::builder(store).claim_timeout(PATIENCE).build()?))
        }

        async fn add(
            connection: &mut MySqlConnection,
            key: &str,
            value: &str,
        ) -> Result<(), sqlx::Error> {
            let statement = sqlx::query("INSERT INTO effects VALUES (?, ?)").bind(key).bind(value);
            statement.execute(connection).await.map(drop)
        }

        async fn effects(pool: &MySqlPool) -> Result<Vec<(String, String)>, sqlx::Error> {
            sqlx::query_as("SELECT name, value FROM effects").fetch_all(pool).await
        }

        async fn kill_a_backend(&self) -> anyhow::Result<bool> {
            let database = self.url.rsplit('/').next().unwrap_or_default();
            let found = sqlx::query_as(
                "SELECT CAST(id AS SIGNED) FROM information_schema.processlist WHERE db = ? ORDER BY rand() LIMIT 1",
            );
            let Some((id,)): Option<(i64,)> =
                found.bind(database).fetch_optional(&self.killer).await?
            else {
                return Ok(false);
            };
            // It may be gone by now.
            Ok(sqlx::raw_sql(AssertSqlSafe(format!("KILL CONNECTION {id}")))
                .execute(&self.killer)
                .await
                .is_ok())
        }
    }
}
