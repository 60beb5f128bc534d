//! The database has undone a transaction, and its body takes no notice: the commit would be
//! answered all the same.

use idempotency::ErrorKind;
use idempotency::tx::in_transaction;

use crate::databases;
#[cfg(feature = "mysql")]
use crate::over::assert_open;
use crate::scene::{Database, Ending, Scene, call, charge};
use crate::world::{Fault, OPERATION};

#[cfg(feature = "postgres")]
#[track_caller]
fn assert_undone(result: &Result<String, Fault>) {
    let Err(Fault::Idempotency(error)) = result else {
        panic!("nothing was committed: {result:?}")
    };
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(error.to_string().contains("undone the transaction"), "{error}");
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_an_error_beside_the_call_that_was_ignored_is_not_taken_for_a_commit()
-> anyhow::Result<()> {
    type Postgres = databases::Postgres;
    let scene = Scene::<Postgres>::new(2, None).await?;
    sqlx::raw_sql("CREATE TABLE audit (id int PRIMARY KEY); INSERT INTO audit VALUES (1)")
        .execute(&scene.pool)
        .await?;
    let engine = &scene.engine;
    let result = in_transaction(&scene.pool, |mut transaction| async move {
        let value = call(engine, "a").run_in(&mut transaction, async |connection| {
            Postgres::add(connection, "a", "first").await?;
            Ok::<_, Fault>(String::from("first"))
        });
        let value = value.await?;
        let audited = sqlx::query("INSERT INTO audit VALUES (1)").execute(&mut **transaction).await;
        assert!(audited.is_err(), "it is there");
        Ok::<_, Fault>(value)
    })
    .await;
    assert_undone(&result);
    assert!(engine.record(OPERATION, "a").inspect().await?.is_none());
    assert!(scene.effects().await?.is_empty());
    let value = charge::<Postgres>(&scene.pool, engine, "a", Ending::Commit, &|| {})
        .await?
        .expect("it runs");
    scene.is_exact(&["a".into()], &[("a".into(), value)]).await
}

/// An error after which a savepoint brings the transaction back is no reason to refuse the commit.
#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_an_error_that_a_savepoint_undid_does_not_keep_the_rest_from_its_commit()
-> anyhow::Result<()> {
    use sqlx::Connection as _;

    type Postgres = databases::Postgres;
    let scene = Scene::<Postgres>::new(2, None).await?;
    let engine = &scene.engine;
    let value = in_transaction(&scene.pool, |mut transaction| async move {
        let value = call(engine, "a").run_in(&mut transaction, async |connection| {
            Postgres::add(connection, "a", "first").await?;
            Ok::<_, Fault>(String::from("first"))
        });
        let value = value.await?;
        let mut savepoint = transaction.begin().await?;
        assert!(sqlx::query("SELECT 1 / 0").execute(&mut *savepoint).await.is_err());
        savepoint.rollback().await?;
        Ok::<_, Fault>(value)
    });
    let value = value.await?;
    scene.is_exact(&["a".into()], &[("a".into(), value)]).await
}

/// Where the deadlock is of which nobody takes notice.
#[cfg(feature = "mysql")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meets {
    BesideTheCall,
    InTheBody,
}

#[cfg(feature = "mysql")]
async fn an_ignored_deadlock(meets: Meets) -> anyhow::Result<()> {
    use idempotency_test_support::deadline::eventually_async;

    type MariaDb = databases::MariaDb;
    const ADD: &str = "UPDATE counters SET count = count + 1 WHERE id = ?";
    let scene = Scene::<MariaDb>::new(2, None).await?;
    let (engine, pool) = (&scene.engine, &scene.pool);
    sqlx::raw_sql("CREATE TABLE counters (id INT PRIMARY KEY, count INT)").execute(pool).await?;
    sqlx::raw_sql("INSERT INTO counters SELECT seq, 0 FROM seq_1_to_1000").execute(pool).await?;
    let watching = sqlx::MySqlPool::connect(&scene.database.url()).await?;
    let is_waiting = async || {
        let waiting = "SELECT count(*) FROM information_schema.processlist WHERE info LIKE 'UPDATE counters%'";
        sqlx::query_as(waiting).fetch_one(&watching).await.is_ok_and(|(count,): (i64,)| count > 0)
    };
    // Has written more than the other one, which therefore is the one that the server undoes. It
    // keeps no lock of the row that it passes over, as a server may that reads the whole table, and
    // its isolation is stricter.
    let begin = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; START TRANSACTION";
    let mut large = pool.begin_with(begin).await?;
    sqlx::query("UPDATE counters SET count = count + 1 WHERE id > 1").execute(&mut *large).await?;
    let (holds, held) = tokio::sync::oneshot::channel();
    let other = async {
        held.await?;
        sqlx::query(ADD).bind(1).execute(&mut *large).await?;
        large.commit().await?;
        anyhow::Ok(())
    };
    let (mut holds, is_waiting) = (Some(holds), &is_waiting);
    let result = in_transaction(pool, |mut transaction| {
        let holds = holds.take();
        let meet = async move |connection: &mut sqlx::MySqlConnection| {
            sqlx::query(ADD).bind(1).execute(&mut *connection).await?;
            holds.expect("the body runs once").send(()).expect("the other one goes on");
            eventually_async("the other transaction to wait", is_waiting).await.expect("it waits");
            let ignored = sqlx::query(ADD).bind(2).execute(&mut *connection).await;
            assert!(ignored.is_err(), "a deadlock");
            Ok::<_, Fault>(())
        };
        async move {
            let mut meet = Some(meet);
            let value = call(engine, "a").run_in(&mut transaction, async |connection| {
                MariaDb::add(connection, "a", "before").await?;
                if let Some(meet) = meet.take_if(|_| meets == Meets::InTheBody) {
                    meet(connection).await?;
                }
                MariaDb::add(connection, "a", "after").await?;
                Ok::<_, Fault>(String::from("value"))
            });
            let value = value.await?;
            if let Some(meet) = meet {
                meet(&mut transaction).await?;
            }
            Ok::<_, Fault>(value)
        }
    });
    let (result, other) = tokio::join!(result, other);
    other?;
    assert_open(result, &format!("{meets:?}"));
    assert!(engine.record(OPERATION, "a").inspect().await?.is_none());
    // Outside of the transaction, the server commits what comes after the deadlock.
    let effects = scene.effects().await?.remove("a").unwrap_or_default();
    assert_eq!(effects, if meets == Meets::InTheBody { vec!["after"] } else { Vec::new() });
    Ok(())
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_a_deadlock_beside_the_call_that_was_ignored_is_not_taken_for_a_commit()
-> anyhow::Result<()> {
    an_ignored_deadlock(Meets::BesideTheCall).await
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_a_deadlock_in_the_body_that_was_ignored_is_not_told_as_an_effect_that_is_undone()
-> anyhow::Result<()> {
    an_ignored_deadlock(Meets::InTheBody).await
}

/// A change that breaks a rule which the database looks at when everything is there.
macro_rules! a_commit_that_a_rule_refuses_is_made_once {
    ($database:ty) => {{
        let scene = Scene::<$database>::new(2, None).await?;
        let rule = "CREATE TABLE baskets (id INT PRIMARY KEY);
            CREATE TABLE lines (basket INT REFERENCES baskets (id) DEFERRABLE INITIALLY DEFERRED)";
        sqlx::raw_sql(rule).execute(&scene.pool).await?;
        let (engine, runs) = (&scene.engine, &std::cell::Cell::new(0));
        let charge = async |is_fit: bool| {
            in_transaction(&scene.pool, |mut transaction| async move {
                let call = call(engine, "a").run_in(&mut transaction, async |connection| {
                    runs.set(runs.get() + 1);
                    <$database>::add(connection, "a", "first").await?;
                    if !is_fit {
                        sqlx::query("INSERT INTO lines VALUES (7)")
                            .execute(&mut *connection)
                            .await?;
                    }
                    Ok::<_, Fault>(String::from("first"))
                });
                call.await
            })
            .await
        };
        let Err(Fault::Idempotency(error)) = charge(false).await else {
            anyhow::bail!("the rule is broken")
        };
        assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{error}");
        assert!(
            format!("{error:?}").to_lowercase().contains("foreign key constraint"),
            "{error:?}"
        );
        assert!(
            error.to_string().contains("the body ran, and its transaction was rolled back"),
            "{error}"
        );
        assert_eq!(runs.get(), 1, "it is no use to make it again");
        assert!(!error.is_retryable(), "{error}");
        assert!(scene.effects().await?.is_empty());
        assert!(engine.record(OPERATION, "a").inspect().await?.is_none());
        assert_eq!(charge(true).await?, "first");
        scene.is_exact(&["a".into()], &[("a".into(), "first".into())]).await
    }};
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_a_commit_that_a_rule_refuses_is_made_once() -> anyhow::Result<()> {
    a_commit_that_a_rule_refuses_is_made_once!(databases::Postgres)
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn on_sqlite_a_commit_that_a_rule_refuses_is_made_once() -> anyhow::Result<()> {
    a_commit_that_a_rule_refuses_is_made_once!(databases::Sqlite)
}

/// The rule needs a row that is locked by then. The data break no rule.
#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_a_commit_that_waits_too_long_for_a_lock_can_be_made_again()
-> anyhow::Result<()> {
    type Postgres = databases::Postgres;
    let scene = Scene::<Postgres>::new(3, None).await?;
    let rule = "CREATE TABLE baskets (id INT PRIMARY KEY); INSERT INTO baskets VALUES (7);
        CREATE TABLE lines (basket INT REFERENCES baskets (id) DEFERRABLE INITIALLY DEFERRED)";
    sqlx::raw_sql(rule).execute(&scene.pool).await?;
    let mut other = scene.pool.begin().await?;
    sqlx::query("SELECT 1 FROM baskets FOR UPDATE").execute(&mut *other).await?;
    let engine = &scene.engine;
    let charge = async || {
        in_transaction(&scene.pool, |mut transaction| async move {
            let call = call(engine, "a").run_in(&mut transaction, async |connection| {
                Postgres::add(connection, "a", "first").await?;
                sqlx::query("INSERT INTO lines VALUES (7)").execute(connection).await?;
                Ok::<_, Fault>(String::from("first"))
            });
            let value = call.await?;
            let bound = "SET LOCAL lock_timeout = '50ms'";
            sqlx::query(bound).execute(&mut **transaction).await?;
            Ok::<_, Fault>(value)
        })
        .await
    };
    let Err(Fault::Idempotency(error)) = charge().await else { panic!("the row is locked") };
    assert!(format!("{error:?}").contains("lock timeout"), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{error}");
    assert!(error.is_retryable() && error.is_rolled_back(), "{error}");
    assert!(error.to_string().contains("run the whole transaction again"), "{error}");
    other.rollback().await?;
    let value = charge().await?;
    scene.is_exact(&["a".into()], &[("a".into(), value)]).await
}

/// The record cannot be written after that, and the body did run.
#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_a_record_that_cannot_be_written_after_the_body_is_not_told_as_a_body_that_did_not_run()
-> anyhow::Result<()> {
    let scene = Scene::<databases::Postgres>::new(2, None).await?;
    for (key, ignored) in [
        ("statement", "SELECT 1 / 0"),
        ("session", "SELECT pg_terminate_backend(pg_backend_pid())"),
    ] {
        let (runs, mut transaction) = (std::cell::Cell::new(0), scene.pool.begin().await?);
        let result = call(&scene.engine, key).run_in(&mut transaction, async |connection| {
            runs.set(runs.get() + 1);
            assert!(sqlx::query(ignored).execute(connection).await.is_err());
            Ok::<_, Fault>(String::from("value"))
        });
        let Err(Fault::Idempotency(error)) = result.await else { panic!("nothing can be written") };
        let text = error.to_string();
        assert_eq!((error.kind(), runs.get()), (ErrorKind::StoreUnavailable, 1), "{text}");
        assert!(
            text.contains("the body ran, and its record could not be written")
                && !text.contains("body did not run"),
            "{text}"
        );
    }
    Ok(())
}
