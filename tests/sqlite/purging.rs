//! Expired records are removed in the background, and nothing else is.

use std::time::Duration;

use idempotency::record::State;
use idempotency::{Error, ErrorAction, ErrorKind, Idempotency};
use idempotency_test_support::deadline::eventually_async;

use crate::world::{DAY, HOUR, OPERATION, World};

const MINUTE: Duration = Duration::from_secs(60);

async fn charge(engine: &Idempotency, key: u32, ttl: Duration) -> Result<u32, Error> {
    engine.call(OPERATION, key).ttl(ttl).run(|| async { Ok(1) }).await
}

#[tokio::test]
async fn the_background_removes_what_expired_in_batches_and_tells_its_lag() -> anyhow::Result<()> {
    let world = World::new().await?;
    let engine = world.engine(|builder| builder.purge_batch(2));
    for key in 0..5 {
        charge(&engine, key, HOUR).await?;
    }
    charge(&engine, 5, DAY).await?;
    let held = engine.call(OPERATION, 6).ttl(HOUR).on_error(ErrorAction::Hold);
    let held: Result<u32, Error> = held
        .run(|| async {
            Err(idempotency::store::StoreError::new(
                idempotency::store::StoreErrorKind::Refused,
                idempotency::store::Operation::Claim,
            )
            .into())
        })
        .await;
    assert!(held.is_err());
    assert_eq!((world.rows().await?, engine.purge_stats().removed), (7, 0));

    world.clock.advance(HOUR + MINUTE);
    eventually_async("the five expired records to be removed", async || {
        // The pauses between batches are on the same clock.
        world.clock.advance(Duration::from_millis(50));
        world.rows().await.is_ok_and(|rows| rows == 2)
    })
    .await?;
    eventually_async("the report", async || {
        world.clock.advance(MINUTE);
        let purging = engine.purge_stats();
        (purging.removed, purging.lag, purging.failed) == (5, None, 0)
    })
    .await?;
    // Unresolved for longer than its `ttl`, and still there.
    let in_doubt = engine.record(OPERATION, 6).inspect().await?;
    assert_eq!(in_doubt.map(|view| view.state), Some(State::InDoubt));
    assert_eq!(
        charge(&engine, 6, HOUR).await.map_err(|error| error.kind()),
        Err(ErrorKind::InDoubt)
    );
    Ok(())
}

#[tokio::test]
async fn a_purge_that_is_switched_off_removes_nothing() -> anyhow::Result<()> {
    let world = World::new().await?;
    let (purging, idle) =
        (world.engine(|builder| builder), world.engine(|builder| builder.background_purge(false)));
    charge(&idle, 1, HOUR).await?;
    world.clock.advance(2 * HOUR);
    for _ in 0..3 {
        world.clock.advance(2 * MINUTE);
        tokio::task::yield_now().await;
    }
    assert_eq!(
        (world.rows().await?, idle.purge_stats()),
        (1, idempotency::report::PurgeStats::default())
    );
    // The same file, and an engine that does.
    charge(&purging, 2, DAY).await?;
    eventually_async("the other engine to purge", async || {
        world.clock.advance(2 * MINUTE);
        world.rows().await.is_ok_and(|rows| rows == 1)
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_record_that_lives_longer_than_it_was_planned_is_put_off() -> anyhow::Result<()> {
    use idempotency::key::KeyHash;
    use idempotency::store::{Claim, Commit, Store as _, Token};

    let world = World::new().await?;
    let (key, token) = (KeyHash::from_bytes([7; 32]), Token::from_bits(1));
    let mut claim = Claim::new(key, token, OPERATION.into());
    claim.ttl = HOUR;
    world.store.claim(claim).await?;
    world.store.complete(Commit::new(key, token, "done".into(), DAY)).await?;
    world.clock.advance(2 * HOUR);
    let purged = world.store.purge(10).await?;
    assert_eq!((purged.removed, purged.lag), (0, None));
    world.clock.advance(DAY);
    assert_eq!(world.store.purge(10).await?.removed, 1);
    assert_eq!(world.rows().await?, 0);
    Ok(())
}

/// The planned times of results that live longer than planned come first, in batches of their own.
#[tokio::test]
async fn what_is_put_off_does_not_end_a_look_in_the_background() -> anyhow::Result<()> {
    use idempotency::key::KeyHash;
    use idempotency::store::{Claim, Commit, Store as _, Token};

    let world = World::new().await?;
    for number in 1..=3 {
        let (key, token) = (KeyHash::from_bytes([number; 32]), Token::from_bits(1));
        let mut claim = Claim::new(key, token, OPERATION.into());
        claim.ttl = HOUR;
        world.store.claim(claim).await?;
        world.store.complete(Commit::new(key, token, "done".into(), 100 * DAY)).await?;
    }
    world.clock.advance(MINUTE);
    // One look, and no other one for as long as this test takes.
    let engine = world.engine(|builder| builder.purge_batch(2).purge_interval(2 * DAY));
    for key in 0..5 {
        charge(&engine, key, HOUR).await?;
    }
    world.clock.advance(2 * DAY);
    eventually_async("the five expired records to be removed", async || {
        // The pauses between batches are on the same clock.
        world.clock.advance(Duration::from_millis(50));
        world.rows().await.is_ok_and(|rows| rows == 3)
    })
    .await
}
