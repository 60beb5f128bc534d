//! The Redis store keeps every rule, on a real server.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use idempotency::store::RedisStore;
use idempotency::testing::Subject;
use idempotency_test_support::server::{RedisOptions, RedisServer};

/// One server for all cases. It ends with this process.
fn server() -> &'static RedisServer {
    static SERVER: OnceLock<RedisServer> = OnceLock::new();
    SERVER.get_or_init(|| {
        let start = || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(RedisServer::start(RedisOptions::new())).expect("the server starts")
        };
        std::thread::spawn(start).join().expect("the server starts")
    })
}

struct Redis {
    store: RedisStore,
    prefix: String,
}

impl Redis {
    async fn new() -> Self {
        static CASES: AtomicU32 = AtomicU32::new(0);
        let case = CASES.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("conformance:{}:{case}:", std::process::id());
        Self { store: connect(&prefix).await, prefix }
    }
}

async fn connect(prefix: &str) -> RedisStore {
    let url = tokio::task::spawn_blocking(|| server().url()).await.expect("the server starts");
    let builder = RedisStore::builder(url).prefix(prefix).response_timeout(Duration::from_secs(20));
    builder.connect().await.expect("the store connects")
}

impl Subject for Redis {
    type Store = RedisStore;

    fn store(&self) -> &RedisStore {
        &self.store
    }

    async fn second(&self) -> RedisStore {
        connect(&self.prefix).await
    }

    async fn advance(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    fn lease(&self) -> Duration {
        Duration::from_millis(400)
    }
}

idempotency::testing::conformance!(|| async { Redis::new().await });
