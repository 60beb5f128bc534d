//! Renewals have connections of their own, which belong to the runtime that asks for them.

use std::time::Duration;

use idempotency::store::{PostgresStore, Renewal, State, Store as _, StoreError, Token, Written};

use crate::world::{DAY, World, claim, key, number, run, token};

const LEASE: Duration = Duration::from_secs(60);

fn renewal(number: u32) -> Renewal {
    Renewal::new(key(number), token(number), LEASE)
}

fn on_another_runtime<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> impl Future<Output = T> {
    let thread = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(task)
    };
    async { tokio::task::spawn_blocking(thread).await.expect("the thread ends") }
}

#[tokio::test]
async fn renewals_go_on_while_all_other_connections_are_taken() -> anyhow::Result<()> {
    let world = World::new().await?;
    let store = PostgresStore::builder(&world.url).response_timeout(LEASE).max_connections(1).build()?;
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
    idempotency_test_support::deadline::eventually_async("the other request to wait", async || {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'
                       AND datname = current_database()";
        world.sql(waiting).await.is_ok_and(|rows| rows == [[Some("1".to_owned())]])
    })
    .await?;
    assert_eq!(store.renew(vec![renewal(1)]).await?, [Written::Applied]);
    transaction.rollback().await?;
    blocked.await??;
    Ok(())
}

#[tokio::test]
async fn connections_for_renewals_are_made_anew_when_their_runtime_has_ended() -> anyhow::Result<()> {
    let world = World::new().await?;
    world.store.claim(claim(1)).await?;
    for _ in 0..3 {
        let store = world.store.clone();
        let renewing = async move {
            // A connection goes back to its pool after its request; the first of several has by the end.
            for _ in 0..5 {
                assert_eq!(store.renew(vec![renewal(1)]).await?, [Written::Applied]);
            }
            Ok::<_, StoreError>(())
        };
        on_another_runtime(renewing).await?;
    }
    assert_eq!(world.store.renew(vec![renewal(1)]).await?, [Written::Applied]);
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
            0 | 7 => Written::Lost,
            1..=50 => Written::Applied,
            _ => Written::Gone,
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
    world.sql(&format!("UPDATE idempotency_records SET format = 2 WHERE key_hash = '\\x{}'", key(2).to_hex())).await?;
    let written = world.store.renew((1..=3).map(renewal).collect()).await?;
    assert_eq!(written, [Written::Applied, Written::Lost, Written::Applied]);
    Ok(())
}
