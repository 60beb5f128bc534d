//! The near cache over a wrapped store learns at once of what others remove.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use idempotency::store::{RedisStore, Store};
use idempotency::{Error, Idempotency, with_report};
use idempotency_test_support::deadline::eventually_async;
use idempotency_test_support::server::{RedisOptions, RedisServer};

use crate::counting::Counting;
use crate::sealing::Sealing;

/// So long that nothing is asked again because of it.
const HOUR: Duration = Duration::from_secs(3600);

fn engine(store: impl Store) -> Idempotency {
    let builder = Idempotency::builder(store).claim_timeout(Duration::from_secs(20));
    builder.near_cache(1_000_000).near_cache_ttl(HOUR).build().unwrap()
}

#[tokio::test]
async fn what_another_engine_removes_is_replayed_no_more_through_two_wrappers() -> anyhow::Result<()>
{
    let server = RedisServer::start(RedisOptions::new()).await?;
    let store = async || {
        let store = RedisStore::builder(server.url()).response_timeout(Duration::from_secs(20));
        store.connect().await.map(Sealing::new)
    };
    let (here, elsewhere) = (engine(Counting::new(store().await?)), engine(store().await?));
    let ran = AtomicUsize::new(0);
    let charged = async || {
        let body = || async { Ok::<_, Error>(ran.fetch_add(1, Ordering::SeqCst)) };
        let call = here.call("charge", 1).ttl(HOUR).run(body);
        let (answer, report) = with_report(call).await;
        (answer.expect("the server answers"), report.expect("the call reports"))
    };
    eventually_async("the result to be near", async || charged().await.1.near_cached).await?;
    anyhow::ensure!(ran.load(Ordering::SeqCst) == 1);
    elsewhere.record("charge", 1).forget().await?;
    eventually_async("the message", async || charged().await.0 == 1).await?;
    anyhow::ensure!(ran.load(Ordering::SeqCst) == 2);
    Ok(())
}
