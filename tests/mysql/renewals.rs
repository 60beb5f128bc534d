//! Each renewal has an answer of its own.

use std::time::Duration;

use idempotency::store::{MySqlStore, Renewal, Store as _, Token, WriteOutcome};
use idempotency::{Context, Error, Idempotency};
use idempotency_test_support::deadline::{eventually_async, within};
use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions};

use crate::world::{DAY, LEASE, World, claim, fresh, key, mine};

const OPERATION: &str = "payments.charge";

async fn claimed(
    world: &World,
    numbers: std::ops::RangeInclusive<u64>,
) -> anyhow::Result<Vec<Renewal>> {
    let mut renewals = Vec::new();
    for number in numbers {
        let token = fresh();
        mine(world.store.claim(claim(key(number), token)).await?);
        renewals.push(Renewal::new(key(number), token, LEASE * 2));
    }
    Ok(renewals)
}

#[tokio::test]
async fn a_locked_row_is_not_answered_and_does_not_cost_others_their_renewal() -> anyhow::Result<()>
{
    let world = World::new().await?;
    let mut renewals = claimed(&world, 1..=3).await?;
    let of_the_locked = renewals[1];
    renewals.push(Renewal::new(key(4), fresh(), LEASE));
    renewals.push(Renewal::new(key(3), Token::from_bits(1), LEASE));
    let lock = world.lock(key(2)).await?;
    let renewed = [
        WriteOutcome::Applied,
        WriteOutcome::Unanswered,
        WriteOutcome::Applied,
        WriteOutcome::Gone,
        WriteOutcome::Lost,
    ];
    // Also on connections that by themselves wait for as long as anybody likes.
    let patient =
        MySqlStore::from_pool(world.pool("SET SESSION innodb_lock_wait_timeout = 600").await?);
    let skips_locked = world.skips_locked().await;
    for store in [&world.store, &patient] {
        let answer = store.renew(renewals.clone()).await;
        if skips_locked {
            assert_eq!(answer?, renewed);
        } else {
            // All wait for the row, for as long as the server waits for a lock.
            assert!(answer.unwrap_err().is_transient());
        }
    }
    lock.rollback().await?;
    assert_eq!(world.store.renew(vec![of_the_locked]).await?, [WriteOutcome::Applied]);
    Ok(())
}

#[tokio::test]
async fn a_row_that_is_locked_for_longer_than_a_lease_costs_no_other_call_its_claim()
-> anyhow::Result<()> {
    const CALLS: u32 = 20;
    let world = World::new().await?;
    let engine = Idempotency::builder(world.store.clone()).lease(Duration::from_secs(9)).build()?;
    let (finish, finished) = tokio::sync::watch::channel(false);
    let (started, mut starts) = tokio::sync::mpsc::unbounded_channel();
    let calls: Vec<_> = (0..CALLS)
        .map(|call| {
            let (engine, started, mut finished) =
                (engine.clone(), started.clone(), finished.clone());
            tokio::spawn(async move {
                let body = || async move {
                    let _ = started.send(call);
                    let _ = finished.wait_for(|finished| *finished).await;
                    Ok::<_, Error>(!Context::current().lease_lost())
                };
                engine.call(OPERATION, call).ttl(DAY).run(body).await
            })
        })
        .collect();
    for _ in 0..CALLS {
        within("a body to start", starts.recv()).await?;
    }
    let record = async |call: u32| {
        let key = engine.record(OPERATION, call).hash()?;
        world.store.read(key).await?.ok_or_else(|| anyhow::anyhow!("there is no record of {call}"))
    };
    let lock = world.lock(engine.record(OPERATION, 0_u32).hash()?).await?;
    let is_over = async || record(0).await.is_ok_and(|record| record.lease_until < record.read_at);
    eventually_async("the lease of the locked row to be over", is_over).await?;
    let skips_locked = world.skips_locked().await;
    for call in 1..CALLS {
        let record = record(call).await?;
        let lives = record.lease_until > record.read_at;
        assert_eq!(
            lives, skips_locked,
            "where the server cannot leave the row out, all wait for it: {call}"
        );
    }
    lock.rollback().await?;
    finish.send(true)?;
    for call in calls.into_iter().skip(1) {
        let kept = call.await??;
        assert!(kept || !skips_locked, "a claim was lost");
    }
    Ok(())
}

#[tokio::test]
async fn a_session_that_limits_the_rows_of_an_answer_costs_no_renewal() -> anyhow::Result<()> {
    let world = World::new().await?;
    let mut renewals = claimed(&world, 1..=5).await?;
    renewals[2].token = fresh();
    let store = MySqlStore::from_pool(world.pool("SET SESSION sql_select_limit = 1").await?);
    let mut renewed = [WriteOutcome::Applied; 5];
    renewed[2] = WriteOutcome::Lost;
    assert_eq!(store.renew(renewals).await?, renewed);
    Ok(())
}

/// As tokens of a cloud are, which take the place of passwords and end.
#[tokio::test]
async fn renewals_follow_a_pool_whose_credentials_change() -> anyhow::Result<()> {
    let world = World::new().await?;
    let (one, two) = (format!("one_{}", std::process::id()), format!("two_{}", std::process::id()));
    world.sql(&format!("CREATE USER {one}@'%'")).await?;
    world.sql(&format!("GRANT ALL ON *.* TO {one}@'%'")).await?;
    let options: MySqlConnectOptions = world.url.parse()?;
    let pool = MySqlPoolOptions::new().connect_with(options.clone().username(&one)).await?;
    let store = MySqlStore::from_pool(pool.clone());
    let renewals = claimed(&world, 1..=1).await?;
    assert_eq!(store.renew(renewals.clone()).await?, [WriteOutcome::Applied]);
    world.sql(&format!("RENAME USER {one}@'%' TO {two}@'%'")).await?;
    pool.set_connect_options(options.username(&two));
    // Connections end, by their age for example.
    for row in world
        .sql(&format!("SELECT id FROM information_schema.processlist WHERE user = '{one}'"))
        .await?
    {
        world.sql(&format!("KILL {}", row[0].as_deref().unwrap_or_default())).await?;
    }
    eventually_async("a renewal by the new user", async || {
        store.renew(renewals.clone()).await.is_ok_and(|written| written == [WriteOutcome::Applied])
    })
    .await
}
