//! Bounds, and bad input to them.

use std::time::Duration;

use idempotency::store::{MemoryStore, Operation};
use idempotency::{Builder, Call, Context, Error, ErrorKind, Idempotency, OnConflict};

use proptest::prelude::*;

use crate::faults::Gate;
use crate::world::{DAY, LEASE, OPERATION, World, poll_once};

const MILLI: Duration = Duration::from_millis(1);
/// The longest time that can be set.
const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);
/// What is no time: nothing, all there is, and what lies just outside of the bounds.
const NO_TIMES: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_nanos(999_999),
    Duration::from_secs(100 * 365 * 86_400 + 1),
    Duration::MAX,
];

async fn refusal(world: &World, call: Call) -> Error {
    let error = call.run(|| async { world.effect(1) }).await.unwrap_err();
    assert_eq!(world.ledger.count(), 0, "{error}");
    assert_eq!(world.store.requests(Operation::Claim), 0, "{error}");
    assert_eq!(error.operation(), Some(OPERATION));
    error
}

#[tokio::test]
async fn a_ttl_is_required_and_bounded() {
    let world = World::new();
    let call = || world.engine.call(OPERATION, 1);
    for call in [
        call(),
        call().ttl(Duration::ZERO),
        call().ttl(DAY * 401),
        call().ttl(DAY).lease(Duration::ZERO),
    ] {
        assert_eq!(refusal(&world, call).await.kind(), ErrorKind::Config);
    }
    let error = refusal(&world, call().ttl(DAY).lease(DAY * 2)).await;
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("shorter than `lease`"), "{error}");
    // The engine's lease, of which the call says nothing, may be longer.
    let short = world.engine.call(OPERATION, 2).ttl(LEASE / 2).run(|| async { world.effect(2) });
    assert_eq!(short.await.unwrap(), "receipt 2.1");
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
async fn a_namespace_of_another_form_is_refused_when_the_engine_is_built() {
    let builders = [
        Idempotency::builder(MemoryStore::new()).namespace(""),
        Idempotency::builder(MemoryStore::new()).namespace("Shop"),
        Idempotency::builder(MemoryStore::new()).namespace("a".repeat(65)),
    ];
    for builder in builders {
        let error = builder.build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("namespace"), "{error}");
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

type SetTime = fn(Builder, Duration) -> Builder;

const TIMES: [(&str, SetTime); 9] = [
    ("lease", Builder::lease),
    ("claim_timeout", Builder::claim_timeout),
    ("commit_timeout", Builder::commit_timeout),
    ("background_commit", Builder::background_commit),
    ("max_run", Builder::max_run),
    ("max_ttl", Builder::max_ttl),
    ("in_doubt_retention", Builder::in_doubt_retention),
    ("purge_interval", Builder::purge_interval),
    ("on_conflict", |builder, time| builder.on_conflict(OnConflict::Wait(time))),
];

fn is_refused(builder: Builder, name: &str) {
    let error = builder.build().expect_err(name);
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains(&format!("`{name}` is ")), "{name}: {error}");
}

#[test]
fn a_setting_out_of_its_bounds_is_named_when_the_engine_is_built() {
    let builder = || Idempotency::builder(MemoryStore::new());
    for (name, set) in TIMES {
        for time in
            NO_TIMES.into_iter().filter(|time| name != "background_commit" || !time.is_zero())
        {
            is_refused(set(builder(), time), name);
        }
        for time in [MILLI, CENTURY] {
            set(builder(), time).build().expect(name);
        }
    }
    #[cfg(feature = "near-cache")]
    {
        is_refused(builder().near_cache(0), "near_cache");
        for time in NO_TIMES {
            is_refused(builder().near_cache_ttl(time), "near_cache_ttl");
        }
        builder().near_cache(u64::MAX).near_cache_ttl(CENTURY).build().unwrap();
    }
    for size in [0, usize::MAX] {
        is_refused(builder().max_key_size(size), "max_key_size");
        is_refused(builder().max_result_size(size), "max_result_size");
        is_refused(builder().purge_batch(size), "purge_batch");
    }
    is_refused(builder().max_result_size(8 * 1024 * 1024 + 1), "max_result_size");
}

#[tokio::test]
async fn a_time_of_a_call_out_of_its_bounds_is_named() {
    let world = World::new();
    for time in NO_TIMES {
        let named = [
            ("ttl", world.engine.call(OPERATION, 1).ttl(time)),
            ("lease", world.call(1).lease(time)),
            ("after_expiry", world.call(1).after_expiry(time)),
            ("on_conflict", world.call(1).on_conflict(OnConflict::Wait(time))),
            // It may be none at all.
            ("settle", world.call(1).settle(time.max(Duration::from_nanos(1)))),
        ];
        for (name, call) in named {
            let error = refusal(&world, call).await;
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains(&format!("`{name}` is ")), "{name}: {error}");
        }
    }
}

#[cfg(all(feature = "redis", feature = "postgres", feature = "mysql", feature = "sqlite"))]
#[tokio::test]
async fn a_time_limit_of_a_store_out_of_its_bounds_is_named() {
    use idempotency::store::{
        MySqlStore, PostgresStore, RedisStore, SqliteStore, StoreError, StoreErrorKind,
    };
    let is_named = |error: StoreError, name: &str| {
        assert_eq!(error.kind(), StoreErrorKind::Config);
        assert!(error.to_string().contains(&format!("`{name}` is ")), "{name}: {error}");
    };
    let directory = tempfile::tempdir().unwrap();
    for time in NO_TIMES {
        let name = "response_timeout";
        is_named(
            RedisStore::builder("redis://localhost/").connect_timeout(time).build().unwrap_err(),
            "connect_timeout",
        );
        is_named(
            RedisStore::builder("redis://localhost/").response_timeout(time).build().unwrap_err(),
            name,
        );
        is_named(
            PostgresStore::builder("postgres://localhost/db")
                .response_timeout(time)
                .build()
                .unwrap_err(),
            name,
        );
        is_named(
            MySqlStore::builder("mysql://localhost/db").response_timeout(time).build().unwrap_err(),
            name,
        );
        let file = SqliteStore::builder(directory.path().join("calls.db"));
        is_named(file.response_timeout(time).open().await.unwrap_err(), name);
    }
    for time in [MILLI, DAY] {
        RedisStore::builder("redis://localhost/")
            .connect_timeout(time)
            .response_timeout(time)
            .build()
            .unwrap();
        PostgresStore::builder("postgres://localhost/db").response_timeout(time).build().unwrap();
    }
    for time in [MILLI * 1_500, DAY] {
        MySqlStore::builder("mysql://localhost/db").response_timeout(time).build().unwrap();
    }
}

/// Times of every size, and those at the edges.
fn times() -> impl Strategy<Value = Duration> {
    let edges = [Duration::ZERO, Duration::from_nanos(1), MILLI, DAY, CENTURY, Duration::MAX];
    prop_oneof![
        prop::sample::select(edges.to_vec()),
        (0_u32..64, any::<u32>())
            .prop_map(|(size, nanos)| Duration::new((1 << size) - 1, nanos % 1_000_000_000)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn whatever_times_are_set_a_call_is_refused_or_made_once(
        (settings, ttl, lease, after, wait) in
            (prop::collection::vec(prop::option::weighted(0.3, times()), TIMES.len()), times(), times(), times(), times()),
        is_plain in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let set = |builder, (setting, time): (&(&str, SetTime), &Option<Duration>)| match time {
                Some(time) => setting.1(builder, *time),
                None => builder,
            };
            let world = World::try_with(|builder| TIMES.iter().zip(&settings).fold(builder, set));
            let world = match world {
                Ok(world) => world,
                Err(error) => return assert_eq!(error.kind(), ErrorKind::Config, "{error}"),
            };
            let charge = async || {
                let call = world.engine.call(OPERATION, 1).ttl(ttl);
                let call = if is_plain { call } else { call.lease(lease).after_expiry(after).on_conflict(OnConflict::Wait(wait)) };
                call.run(|| async { world.effect(1) }).await
            };
            match charge().await {
                Ok(receipt) => {
                    assert_eq!(charge().await.unwrap(), receipt);
                    assert_eq!(world.ledger.count(), 1);
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
                    assert_eq!(world.ledger.count(), 0);
                }
            }
        });
    }
}

#[tokio::test]
async fn the_longest_times_mean_forever() {
    let forever = CENTURY;
    let configure = |builder: Builder| {
        let builder =
            builder.lease(forever).max_run(forever).claim_timeout(forever).commit_timeout(forever);
        builder
            .background_commit(forever)
            .in_doubt_retention(forever)
            .on_conflict(OnConflict::Wait(forever))
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
    assert_eq!(
        (follower.unwrap(), waiter.unwrap()),
        ("receipt 1.1".to_owned(), "receipt 1.1".to_owned())
    );
    assert_eq!(world.engine.shutdown(Duration::MAX).await.abandoned, 0);
}
