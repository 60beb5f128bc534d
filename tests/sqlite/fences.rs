//! The order of fences, on a clock that counts milliseconds.

use std::sync::Mutex;
use std::time::Duration;

use idempotency::Context;
use idempotency::key::KeyHash;
use idempotency::store::{
    Adoption, Claim, ClaimOutcome, Commit, Release, Remove, SqliteStore, Store, Token, WriteOutcome,
};
use idempotency::testing::{ClockJump, ManualClock};
use idempotency::{Error, Idempotency};

use crate::world::{DAY, HOUR, OPERATION, World, patient};

const KEY: KeyHash = KeyHash::from_bytes([7; 32]);

/// Another process: it knows what is in the file, and nothing else.
async fn process(world: &World) -> anyhow::Result<SqliteStore> {
    Ok(patient(&world.path).clock(world.clock.clone()).open().await?)
}

async fn claim(store: &SqliteStore, number: u128) -> anyhow::Result<u64> {
    let mut claim = Claim::new(KEY, Token::from_bits(number), OPERATION.into());
    (claim.lease, claim.linger) = (HOUR, HOUR);
    match store.claim(claim).await? {
        ClaimOutcome::Granted(grant) => Ok(grant.record.fence),
        held => anyhow::bail!("{held:?}"),
    }
}

fn assert_grow(fences: &[u64]) {
    assert!(fences.is_sorted_by(|before, after| before < after), "{fences:?}");
}

#[tokio::test]
async fn fences_grow_over_records_that_are_gone_while_the_clock_stands_still() -> anyhow::Result<()>
{
    let world = World::new().await?;
    let mut fences = Vec::new();
    for number in 0..3 {
        let token = Token::from_bits(number);
        let claimed = world.store.claim(Claim::new(KEY, token, "payments.charge".into())).await?;
        assert!(matches!(claimed, ClaimOutcome::Granted(_)), "{claimed:?}");
        fences.extend(world.store.fence(KEY, token).await?);
        world.store.release(Release::new(KEY, token)).await?;
    }
    assert_eq!(fences.len(), 3);
    assert!(fences.is_sorted_by(|before, after| before < after), "{fences:?}");
    Ok(())
}

/// However a record goes: what is gone in one process is what the next one begins above.
#[tokio::test]
async fn a_process_begins_above_the_fences_of_records_that_others_removed() -> anyhow::Result<()> {
    let world = World::new().await?;
    let (one, other) = (process(&world).await?, process(&world).await?);
    let mut fences = Vec::new();
    for number in 0..12 {
        let (store, another) = if number % 2 == 0 { (&one, &other) } else { (&other, &one) };
        fences.push(claim(store, number).await?);
        let token = Token::from_bits(number);
        match number % 3 {
            0 => drop(store.release(Release::new(KEY, token)).await?),
            1 => {
                store.complete(Commit::new(KEY, token, "done".into(), DAY)).await?;
                another.remove(Remove::new(KEY, token)).await?;
            }
            _ => {
                store.complete(Commit::new(KEY, token, "done".into(), Duration::ZERO)).await?;
                assert_eq!(another.purge(10).await?.removed, 1);
            }
        }
        assert_eq!(world.rows().await?, 0);
    }
    assert_grow(&fences);
    Ok(())
}

#[tokio::test]
async fn fences_grow_over_a_clock_that_is_set_back() -> anyhow::Result<()> {
    let world = World::new().await?;
    let mut fences = Vec::new();
    for number in 0..3 {
        let store = process(&world).await?;
        fences.push(claim(&store, number).await?);
        store.release(Release::new(KEY, Token::from_bits(number))).await?;
        world.clock.jump(ClockJump::Back(HOUR));
    }
    assert_grow(&fences);
    Ok(())
}

/// The largest fence is that of a record that nobody had removed: its table was dropped.
#[tokio::test]
async fn fences_grow_over_a_table_that_was_dropped() -> anyhow::Result<()> {
    let world = World::new().await?;
    let mut fences = vec![claim(&world.store, 0).await?];
    let dropped = sqlx::query("DROP TABLE idempotency_records");
    dropped.execute(&world.pool).await?;
    process(&world).await?;
    for number in 1..3 {
        world.clock.jump(ClockJump::Back(HOUR));
        let store = process(&world).await?;
        fences.push(claim(&store, number).await?);
        store.release(Release::new(KEY, Token::from_bits(number))).await?;
    }
    assert_grow(&fences);
    Ok(())
}

/// The record is there and over: nobody has removed it yet.
#[tokio::test]
async fn fences_grow_over_a_record_that_has_expired_on_a_clock_that_was_set_back()
-> anyhow::Result<()> {
    let world = World::new().await?;
    let mut fences = Vec::new();
    // It knows of a fence of an hour later.
    let first = process(&world).await?;
    fences.push(claim(&first, 0).await?);
    first.release(Release::new(KEY, Token::from_bits(0))).await?;
    world.clock.jump(ClockJump::Back(HOUR));
    fences.push(claim(&first, 1).await?);
    first
        .complete(Commit::new(KEY, Token::from_bits(1), "done".into(), Duration::from_secs(1)))
        .await?;
    world.clock.advance(Duration::from_secs(1));
    fences.push(claim(&process(&world).await?, 2).await?);
    assert_grow(&fences);
    Ok(())
}

/// A late owner's result comes back with the fence of its claim, which is below those that were
/// granted since.
#[tokio::test]
async fn a_result_that_comes_back_does_not_take_the_fence_back() -> anyhow::Result<()> {
    let world = World::new().await?;
    let (one, other) = (process(&world).await?, process(&world).await?);
    let mut late = Claim::new(KEY, Token::from_bits(0), OPERATION.into());
    (late.lease, late.linger) = (HOUR, Duration::ZERO);
    let ClaimOutcome::Granted(grant) = one.claim(late.clone()).await? else {
        anyhow::bail!("the key is nobody's")
    };
    let mut fences = vec![grant.record.fence];
    world.clock.advance(HOUR);
    assert_eq!(other.purge(10).await?.removed, 1);
    fences.push(claim(&other, 1).await?);
    other.release(Release::new(KEY, Token::from_bits(1))).await?;
    world.clock.jump(ClockJump::Back(2 * HOUR));
    let mut commit = Commit::new(KEY, Token::from_bits(0), "done".into(), Duration::from_secs(1));
    commit.adopt = Some(Adoption::new(late, &grant).into());
    assert_eq!(one.complete(commit).await?, WriteOutcome::Adopted);
    world.clock.advance(Duration::from_secs(1));
    fences.push(claim(&process(&world).await?, 2).await?);
    assert_grow(&fences);
    Ok(())
}

/// What a body sees of it, in a service that starts again on a machine whose clock was wrong.
#[tokio::test]
async fn a_body_has_a_larger_fence_after_a_restart_with_a_clock_that_was_set_back()
-> anyhow::Result<()> {
    let world = World::new().await?;
    let fence = async |clock: ManualClock| -> anyhow::Result<u64> {
        let store = patient(&world.path).clock(clock.clone()).open().await?;
        let engine = Idempotency::builder(store).clock(clock).build()?;
        let mut fence = 0;
        let refused: Result<(), Refused> = engine
            .call(OPERATION, 7)
            .ttl(DAY)
            .run(async || {
                fence = Context::current().fence().await?;
                Err(Refused::Busy)
            })
            .await;
        assert!(matches!(refused, Err(Refused::Busy)), "{refused:?}");
        Ok(fence)
    };
    let first = fence(world.clock.clone()).await?;
    world.clock.jump(ClockJump::Back(Duration::from_secs(1)));
    assert_grow(&[first, fence(world.clock.clone()).await?]);
    Ok(())
}

#[derive(Debug)]
enum Refused {
    Busy,
    Idempotency(#[allow(dead_code, reason = "for people who read a failure")] Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Idempotency(error)
    }
}

/// One claims and releases between the read and the write of the other's claim.
#[tokio::test]
async fn fences_grow_over_claims_that_meet() -> anyhow::Result<()> {
    let world = World::new().await?;
    let (one, other) = (process(&world).await?, process(&world).await?);
    // Noted by who holds the claim, so in the order of the claims.
    let fences = Mutex::new(Vec::new());
    let claims = async |store: &SqliteStore, first: u128| {
        let mut granted = 0;
        for number in (first..).step_by(2) {
            let token = Token::from_bits(number);
            if let ClaimOutcome::Granted(grant) =
                store.claim(Claim::new(KEY, token, OPERATION.into())).await?
            {
                fences.lock().expect("nobody panics").push(grant.record.fence);
                store.release(Release::new(KEY, token)).await?;
                granted += 1;
            }
            if granted == 200 {
                break;
            }
        }
        anyhow::Ok(())
    };
    let (one, other) = tokio::join!(claims(&one, 0), claims(&other, 1));
    one.and(other)?;
    assert_grow(&fences.into_inner()?);
    Ok(())
}
