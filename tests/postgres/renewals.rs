//! Renewals have connections of their own, which belong to the runtime that asks for them.

use std::time::Duration;

use idempotency::key::KeyHash;
use idempotency::store::{
    PostgresStore, Renewal, State, Store as _, StoreError, Token, WriteOutcome,
};
use idempotency::{Context, Error};
use idempotency_test_support::deadline::{eventually_async, within};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use crate::world::{DAY, OPERATION, World, claim, key, number, run, token};

const LEASE: Duration = Duration::from_secs(60);

fn renewal(number: u32) -> Renewal {
    Renewal::new(key(number), token(number), LEASE)
}

fn on_another_runtime<T: Send + 'static>(
    task: impl Future<Output = T> + Send + 'static,
) -> impl Future<Output = T> {
    let thread = move || {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(task)
    };
    async { tokio::task::spawn_blocking(thread).await.expect("the thread ends") }
}

#[tokio::test]
async fn renewals_go_on_while_all_other_connections_are_taken() -> anyhow::Result<()> {
    let world = World::new().await?;
    let store =
        PostgresStore::builder(&world.url).response_timeout(LEASE).max_connections(1).build()?;
    store.claim(claim(1)).await?;
    // Somebody holds the row of the next request, and with it the only connection.
    let other = sqlx::PgPool::connect(&world.url).await?;
    run(&world.store, 2, "x", DAY).await?;
    let mut transaction = other.begin().await?;
    sqlx::query("SELECT 1 FROM idempotency_records WHERE key_hash = $1 FOR UPDATE")
        .bind(&key(2).as_bytes()[..])
        .execute(&mut *transaction)
        .await?;
    let remove = idempotency::store::Remove::new(key(2), token(2));
    let blocked = tokio::spawn({
        let store = store.clone();
        async move { store.remove(remove).await }
    });
    eventually_async("the other request to wait", async || {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'
                       AND datname = current_database()";
        world.sql(waiting).await.is_ok_and(|rows| rows == [[Some("1".to_owned())]])
    })
    .await?;
    assert_eq!(store.renew(vec![renewal(1)]).await?, [WriteOutcome::Applied]);
    transaction.rollback().await?;
    blocked.await??;
    Ok(())
}

#[tokio::test]
async fn connections_for_renewals_are_made_anew_when_their_runtime_has_ended() -> anyhow::Result<()>
{
    let world = World::new().await?;
    world.store.claim(claim(1)).await?;
    for _ in 0..3 {
        let store = world.store.clone();
        let renewing = async move {
            // A connection goes back to its pool after its request; the first of several has by the
            // end.
            for _ in 0..5 {
                assert_eq!(store.renew(vec![renewal(1)]).await?, [WriteOutcome::Applied]);
            }
            Ok::<_, StoreError>(())
        };
        on_another_runtime(renewing).await?;
    }
    assert_eq!(world.store.renew(vec![renewal(1)]).await?, [WriteOutcome::Applied]);
    Ok(())
}

#[tokio::test]
async fn a_thousand_leases_are_renewed_at_once_and_each_is_answered() -> anyhow::Result<()> {
    let world = World::new().await?;
    run(&world.store, 0, "done", DAY).await?;
    for number in 1..=50 {
        world.store.claim(claim(number)).await?;
    }
    let mut renewals: Vec<_> = (0..1_000).map(renewal).collect();
    renewals[7].token = Token::from_bits(u128::MAX);
    let written = world.store.renew(renewals).await?;
    for (number, written) in written.iter().enumerate() {
        let expected = match number {
            0 | 7 => WriteOutcome::Lost,
            1..=50 => WriteOutcome::Applied,
            _ => WriteOutcome::Gone,
        };
        assert_eq!(*written, expected, "{number}");
    }
    let record = world.store.read(key(1)).await?.expect("the record");
    assert_eq!(record.state, State::InProgress);
    assert!(record.lease_until > record.created + LEASE / 2, "longer than the lease of the claim");
    let renewed = "SELECT count(*) FROM idempotency_records WHERE revision <> fence";
    assert_eq!(number(&world.sql(renewed).await?)?, 50, "the done one counts its commit");
    Ok(())
}

#[tokio::test]
async fn a_row_that_cannot_be_read_does_not_cost_others_their_leases() -> anyhow::Result<()> {
    let world = World::new().await?;
    for number in 1..=3 {
        world.store.claim(claim(number)).await?;
    }
    world
        .sql(&format!(
            "UPDATE idempotency_records SET format = 2 WHERE key_hash = '\\x{}'",
            key(2).to_hex()
        ))
        .await?;
    let written = world.store.renew((1..=3).map(renewal).collect()).await?;
    assert_eq!(written, [WriteOutcome::Applied, WriteOutcome::Lost, WriteOutcome::Applied]);
    Ok(())
}

/// A transaction of somebody else that holds the row of `key`.
async fn lock(
    world: &World,
    key: KeyHash,
) -> anyhow::Result<sqlx::Transaction<'static, sqlx::Postgres>> {
    let mut transaction = sqlx::PgPool::connect(&world.url).await?.begin().await?;
    let locking = sqlx::query("SELECT 1 FROM idempotency_records WHERE key_hash = $1 FOR UPDATE");
    locking.bind(&key.as_bytes()[..]).fetch_one(&mut *transaction).await?;
    Ok(transaction)
}

#[tokio::test]
async fn a_locked_row_is_not_answered_and_does_not_cost_others_their_renewal() -> anyhow::Result<()>
{
    let world = World::new().await?;
    for number in 1..=3 {
        world.store.claim(claim(number)).await?;
    }
    let transaction = lock(&world, key(2)).await?;
    let mut renewals: Vec<_> = (1..=4).map(renewal).collect();
    renewals.push(Renewal::new(key(3), token(1), LEASE));
    let renewed = [
        WriteOutcome::Applied,
        WriteOutcome::Unanswered,
        WriteOutcome::Applied,
        WriteOutcome::Gone,
        WriteOutcome::Lost,
    ];
    assert_eq!(world.store.renew(renewals).await?, renewed);
    transaction.rollback().await?;
    assert_eq!(world.store.renew(vec![renewal(2)]).await?, [WriteOutcome::Applied]);
    Ok(())
}

#[tokio::test]
async fn a_row_that_is_locked_for_longer_than_a_lease_costs_no_other_call_its_claim()
-> anyhow::Result<()> {
    const CALLS: u32 = 20;
    let world = World::new().await?;
    let engine = world.engine(|builder| builder.lease(Duration::from_secs(9)));
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
    let transaction = lock(&world, engine.record(OPERATION, 0_u32).hash()?).await?;
    let is_over = async || record(0).await.is_ok_and(|record| record.lease_until < record.read_at);
    eventually_async("the lease of the locked row to be over", is_over).await?;
    for call in 1..CALLS {
        let record = record(call).await?;
        assert!(record.lease_until > record.read_at, "the lease of {call} is over as well");
    }
    transaction.rollback().await?;
    finish.send(true)?;
    for call in calls.into_iter().skip(1) {
        assert!(call.await??, "a claim was lost");
    }
    Ok(())
}

/// As tokens of a cloud are, which take the place of passwords and end.
#[tokio::test]
async fn renewals_follow_a_pool_whose_credentials_change() -> anyhow::Result<()> {
    let world = World::new().await?;
    let (one, two) = (format!("one_{}", std::process::id()), format!("two_{}", std::process::id()));
    world.sql(&format!("CREATE ROLE {one} LOGIN SUPERUSER")).await?;
    let options: PgConnectOptions = world.url.parse()?;
    let pool = PgPoolOptions::new().connect_with(options.clone().username(&one)).await?;
    let store = PostgresStore::from_pool(pool.clone());
    store.claim(claim(1)).await?;
    assert_eq!(store.renew(vec![renewal(1)]).await?, [WriteOutcome::Applied]);
    world.sql(&format!("ALTER ROLE {one} RENAME TO {two}")).await?;
    pool.set_connect_options(options.username(&two));
    // Connections end, by their age for example.
    let sessions =
        "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    world
        .sql(&format!("SELECT pg_terminate_backend(pid) {sessions} AND usename = '{two}'"))
        .await?;
    eventually_async("a renewal by the new role", async || {
        store.renew(vec![renewal(1)]).await.is_ok_and(|written| written == [WriteOutcome::Applied])
    })
    .await?;
    Ok(())
}
