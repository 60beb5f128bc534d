//! The consumer that the tests start as another process.

use idempotency_test_support::consuming::{book, obey};

use crate::scene::Scene;

/// What a worker process runs. In the test process it has no orders, and nothing to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn obeys_its_orders() -> anyhow::Result<()> {
    obey::<Scene>().await
}

/// The same, for messages whose record and effect are one transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn books_as_ordered() -> anyhow::Result<()> {
    book::<Scene>().await
}
