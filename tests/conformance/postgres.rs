//! The PostgreSQL store keeps every rule, on a real server.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use idempotency::store::PostgresStore;
use idempotency::testing::Subject;
use idempotency_test_support::server::{PostgresOptions, PostgresServer};

/// One server for all cases. It ends with this process.
fn server() -> &'static PostgresServer {
    static SERVER: OnceLock<PostgresServer> = OnceLock::new();
    SERVER.get_or_init(|| {
        let start = || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime
                .block_on(PostgresServer::start(PostgresOptions::new()))
                .expect("the server starts")
        };
        std::thread::spawn(start).join().expect("the server starts")
    })
}

struct Postgres {
    store: PostgresStore,
    table: String,
}

impl Postgres {
    async fn new() -> Self {
        static CASES: AtomicU32 = AtomicU32::new(0);
        let case = CASES.fetch_add(1, Ordering::Relaxed);
        let table = format!("conformance_{}_{case}", std::process::id());
        let store = connect(&table).await;
        store.migrate().await.expect("the table is made");
        Self { store, table }
    }
}

async fn connect(table: &str) -> PostgresStore {
    let url = tokio::task::spawn_blocking(|| server().url()).await.expect("the server starts");
    let builder = PostgresStore::builder(&url).table(table).max_connections(4);
    builder.response_timeout(Duration::from_secs(20)).connect().await.expect("the store connects")
}

impl Subject for Postgres {
    type Store = PostgresStore;

    fn store(&self) -> &PostgresStore {
        &self.store
    }

    async fn second(&self) -> PostgresStore {
        connect(&self.table).await
    }

    async fn advance(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    fn lease(&self) -> Duration {
        Duration::from_millis(400)
    }
}

idempotency::testing::conformance!(|| async { Postgres::new().await });
