//! The rights that the documentation of the store names are enough, and each of them is needed.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use idempotency::store::{
    Abandon, Checkpoint, Claim, CrashPolicy, Park, Reason, Release, Remove, Renewal, Scan,
    Store as _, StoreError, Token,
};
use idempotency::{Context, Error, ErrorKind, Idempotency, OnConflict, OnCrash, with_report};
use idempotency_test_support::deadline::{eventually_async, within};
use tokio::sync::oneshot;

use crate::warnings::Warnings;
use crate::world::{DAY, OPERATION, World, engine_on, large, patient};

/// The commands in the documentation of `RedisStore`, and on its page.
fn documented() -> BTreeSet<&'static str> {
    let sources = [
        include_str!("../../idempotent-runtime/src/redis/mod.rs"),
        include_str!("../../docs/redis.md"),
    ];
    let [source, page] = sources.map(|source| {
        let (_, rights) = source.split_once("ACL SETUSER").expect("the rights are documented");
        let (rights, _) = rights.split_once("```").expect("the rights end");
        rights.split_whitespace().filter(|word| word.starts_with('+')).collect()
    });
    assert_eq!(source, page, "the two say the same");
    source
}

/// The URL of a user with these commands.
async fn user(world: &World, name: &str, commands: &BTreeSet<&str>) -> anyhow::Result<String> {
    let rules = [
        "ACL",
        "SETUSER",
        name,
        "reset",
        "on",
        ">secret",
        "~idempotency:*",
        "resetchannels",
        "-@all",
    ];
    let words: Vec<_> = rules.into_iter().chain(commands.iter().copied()).collect();
    world.server.command(&words).await?;
    Ok(world.server.url().replace("redis://", &format!("redis://{name}:secret@")) + "/1")
}

/// Everything that a store does.
async fn everything(world: &World, url: &str, key: u64) -> Result<(), StoreError> {
    world.server.command(&["SCRIPT", "FLUSH"]).await.expect("the server answers");
    let store = patient(url).connect().await?;
    let hash = world.engine.record(OPERATION, key).hash().expect("the key is fine");
    let token = Token::from_bits(u128::from(key) + 1);
    let claim = |policy| {
        let mut claim = Claim::new(hash, token, OPERATION.into());
        (claim.lease, claim.linger, claim.policy) = (Duration::from_secs(60), DAY, policy);
        claim
    };
    store.claim(claim(CrashPolicy::Retry)).await?;
    store.claim(claim(CrashPolicy::Retry)).await?;
    store.release(Release::new(hash, token)).await?;
    store.claim(claim(CrashPolicy::Retry)).await?;
    store.renew(vec![Renewal::new(hash, token, Duration::from_secs(90 * 86_400))]).await?;
    store.fence(hash, token).await?;
    let body = Bytes::from(large());
    for _ in 0..2 {
        store.checkpoint(Checkpoint::new(hash, token, 0, body.clone())).await?;
    }
    store.watch(hash).await?;
    store.read(hash).await?;
    store.scan(Scan::default()).await?;
    store.abandon(Abandon::new(hash, token, Reason::Dropped)).await?;
    store.park(Park::own(hash, token, Reason::Dropped)).await?;
    let mut commit = idempotency::store::Commit::new(hash, token, body, DAY);
    store.complete(commit.clone()).await?;
    store.complete(commit.clone()).await?;
    commit.body = Bytes::from_static(b"1");
    store.complete(commit).await?;
    let mut remove = Remove::new(hash, token);
    remove.tombstone = Duration::from_millis(1);
    store.remove(remove).await?;
    Ok(())
}

#[tokio::test]
async fn the_documented_rights_are_enough_and_each_is_needed() -> anyhow::Result<()> {
    let world = World::new().await?;
    let all = documented();
    assert!(all.len() > 10, "{all:?}");
    let url = user(&world, "least", &all).await?;
    everything(&world, &url, 0).await?;

    let mut needless = Vec::new();
    for (key, right) in (1..).zip(&all) {
        // What the store does without, as documented: it polls, and it checks nothing.
        if ["+client|tracking", "+info"].contains(right) {
            continue;
        }
        let rest = all.iter().copied().filter(|other| other != right).collect();
        let url = user(&world, &format!("without-{key}"), &rest).await?;
        match everything(&world, &url, key).await {
            Ok(()) => needless.push(*right),
            // The client does not understand what it is told of a transaction that is refused.
            Err(error) => {
                assert!(
                    error.to_string().contains("ACL") || ["+multi", "+exec"].contains(right),
                    "{right}: {error:?}"
                );
            }
        }
    }
    assert!(needless.is_empty(), "nothing needs {needless:?}");
    Ok(())
}

/// The script has granted the takeover when the checkpoint, which is read after it, is refused.
#[tokio::test]
async fn a_takeover_whose_checkpoint_may_not_be_read_is_given_back_at_once() -> anyhow::Result<()> {
    let world = World::new().await?;
    let rest = documented().into_iter().filter(|right| *right != "+get").collect();
    let url = user(&world, "without-get", &rest).await?;
    let url = url.strip_suffix("/1").expect("it names a database");
    let engine = engine_on(patient(url).build()?).claim_timeout(Duration::from_secs(2)).build()?;
    let resumed = |engine: &Idempotency| {
        let call = engine.call(OPERATION, 1).ttl(DAY).on_crash(OnCrash::Resume);
        call.on_conflict(OnConflict::Wait(Duration::from_secs(20)))
    };
    let reserve = async || {
        Context::current().step("reserve", async || Ok::<_, Error>("reserved".to_owned())).await
    };
    let mut first = Box::pin(resumed(&world.engine).run(async || {
        reserve().await?;
        std::future::pending::<Result<String, Error>>().await
    }));
    eventually_async("the checkpoint", async || {
        assert!(first.as_mut().now_or_never().is_none());
        world.record(1).await.is_some_and(|record| record.checkpoints == 1)
    })
    .await?;
    drop(first);
    eventually_async("the end of the first attempt", async || {
        world.record(1).await.is_some_and(|record| record.lease_until <= record.read_at)
    })
    .await?;
    let refused = within("the refusal", resumed(&engine).run(reserve)).await?;
    let error = refused.expect_err("its checkpoint cannot be read");
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{error}");
    let next = world.elsewhere();
    assert_eq!(within("the next owner", resumed(&next).run(reserve)).await??, "reserved");
    Ok(())
}

#[tokio::test]
async fn without_the_right_to_track_waiters_poll() -> anyhow::Result<()> {
    let warnings = Warnings::listen();
    let world = World::new().await?;
    let mut rights = documented();
    assert!(rights.remove("+client|tracking"));
    let url = user(&world, "polls", &rights).await?;
    // The owner's database.
    let there = engine_on(patient(url.trim_end_matches("/1")).connect().await?).build()?;
    let (start, started) = oneshot::channel();
    let owner = world.call(1).run(|| async {
        let _ = start.send(());
        eventually_async("the warning", async || warnings.mention("waiters poll"))
            .await
            .expect("the waiter waits");
        Ok::<_, Error>(world.effect(1))
    });
    let waiting = async {
        started.await?;
        let call = there
            .call(OPERATION, 1_u64)
            .ttl(DAY)
            .on_conflict(OnConflict::Wait(Duration::from_secs(60)));
        let (answer, report) =
            with_report(call.run(|| async { Ok::<_, Error>("not waited".to_owned()) })).await;
        assert!(report.is_some_and(|report| report.waited));
        anyhow::Ok(answer?)
    };
    let (owner, waited) = within("both", async { tokio::join!(owner, waiting) }).await?;
    assert_eq!((owner?, waited?), ("receipt 1.1".to_owned(), "receipt 1.1".to_owned()));
    Ok(())
}

#[tokio::test]
async fn without_the_right_to_ask_for_settings_the_store_connects_and_warns() -> anyhow::Result<()>
{
    let warnings = Warnings::listen();
    let world = World::new().await?;
    let mut rights = documented();
    assert!(rights.remove("+info"));
    let url = user(&world, "blind", &rights).await?;
    let engine = engine_on(patient(&url).connect().await?).build()?;
    assert!(warnings.mention("does not report its settings"));
    assert_eq!(world.charge_on(&engine, 1).await?, "receipt 1.1");
    Ok(())
}
