//! Starts a server of the kind that its argument names, prints which one, and holds it until it
//! is killed.

use anyhow::bail;
use idempotency_test_support::server::{
    Kind, MariaDbOptions, MariaDbServer, PostgresOptions, PostgresServer, RedisOptions,
    RedisServer, Server,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("mariadb") => hold(MariaDbServer::start(MariaDbOptions::new().private()).await?).await,
        Some("postgres") => {
            hold(PostgresServer::start(PostgresOptions::new().private()).await?).await
        }
        Some("redis") => hold(RedisServer::start(RedisOptions::new().private()).await?).await,
        other => bail!("{other:?} is no kind of server"),
    }
}

async fn hold<K: Kind>(server: Server<K>) -> anyhow::Result<()> {
    println!("{}", server.pid().unwrap_or_default());
    println!("{}", server.directory()?.display());
    std::future::pending().await
}
