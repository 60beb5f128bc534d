//! A call in a transaction meets others with its key: calls without a transaction, and transactions
//! that it refuses to wait for.

#[cfg(feature = "mysql")]
use std::cell::Cell;
use std::time::Duration;

use idempotency::store::SqlTransaction;
#[cfg(feature = "mysql")]
use idempotency::tx::in_transaction;
use idempotency::{ErrorKind, OnConflict, with_report};
use idempotency_test_support::deadline::{eventually_async, within};
use sqlx::Transaction;
use tokio::sync::oneshot;

use crate::databases;
use crate::scene::{Connection, Database, Scene, call};
use crate::world::{Fault, World, add};

/// Runs `$begin`, and in it a call whose key one without a transaction holds until the transaction
/// waits for it; then that one ends with `$outside`. `$waiting` counts who waits.
macro_rules! behind_a_call_outside {
    ($scene:expr, $begin:expr, $waiting:expr, $outside:expr) => {{
        let scene = $scene;
        let (holds, held) = oneshot::channel();
        let (end, ended) = oneshot::channel::<()>();
        let outside = call(&scene.engine, "a").run(async || {
            let _ = holds.send(());
            let _ = ended.await;
            $outside
        });
        let inside = async {
            held.await?;
            let mut transaction = scene.pool.begin_with($begin).await?;
            let calling = call(&scene.engine, "a")
                .run_in(&mut transaction, async |_| Ok::<_, Fault>("inside".to_owned()));
            let (result, report) = with_report(calling).await;
            transaction.commit().await?;
            anyhow::Ok((result, report.expect("the call reports")))
        };
        let release = async {
            let is_waiting = async || {
                sqlx::query_as($waiting)
                    .fetch_one(&scene.pool)
                    .await
                    .is_ok_and(|(waiting,): (i64,)| waiting > 0)
            };
            eventually_async("the transaction to wait", is_waiting).await?;
            let _ = end.send(());
            anyhow::Ok(())
        };
        let all = async { tokio::join!(outside, inside, release) };
        let (_, inside, release) = within("all of them", all).await?;
        release?;
        inside?
    }};
}

/// Nobody else but those who wait asks for these columns.
#[cfg(feature = "postgres")]
const POSTGRESQL_WAITING: &str = "SELECT count(*) FROM pg_stat_activity
    WHERE query LIKE 'SELECT (%)::bigint, key_hash, owner, state, lease_until FROM%' AND datname = current_database()";

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_a_call_in_a_transaction_waits_for_one_outside() -> anyhow::Result<()> {
    let scene = Scene::<databases::Postgres>::new(4, None).await?;
    let outside = Ok::<_, Fault>("outside".to_owned());
    let (result, report) = behind_a_call_outside!(&scene, "BEGIN", POSTGRESQL_WAITING, outside);
    assert_eq!((&*result?, report.replayed, report.waited), ("outside", true, true));
    let scene = Scene::<databases::Postgres>::new(4, None).await?;
    let (result, report) =
        behind_a_call_outside!(&scene, "BEGIN", POSTGRESQL_WAITING, Err::<String, _>(Fault::No));
    assert_eq!((&*result?, report.replayed, report.waited), ("inside", false, true));
    Ok(())
}

/// It sees the record as it was when the transaction began, and would look for ever.
#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_a_transaction_that_sees_no_end_of_a_call_outside_is_told_so()
-> anyhow::Result<()> {
    let scene = Scene::<databases::Postgres>::new(4, None).await?;
    let outside = Ok::<_, Fault>("outside".to_owned());
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ";
    let (result, report) = behind_a_call_outside!(&scene, begin, POSTGRESQL_WAITING, outside);
    let Err(Fault::Idempotency(error)) = result else { panic!("it cannot see it: {result:?}") };
    assert_eq!((error.kind(), report.waited), (ErrorKind::InProgress, true), "{error}");
    assert!(error.to_string().contains("begin it again"), "{error}");
    Ok(())
}

/// It has waited for the row to take an expired record's place, and another one was faster. That
/// one has to renew its lease and to end, so nothing of the row may stay locked.
#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_a_call_in_a_transaction_that_waits_for_one_outside_has_locked_nothing()
-> anyhow::Result<()> {
    let scene = Scene::<databases::Postgres>::new(4, None).await?;
    call(&scene.engine, "a")
        .ttl(Duration::from_millis(1))
        .run(async || Ok::<_, Fault>("old".to_owned()))
        .await?;
    let count = async |query: &'static str| {
        sqlx::query_as(query).fetch_one(&scene.pool).await.is_ok_and(|(count,): (i64,)| count > 0)
    };
    let expired = "SELECT count(*) FROM idempotency_records WHERE expires_at < extract(epoch FROM now()) * 1000";
    eventually_async("the record to expire", async || count(expired).await).await?;
    let mut faster = scene.pool.begin().await?;
    // As a claim without a transaction writes it.
    let claims = "UPDATE idempotency_records SET state = 1, revision = revision + 1, owner = decode(repeat('07', 16), 'hex'),
        lease_until = extract(epoch FROM now()) * 1000 + 3600000, expires_at = extract(epoch FROM now()) * 1000 + 7200000";
    sqlx::raw_sql(claims).execute(&mut *faster).await?;
    let inside = async {
        let mut transaction = scene.pool.begin().await?;
        let inside = call(&scene.engine, "a")
            .run_in(&mut transaction, async |_| Ok::<_, Fault>("inside".to_owned()));
        let inside = inside.await?;
        transaction.commit().await?;
        anyhow::Ok(inside)
    };
    let others = async {
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
        eventually_async("the transaction to wait for the row", async || count(waits).await)
            .await?;
        faster.commit().await?;
        eventually_async("the transaction to wait for the call", async || {
            count(POSTGRESQL_WAITING).await
        })
        .await?;
        sqlx::raw_sql("SELECT 1 FROM idempotency_records FOR UPDATE NOWAIT")
            .execute(&scene.pool)
            .await?;
        sqlx::raw_sql("DELETE FROM idempotency_records").execute(&scene.pool).await?;
        anyhow::Ok(())
    };
    let (inside, others) = within("both", Box::pin(async { tokio::join!(inside, others) })).await?;
    others?;
    assert_eq!(inside?, "inside");
    Ok(())
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_a_call_in_a_transaction_waits_for_one_outside() -> anyhow::Result<()> {
    use idempotency_test_support::server::{MariaDbOptions, MariaDbServer};

    // Its log has the statements that have ended, too.
    let server = MariaDbServer::start(MariaDbOptions::new().private()).await?;
    let database = databases::MariaDb::on(server).await?;
    let (pool, engine) =
        databases::MariaDb::open(&database.url(), 4, Some("READ COMMITTED")).await?;
    for statement in ["SET GLOBAL log_output = 'TABLE'", "SET GLOBAL general_log = 1"] {
        sqlx::raw_sql(statement).execute(&pool).await?;
    }
    let scene = Scene { database, pool, engine };
    let waiting = "SELECT COUNT(*) FROM mysql.general_log
        WHERE argument LIKE '%SELECT%key_hash, owner, state, lease_until FROM%' AND argument NOT LIKE '%general_log%'";
    let outside = Ok::<_, Fault>("outside".to_owned());
    let (result, report) = behind_a_call_outside!(&scene, "START TRANSACTION", waiting, outside);
    assert_eq!((&*result?, report.replayed, report.waited), ("outside", true, true));
    Ok(())
}

/// It has locked the record, by its failed insert or because it locks all that it reads, and while
/// it waits the one outside can neither end nor renew its lease.
#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_a_call_in_a_transaction_does_not_wait_for_one_outside_that_waits_for_it()
-> anyhow::Result<()> {
    for isolation in ["REPEATABLE READ", "SERIALIZABLE"] {
        let scene = Scene::<databases::MariaDb>::new(4, Some(isolation)).await?;
        let mut transaction = scene.pool.begin().await?;
        sqlx::raw_sql("SELECT * FROM effects").execute(&mut *transaction).await?;
        let (holds, held) = oneshot::channel();
        let (end, ended) = oneshot::channel::<()>();
        let outside = call(&scene.engine, "a").run(async || {
            let _ = holds.send(());
            let _ = ended.await;
            Ok::<_, Fault>("outside".to_owned())
        });
        let inside = async {
            held.await?;
            let patient =
                call(&scene.engine, "a").on_conflict(OnConflict::Wait(Duration::from_secs(3_600)));
            let refused = patient
                .run_in(&mut transaction, async |_| Ok::<_, Fault>("inside".to_owned()))
                .await;
            let Err(Fault::Idempotency(error)) = refused else { panic!("it is held: {refused:?}") };
            assert_eq!(error.kind(), ErrorKind::InProgress, "{error}");
            assert!(
                error.is_retryable() && error.to_string().contains("begin it again"),
                "{error}"
            );
            transaction.rollback().await?;
            let _ = end.send(());
            anyhow::Ok(())
        };
        let (outside, inside) =
            within("both", Box::pin(async { tokio::join!(outside, inside) })).await?;
        inside?;
        assert_eq!(outside?, "outside", "under {isolation}");
    }
    Ok(())
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_a_transaction_that_one_outside_waits_for_is_made_again() -> anyhow::Result<()> {
    let scene = Scene::<databases::MariaDb>::new(4, Some("SERIALIZABLE")).await?;
    let (scene, tries) = (&scene, &Cell::new(0));
    let (holds, held) = oneshot::channel();
    let (end, ended) = oneshot::channel::<()>();
    let (mut end, outside) = (Some(end), async {
        let outside = call(&scene.engine, "a").run(async || {
            let _ = holds.send(());
            let _ = ended.await;
            Ok::<_, Fault>("outside".to_owned())
        });
        outside.await
    });
    let inside = async {
        held.await?;
        let inside = in_transaction(&scene.pool, |mut transaction| {
            tries.set(tries.get() + 1);
            if let Some(end) = end.take_if(|_| tries.get() == 2) {
                let _ = end.send(());
            }
            async move {
                let calling = call(&scene.engine, "a");
                calling
                    .run_in(&mut transaction, async |_| Ok::<_, Fault>("inside".to_owned()))
                    .await
            }
        });
        anyhow::Ok(inside.await?)
    };
    let (outside, inside) =
        within("both", Box::pin(async { tokio::join!(outside, inside) })).await?;
    assert_eq!((outside?, inside?), ("outside".to_owned(), "outside".to_owned()));
    assert!(tries.get() > 1);
    Ok(())
}

/// The one outside needs the writer, which the transaction has.
#[tokio::test]
async fn on_sqlite_a_call_in_a_transaction_does_not_wait_for_one_outside() -> anyhow::Result<()> {
    let world = World::new().await?;
    let (holds, held) = oneshot::channel();
    let outside = world.call("a").run(async || {
        let _ = holds.send(());
        std::future::pending::<Result<String, Fault>>().await
    });
    let inside = async {
        held.await?;
        let mut transaction = world.begin().await?;
        let patient = world.call("a").on_conflict(OnConflict::Wait(Duration::from_secs(600)));
        let refused =
            patient.run_in(&mut transaction, async |connection| add(connection, "a").await).await;
        let Err(Fault::Idempotency(error)) = refused else { panic!("it is held: {refused:?}") };
        assert_eq!(error.kind(), ErrorKind::InProgress, "{error}");
        transaction.rollback().await?;
        anyhow::Ok(())
    };
    let met = async {
        tokio::select! {
            _ = outside => unreachable!("it never ends"),
            met = inside => met,
        }
    };
    within("the refusal", met).await?
}

async fn refuses_to_wait<D: Database>(scene: &Scene<D>) -> anyhow::Result<()>
where
    Transaction<'static, D::Sqlx>: SqlTransaction<Connection = Connection<D>>,
{
    let mut first = scene.pool.begin().await?;
    call(&scene.engine, "a").run_in(&mut first, async |_| Ok::<_, Fault>(1)).await?;
    let mut second = scene.pool.begin().await?;
    let hasty = call(&scene.engine, "a").on_conflict(OnConflict::Reject);
    let (refused, report) =
        with_report(hasty.run_in(&mut second, async |_| Ok::<_, Fault>(2))).await;
    let Err(Fault::Idempotency(error)) = refused else {
        panic!("another one holds it: {refused:?}")
    };
    assert_eq!(error.kind(), ErrorKind::InProgress, "{error}");
    assert!(!error.to_string().contains("0ns"), "{error}");
    assert!(!report.expect("the call reports").waited);
    first.rollback().await?;
    second.rollback().await?;
    Ok(())
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_a_call_that_rejects_does_not_say_how_long_it_waited() -> anyhow::Result<()> {
    refuses_to_wait(&Scene::<databases::Postgres>::new(2, None).await?).await
}

/// By the server's own count: its shortest wait is a second, where it waits.
#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_a_call_that_rejects_does_not_wait() -> anyhow::Result<()> {
    use idempotency_test_support::server::{MariaDbOptions, MariaDbServer};

    let server = MariaDbServer::start(MariaDbOptions::new().private()).await?;
    let database = databases::MariaDb::on(server).await?;
    let (pool, engine) = databases::MariaDb::open(&database.url(), 2, None).await?;
    let scene = Scene { database, pool, engine };
    refuses_to_wait(&scene).await?;
    let waited = "SELECT CAST(variable_value AS SIGNED) FROM information_schema.global_status
        WHERE variable_name = 'INNODB_ROW_LOCK_TIME'";
    let (millis,): (i64,) = sqlx::query_as(waited).fetch_one(&scene.pool).await?;
    assert!(millis < 900, "the server has waited for {millis} ms");
    Ok(())
}
