//! Whatever isolation a pool of the user's brings, one caller owns the claim.

use std::sync::Arc;
use std::time::Duration;

use idempotency::store::{Claim, ClaimOutcome, PostgresStore, Store as _, Token};
use idempotency_test_support::server::Rows;
use sqlx::postgres::PgPoolOptions;
use tokio::sync::Barrier;

use crate::world::{OPERATION, World, key, patient};

fn one(value: &str) -> Rows {
    vec![vec![Some(String::from(value))]]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_every_isolation_one_of_64_tasks_owns_a_claim() -> anyhow::Result<()> {
    for isolation in ["serializable", "repeatable read", "read committed"] {
        let world = World::new().await?;
        let role = format!("isolated_{}_{}", std::process::id(), isolation.len());
        world
            .sql(&format!(
                "CREATE ROLE {role} LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role};
             ALTER ROLE {role} SET default_transaction_isolation = '{isolation}'"
            ))
            .await?;
        let url = world.url.replace("idempotency@", &format!("{role}@"));
        assert_eq!(world.server.sql_at(&url, "SHOW transaction_isolation").await?, one(isolation));
        let pool = PgPoolOptions::new().max_connections(16).connect(&url).await?;
        // 64 share 16 connections, and the machine may be busy.
        let store =
            PostgresStore::builder(pool).response_timeout(Duration::from_secs(30)).build()?;
        let mut owners = 0;
        for round in 0..10 {
            let barrier = Arc::new(Barrier::new(64));
            let tasks: Vec<_> = (0..64_u128)
                .map(|number| {
                    let (store, barrier) = (store.clone(), Arc::clone(&barrier));
                    tokio::spawn(async move {
                        barrier.wait().await;
                        store
                            .claim(Claim::new(
                                key(round),
                                Token::from_bits(number + 1),
                                OPERATION.into(),
                            ))
                            .await
                    })
                })
                .collect();
            for task in tasks {
                owners += usize::from(matches!(task.await??, ClaimOutcome::Granted(_)));
            }
        }
        assert_eq!((owners, world.rows().await?), (10, 10), "{isolation}");
    }
    Ok(())
}

#[tokio::test]
async fn own_connections_are_read_committed_and_carry_a_name() -> anyhow::Result<()> {
    let world = World::new().await?;
    let database = world.url.rsplit('/').next().unwrap_or_default();
    world
        .sql(&format!(
            "ALTER DATABASE {database} SET default_transaction_isolation = 'serializable'"
        ))
        .await?;
    // What a trigger sees is what the statement runs under.
    world
        .sql(
            "CREATE TABLE seen (isolation text, application text);
             CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 INSERT INTO seen VALUES (current_setting('transaction_isolation'), current_setting('application_name'));
                 RETURN NEW;
             END $$;
             CREATE TRIGGER look BEFORE INSERT ON idempotency_records FOR EACH ROW EXECUTE FUNCTION look()",
        )
        .await?;
    let store = patient(&world.url).connect().await?;
    store.claim(crate::world::claim(1)).await?;
    let seen = world.sql("SELECT isolation, application FROM seen").await?;
    assert_eq!(seen, [[Some("read committed".to_owned()), Some("idempotency".to_owned())]]);
    Ok(())
}
