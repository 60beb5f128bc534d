//! Waiting for others: one statement per tick, however many wait.

use std::time::{Duration, Instant};

use idempotency::store::{Commit, Store as _};
use idempotency_test_support::deadline::{eventually_async, within};

use crate::world::{DAY, claim, key, migrated, number, quiet_server, token};

const WAITERS: u32 = 200;
/// The shortest time between two looks.
const TICK: Duration = Duration::from_millis(25);

#[tokio::test]
async fn two_hundred_who_wait_ask_with_one_statement_at_a_time() -> anyhow::Result<()> {
    let server = quiet_server().await?;
    let url = server.database("waiters").await?;
    let (store, elsewhere) = (migrated(&url).await?, migrated(&url).await?);
    for number in 0..WAITERS {
        let mut claim = claim(number);
        claim.lease = Duration::from_secs(120);
        elsewhere.claim(claim).await?;
    }
    let looks = || async {
        let calls = "SELECT coalesce(sum(calls), 0) FROM pg_stat_statements WHERE query LIKE '%key_hash = ANY%'";
        number(&server.sql(calls).await?)
    };
    let before = looks().await?;
    let started = Instant::now();
    let mut watches = Vec::new();
    for number in 0..WAITERS {
        watches.push(store.watch(key(number)).await?);
    }
    let mut first = watches.remove(0);
    let all = futures::future::select_all(watches);
    tokio::pin!(all);
    tokio::select! {
        _ = &mut all => anyhow::bail!("a watch was woken by nothing"),
        () = &mut first => anyhow::bail!("a watch was woken by nothing"),
        looked = eventually_async("some looks", async || looks().await.is_ok_and(|looks| looks >= before + 10)) => looked?,
    }
    let asked = looks().await? - before;
    let ticks = i64::try_from(started.elapsed().as_millis() / TICK.as_millis())?;
    assert!(asked <= ticks + 1, "{asked} looks in {ticks} ticks for {WAITERS} waiters");

    elsewhere.complete(Commit::new(key(0), token(0), "done".into(), DAY)).await?;
    within("the wake", first).await?;
    assert!(futures::poll!(&mut all).is_pending(), "others were woken");
    Ok(())
}
