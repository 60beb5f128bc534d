//! A call that was made is answered from its record.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Debug;
use std::time::Duration;

use idempotency::events::Outcome;
use idempotency::record::State;
use idempotency::store::MemoryStore;
use idempotency::{Error, ErrorKind, Idempotency, WithEngine as _, with_report};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::world::{DAY, OPERATION, World};

#[tokio::test]
async fn a_second_call_replays_the_first() {
    let world = World::new();
    let (first, report) = with_report(world.charge(1)).await;
    let report = report.unwrap();
    assert!(!report.replayed && !report.waited && !report.joined);
    assert_eq!((report.attempt, &*report.operation), (1, OPERATION));

    let (second, report) = with_report(world.charge(1)).await;
    assert!(report.unwrap().replayed);
    assert_eq!(first.unwrap(), second.unwrap());
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn key_scope_operation_and_namespace_each_make_another_call() {
    let world = World::new();
    let other_namespace = Idempotency::builder(world.store.clone())
        .clock(world.clock.clone())
        .namespace("other")
        .build()
        .unwrap();
    let calls = [
        world.engine.call(OPERATION, 1),
        world.engine.call(OPERATION, 2),
        world.engine.call(OPERATION, "1"),
        world.engine.call(OPERATION, 1).scope("tenant-7"),
        world.engine.call(OPERATION, 1).scope("tenant-8"),
        world.engine.call("payments.refund", 1),
        other_namespace.call(OPERATION, 1),
    ];
    let count = calls.len();
    for call in calls {
        call.ttl(DAY).run(|| async { world.effect(1) }).await.unwrap();
    }
    assert_eq!(world.ledger.count(), count);
}

#[tokio::test]
async fn ttl_counts_from_the_end_of_the_body() {
    let world = World::new();
    let slow = world.call(1).run(|| async {
        world.clock.advance(DAY / 2);
        world.effect(1)
    });
    // The lease is long over when the body ends, and nobody else asked: the result is still stored.
    let first = slow.await.unwrap();
    let second = Duration::from_secs(1);
    world.clock.advance(DAY.saturating_sub(second));
    assert_eq!(world.charge(1).await.unwrap(), first);
    world.clock.advance(second);
    assert_ne!(world.charge(1).await.unwrap(), first);
    assert_eq!(world.ledger.count(), 2);
}

async fn replays_as_itself<T: Serialize + DeserializeOwned + PartialEq + Debug + Clone>(
    name: &str,
    value: T,
) {
    let world = World::new();
    for _ in 0..2 {
        let result: Result<T, Error> = world
            .engine
            .call(name, 1)
            .ttl(DAY)
            .run(|| async {
                world.ledger.charge(name);
                Ok(value.clone())
            })
            .await;
        assert_eq!(result.unwrap(), value, "{name}");
    }
    assert_eq!(world.ledger.count(), 1, "{name} must count as a result");
}

#[tokio::test]
async fn values_that_look_like_nothing_replay_as_themselves() {
    replays_as_itself("unit", ()).await;
    replays_as_itself("zero", 0_u64).await;
    replays_as_itself("empty text", String::new()).await;
    replays_as_itself("none", None::<u32>).await;
    replays_as_itself("false", false).await;
    replays_as_itself("empty list", Vec::<u8>::new()).await;
    replays_as_itself("empty map", BTreeMap::<String, u8>::new()).await;
    replays_as_itself("empty set", HashSet::<u8>::new()).await;
}

#[tokio::test]
async fn a_key_reused_for_another_request_is_a_mismatch_and_never_runs() {
    let world = World::new();
    let charge = async |amount: u32| {
        world.call(1).fingerprint(&("EUR", amount)).run(|| async { world.effect(1) }).await
    };
    let first = charge(100).await.unwrap();
    let error = charge(101).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch);
    assert!(!error.is_retryable());
    assert_eq!(charge(100).await.unwrap(), first, "the first request still replays");
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn a_disabled_operation_runs_unprotected_until_it_is_enabled() {
    let world = World::new();
    world.engine.disable(OPERATION);
    for _ in 0..2 {
        let (result, report) = with_report(world.charge(1)).await;
        assert!(result.is_ok() && report.unwrap().bypassed);
    }
    assert!(world.record(1).await.is_none());
    world.engine.enable(OPERATION);
    for _ in 0..2 {
        world.charge(1).await.unwrap();
    }
    assert_eq!(world.ledger.count(), 3);
}

#[tokio::test]
async fn the_task_s_engine_is_the_one_that_the_future_was_given() {
    let (outer, inner) = (World::new(), World::new());
    let state = async |world: &World| world.record(1).await.map(|record| record.state);
    async {
        // What the attribute expands to when it names no engine.
        static SITE: idempotency::__private::Site =
            idempotency::__private::Site::new(OPERATION, file!(), line!());
        let call =
            idempotency::__private::call(&SITE, idempotency::__private::Key::of(&1)).ttl(DAY);
        call.run(|| async { inner.effect(1) }).await.unwrap();
    }
    .with_engine(&inner.engine)
    .with_engine(&outer.engine)
    .await;
    assert_eq!(state(&inner).await, Some(State::Completed));
    assert_eq!(state(&outer).await, None);
}

#[tokio::test]
async fn a_call_without_an_engine_is_reported_too() {
    use idempotency::__private::{Key, Site, call};
    static SITE: Site = Site::new("shop::charge", file!(), line!());
    let run = call(&SITE, Key::of(&1)).ttl(DAY).run(async || Ok::<_, Error>(()));
    let (result, report) = with_report(run).await;
    assert_eq!(result.unwrap_err().kind(), ErrorKind::NotInstalled);
    let report = report.expect("the call was refused");
    assert_eq!(report.outcome, Outcome::Refused(ErrorKind::NotInstalled));
}

#[tokio::test]
async fn two_functions_with_one_name_are_refused_at_the_first_use_of_the_second() {
    use idempotency::__private::{Key, Site, call_on};
    static FIRST: Site = Site::new("shop::charge", "src/a.rs", 1);
    static SECOND: Site = Site::new("shop::charge", "src/b.rs", 2);
    let world = World::new();
    let first = call_on(&FIRST, &world.engine, Key::of(&1))
        .ttl(DAY)
        .run(|| async { world.effect(1) })
        .await;
    first.unwrap();
    let second = call_on(&SECOND, &world.engine, Key::of(&1))
        .ttl(DAY)
        .run(|| async { world.effect(1) })
        .await;
    let error = second.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    for part in ["src/a.rs:1", "src/b.rs:2", "name = "] {
        assert!(error.to_string().contains(part), "{error}");
    }
    assert_eq!(world.ledger.count(), 1);
}

#[tokio::test]
async fn a_local_set_runs_bodies_that_are_not_send() {
    let engine = Idempotency::new(MemoryStore::new());
    let shared = std::rc::Rc::new(7_u32);
    let call = async move {
        engine
            .call(OPERATION, 1)
            .ttl(DAY)
            .run(async || {
                tokio::task::yield_now().await;
                Ok::<_, Error>(*shared)
            })
            .await
    };
    assert_eq!(
        tokio::task::LocalSet::new()
            .run_until(async { tokio::task::spawn_local(call).await.unwrap() })
            .await
            .unwrap(),
        7
    );
}

#[tokio::test]
async fn a_call_that_is_refused_before_it_has_a_record_is_observed_too() {
    let world = World::new();
    let refused =
        || world.engine.call("orders.pay", None::<u8>).ttl(DAY).run(|| async { Ok::<_, Error>(1) });
    let (result, alone) = with_report(refused()).await;
    assert_eq!(result.unwrap_err().kind(), ErrorKind::MissingKey);
    let several = async {
        world.charge(1).await.unwrap();
        refused().await
    };
    let (_, last) = with_report(several).await;
    for report in [alone.unwrap(), last.unwrap()] {
        assert_eq!((&*report.operation, report.attempt), ("orders.pay", 0));
        assert_eq!(report.key.as_bytes(), &[0; 32], "it has no record");
        assert!(!report.replayed && !report.joined && !report.waited && !report.bypassed);
    }
}

#[tokio::test]
async fn an_engine_and_a_report_may_surround_each_other_in_any_order() {
    let world = World::new();
    let call = || world.charge(1);
    let (_, outside) = with_report(call().with_engine(&world.engine)).await;
    let (_, inside) = with_report(call()).with_engine(&world.engine).await;
    assert!(!outside.unwrap().replayed && inside.unwrap().replayed);
}
