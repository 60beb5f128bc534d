//! MariaDB.

use std::sync::Arc;
use std::time::Duration;

use idempotency::store::{DynStore, MySqlStore};
use idempotency_test_support::proxy::Protocol;
use idempotency_test_support::server::{MariaDb, MariaDbOptions, MariaDbServer};

use crate::backend::{Backend, Shared};

impl Backend for MariaDb {
    const PROTOCOL: Protocol = Protocol::MySql;
    const STORE: &'static str = "mysql";
    const READS: &'static str = "AS micros";
    const CLAIMS: &'static str = "INSERT INTO";
    const COMMITS: &'static str = "SET purge_at = LEAST";
    const PING: &'static str = "PING";
    const RENEWS: &'static str = "lease_until = ";
    const RELEASES: &'static str = "AND taken_over = 0";

    fn shared() -> &'static Shared<Self> {
        static SERVER: Shared<MariaDb> = Shared::new();
        &SERVER
    }

    fn private() -> MariaDbOptions {
        MariaDbOptions::new().private()
    }

    fn durable() -> MariaDbOptions {
        MariaDbOptions::new().durable()
    }

    async fn database(server: &MariaDbServer) -> anyhow::Result<String> {
        server.database("cuts").await
    }

    async fn migrated(url: &str) -> anyhow::Result<Arc<dyn DynStore>> {
        let store =
            MySqlStore::builder(url).response_timeout(Duration::from_secs(20)).connect().await?;
        store.migrate().await?;
        Ok(Arc::new(store))
    }

    fn impatient(url: &str, patience: Duration) -> anyhow::Result<Arc<dyn DynStore>> {
        // It waits longer than the server does for a lock.
        let patience = patience.max(Duration::from_millis(1_500));
        Ok(Arc::new(
            MySqlStore::builder(url).response_timeout(patience).max_connections(1).build()?,
        ))
    }
}
