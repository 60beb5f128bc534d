//! `after_expiry`: a late retry is refused instead of running a second time.

use std::time::Duration;

use idempotency::{Call, ErrorKind};

use crate::world::{DAY, LEASE, OPERATION, World};

const MILLI: Duration = Duration::from_millis(1);

fn call(world: &World) -> Call {
    world.call(1).after_expiry(30 * DAY)
}

#[tokio::test]
async fn a_late_retry_is_told_that_its_record_has_expired() {
    let world = World::new();
    let first = call(&world).run(|| async { world.effect(1) }).await.unwrap();
    world.clock.advance(DAY.saturating_sub(MILLI));
    assert_eq!(call(&world).run(|| async { world.effect(1) }).await.unwrap(), first);
    world.clock.advance(MILLI);
    for _ in 0..2 {
        let error = call(&world).run(|| async { world.effect(1) }).await.unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Expired, false));
        assert!(error.to_string().contains("use a new key"), "{error}");
    }
    world.clock.advance((30 * DAY).saturating_sub(MILLI));
    assert_eq!(
        world.charge(1).await.unwrap_err().kind(),
        ErrorKind::Expired,
        "the record says so, not the caller"
    );
    world.clock.advance(MILLI);
    assert_eq!(call(&world).run(|| async { world.effect(1) }).await.unwrap(), "receipt 1.2");
    assert_eq!(world.ledger.count(), 2);
}

#[tokio::test]
async fn without_it_a_late_retry_runs_again() {
    let world = World::new();
    world.charge(1).await.unwrap();
    world.clock.advance(DAY);
    assert_eq!(call(&world).run(|| async { world.effect(1) }).await.unwrap(), "receipt 1.2");
}

#[tokio::test]
async fn a_refusal_for_no_time_or_too_long_is_an_error_of_the_configuration() {
    let world = World::new();
    for refuse_for in [Duration::ZERO, 401 * DAY] {
        let error = world
            .call(1)
            .after_expiry(refuse_for)
            .run(|| async { world.effect(1) })
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("`after_expiry`"), "{error}");
    }
    assert_eq!(world.ledger.count(), 0);
}

/// Stores count whole milliseconds.
#[tokio::test]
async fn a_part_of_a_millisecond_is_rounded_up() {
    let (world, part) = (World::new(), Duration::from_micros(1_100));
    let call = || world.engine.call(OPERATION, 1).ttl(part).lease(MILLI).after_expiry(part);
    assert_eq!(call().run(|| async { world.effect(1) }).await.unwrap(), "receipt 1.1");
    world.clock.advance(MILLI);
    assert_eq!(call().run(|| async { world.effect(1) }).await.unwrap(), "receipt 1.1");
    for _ in 0..2 {
        world.clock.advance(MILLI);
        let error = call().run(|| async { world.effect(1) }).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Expired);
    }
    world.clock.advance(MILLI);
    assert_eq!(call().run(|| async { world.effect(1) }).await.unwrap(), "receipt 1.2");
}

/// A store may plan by it when it removes the record.
#[tokio::test]
async fn a_claim_tells_the_store_how_long_its_record_is_kept() {
    let world = World::new();
    let call = world.call(1).ttl(DAY * 40).lease(LEASE / 3).after_expiry(DAY * 7);
    call.run(|| async { world.effect(1) }).await.unwrap();
    let claim = world.store.sent_claims().remove(0);
    assert_eq!((claim.ttl, claim.lease, claim.after_expiry), (DAY * 40, LEASE / 3, DAY * 7));
    assert_eq!(claim.linger, DAY * 40, "an unfinished record is kept as long");
}
