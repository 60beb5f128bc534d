//! The MySQL store keeps every rule, on a real MariaDB server.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use idempotency::store::MySqlStore;
use idempotency::testing::Subject;
use idempotency_test_support::server::{MariaDbOptions, MariaDbServer};

/// One server for all cases, and a database that is theirs. It ends with this process.
fn server() -> &'static (MariaDbServer, String) {
    static SERVER: OnceLock<(MariaDbServer, String)> = OnceLock::new();
    SERVER.get_or_init(|| {
        let start = || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let server =
                    MariaDbServer::start(MariaDbOptions::new()).await.expect("the server starts");
                let url =
                    server.database("conformance").await.expect("the server makes a database");
                (server, url)
            })
        };
        std::thread::spawn(start).join().expect("the server starts")
    })
}

struct MySql {
    store: MySqlStore,
    table: String,
}

impl MySql {
    async fn new() -> Self {
        static CASES: AtomicU32 = AtomicU32::new(0);
        let table = format!("records_{}", CASES.fetch_add(1, Ordering::Relaxed));
        let store = connect(&table).await;
        store.migrate().await.expect("the table is made");
        Self { store, table }
    }
}

async fn connect(table: &str) -> MySqlStore {
    let url = tokio::task::spawn_blocking(|| &server().1).await.expect("the server starts");
    let builder = MySqlStore::builder(url).table(table).max_connections(4);
    builder.response_timeout(Duration::from_secs(20)).connect().await.expect("the store connects")
}

impl Subject for MySql {
    type Store = MySqlStore;

    fn store(&self) -> &MySqlStore {
        &self.store
    }

    async fn second(&self) -> MySqlStore {
        connect(&self.table).await
    }

    async fn advance(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    fn lease(&self) -> Duration {
        Duration::from_millis(400)
    }
}

idempotency::testing::conformance!(|| async { MySql::new().await });
