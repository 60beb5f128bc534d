//! Processes whose clocks are ten minutes off, in both directions, on servers that decide time themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use idempotency::clock::{Clock, Sleep, SystemClock, Timestamp};
use idempotency::store::{Claim, Claimed, CrashPolicy, DynStore, Store, Token};
use idempotency::{Error, ErrorKind, Idempotency, OnConflict, OnCrash, State, observe};
use idempotency_test_support::deadline::eventually_async;

const TEN_MINUTES: Duration = Duration::from_secs(600);
const LEASE: Duration = Duration::from_millis(600);
const OPERATION: &str = "payments.charge";
const DAY: Duration = Duration::from_secs(86_400);

/// The machine's clock, set wrong.
#[derive(Clone, Copy, Debug)]
enum Skewed {
    Ahead(SystemClock),
    Behind(SystemClock),
}

impl Skewed {
    fn true_clock(&self) -> &SystemClock {
        match self {
            Self::Ahead(clock) | Self::Behind(clock) => clock,
        }
    }
}

impl Clock for Skewed {
    fn now(&self) -> Timestamp {
        let now = self.true_clock().now();
        match self {
            Self::Ahead(_) => now + TEN_MINUTES,
            Self::Behind(_) => Timestamp::from_millis(now.as_millis() - 600_000),
        }
    }

    fn monotonic(&self) -> Duration {
        self.true_clock().monotonic()
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        self.true_clock().sleep(duration)
    }
}

/// Two processes on one server, the first with a clock that is ahead of the second's by twenty minutes.
struct World {
    stores: [Arc<dyn DynStore>; 2],
    effects: AtomicU32,
}

impl World {
    fn engine(&self, process: usize) -> Idempotency {
        let clock = [Skewed::Ahead(SystemClock::new()), Skewed::Behind(SystemClock::new())][process];
        Idempotency::builder(self.stores[process].clone())
            .clock(clock)
            .lease(LEASE)
            .purge_interval(Duration::from_millis(20))
            .on_conflict(OnConflict::Wait(Duration::from_secs(20)))
            .build()
    }

    fn effect(&self) -> u32 {
        self.effects.fetch_add(1, Ordering::SeqCst) + 1
    }

    fn effects(&self) -> u32 {
        self.effects.load(Ordering::SeqCst)
    }
}

/// The other process waits for as long as the body runs, three leases, and gets its result.
async fn a_running_call_is_not_taken_over(world: &World) -> Result<(), Error> {
    for (owner, other) in [(0, 1), (1, 0)] {
        let (owner, other) = (world.engine(owner), world.engine(other));
        let key = world.effects();
        let (start, started) = tokio::sync::oneshot::channel();
        let running = owner.call(OPERATION, key).ttl(DAY).on_crash(OnCrash::Retry).run(|| async {
            let _ = start.send(());
            tokio::time::sleep(LEASE * 3).await;
            Ok::<_, Error>(world.effect())
        });
        let waiting = async {
            started.await.expect("the body starts");
            let call = other.call(OPERATION, key).ttl(DAY).on_crash(OnCrash::Retry);
            call.run(|| async { Ok::<_, Error>(world.effect()) }).await
        };
        let (ran, waited) = tokio::join!(running, waiting);
        assert_eq!((ran?, waited?, world.effects()), (key + 1, key + 1, key + 1));
        assert_eq!(owner.duplicates() + other.duplicates(), 0);
    }
    Ok(())
}

/// An owner that does not renew is believed dead after its lease: not at once, and not ten minutes later.
async fn a_dead_owner_blocks_its_key_for_its_lease(world: &World) -> Result<(), Error> {
    for (owner, other) in [(0, 1), (1, 0)] {
        let key = format!("dead owner {owner}");
        let other = world.engine(other);
        let hash = other.record(OPERATION, key.as_str()).hash()?;
        let mut claim = Claim::new(hash, Token::from_bits(7), OPERATION.into());
        (claim.lease, claim.policy) = (LEASE, CrashPolicy::Retry);
        let claimed = Instant::now();
        let claimed_first = Store::claim(&world.stores[owner], claim).await?;
        assert!(matches!(claimed_first, Claimed::Mine(_)));

        let call = || other.call(OPERATION, key.as_str()).ttl(DAY).on_crash(OnCrash::Retry);
        let refused = call().on_conflict(OnConflict::Reject).run(|| async { Ok::<_, Error>(0) }).await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InProgress, "its lease runs");
        assert_eq!(call().run(|| async { Ok::<_, Error>(7) }).await?, 7);
        let blocked = claimed.elapsed();
        assert!(blocked + Duration::from_millis(50) > LEASE, "taken over after {blocked:?}");
    }
    Ok(())
}

/// A result is kept for its `ttl`, whoever asks and whoever purges.
async fn a_result_is_kept_for_its_ttl(world: &World) -> Result<(), Error> {
    let ttl = Duration::from_secs(2);
    for (owner, other) in [(0, 1), (1, 0)] {
        let key = format!("kept {owner}");
        let call = |engine: &Idempotency| engine.call(OPERATION, key.as_str()).ttl(ttl).lease(LEASE);
        let (owner, other) = (world.engine(owner), world.engine(other));
        let before = world.effects();
        call(&owner).run(|| async { Ok::<_, Error>(world.effect()) }).await?;
        for engine in [&owner, &other] {
            let (replayed, report) = observe(call(engine).run(|| async { Ok::<_, Error>(world.effect()) })).await;
            assert_eq!((replayed?, report.expect("a report").replayed), (before + 1, true));
        }
        let gone = eventually_async("the result to expire", async || {
            let record = other.record(OPERATION, key.as_str()).inspect().await;
            matches!(record, Ok(None))
        });
        gone.await.expect("the result expires");
        call(&other).run(|| async { Ok::<_, Error>(world.effect()) }).await?;
        assert_eq!(world.effects(), before + 2);
    }
    Ok(())
}

/// The figures that people see are the server's.
async fn a_record_has_the_servers_times(world: &World) -> Result<(), Error> {
    let now = SystemClock::new().now();
    for process in [0, 1] {
        let engine = world.engine(process);
        engine.call(OPERATION, ("times", process as u64)).ttl(DAY).run(|| async { Ok::<_, Error>(1) }).await?;
        let hash = engine.record(OPERATION, ("times", process as u64)).hash()?;
        let record = world.stores[1 - process].clone();
        let record = Store::read(&record, hash).await?.expect("there is a record");
        let off = record.created.as_millis().abs_diff(now.as_millis());
        assert!(off < 60_000, "{off} ms off");
        assert_eq!(record.state, State::Completed);
        let kept = record.expires.saturating_duration_since(record.created);
        assert!(kept + Duration::from_secs(1) > DAY && kept < DAY + Duration::from_secs(60), "{kept:?}");
    }
    Ok(())
}

async fn everything(stores: [Arc<dyn DynStore>; 2]) -> anyhow::Result<()> {
    let world = World { stores, effects: AtomicU32::new(0) };
    a_running_call_is_not_taken_over(&world).await?;
    a_dead_owner_blocks_its_key_for_its_lease(&world).await?;
    a_result_is_kept_for_its_ttl(&world).await?;
    a_record_has_the_servers_times(&world).await?;
    Ok(())
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_clocks_that_are_off_change_nothing() -> anyhow::Result<()> {
    use idempotency::store::PostgresStore;
    use idempotency_test_support::server::{PostgresOptions, PostgresServer};

    let server = PostgresServer::start(PostgresOptions::new()).await?;
    let url = server.database("skew").await?;
    let stores = [PostgresStore::connect(&url).await?, PostgresStore::connect(&url).await?];
    stores[0].migrate().await?;
    everything(stores.map(|store| Arc::new(store) as Arc<dyn DynStore>)).await
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_clocks_that_are_off_change_nothing() -> anyhow::Result<()> {
    use idempotency::store::MySqlStore;
    use idempotency_test_support::server::{MariaDbOptions, MariaDbServer};

    let server = MariaDbServer::start(MariaDbOptions::new()).await?;
    let url = server.database("skew").await?;
    let stores = [MySqlStore::connect(&url).await?, MySqlStore::connect(&url).await?];
    stores[0].migrate().await?;
    everything(stores.map(|store| Arc::new(store) as Arc<dyn DynStore>)).await
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn on_redis_clocks_that_are_off_change_nothing() -> anyhow::Result<()> {
    use idempotency::store::RedisStore;
    use idempotency_test_support::server::{RedisOptions, RedisServer};

    let server = RedisServer::start(RedisOptions::new().private()).await?;
    let stores = [RedisStore::connect(&server.url()).await?, RedisStore::connect(&server.url()).await?];
    everything(stores.map(|store| Arc::new(store) as Arc<dyn DynStore>)).await
}
