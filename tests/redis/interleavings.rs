//! The orders of events that first drafts of the protocol got wrong, by name.

use std::io::{Read as _, Write as _};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use idempotency::record::{Resolution, State};
use idempotency::store::{
    Abandon, AdminOutcome, Checkpoint, Claim, ClaimOutcome, Commit, CrashPolicy, Park, Reason,
    Release, Remove, Renewal, Resolve, ResolveAnswer, Store as _, Token, WriteOutcome,
};
use idempotency::{Context, Error, ErrorKind, OnConflict, OnCrash};
use idempotency_test_support::deadline::eventually_async;
use idempotency_test_support::proxy::{Action, Fault, Moment};
use idempotency_test_support::server::RedisOptions;
use tokio::sync::oneshot;

use crate::world::{
    DAY, LONG_LEASE, OPERATION, SHORT_LEASE, STEADY_LEASE, World, engine_on, is_commit, is_fence,
};

const ANSWER_LOST: Fault = Fault::new(Moment::AfterRequest, Action::Close);

#[tokio::test]
async fn a_fence_whose_answer_is_lost_is_the_same_when_asked_again() -> anyhow::Result<()> {
    let world = World::new().await?;
    world.warm_up().await?;
    let lost = world.proxy.nth(1, is_fence, ANSWER_LOST);
    let call = world.call(1).run(|| async {
        let first = Context::current().fence().await?;
        let stored = world.record(1).await.map(|record| record.fence);
        let second = Context::current().fence().await?;
        world.effect(1);
        Ok::<_, Error>((first, stored, second))
    });
    let (first, stored, second) = call.await?;
    lost.happened().await?;
    assert!(first > 0);
    assert_eq!((stored, second, world.count(1)), (Some(first), first, 1));
    Ok(())
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_found_applied() -> anyhow::Result<()> {
    let world = World::new().await?;
    world.warm_up().await?;
    let lost = world.proxy.nth(1, is_commit, ANSWER_LOST);
    assert_eq!(world.charge(1).await?, "receipt 1.1");
    lost.happened().await?;
    assert_eq!(world.charge_on(&world.elsewhere(), 1).await?, "receipt 1.1");
    assert_eq!((world.count(1), world.engine.duplicates()), (1, 0));
    Ok(())
}

#[tokio::test]
async fn a_claim_whose_answer_is_lost_is_recognised_by_its_token() -> anyhow::Result<()> {
    let world = World::new().await?;
    world.warm_up().await?;
    let lost = world.proxy.next("SET", ANSWER_LOST);
    assert_eq!(world.charge(1).await?, "receipt 1.1");
    lost.happened().await?;
    assert_eq!(
        world.record(1).await.map(|record| (record.state, record.attempts)),
        Some((State::Completed, 1))
    );
    Ok(())
}

/// The first try is believed lost, and arrives when everything is over.
#[tokio::test]
async fn a_claim_transmitted_twice_that_arrives_late_is_released_again() -> anyhow::Result<()> {
    // The claim is given back once more after this time.
    let configure = |builder: idempotency::Builder| builder.claim_timeout(Duration::from_secs(5));
    let world = World::with(RedisOptions::new().private(), configure).await?;
    world.warm_up().await?;
    // Loads the script that gives a claim back.
    world.call(2).run(|| async { Err::<(), _>(anyhow::anyhow!("busy")) }).await.unwrap_err();
    let sent = Arc::new(Mutex::new(Vec::new()));
    let seen = sent.clone();
    let is_claim = move |request: &idempotency_test_support::proxy::Request| {
        let claims = request.command() == "SET";
        if claims {
            *seen.lock().unwrap() = request.bytes().to_vec();
        }
        claims
    };
    let lost = world.proxy.nth(1, is_claim, Fault::new(Moment::BeforeRequest, Action::Close));
    // However slow this test is, the engine gives the claim back again when the late one has
    // arrived, and not before.
    let (name, releases) = (world.name(1), AtomicUsize::new(0));
    let is_again = move |request: &idempotency_test_support::proxy::Request| {
        let releases_it = request.command().starts_with("EVAL") && request.mentions(&name);
        releases_it && releases.fetch_add(1, Ordering::SeqCst) > 0
    };
    let failed = world.call(1).run(|| async {
        world.proxy.every(is_again, Fault::new(Moment::BeforeRequest, Action::Close));
        Err::<(), _>(anyhow::anyhow!("busy"))
    });
    let failed = failed.await;
    assert_eq!(failed.unwrap_err().to_string(), "busy");
    lost.happened().await?;
    assert!(world.record(1).await.is_none(), "the claim was released");

    let late = sent.lock().unwrap().clone();
    let mut connection = std::net::TcpStream::connect(world.server.address())?;
    connection.write_all(&late)?;
    let mut answer = [0; 3];
    connection.read_exact(&mut answer)?;
    assert_eq!(&answer, b"$-1", "the late claim was granted to nobody");
    world.proxy.clear();
    eventually_async("the second release", async || world.record(1).await.is_none()).await?;
    assert_eq!(world.charge(1).await?, "receipt 1.1");
    Ok(())
}

/// An owner that cannot renew until its lease is over and another caller has asked; what then
/// happens to the record is told by `meanwhile`. Returns the owner's answer.
async fn late_owner(
    world: &World,
    meanwhile: impl AsyncFnOnce() -> anyhow::Result<()>,
) -> Result<String, Error> {
    let (start, started) = oneshot::channel();
    let (finish, finished) = oneshot::channel();
    let owner = world.call(1).run(|| async {
        let receipt = world.effect(1);
        let _ = start.send(());
        let _ = finished.await;
        Ok::<_, Error>(receipt)
    });
    let rest = async {
        started.await.expect("the body starts");
        world.proxy.half_open();
        eventually_async("the lease to end", async || {
            world.record(1).await.is_none_or(|r| r.is_orphaned())
        })
        .await?;
        let error = world.charge_on(&world.elsewhere(), 1).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InDoubt);
        meanwhile().await?;
        world.proxy.heal();
        let _ = finish.send(());
        anyhow::Ok(())
    };
    let (owner, rest) = tokio::join!(owner, rest);
    rest.expect("nothing goes wrong meanwhile");
    owner
}

fn short(builder: idempotency::Builder) -> idempotency::Builder {
    builder.lease(SHORT_LEASE)
}

#[tokio::test]
async fn a_parked_owner_that_comes_back_commits() -> anyhow::Result<()> {
    let world = World::with(RedisOptions::new().private(), short).await?;
    let answer = late_owner(&world, async || {
        assert_eq!(world.record(1).await.map(|record| record.state), Some(State::InDoubt));
        Ok(())
    });
    assert_eq!(answer.await?, "receipt 1.1");
    assert_eq!(world.charge_on(&world.elsewhere(), 1).await?, "receipt 1.1");
    assert_eq!((world.count(1), world.engine.duplicates()), (1, 0));
    Ok(())
}

#[tokio::test]
async fn a_parked_owner_releases_and_the_key_is_free() -> anyhow::Result<()> {
    let world = World::new().await?;
    let hash = world.engine.record(OPERATION, 1).hash()?;
    let token = Token::from_bits(7);
    claim(&world, token, LONG_LEASE, CrashPolicy::Hold).await?;
    assert_eq!(
        world.direct.park(Park::own(hash, token, Reason::Dropped)).await?,
        WriteOutcome::Applied
    );
    assert_eq!(world.charge(1).await.unwrap_err().kind(), ErrorKind::InDoubt);
    assert_eq!(
        world.direct.release(Release::new(hash, Token::from_bits(8))).await?,
        WriteOutcome::Lost,
        "another's token"
    );
    assert_eq!(world.direct.release(Release::new(hash, token)).await?, WriteOutcome::Applied);
    assert_eq!(world.charge(1).await?, "receipt 1.1");
    Ok(())
}

#[tokio::test]
async fn an_operators_answer_wins_over_a_late_owner() -> anyhow::Result<()> {
    let world = World::with(RedisOptions::new().private(), short).await?;
    let answer = late_owner(&world, async || {
        let record = world.elsewhere().record(OPERATION, 1_u64);
        let view = record.inspect().await?.expect("there is a record");
        Ok(record.resolve(&view, Resolution::completed("by hand")).await?)
    });
    assert_eq!(answer.await?, "by hand");
    assert_eq!(world.charge_on(&world.elsewhere(), 1).await?, "by hand");
    assert_eq!((world.count(1), world.engine.duplicates()), (1, 1));
    Ok(())
}

/// Releases of a service with other settings than the owner's: how long a record counts is written
/// on the record.
#[tokio::test]
async fn a_ttl_raised_or_lowered_between_reader_and_owner_changes_no_record() -> anyhow::Result<()>
{
    let retention = Duration::from_secs(5);
    let configure =
        |builder: idempotency::Builder| builder.lease(STEADY_LEASE).in_doubt_retention(retention);
    let world = World::with(RedisOptions::new().private(), configure).await?;
    let reader = |kept| engine_on(world.direct.clone()).in_doubt_retention(kept).build().unwrap();
    let ask = async |kept, ttl| {
        let reader = reader(kept);
        let call = reader.call(OPERATION, 1_u64).ttl(ttl).on_conflict(OnConflict::Reject);
        call.on_crash(OnCrash::Retry).run(|| async { Ok::<_, Error>(world.effect(1)) }).await
    };
    let begun = AtomicBool::new(false);
    let mut owner = Box::pin(world.call(1).ttl(retention).run(|| async {
        begun.store(true, Ordering::Relaxed);
        std::future::pending::<Result<String, Error>>().await
    }));
    // Dropped with a claim whose body has not begun, it would leave nothing.
    eventually_async("the body", async || {
        tokio::select! {
            biased;
            _ = &mut owner => panic!("the body does not end"),
            _ = world.record(1) => begun.load(Ordering::Relaxed),
        }
    })
    .await?;
    for (kept, ttl) in
        [(Duration::from_millis(1), Duration::from_millis(1)), (DAY * 300, DAY * 300)]
    {
        assert_eq!(
            ask(kept, ttl).await.unwrap_err().kind(),
            ErrorKind::InProgress,
            "a live claim is not stolen"
        );
    }
    drop(owner);
    eventually_async("the parking", async || {
        world.record(1).await.is_some_and(|r| r.state == State::InDoubt)
    })
    .await?;
    assert_eq!(ask(DAY * 300, DAY * 300).await.unwrap_err().kind(), ErrorKind::InDoubt);
    assert_eq!(
        ask(Duration::from_millis(1), Duration::from_millis(1)).await.unwrap_err().kind(),
        ErrorKind::InDoubt
    );
    eventually_async("the owner's retention to end", async || {
        ask(DAY * 300, DAY * 300).await.is_ok()
    })
    .await?;
    assert_eq!(world.count(1), 1);
    Ok(())
}

async fn claim(
    world: &World,
    token: Token,
    lease: Duration,
    policy: CrashPolicy,
) -> anyhow::Result<ClaimOutcome> {
    let mut claim = Claim::new(world.engine.record(OPERATION, 1).hash()?, token, OPERATION.into());
    (claim.lease, claim.linger, claim.policy) = (lease, DAY, policy);
    Ok(world.direct.claim(claim).await?)
}

#[tokio::test]
async fn every_script_is_loaded_again_after_a_flush() -> anyhow::Result<()> {
    let world = World::new().await?;
    let (store, hash) = (&world.direct, world.engine.record(OPERATION, 1).hash()?);
    let flush = async || world.server.command(&["SCRIPT", "FLUSH"]).await;
    let (one, two, three) = (Token::from_bits(1), Token::from_bits(2), Token::from_bits(3));
    let body = || Bytes::from_static(b"1");

    claim(&world, one, Duration::from_millis(1), CrashPolicy::Retry).await?;
    eventually_async("the lease to end", async || {
        world.record(1).await.is_some_and(|r| r.is_orphaned())
    })
    .await?;
    flush().await?;
    let taken = claim(&world, two, LONG_LEASE, CrashPolicy::Retry).await?;
    assert!(matches!(taken, ClaimOutcome::Granted(_)), "takeover");
    flush().await?;
    assert_eq!(
        store.renew(vec![Renewal::new(hash, two, LONG_LEASE); 3]).await?,
        [WriteOutcome::Applied; 3]
    );
    flush().await?;
    assert!(store.fence(hash, two).await?.is_some());
    flush().await?;
    assert_eq!(
        store.checkpoint(Checkpoint::new(hash, two, 0, body())).await?,
        WriteOutcome::Applied
    );
    flush().await?;
    assert_eq!(
        store.abandon(Abandon::new(hash, two, Reason::Dropped)).await?,
        WriteOutcome::Applied
    );
    flush().await?;
    assert_eq!(store.park(Park::own(hash, two, Reason::Dropped)).await?, WriteOutcome::Applied);
    flush().await?;
    let answer =
        ResolveAnswer::Finished { state: State::Completed, body: body(), schema: 0, ttl: DAY };
    assert_eq!(store.resolve(Resolve::new(hash, two, three, answer)).await?, AdminOutcome::Applied);
    flush().await?;
    assert_eq!(store.remove(Remove::new(hash, three)).await?, AdminOutcome::Applied);
    claim(&world, one, LONG_LEASE, CrashPolicy::Retry).await?;
    flush().await?;
    assert_eq!(store.release(Release::new(hash, one)).await?, WriteOutcome::Applied);
    claim(&world, two, LONG_LEASE, CrashPolicy::Retry).await?;
    flush().await?;
    assert_eq!(store.complete(Commit::new(hash, two, body(), DAY)).await?, WriteOutcome::Applied);
    Ok(())
}
