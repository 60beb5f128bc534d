//! A body takes longer than its record is kept without a result.

use std::cell::Cell;
use std::time::Duration;

use idempotency::record::State;
use idempotency::store::SqliteStore;
use idempotency::testing::ManualClock;
use idempotency::tx::in_transaction;
use idempotency::{ErrorAction, Idempotency};

use crate::databases;
use crate::scene::{Database as _, Scene, call};
use crate::world::{DAY, Fault, OPERATION};

/// Lets the time of the record that is claimed be over.
const OVER: &str = "UPDATE idempotency_records SET expires_at = created_at WHERE state = 1";

macro_rules! its_result_is_stored {
    ($database:ty) => {{
        let scene = Scene::<$database>::new(2, None).await?;
        let (engine, runs) = (&scene.engine, &Cell::new(0));
        for _ in 0..2 {
            let result = in_transaction(&scene.pool, |mut transaction| async move {
                let call = call(engine, "a").run_in(&mut transaction, async |connection| {
                    runs.set(runs.get() + 1);
                    <$database>::add(connection, "a", "value").await?;
                    let aged = sqlx::raw_sql(OVER).execute(&mut *connection).await?;
                    assert_eq!(aged.rows_affected(), 1);
                    Ok::<_, Fault>(String::from("value"))
                });
                call.await
            });
            assert_eq!(result.await?, "value");
        }
        assert_eq!(runs.get(), 1);
        scene.is_exact(&["a".into()], &[("a".into(), "value".into())]).await
    }};
}

#[tokio::test]
async fn on_sqlite_the_result_of_a_long_body_is_stored() -> anyhow::Result<()> {
    its_result_is_stored!(databases::Sqlite)
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_the_result_of_a_long_body_is_stored() -> anyhow::Result<()> {
    its_result_is_stored!(databases::Postgres)
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_the_result_of_a_long_body_is_stored() -> anyhow::Result<()> {
    its_result_is_stored!(databases::MariaDb)
}

/// What the body writes is undone, so it is the clock that goes on.
#[tokio::test]
async fn the_held_error_of_a_long_body_is_in_doubt_for_as_long_as_that_of_a_short_one()
-> anyhow::Result<()> {
    let scene = Scene::<databases::Sqlite>::new(2, None).await?;
    let clock = ManualClock::new();
    let store = SqliteStore::builder(scene.database.url()).clock(clock.clone()).open().await?;
    let engine = Idempotency::builder(store).clock(clock.clone()).in_doubt_retention(DAY);
    let engine = engine.background_purge(false).build()?;
    let state = async || {
        let record = engine.record(OPERATION, "a").inspect().await?;
        anyhow::Ok(record.map(|record| record.state))
    };
    let mut transaction = scene.pool.begin_with("BEGIN IMMEDIATE").await?;
    let call = call(&engine, "a").on_error(ErrorAction::Hold);
    let failing = call.run_in(&mut transaction, async |connection| {
        databases::Sqlite::add(connection, "a", "value").await?;
        clock.advance(2 * DAY);
        Err::<String, _>(Fault::No)
    });
    assert!(matches!(failing.await, Err(Fault::No)));
    transaction.commit().await?;
    assert!(scene.effects().await?.is_empty());
    assert_eq!(state().await?, Some(State::InDoubt));
    clock.advance(DAY.saturating_sub(Duration::from_secs(1)));
    assert_eq!(state().await?, Some(State::InDoubt));
    clock.advance(Duration::from_secs(1));
    assert_eq!(state().await?, None);
    Ok(())
}
