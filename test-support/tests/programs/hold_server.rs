//! Starts a server, says which, and holds it until it is killed.

use idempotency_test_support::server::{RedisOptions, RedisServer};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let server = RedisServer::start(RedisOptions::new().private()).await?;
    println!("{}", server.pid().unwrap_or_default());
    println!("{}", server.directory()?.display());
    std::future::pending().await
}
