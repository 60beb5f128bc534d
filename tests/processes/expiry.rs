//! A retry that comes when the result of a dead process has expired.

use std::time::Duration;

use anyhow::ensure;
use idempotency::{Error, ErrorKind};
use idempotency_test_support::deadline::within;
use idempotency_test_support::worker::AFTER_COMMIT;

use crate::backend::Backend;
use crate::scene::Scene;
use crate::service::{DAY, Planned, Receipt, Service};
use crate::worker::Work;

const SHIP: &str = "orders.ship";
/// How long a result is kept: longer than the lease of its owner.
const TTL: Duration = Duration::from_secs(4);

impl Service {
    /// An operation whose late retries are refused.
    pub async fn ship(&self, order: &str) -> Result<Receipt, Error> {
        let call = self.engine.call(SHIP, order).ttl(TTL).lease(TTL).after_expiry(DAY);
        call.run(|| async { Ok(self.effect(&Planned::now(order)).await) }).await
    }
}

/// The caller of the first call has not heard of its result, and asks too late.
pub async fn a_retry_after_the_expiry_is_refused_and_never_runs(
    backend: Backend,
) -> anyhow::Result<()> {
    const ORDER: &str = "order";
    let scene = Scene::new(backend).await?;
    let mut owner = scene.steady(Work::Ship(String::from(ORDER)), &[AFTER_COMMIT]).await?;
    owner.wait_for_point(AFTER_COMMIT).await?;
    owner.kill().await?;
    let result = scene.effects(ORDER)?.remove(0).result;

    let retries = async {
        loop {
            match scene.here().ship(ORDER).await {
                Ok(receipt) => {
                    ensure!(Some(receipt.bytes()) == result, "{receipt:?} is another result");
                }
                Err(error) if error.kind() == ErrorKind::Expired => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            tokio::time::sleep(TTL / 30).await;
        }
    };
    within("the expiry", retries).await??;
    let again = scene.here().ship(ORDER).await.unwrap_err();
    assert_eq!((again.kind(), again.is_retryable()), (ErrorKind::Expired, false));
    assert_eq!(scene.effects(ORDER)?.len(), 1);
    Ok(())
}
