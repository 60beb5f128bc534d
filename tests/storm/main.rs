//! A storm on a real store: 64 tasks claim, run, crash, stall, come back too late and send
//! everything twice, on few keys with short leases. Everything is recorded outside of the store; in
//! the end the records are held against the rules.
//!
//! `IDEMPOTENCY_LONG` makes it two minutes for each store, `IDEMPOTENCY_SEED` repeats the choices
//! of a run.

mod caller;
mod log;
mod operator;
mod owner;
mod rules;
mod scene;
mod stores;

use scene::storm;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_storm_on_memory_breaks_no_rule() -> anyhow::Result<()> {
    storm(stores::memory()).await
}

#[cfg(feature = "sqlite")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_storm_on_sqlite_breaks_no_rule() -> anyhow::Result<()> {
    storm(stores::sqlite().await?).await
}

#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_storm_on_postgresql_breaks_no_rule() -> anyhow::Result<()> {
    storm(stores::postgres().await?).await
}

#[cfg(feature = "mysql")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_storm_on_mariadb_breaks_no_rule() -> anyhow::Result<()> {
    storm(stores::mysql().await?).await
}

#[cfg(feature = "redis")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_storm_on_redis_breaks_no_rule() -> anyhow::Result<()> {
    storm(stores::redis().await?).await
}
