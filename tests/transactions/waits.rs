//! How long a call in a transaction waits for others, and what it says of them.

#[cfg(feature = "postgres")]
use std::cell::Cell;
use std::sync::Mutex;
use std::time::Duration;
#[cfg(feature = "postgres")]
use std::time::Instant;

use futures::future::join_all;
use idempotency::store::SqlTransaction;
use idempotency::{Context, ErrorKind, OnConflict};
#[cfg(feature = "postgres")]
use idempotency_test_support::deadline::eventually_async;
use idempotency_test_support::deadline::within;
use sqlx::Transaction;
#[cfg(feature = "postgres")]
use sqlx::{AssertSqlSafe, PgConnection};
#[cfg(feature = "postgres")]
use tokio::time::sleep;

use crate::databases;
use crate::scene::{Connection, Database, Scene, call};
use crate::world::{DAY, Fault, OPERATION};

/// A call of a key that nobody has is refused while the table is locked, and leaves its transaction
/// as it was. `release` lets the table go.
async fn behind_a_locked_table<D: Database>(
    scene: &Scene<D>,
    release: impl AsyncFnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    for conflict in [OnConflict::Reject, OnConflict::Wait(Duration::from_secs(1))] {
        let mut transaction = scene.pool.begin().await?;
        D::add(SqlTransaction::connection(&mut transaction), "before", "before").await?;
        let calling = scene.engine.call(OPERATION, "a").ttl(DAY).on_conflict(conflict);
        let calling =
            calling.run_in(&mut transaction, async |_| Ok::<_, Fault>("inside".to_owned()));
        let refused = within("the refusal", calling).await?;
        let Err(Fault::Idempotency(error)) = refused else {
            panic!("it cannot be written: {refused:?}")
        };
        assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "nobody has the key: {error}");
        assert!(error.to_string().contains("table"), "{error}");
        transaction.commit().await?;
    }
    release().await?;
    assert_eq!(scene.effects().await?.get("before").map(Vec::len), Some(2));
    Ok(())
}

/// All want the same key and roll back, so that each gets it in its turn.
async fn fences_grow<D: Database>() -> anyhow::Result<()>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    let scene = Scene::<D>::new(8, None).await?;
    let (scene, fences) = (&scene, &Mutex::new(Vec::new()));
    for _ in 0..20 {
        let calls = (0..6).map(|_| async move {
            let mut transaction = scene.pool.begin().await?;
            let calling = call(&scene.engine, "a").run_in(&mut transaction, async |_| {
                let fence = Context::current().fence().await?;
                fences.lock().unwrap().push(fence);
                Ok::<_, Fault>(())
            });
            let called = calling.await;
            transaction.rollback().await?;
            // A deadlock, as MariaDB sees it.
            let is_passing =
                matches!(&called, Err(Fault::Idempotency(error)) if error.is_retryable());
            if is_passing { anyhow::Ok(()) } else { Ok(called?) }
        });
        for call in join_all(calls).await {
            call?;
        }
    }
    let fences = fences.lock().unwrap();
    assert!(fences.len() >= 20, "{fences:?}");
    let back: Vec<_> = fences.windows(2).filter(|pair| pair[1] <= pair[0]).collect();
    assert!(back.is_empty(), "{} of {} go back: {back:?}", back.len(), fences.len());
    Ok(())
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_a_call_that_has_waited_for_a_transaction_has_a_larger_fence()
-> anyhow::Result<()> {
    fences_grow::<databases::Postgres>().await
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_a_call_that_has_waited_for_a_transaction_has_a_larger_fence()
-> anyhow::Result<()> {
    fences_grow::<databases::MariaDb>().await
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_a_locked_table_keeps_a_call_no_longer_than_it_waits() -> anyhow::Result<()> {
    // As `ALTER TABLE` and `CREATE INDEX` take them.
    for mode in ["ACCESS EXCLUSIVE", "SHARE"] {
        let scene = Scene::<databases::Postgres>::new(4, None).await?;
        // The engine knows by then which database it is.
        let mut warm = scene.pool.begin().await?;
        call(&scene.engine, "warm").run_in(&mut warm, async |_| Ok::<_, Fault>(())).await?;
        warm.commit().await?;
        let mut administrator = scene.pool.begin().await?;
        let lock = format!("LOCK TABLE idempotency_records IN {mode} MODE");
        sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut *administrator).await?;
        behind_a_locked_table(&scene, async || Ok(administrator.rollback().await?)).await?;
    }
    Ok(())
}

/// Each of them rolls back, and the next one gets the key.
#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_a_call_waits_once_for_all_who_have_the_key_one_after_the_other()
-> anyhow::Result<()> {
    let scene = Scene::<databases::Postgres>::new(12, None).await?;
    let scene = &scene;
    let calls = (0..10).map(|_| async move {
        let mut transaction = scene.pool.begin().await?;
        let (started, began) = (Instant::now(), Cell::new(None));
        let calling = scene
            .engine
            .call(OPERATION, "a")
            .ttl(DAY)
            .on_conflict(OnConflict::Wait(Duration::from_secs(1)));
        let calling = calling.run_in(&mut transaction, async |_| {
            began.set(Some(started.elapsed()));
            sleep(Duration::from_millis(800)).await;
            Err::<(), _>(Fault::No)
        });
        let refused = calling.await.unwrap_err();
        let waited = began.get().unwrap_or_else(|| started.elapsed());
        transaction.rollback().await?;
        anyhow::Ok((waited, refused))
    });
    for call in join_all(calls).await {
        let (waited, refused) = call?;
        assert!(waited < Duration::from_secs(4), "{waited:?}: {refused}");
        if let Fault::Idempotency(error) = refused {
            assert_eq!(error.kind(), ErrorKind::InProgress, "{error}");
        }
    }
    Ok(())
}

#[cfg(feature = "postgres")]
const SETTINGS: &str =
    "SELECT current_setting('lock_timeout'), current_setting('statement_timeout'),
    current_setting('bytea_output')";

#[cfg(feature = "postgres")]
async fn settings(connection: &mut PgConnection) -> anyhow::Result<[String; 3]> {
    let (locks, whole, bytes) = sqlx::query_as(SETTINGS).fetch_one(connection).await?;
    Ok([locks, whole, bytes])
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_calls_leave_the_settings_of_the_transaction_as_they_are()
-> anyhow::Result<()> {
    let scene = Scene::<databases::Postgres>::new(4, None).await?;
    let mut other = scene.pool.begin().await?;
    call(&scene.engine, "held").run_in(&mut other, async |_| Ok::<_, Fault>(())).await?;
    let mut transaction = scene.pool.begin().await?;
    for (bound, bytes) in [("3s", "escape"), ("17min", "hex")] {
        let set = format!(
            "SET LOCAL lock_timeout = '{bound}'; SET LOCAL statement_timeout = '{bound}'; SET LOCAL bytea_output = {bytes}"
        );
        sqlx::raw_sql(AssertSqlSafe(set)).execute(&mut *transaction).await?;
        let expected = [bound, bound, bytes];
        let refused = scene.engine.call(OPERATION, "held").ttl(DAY).on_conflict(OnConflict::Reject);
        let refused = refused.run_in(&mut transaction, async |_| Ok::<_, Fault>(())).await;
        let Err(Fault::Idempotency(error)) = refused else { panic!("another one holds it") };
        assert_eq!(error.kind(), ErrorKind::InProgress, "{error}");
        assert_eq!(settings(&mut transaction).await?, expected, "after a call that was refused");
        let running = async |connection: &mut PgConnection| {
            assert_eq!(settings(connection).await.unwrap(), expected, "in the body");
            Ok::<_, Fault>(())
        };
        call(&scene.engine, bound).run_in(&mut transaction, running).await?;
        assert_eq!(settings(&mut transaction).await?, expected, "after a call that ran");
        call(&scene.engine, bound).run_in(&mut transaction, running).await?;
        assert_eq!(settings(&mut transaction).await?, expected, "after a replay");
    }
    Ok(())
}

/// The first of them waits for the transaction, and the others for the first one.
#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_all_who_wait_for_a_record_that_is_over_are_told_who_has_it()
-> anyhow::Result<()> {
    let scene = Scene::<databases::Postgres>::new(5, None).await?;
    let (scene, brief) = (&scene, Duration::from_millis(1));
    scene.engine.call(OPERATION, "a").ttl(brief).run(async || Ok::<_, Fault>(0)).await?;
    eventually_async("the record to be over", async || {
        let record = scene.engine.record(OPERATION, "a").inspect().await;
        record.is_ok_and(|record| record.is_none())
    })
    .await?;
    let mut first = scene.pool.begin().await?;
    assert_eq!(call(&scene.engine, "a").run_in(&mut first, async |_| Ok::<_, Fault>(1)).await?, 1);
    let others = (0..3).map(|_| async move {
        let mut transaction = scene.pool.begin().await?;
        let calling = scene
            .engine
            .call(OPERATION, "a")
            .ttl(DAY)
            .on_conflict(OnConflict::Wait(Duration::from_secs(1)));
        let refused = calling.run_in(&mut transaction, async |_| Ok::<_, Fault>(2)).await;
        transaction.rollback().await?;
        anyhow::Ok(refused)
    });
    for refused in join_all(others).await {
        let refused = refused?;
        let Err(Fault::Idempotency(error)) = refused else {
            panic!("another one has it: {refused:?}")
        };
        assert_eq!(error.kind(), ErrorKind::InProgress, "{error}");
    }
    first.rollback().await?;
    Ok(())
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_a_locked_table_keeps_a_call_no_longer_than_it_waits() -> anyhow::Result<()> {
    for lock in ["LOCK TABLES idempotency_records READ", "LOCK TABLES idempotency_records WRITE"] {
        let scene = Scene::<databases::MariaDb>::new(4, None).await?;
        let mut administrator = scene.pool.acquire().await?;
        sqlx::raw_sql(lock).execute(&mut *administrator).await?;
        let unlock = async || {
            sqlx::raw_sql("UNLOCK TABLES").execute(&mut *administrator).await?;
            Ok(())
        };
        behind_a_locked_table(&scene, unlock).await?;
    }
    Ok(())
}
