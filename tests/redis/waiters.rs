//! Callers that wait for another process: woken by pushes, however the connection fares.

use std::sync::Arc;
use std::time::{Duration, Instant};

use idempotency::clock::{Clock, Sleep, SystemClock, Timestamp};
use idempotency::store::{Claim, CrashPolicy, Store as _, Token};
use idempotency::{Error, ErrorKind, Idempotency, OnConflict, OnCrash};
use idempotency_test_support::deadline::{eventually_async, within};
use idempotency_test_support::proxy::{Action, Fault, Moment};
use idempotency_test_support::server::RedisOptions;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::world::{DAY, LONG_LEASE, OPERATION, World, engine_on, impatient, patient};

/// The engine looks by itself this often.
const SAFETY_POLL: Duration = Duration::from_secs(2);

/// A clock on which the time never comes to look by itself: a waiter that looks again was woken.
#[derive(Debug)]
struct OnlyPushed(SystemClock);

impl Clock for OnlyPushed {
    fn now(&self) -> Timestamp {
        self.0.now()
    }

    fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        if duration < SAFETY_POLL {
            self.0.sleep(duration)
        } else {
            Box::pin(std::future::pending())
        }
    }
}

async fn world() -> anyhow::Result<World> {
    World::with(RedisOptions::new().private(), |builder| {
        builder.clock(OnlyPushed(SystemClock::new()))
    })
    .await
}

/// A caller of `engine` that waits in the background.
fn waiter(engine: &Idempotency, key: u64) -> JoinHandle<Result<String, Error>> {
    let call = engine.call(OPERATION, key).ttl(DAY).on_crash(OnCrash::Retry);
    let call = call.on_conflict(OnConflict::Wait(Duration::from_secs(60)));
    tokio::spawn(call.run(|| async { Ok::<_, Error>("not waited".to_owned()) }))
}

/// An owner elsewhere, whose body ends when it is told to.
struct Owner {
    finish: oneshot::Sender<()>,
    task: JoinHandle<Result<String, Error>>,
}

impl Owner {
    async fn start(engine: Idempotency, key: u64) -> anyhow::Result<Self> {
        let (start, started) = oneshot::channel();
        let (finish, finished) = oneshot::channel();
        let task = tokio::spawn(async move {
            let call = engine.call(OPERATION, key).ttl(DAY).run(|| async {
                let _ = start.send(());
                let _ = finished.await;
                Ok::<_, Error>("receipt".to_owned())
            });
            call.await
        });
        started.await?;
        Ok(Self { finish, task })
    }

    async fn end(self) -> anyhow::Result<()> {
        let _ = self.finish.send(());
        assert_eq!(self.task.await??, "receipt");
        Ok(())
    }
}

async fn tracked_keys(world: &World) -> Option<usize> {
    let stats = world.server.command(&["INFO", "stats"]).await.ok()?;
    stats.lines().find_map(|line| line.strip_prefix("tracking_total_keys:"))?.trim().parse().ok()
}

async fn until_tracked(world: &World, keys: usize) -> anyhow::Result<()> {
    eventually_async("the server to track the keys", async || {
        tracked_keys(world).await == Some(keys)
    })
    .await
}

/// An owner and a waiter that is registered at the server.
async fn waiting(world: &World) -> anyhow::Result<(Owner, JoinHandle<Result<String, Error>>)> {
    let owner = Owner::start(world.elsewhere(), 1).await?;
    let waiter = waiter(&world.engine, 1);
    until_tracked(world, 1).await?;
    Ok((owner, waiter))
}

#[tokio::test]
async fn a_commit_wakes_a_waiter_that_does_not_look_by_itself() -> anyhow::Result<()> {
    let world = world().await?;
    for key in 1..=5 {
        let owner = Owner::start(world.elsewhere(), key).await?;
        let waiter = waiter(&world.engine, key);
        // The last look at each key before it, which found the result, is tracked still.
        until_tracked(&world, usize::try_from(key)?).await?;
        owner.end().await?;
        assert_eq!(within("the waiter", waiter).await???, "receipt");
    }
    Ok(())
}

#[tokio::test]
async fn a_waiter_whose_connection_is_killed_registers_anew_and_is_woken() -> anyhow::Result<()> {
    let world = world().await?;
    let (owner, waiter) = waiting(&world).await?;
    let looks = world.proxy.requests_of("GET");
    world.server.command(&["CLIENT", "KILL", "TYPE", "normal"]).await?;
    // The server forgets what it tracked for a connection only when the key changes, so that
    // counting says nothing.
    eventually_async("another look", async || world.proxy.requests_of("GET") > looks).await?;
    owner.end().await?;
    assert_eq!(within("the waiter", waiter).await???, "receipt");
    Ok(())
}

/// At the store: a caller may be killed between the two commands of its look, and looks again
/// anyway.
#[tokio::test]
async fn a_watch_resolves_when_its_connection_is_lost_and_not_before() -> anyhow::Result<()> {
    let world = World::new().await?;
    let store = impatient(&world.proxy.url(&world.server.url())).connect().await?;
    let owner = Owner::start(world.elsewhere(), 1).await?;
    let hash = world.engine.record(OPERATION, 1).hash()?;
    let mut watch = Box::pin(store.watch(hash).await?);
    assert!(futures::poll!(&mut watch).is_pending(), "nothing has changed");
    world.server.command(&["CLIENT", "KILL", "TYPE", "normal"]).await?;
    within("the watch", watch).await?;
    owner.end().await
}

/// Longer than a connection may be silent.
const SILENT: Duration = Duration::from_millis(1_500);

/// A connection that is replaced pushes nothing more: those that wait look again, and register on
/// the next one.
#[tokio::test]
async fn a_watch_resolves_when_its_connection_is_given_up_for_silence() -> anyhow::Result<()> {
    for is_dropped in [false, true] {
        let world = World::new().await?;
        let store = patient(&world.proxy.url(&world.server.url())).connect().await?;
        let hash = |key: u64| world.engine.record(OPERATION, key).hash();
        let mut watch = Box::pin(store.watch(hash(1)?).await?);
        assert!(futures::poll!(&mut watch).is_pending(), "nothing has changed");
        let silence = Fault::new(Moment::BeforeRequest, Action::Silence);
        let silence = world.proxy.next("GET", silence);
        let mut unanswered = Box::pin(store.watch(hash(2)?));
        assert!(futures::poll!(&mut unanswered).is_pending());
        let mut unanswered = Some(unanswered);
        silence.happened().await?;
        if is_dropped {
            unanswered = None;
        }
        tokio::time::sleep(SILENT).await;
        within("the next watch", store.watch(hash(3)?)).await??;
        within("the watch on the connection before", watch).await?;
        drop(unanswered);
    }
    Ok(())
}

/// As when a caller that waits is dropped: its answer arrives, and nobody is there to note it.
#[tokio::test]
async fn a_request_that_is_dropped_leaves_its_connection_in_use() -> anyhow::Result<()> {
    let world = World::new().await?;
    let store = patient(&world.proxy.url(&world.server.url())).connect().await?;
    let hash = |key: u64| world.engine.record(OPERATION, key).hash();
    let owner = Owner::start(world.elsewhere(), 1).await?;
    let mut watch = Box::pin(store.watch(hash(1)?).await?);
    let connections = world.proxy.requests_of("HELLO");
    let mut dropped = Box::pin(store.watch(hash(2)?));
    assert!(futures::poll!(&mut dropped).is_pending());
    drop(dropped);
    let mut dropped = Box::pin(store.read(hash(2)?));
    assert!(futures::poll!(&mut dropped).is_pending());
    drop(dropped);
    tokio::time::sleep(SILENT).await;
    store.watch(hash(3)?).await?;
    store.read(hash(3)?).await?;
    assert_eq!(world.proxy.requests_of("HELLO"), connections, "both connections were fine");
    assert!(futures::poll!(&mut watch).is_pending(), "nothing has changed");
    owner.end().await?;
    within("the push", watch).await?;
    Ok(())
}

#[tokio::test]
async fn a_commit_while_the_connection_is_down_is_found_when_it_is_back() -> anyhow::Result<()> {
    let world = world().await?;
    let (owner, waiter) = waiting(&world).await?;
    world.proxy.refuse().await?;
    world.proxy.close_all();
    owner.end().await?;
    world.proxy.accept().await?;
    assert_eq!(within("the waiter", waiter).await???, "receipt");
    Ok(())
}

#[tokio::test]
async fn flushing_the_server_wakes_a_waiter_which_finds_the_key_free() -> anyhow::Result<()> {
    let world = world().await?;
    let (owner, waiter) = waiting(&world).await?;
    world.server.command(&["FLUSHALL"]).await?;
    assert_eq!(within("the waiter", waiter).await???, "not waited");
    owner.task.abort();
    Ok(())
}

/// Nobody tells the waiter: the owner is gone without a word.
#[tokio::test]
async fn a_waiter_takes_over_when_the_lease_ends_and_not_before() -> anyhow::Result<()> {
    // Short enough that the waiter sleeps until its end, and not until it would look by itself.
    const LEASE: Duration = Duration::from_millis(900);
    let world = world().await?;
    let mut claim = Claim::new(
        world.engine.record(OPERATION, 1).hash()?,
        Token::from_bits(7),
        OPERATION.into(),
    );
    (claim.lease, claim.linger, claim.policy) = (LEASE, DAY, CrashPolicy::Retry);
    let before = Instant::now();
    world.direct.claim(claim).await?;
    let waiter = waiter(&world.engine, 1);
    assert_eq!(within("the waiter", waiter).await???, "not waited");
    let blocked = before.elapsed();
    assert!(blocked >= LEASE, "the lease was not over after {blocked:?}");
    Ok(())
}

#[tokio::test]
async fn a_waiter_that_runs_out_of_time_is_told_that_the_call_is_in_progress() -> anyhow::Result<()>
{
    let world = World::new().await?;
    let owner = Owner::start(world.elsewhere(), 1).await?;
    let call = world.call(1).on_conflict(OnConflict::Wait(Duration::from_millis(100)));
    let error = call.run(|| async { Ok::<_, Error>("not waited".to_owned()) }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InProgress);
    assert!(
        error.retry_after().is_some_and(|left| left <= LONG_LEASE),
        "{:?}",
        error.retry_after()
    );
    owner.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_waiters_are_woken_by_one_commit_each_with_five_commands_each()
-> anyhow::Result<()> {
    const WAITERS: u64 = 5_000;
    let world = World::new().await?;
    let store = patient(&world.proxy.url(&world.server.url())).connect().await?;
    let waiting = engine_on(store).clock(OnlyPushed(SystemClock::new())).build()?;
    world.charge_on(&waiting, u64::MAX).await?;
    let elsewhere = world.elsewhere();
    let (finish, finished) = watch::channel(false);
    let (started, effects) = (Arc::new(tokio::sync::Semaphore::new(0)), world.effects.clone());
    let owners: Vec<_> = (0..WAITERS)
        .map(|key| {
            let (engine, mut finished) = (elsewhere.clone(), finished.clone());
            let (started, effects) = (started.clone(), effects.clone());
            tokio::spawn(async move {
                let call = engine.call(OPERATION, key).ttl(DAY).run(|| async {
                    started.add_permits(1);
                    let _ = finished.wait_for(|finished| *finished).await;
                    effects.append(&format!("{key} charged")).expect("the log takes a line");
                    Ok::<_, Error>(format!("receipt {key}"))
                });
                call.await
            })
        })
        .collect();
    let all = u32::try_from(WAITERS)?;
    within("all owners to start", started.acquire_many(all)).await??.forget();

    // Loads the script, which all of them would at once.
    let early = waiting.call(OPERATION, 0_u64).ttl(DAY).on_conflict(OnConflict::Reject);
    let early = early.run(|| async { Ok::<_, Error>("not refused".to_owned()) }).await;
    assert_eq!(early.unwrap_err().kind(), ErrorKind::InProgress);
    let before = world.proxy.requests();
    let waiters: Vec<_> = (0..WAITERS).map(|key| waiter(&waiting, key)).collect();
    until_tracked(&world, usize::try_from(WAITERS)?).await?;
    finish.send(true)?;
    for (key, waiter) in waiters.into_iter().enumerate() {
        assert_eq!(within("the waiter", waiter).await???, format!("receipt {key}"));
    }
    let commands = world.proxy.requests() - before;
    for owner in owners {
        owner.await??;
    }
    let counts = world.effects.count_by_key()?;
    assert_eq!((counts.len(), counts.values().sum::<usize>()), (5_001, 5_001));
    // Connecting takes a few more.
    let allowed = 5 * usize::try_from(WAITERS)? + 20;
    assert!(commands <= allowed, "{commands} commands: {:?}", world.proxy.requests_by_command());
    Ok(())
}
