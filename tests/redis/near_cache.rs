//! The near cache on Redis: hot hits send nothing, and the server tells what others remove.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use idempotency::clock::{Clock, Sleep, SystemClock, Timestamp};
use idempotency::{Builder, Call, Error, Report, with_report};
use idempotency_test_support::deadline::{eventually_async, eventually_within};
use idempotency_test_support::proxy::{Action, Fault, Moment, Request};
use idempotency_test_support::server::RedisOptions;

use crate::world::{DAY, OPERATION, World, patient};

/// So long that nothing is asked again because of it.
const HOUR: Duration = Duration::from_secs(3600);

/// An engine with a near cache that the server tells of all changes from now on.
async fn world(configure: impl FnOnce(Builder) -> Builder) -> anyhow::Result<World> {
    let options = RedisOptions::new().debug_command();
    let world =
        World::on(options, patient, |builder| configure(builder.near_cache(1_000_000))).await?;
    world.warm_up().await?;
    is_followed(&world).await?;
    // One for the connection of the commands. The other comes when nothing from before is near any
    // more.
    eventually_async("the first question", async || world.proxy.requests_of("TIME") >= 2).await?;
    Ok(world)
}

async fn charged(world: &World, key: u64) -> (String, Report) {
    let (result, report) = with_report(world.charge(key)).await;
    (result.expect("the server answers"), report.expect("the call reports"))
}

/// Makes the first call with this key, and lets the message about its commit come, which takes the
/// result away again. The one about its claim may be as late, so that the result is taken away a
/// second time.
async fn near(world: &World, key: u64) -> anyhow::Result<String> {
    let receipt = world.charge(key).await?;
    eventually_async("the message", async || !charged(world, key).await.1.near_cached).await?;
    eventually_async("the result to be near", async || charged(world, key).await.1.near_cached)
        .await?;
    Ok(receipt)
}

/// The connections to which the server tells all changes.
async fn followers(world: &World) -> anyhow::Result<Vec<String>> {
    let field = |client: &str, name: &str| {
        let value = client.split_whitespace().find_map(|field| field.strip_prefix(name));
        value.unwrap_or_default().to_owned()
    };
    let clients = world.server.command(&["CLIENT", "LIST"]).await?;
    Ok(clients
        .lines()
        .filter(|client| field(client, "flags=").contains('B'))
        .map(|client| field(client, "id="))
        .collect())
}

async fn is_followed(world: &World) -> anyhow::Result<()> {
    let one = async || followers(world).await.is_ok_and(|followers| followers.len() == 1);
    eventually_async("a connection that follows", one).await
}

#[tokio::test]
async fn a_hot_hit_sends_nothing() -> anyhow::Result<()> {
    let world = world(|builder| builder.near_cache_ttl(HOUR)).await?;
    let receipt = near(&world, 1).await?;
    let sends_nothing = async || {
        let before = world.proxy.requests();
        for _ in 0..100 {
            assert_eq!(charged(&world, 1).await.0, receipt);
        }
        world.proxy.requests() == before
    };
    eventually_async("a hundred hits that send nothing", sends_nothing).await?;
    assert_eq!(world.count(1), 1);
    Ok(())
}

/// The server would tell of an expiry, but not of one that it has not noticed.
#[tokio::test]
async fn a_result_of_another_process_is_replayed_no_longer_than_its_record_lives()
-> anyhow::Result<()> {
    let world = world(|builder| builder.near_cache_ttl(HOUR)).await?;
    world.server.command(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"]).await?;
    let elsewhere = world.elsewhere();
    let call = |call: Call| call.ttl(Duration::from_secs(6)).lease(Duration::from_secs(5));
    call(elsewhere.call(OPERATION, 1)).run(|| async { Ok::<_, Error>(world.effect(1)) }).await?;
    let replayed = async || {
        let replayed = call(world.call(1)).run(|| async { Ok::<_, Error>(world.effect(1)) });
        let (receipt, report) = with_report(replayed).await;
        (receipt.expect("the server answers"), report.expect("the call reports"))
    };
    let mut hits = 0;
    let ran_again = async || {
        let (receipt, report) = replayed().await;
        hits += usize::from(report.near_cached && receipt == "receipt 1.1");
        receipt == "receipt 1.2"
    };
    eventually_async("the record to expire", ran_again).await?;
    assert!(hits > 0, "it was near before");
    Ok(())
}

#[tokio::test]
async fn what_another_process_forgets_is_replayed_no_more() -> anyhow::Result<()> {
    let world = world(|builder| builder.near_cache_ttl(HOUR)).await?;
    near(&world, 1).await?;
    world.elsewhere().record(OPERATION, 1).forget().await?;
    eventually_async("the message", async || charged(&world, 1).await.0 == "receipt 1.2").await?;
    assert_eq!(world.count(1), 2);
    Ok(())
}

#[tokio::test]
async fn what_a_flush_removes_is_replayed_no_more() -> anyhow::Result<()> {
    let world = world(|builder| builder.near_cache_ttl(HOUR)).await?;
    near(&world, 1).await?;
    world.server.command(&["FLUSHALL"]).await?;
    eventually_async("the message", async || charged(&world, 1).await.0 == "receipt 1.2").await
}

#[tokio::test]
async fn what_others_change_leaves_the_rest_near() -> anyhow::Result<()> {
    let world = world(|builder| builder.near_cache_ttl(HOUR)).await?;
    near(&world, 1).await?;
    let mut asked = 0;
    for key in 100..150 {
        world
            .elsewhere()
            .call(OPERATION, key)
            .ttl(DAY)
            .run(|| async { Ok::<_, Error>(()) })
            .await?;
        asked += usize::from(!charged(&world, 1).await.1.near_cached);
    }
    assert!(asked <= 1, "asked {asked} times: more than the own claim explains");
    Ok(())
}

/// It stays near for longer than the limit, because the server would have told of a change.
#[tokio::test]
async fn while_the_server_tells_the_time_limit_does_not_count() -> anyhow::Result<()> {
    const LIMIT: Duration = Duration::from_secs(9);
    let world = world(|builder| builder.near_cache_ttl(LIMIT)).await?;
    near(&world, 1).await?;
    let (mut since, mut last) = (Instant::now(), Instant::now());
    let mut asked = 0;
    let stayed = async || {
        let is_near = charged(&world, 1).await.1.near_cached;
        // What the server told while the machine stood still says nothing.
        let stood_still = last.elapsed() > LIMIT / 3;
        asked += usize::from(!is_near && !stood_still);
        assert!(
            asked <= 1,
            "asked after {:?}: more often than the own claim explains",
            since.elapsed()
        );
        last = Instant::now();
        if !is_near || stood_still {
            since = last;
        }
        since.elapsed() > LIMIT + LIMIT / 3
    };
    eventually_within(Duration::from_secs(120), "the limit", stayed).await
}

/// The connection on which the server tells is cut, and none can be made anew.
#[tokio::test]
async fn without_the_connection_the_time_limit_counts() -> anyhow::Result<()> {
    let world = world(|builder| builder.near_cache_ttl(Duration::from_secs(2))).await?;
    near(&world, 1).await?;
    world.proxy.every(
        |request| request.mentions("BCAST"),
        Fault::new(Moment::BeforeRequest, Action::Close),
    );
    for follower in followers(&world).await? {
        world.server.command(&["CLIENT", "KILL", "ID", &follower]).await?;
    }
    world.elsewhere().record(OPERATION, 1).forget().await?;
    eventually_async("the time limit", async || charged(&world, 1).await.0 == "receipt 1.2")
        .await?;
    assert_eq!(followers(&world).await?.len(), 0);
    Ok(())
}

/// A server that answers is asked five times in a time limit whether it still tells.
#[tokio::test]
async fn a_server_that_tells_is_asked_a_few_times_in_a_time_limit() -> anyhow::Result<()> {
    const LIMIT: Duration = Duration::from_secs(1);
    let world = world(|builder| builder.near_cache_ttl(LIMIT)).await?;
    let (before, since) = (world.proxy.requests_of("TIME"), Instant::now());
    eventually_async("more questions", async || world.proxy.requests_of("TIME") >= before + 10)
        .await?;
    // The first may have been on its way.
    let least = (LIMIT / 5) * 8;
    assert!(since.elapsed() >= least, "ten questions within {:?}", since.elapsed());
    Ok(())
}

/// A connection that cannot be made is not tried again at once.
#[tokio::test]
async fn a_server_that_does_not_tell_is_left_in_peace_between_two_connections() -> anyhow::Result<()>
{
    const PAUSE: Duration = Duration::from_millis(500);
    let world = world(|builder| builder.near_cache_ttl(Duration::from_secs(2))).await?;
    let tries = Arc::new(AtomicUsize::new(0));
    let seen = tries.clone();
    let is_try = move |request: &Request| {
        let is_try = request.mentions("BCAST");
        seen.fetch_add(usize::from(is_try), Ordering::SeqCst);
        is_try
    };
    world.proxy.every(is_try, Fault::new(Moment::BeforeRequest, Action::Close));
    let since = Instant::now();
    for follower in followers(&world).await? {
        world.server.command(&["CLIENT", "KILL", "ID", &follower]).await?;
    }
    eventually_async("some tries", async || tries.load(Ordering::SeqCst) >= 4).await?;
    let pauses = u32::try_from(tries.load(Ordering::SeqCst) - 1)?;
    assert!(since.elapsed() >= PAUSE * pauses, "{pauses} pauses within {:?}", since.elapsed());
    Ok(())
}

/// What changed between the two connections is not known, so nothing stays.
#[tokio::test]
async fn a_connection_that_was_cut_is_made_anew_and_forgets_all() -> anyhow::Result<()> {
    let world = world(|builder| builder.near_cache_ttl(Duration::from_secs(20))).await?;
    near(&world, 1).await?;
    let before = followers(&world).await?;
    world.proxy.close_all();
    world.elsewhere().record(OPERATION, 1).forget().await?;
    eventually_async("the other connection", async || charged(&world, 1).await.0 == "receipt 1.2")
        .await?;
    is_followed(&world).await?;
    assert_ne!(followers(&world).await?, before);
    Ok(())
}

/// As where the engine was made long after its store, or before it.
#[derive(Debug)]
struct Elsewhere(SystemClock);

impl Clock for Elsewhere {
    fn now(&self) -> Timestamp {
        self.0.now()
    }

    fn monotonic(&self) -> Duration {
        self.0.monotonic() + HOUR
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        self.0.sleep(duration)
    }
}

#[tokio::test]
async fn engine_and_store_count_on_clocks_of_their_own() -> anyhow::Result<()> {
    const LIMIT: Duration = Duration::from_millis(500);
    let world =
        world(|builder| builder.near_cache_ttl(LIMIT).clock(Elsewhere(SystemClock::new()))).await?;
    near(&world, 1).await?;
    let (start, mut asked) = (Instant::now(), 0);
    while start.elapsed() < LIMIT * 10 {
        asked += u32::from(!charged(&world, 1).await.1.near_cached);
        tokio::task::yield_now().await;
    }
    // By the time limit alone it would be asked ten times. A busy machine may be late with one word
    // of the server or two.
    assert!(asked < 5, "the server says that nothing has changed: {asked}");
    Ok(())
}
