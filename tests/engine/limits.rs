//! Bounds, and bad input to them.

use std::time::Duration;

use idempotency::store::MemoryStore;
use idempotency::{Call, Context, Error, ErrorKind, Idempotency, OnConflict};

use crate::faults::Gate;
use crate::world::{DAY, OPERATION, World, poll_once};

async fn refusal(world: &World, call: Call) -> Error {
    let error = call.run(|| async { world.effect(1) }).await.unwrap_err();
    assert_eq!(world.ledger.count(), 0, "{error}");
    assert_eq!(world.store.requests("claim"), 0, "{error}");
    assert_eq!(error.operation(), Some(OPERATION));
    error
}

#[tokio::test]
async fn a_ttl_is_required_and_bounded() {
    let world = World::new();
    let call = || world.engine.call(OPERATION, 1);
    for call in [call(), call().ttl(Duration::ZERO), call().ttl(DAY * 401), call().ttl(DAY).lease(Duration::ZERO)] {
        assert_eq!(refusal(&world, call).await.kind(), ErrorKind::Config);
    }
    let error = refusal(&world, call().ttl(DAY).lease(DAY * 2)).await;
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("shorter than `lease`"), "{error}");
    call().ttl(DAY * 400).run(|| async { world.effect(1) }).await.unwrap();
}

#[tokio::test]
async fn keys_and_scopes_are_bounded_and_never_missing() {
    let world = World::new();
    let long = "k".repeat(1024);
    let call = |key: &str| world.engine.call(OPERATION, key).ttl(DAY);
    assert_eq!(refusal(&world, call(&long)).await.kind(), ErrorKind::InvalidKey);
    assert_eq!(refusal(&world, call("a").scope(&long)).await.kind(), ErrorKind::InvalidKey);
    assert_eq!(refusal(&world, call("a").scope(None::<&str>)).await.kind(), ErrorKind::MissingKey);
    let missing = world.engine.call(OPERATION, (1, None::<u8>)).ttl(DAY);
    assert_eq!(refusal(&world, missing).await.kind(), ErrorKind::MissingKey);
    let not_a_number = world.engine.call(OPERATION, idempotency::key::digest(&f64::NAN)).ttl(DAY);
    assert_eq!(refusal(&world, not_a_number).await.kind(), ErrorKind::InvalidKey);
}

#[tokio::test]
async fn a_fingerprint_that_cannot_be_computed_is_refused() {
    let world = World::new();
    let call = world.call(1).fingerprint(&f64::NAN);
    assert_eq!(refusal(&world, call).await.kind(), ErrorKind::Encode);
}

#[tokio::test]
async fn settings_out_of_range_refuse_every_call_and_install() {
    let builders = [
        Idempotency::builder(MemoryStore::new()).namespace(""),
        Idempotency::builder(MemoryStore::new()).namespace("Shop"),
        Idempotency::builder(MemoryStore::new()).namespace("a".repeat(65)),
        Idempotency::builder(MemoryStore::new()).lease(Duration::ZERO),
        Idempotency::builder(MemoryStore::new()).max_result_size(9 * 1024 * 1024),
    ];
    for builder in builders {
        assert_eq!(builder.clone().try_build().unwrap_err().kind(), ErrorKind::Config);
        let engine = builder.build();
        let ledger = crate::ledger::Ledger::new();
        let call = engine.call(OPERATION, 1).ttl(DAY).run(|| async {
            ledger.charge("charge");
            Ok::<_, Error>(())
        });
        assert_eq!(call.await.unwrap_err().kind(), ErrorKind::Config);
        assert_eq!(engine.record(OPERATION, 1).inspect().await.unwrap_err().kind(), ErrorKind::Config);
        assert_eq!(engine.install().unwrap_err().kind(), ErrorKind::Config);
        assert_eq!(ledger.count(), 0);
    }
}

#[tokio::test]
async fn a_full_store_refuses_new_calls_and_keeps_the_old_ones() {
    let store = MemoryStore::builder().max_records(1).build();
    let engine = Idempotency::new(store);
    let ledger = crate::ledger::Ledger::new();
    let charge = async |key: u64| {
        let call = engine.call(OPERATION, key).ttl(DAY).run(|| async {
            ledger.charge("charge");
            Ok::<_, Error>(key)
        });
        call.await
    };
    charge(1).await.unwrap();
    let error = charge(2).await.unwrap_err();
    assert_eq!((error.kind(), error.store()), (ErrorKind::Full, Some("memory")));
    assert_eq!(charge(1).await.unwrap(), 1);
    assert_eq!(ledger.count(), 1);
}

#[tokio::test]
async fn the_longest_durations_mean_forever() {
    let forever = Duration::MAX;
    let configure = |builder: idempotency::Builder| {
        let builder = builder.lease(forever).max_run(forever).claim_timeout(forever).commit_timeout(forever);
        builder.background_commit(forever).in_doubt_retention(forever).on_conflict(OnConflict::Wait(forever))
    };
    let (world, gate) = (World::with(configure), Gate::new());
    let leader = world.call(1).run(|| async {
        let context = Context::current();
        assert!(!context.lease_lost());
        assert!(poll_once(&mut Box::pin(context.lease_ended())).is_pending());
        gate.wait().await;
        world.effect(1)
    });
    let follower = async {
        world.record_is(1, |record| record.is_some()).await;
        let mut follower = Box::pin(world.charge(1));
        assert!(poll_once(&mut follower).is_pending());
        world.clock.advance(DAY);
        let there = world.other_process_with(configure);
        let mut waiter = Box::pin(there.charge(1));
        assert!(poll_once(&mut waiter).is_pending());
        gate.open();
        tokio::join!(follower, waiter)
    };
    let (leader, (follower, waiter)) = tokio::join!(leader, follower);
    assert_eq!(leader.unwrap(), "receipt 1.1");
    assert_eq!((follower.unwrap(), waiter.unwrap()), ("receipt 1.1".to_owned(), "receipt 1.1".to_owned()));
    assert_eq!(world.engine.shutdown(forever).await.abandoned, 0);
}
