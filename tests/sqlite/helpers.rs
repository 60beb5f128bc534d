//! The helpers of `idempotency::testing` with a store that the engine waits for, and with calls in
//! transactions.

use std::collections::HashMap;
use std::sync::Mutex;

use idempotency::store::SqliteStore;
use idempotency::testing::crash_at_every_await;
use idempotency::tx::in_transaction;
use idempotency::{Call, Context, Error, Idempotency, OnCrash};
use sqlx::{SqliteConnection, SqlitePool};
use tokio::task::yield_now;

use crate::world::{DAY, World};

/// The books of what is outside. It is ready at once.
#[derive(Default)]
struct Bank(Mutex<HashMap<usize, usize>>);

impl Bank {
    fn charge(&self, order: usize) {
        *self.0.lock().unwrap().entry(order).or_default() += 1;
    }

    fn charges(&self, order: usize) -> usize {
        self.0.lock().unwrap().get(&order).copied().unwrap_or_default()
    }
}

async fn engine(world: &World) -> Idempotency {
    Idempotency::new(SqliteStore::open(&world.path).await.unwrap())
}

fn fulfil(engine: &Idempotency, order: usize) -> Call {
    engine.call("fulfil", order as u64).ttl(DAY).on_crash(OnCrash::Resume)
}

#[tokio::test]
#[should_panic(expected = "charged twice")]
async fn a_step_is_dropped_between_its_effect_and_its_checkpoint_though_its_fake_never_waits() {
    let world = World::new().await.unwrap();
    let (bank, engine) = (Bank::default(), engine(&world).await);
    let call = async |order: usize| {
        let fulfil = fulfil(&engine, order);
        let charge = async || {
            bank.charge(order);
            Ok::<_, Error>(())
        };
        fulfil.run(async || Context::current().step("charge", charge).await).await
    };
    crash_at_every_await(call, async |order, _| {
        let _ = call(order).await;
        assert!(bank.charges(order) <= 1, "charged twice");
    })
    .await;
}

#[tokio::test]
#[should_panic(expected = "could not look: no call ever waited for something outside in the body \
    of `fulfil`")]
async fn a_body_that_waits_only_for_its_store_is_reported() {
    let world = World::new().await.unwrap();
    let (bank, engine) = (Bank::default(), engine(&world).await);
    let call = async |order: usize| {
        let body = async || {
            let context = Context::current();
            context.fence().await?;
            context.step("number", async || Ok::<_, Error>(7)).await?;
            bank.charge(order);
            Ok::<_, Error>(())
        };
        fulfil(&engine, order).on_crash(OnCrash::Retry).run(body).await
    };
    crash_at_every_await(call, async |order, _| {
        let _ = call(order).await;
    })
    .await;
}

#[tokio::test]
#[should_panic(expected = "could not look: no call ever waited for something outside in the body \
    of `charge`")]
async fn an_inner_call_that_never_waits_is_reported_though_its_store_does() {
    let world = World::new().await.unwrap();
    let (bank, engine) = (Bank::default(), engine(&world).await);
    let call = async |order: usize| {
        let charge = async || {
            bank.charge(order);
            Ok::<_, Error>(())
        };
        let body = async || {
            yield_now().await;
            let call = engine.call("charge", order as u64).ttl(DAY).on_crash(OnCrash::Retry);
            call.run(charge).await
        };
        fulfil(&engine, order).on_crash(OnCrash::Hold).run(body).await
    };
    crash_at_every_await(call, async |order, _| {
        let _ = call(order).await;
    })
    .await;
}

async fn in_a_transaction(
    pool: &SqlitePool,
    engine: &Idempotency,
    bank: &Bank,
    order: usize,
    waits: bool,
) -> Result<(), anyhow::Error> {
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
    let body = async |_: &mut SqliteConnection| {
        bank.charge(order);
        if waits {
            yield_now().await;
        }
        Ok::<_, Error>(())
    };
    engine.call("book", order as u64).ttl(DAY).run_in(&mut transaction, body).await?;
    transaction.commit().await?;
    Ok(())
}

#[tokio::test]
#[should_panic(expected = "could not look: no call ever waited for something outside in the body \
    of `book`")]
async fn a_body_in_a_transaction_that_never_waits_is_reported() {
    let world = World::new().await.unwrap();
    let (bank, engine) = (Bank::default(), engine(&world).await);
    let call = |order| in_a_transaction(&world.pool, &engine, &bank, order, false);
    crash_at_every_await(call, async |order, _| {
        let _ = call(order).await;
    })
    .await;
}

#[tokio::test]
#[should_panic(expected = "charged twice")]
async fn an_effect_outside_of_its_transaction_is_found() {
    let world = World::new().await.unwrap();
    let (bank, engine) = (Bank::default(), engine(&world).await);
    let call = |order| in_a_transaction(&world.pool, &engine, &bank, order, true);
    crash_at_every_await(call, async |order, _| {
        call(order).await.unwrap();
        assert!(bank.charges(order) <= 1, "charged twice");
    })
    .await;
}

#[tokio::test]
#[should_panic(expected = "could not look: no call after the first was dropped in the middle of \
    `book`")]
async fn one_key_for_all_numbers_in_a_transaction_is_reported() {
    let world = World::new().await.unwrap();
    let (bank, engine) = (Bank::default(), engine(&world).await);
    let call = |_| in_a_transaction(&world.pool, &engine, &bank, 7, true);
    crash_at_every_await(call, async |order, _| {
        let _ = call(order).await;
    })
    .await;
}

#[tokio::test]
async fn a_body_that_writes_in_its_transaction_is_looked_at() -> anyhow::Result<()> {
    let world = World::new().await?;
    sqlx::raw_sql("CREATE TABLE ledger (entry INTEGER NOT NULL)").execute(&world.pool).await?;
    let engine = engine(&world).await;
    let call = async |order: usize| {
        in_transaction(&world.pool, async |mut transaction| {
            let body = async |connection: &mut SqliteConnection| {
                let insert = sqlx::query("INSERT INTO ledger VALUES (?)")
                    .bind(i64::try_from(order).unwrap());
                insert.execute(connection).await?;
                Ok::<_, Decline>(())
            };
            engine.call("book", order as u64).ttl(DAY).run_in(&mut transaction, body).await
        })
        .await
    };
    let points = crash_at_every_await(call, async |order, _| {
        call(order).await.unwrap();
        let count = "SELECT count(*) FROM ledger WHERE entry = ?";
        let (entries,): (i64,) = sqlx::query_as(count)
            .bind(i64::try_from(order).unwrap())
            .fetch_one(&world.pool)
            .await
            .unwrap();
        assert_eq!(entries, 1);
    });
    assert!(points.await >= 1);
    Ok(())
}

#[derive(Debug, thiserror::Error)]
enum Decline {
    #[error(transparent)]
    Idempotency(#[from] Error),
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}
