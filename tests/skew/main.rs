//! Processes whose clocks are ten minutes off, in both directions, on servers that decide time
//! themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures::future::try_join_all;

use idempotency::clock::{Clock, Sleep, SystemClock, Timestamp};
use idempotency::record::State;
use idempotency::store::{Claim, ClaimOutcome, CrashPolicy, DynStore, Record, Store, Token};
use idempotency::{Error, ErrorKind, Idempotency, OnConflict, OnCrash, with_report};
use idempotency_test_support::deadline::{eventually_async, within};

const TEN_MINUTES: Duration = Duration::from_secs(600);
/// So long that neither a claim nor a renewal that is late on a busy machine is too late.
const LEASE: Duration = Duration::from_secs(9);
/// How long a store or a claim waits for an answer: longer than a busy machine keeps a process
/// waiting.
const PATIENCE: Duration = Duration::from_secs(20);
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

/// Two processes on one server, the first with a clock that is ahead of the second's by twenty
/// minutes.
struct World {
    stores: [Arc<dyn DynStore>; 2],
    /// A store that no engine uses: one that ends takes connections of its store along.
    direct: Arc<dyn DynStore>,
}

/// How often a body ran.
#[derive(Default)]
struct Effects(AtomicU32);

impl Effects {
    fn add(&self) -> u32 {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }

    fn count(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}

/// Each of the two processes is the owner, and the other the one that comes later.
const ORDERS: [(usize, usize); 2] = [(0, 1), (1, 0)];

impl World {
    fn engine(&self, process: usize) -> Idempotency {
        let clock =
            [Skewed::Ahead(SystemClock::new()), Skewed::Behind(SystemClock::new())][process];
        Idempotency::builder(self.stores[process].clone())
            .clock(clock)
            .lease(LEASE)
            .claim_timeout(PATIENCE)
            .purge_interval(Duration::from_millis(20))
            .on_conflict(OnConflict::Wait(Duration::from_secs(60)))
            .build()
            .unwrap()
    }

    async fn record(&self, engine: &Idempotency, key: &str) -> Record {
        let hash = engine.record(OPERATION, key).hash().expect("the key is fine");
        Store::read(&self.direct, hash)
            .await
            .expect("the server answers")
            .expect("there is a record")
    }
}

/// The other process waits for as long as the body runs, longer than its first lease, and gets its
/// result.
async fn a_running_call_is_not_taken_over(world: &World) -> anyhow::Result<()> {
    let rounds = ORDERS.map(async |(owner, other)| {
        let key = &*format!("running owner {owner}");
        let (owner, other, effects) =
            (world.engine(owner), world.engine(other), Effects::default());
        let (start, started) = tokio::sync::oneshot::channel();
        let running = owner.call(OPERATION, key).ttl(DAY).on_crash(OnCrash::Retry).run(|| async {
            let first = world.record(&owner, key).await.lease_until;
            let _ = start.send(());
            let is_over = async || world.record(&owner, key).await.read_at > first;
            eventually_async("the first lease to end", is_over)
                .await
                .expect("the server's clock goes on");
            Ok::<_, Error>(effects.add())
        });
        let waiting = async {
            started.await.expect("the body starts");
            let call = other.call(OPERATION, key).ttl(DAY).on_crash(OnCrash::Retry);
            call.run(|| async { Ok::<_, Error>(effects.add()) }).await
        };
        let (ran, waited) = tokio::join!(running, waiting);
        assert_eq!((ran?, waited?, effects.count()), (1, 1, 1));
        assert_eq!(owner.duplicates() + other.duplicates(), 0);
        anyhow::Ok(())
    });
    try_join_all(rounds).await?;
    Ok(())
}

/// An owner that does not renew is believed dead after its lease: not at once, and not ten minutes
/// later.
async fn a_dead_owner_blocks_its_key_for_its_lease(world: &World) -> anyhow::Result<()> {
    let rounds = ORDERS.map(async |(owner, other)| {
        let key = format!("dead owner {owner}");
        let other = world.engine(other);
        let hash = other.record(OPERATION, key.as_str()).hash()?;
        let mut claim = Claim::new(hash, Token::from_bits(7), OPERATION.into());
        (claim.lease, claim.policy) = (LEASE, CrashPolicy::Retry);
        let claimed = Instant::now();
        let claimed_first = Store::claim(&world.direct, claim).await?;
        assert!(matches!(claimed_first, ClaimOutcome::Granted(_)));

        let call = || other.call(OPERATION, key.as_str()).ttl(DAY).on_crash(OnCrash::Retry);
        let refused =
            call().on_conflict(OnConflict::Reject).run(|| async { Ok::<_, Error>(0) }).await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InProgress, "its lease runs");
        let taken_over = within("the takeover", call().run(|| async { Ok::<_, Error>(7) })).await?;
        assert_eq!(taken_over?, 7);
        let blocked = claimed.elapsed();
        assert!(blocked + Duration::from_millis(50) > LEASE, "taken over after {blocked:?}");
        anyhow::Ok(())
    });
    try_join_all(rounds).await?;
    Ok(())
}

/// A result is kept for its `ttl`, whoever asks and whoever purges.
async fn a_result_is_kept_for_its_ttl(world: &World) -> anyhow::Result<()> {
    let ttl = Duration::from_secs(8);
    let rounds = ORDERS.map(async |(owner, other)| {
        let key = format!("kept {owner}");
        let call =
            |engine: &Idempotency| engine.call(OPERATION, key.as_str()).ttl(ttl).lease(ttl / 2);
        let (owner, other, effects) =
            (world.engine(owner), world.engine(other), Effects::default());
        call(&owner).run(|| async { Ok::<_, Error>(effects.add()) }).await?;
        for engine in [&owner, &other] {
            let (replayed, report) =
                with_report(call(engine).run(|| async { Ok::<_, Error>(effects.add()) })).await;
            assert_eq!((replayed?, report.expect("a report").replayed), (1, true));
        }
        let gone = eventually_async("the result to expire", async || {
            let record = other.record(OPERATION, key.as_str()).inspect().await;
            matches!(record, Ok(None))
        });
        gone.await.expect("the result expires");
        call(&other).run(|| async { Ok::<_, Error>(effects.add()) }).await?;
        assert_eq!(effects.count(), 2);
        anyhow::Ok(())
    });
    try_join_all(rounds).await?;
    Ok(())
}

/// The figures that people see are the server's.
async fn a_record_has_the_servers_times(world: &World) -> anyhow::Result<()> {
    let now = SystemClock::new().now();
    for process in [0, 1] {
        let engine = world.engine(process);
        engine
            .call(OPERATION, ("times", process as u64))
            .ttl(DAY)
            .run(|| async { Ok::<_, Error>(1) })
            .await?;
        let hash = engine.record(OPERATION, ("times", process as u64)).hash()?;
        let record = Store::read(&world.direct, hash).await?.expect("there is a record");
        let off = record.created.as_millis().abs_diff(now.as_millis());
        assert!(off < 60_000, "{off} ms off");
        assert_eq!(record.state, State::Completed);
        let kept = record.expires.saturating_duration_since(record.created);
        assert!(
            kept + Duration::from_secs(1) > DAY && kept < DAY + Duration::from_secs(60),
            "{kept:?}"
        );
    }
    Ok(())
}

async fn everything([one, other, direct]: [Arc<dyn DynStore>; 3]) -> anyhow::Result<()> {
    let world = World { stores: [one, other], direct };
    tokio::try_join!(
        a_running_call_is_not_taken_over(&world),
        a_dead_owner_blocks_its_key_for_its_lease(&world),
        a_result_is_kept_for_its_ttl(&world),
        a_record_has_the_servers_times(&world),
    )?;
    Ok(())
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_clocks_that_are_off_change_nothing() -> anyhow::Result<()> {
    use idempotency::store::PostgresStore;
    use idempotency_test_support::server::{PostgresOptions, PostgresServer};

    let server = PostgresServer::start(PostgresOptions::new()).await?;
    let url = server.database("skew").await?;
    let store = || PostgresStore::builder(&url).response_timeout(PATIENCE).connect();
    let stores = [store().await?, store().await?, store().await?];
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
    let store = || MySqlStore::builder(&url).response_timeout(PATIENCE).connect();
    let stores = [store().await?, store().await?, store().await?];
    stores[0].migrate().await?;
    everything(stores.map(|store| Arc::new(store) as Arc<dyn DynStore>)).await
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn on_redis_clocks_that_are_off_change_nothing() -> anyhow::Result<()> {
    use idempotency::store::RedisStore;
    use idempotency_test_support::server::{RedisOptions, RedisServer};

    let server = RedisServer::start(RedisOptions::new().private()).await?;
    let store = || RedisStore::builder(server.url()).response_timeout(PATIENCE).connect();
    let stores = [store().await?, store().await?, store().await?];
    everything(stores.map(|store| Arc::new(store) as Arc<dyn DynStore>)).await
}
