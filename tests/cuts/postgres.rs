//! PostgreSQL.

use std::sync::Arc;
use std::time::Duration;

use idempotency::store::{DynStore, PostgresStore};
use idempotency_test_support::proxy::Protocol;
use idempotency_test_support::server::{Postgres, PostgresOptions, PostgresServer};

use crate::backend::{Backend, Shared};

impl Backend for Postgres {
    const PROTOCOL: Protocol = Protocol::Postgres;
    const STORE: &'static str = "postgres";
    const READS: &'static str = Self::CLAIMS;
    const CLAIMS: &'static str = "claimed AS (";
    const COMMITS: &'static str = "SET state = $3";
    const PING: &'static str = "";
    const RENEWS: &'static str = "AS renewal";
    const RELEASES: &'static str = "AND taken_over = 0";

    fn shared() -> &'static Shared<Self> {
        static SERVER: Shared<Postgres> = Shared::new();
        &SERVER
    }

    fn private() -> PostgresOptions {
        PostgresOptions::new().private()
    }

    fn durable() -> PostgresOptions {
        PostgresOptions::new().durable()
    }

    async fn database(server: &PostgresServer) -> anyhow::Result<String> {
        server.database("cuts").await
    }

    async fn migrated(url: &str) -> anyhow::Result<Arc<dyn DynStore>> {
        let store =
            PostgresStore::builder(url).response_timeout(Duration::from_secs(20)).connect().await?;
        store.migrate().await?;
        Ok(Arc::new(store))
    }

    fn impatient(url: &str, patience: Duration) -> anyhow::Result<Arc<dyn DynStore>> {
        Ok(Arc::new(
            PostgresStore::builder(url).response_timeout(patience).max_connections(1).build()?,
        ))
    }
}
