//! A transaction is over before the call that was made in it: the database has undone it, or a
//! statement has committed it. What the body writes after that is committed at once.

use std::cell::{Cell, RefCell};

use futures::future::select;
use idempotency::record::State;
use idempotency::tx::in_transaction;
use idempotency::{Error, ErrorKind};
use idempotency_test_support::deadline::within;
use sqlx::SqliteConnection;
use tokio::sync::Notify;

use crate::databases;
use crate::scene::{Database as _, Scene, call};
use crate::world::{Fault, OPERATION, World, add};

/// That nothing is promised of what the body wrote, and that nobody is told to make it again.
#[track_caller]
pub fn assert_open<T: std::fmt::Debug>(result: Result<T, Fault>, why: &str) -> Error {
    let Err(Fault::Idempotency(error)) = result else {
        panic!("{why}: the transaction was over: {result:?}")
    };
    let text = error.to_string();
    assert_eq!(
        (error.kind(), error.is_retryable()),
        (ErrorKind::NotStored, false),
        "{why}: {text}"
    );
    assert!(text.contains("ended before") && text.contains("look for"), "{why}: {text}");
    assert!(!text.contains("kept") && !text.contains("roll the transaction back"), "{why}: {text}");
    error
}

/// `$statements` end the transaction of the body, which takes no notice of their errors; and what
/// becomes of its record.
macro_rules! bodies_that_outlive_their_transaction {
    ($database:ty, $prepare:expr, $statements:expr) => {{
        let scene = Scene::<$database>::new(2, None).await?;
        sqlx::raw_sql($prepare).execute(&scene.pool).await?;
        for (statement, state) in $statements {
            for is_disabled in [false, true] {
                if is_disabled {
                    scene.engine.disable(OPERATION);
                } else {
                    scene.engine.enable(OPERATION);
                }
                let (engine, runs, key) =
                    (&scene.engine, &Cell::new(0), &*format!("{is_disabled}: {statement}"));
                let result = in_transaction(&scene.pool, |mut transaction| async move {
                    let call = call(engine, key).run_in(&mut transaction, async |connection| {
                        runs.set(runs.get() + 1);
                        let _ = sqlx::raw_sql(statement).execute(&mut *connection).await;
                        <$database>::add(connection, key, "after").await?;
                        Ok::<_, Fault>(String::from("after"))
                    });
                    call.await
                });
                assert_open(result.await, key);
                assert_eq!(runs.get(), 1, "{key}: it is not made again");
                let effects = scene.effects().await?;
                assert_eq!(effects.get(key).map(Vec::len), Some(1), "{key}: {effects:?}");
                let found =
                    engine.record(OPERATION, key).inspect().await?.map(|record| record.state);
                let state: Option<State> = state;
                assert_eq!(found, state.filter(|_| !is_disabled), "{key}");
            }
        }
        Ok(())
    }};
}

#[tokio::test]
async fn on_sqlite_a_body_that_outlives_its_transaction_is_not_told_as_undone() -> anyhow::Result<()>
{
    let prepare = "CREATE TABLE audit (id INTEGER PRIMARY KEY); INSERT INTO audit VALUES (1)";
    let statements =
        [("INSERT OR ROLLBACK INTO audit VALUES (1)", None), ("COMMIT", Some(State::Completed))];
    bodies_that_outlive_their_transaction!(databases::Sqlite, prepare, statements)
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_a_body_that_outlives_its_transaction_is_not_told_as_undone()
-> anyhow::Result<()> {
    let statements = [("ROLLBACK", None), ("COMMIT", Some(State::Completed))];
    bodies_that_outlive_their_transaction!(databases::Postgres, "", statements)
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_a_body_that_outlives_its_transaction_is_not_told_as_undone()
-> anyhow::Result<()> {
    let statements =
        [("ROLLBACK", None), ("CREATE OR REPLACE TABLE report (id INT)", Some(State::Completed))];
    bodies_that_outlive_their_transaction!(databases::MariaDb, "SELECT 1", statements)
}

/// The server undoes the transaction of whoever waits for the lock, and others have the key since.
#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_a_record_that_others_have_taken_since_is_not_a_reason_to_make_the_body_again()
-> anyhow::Result<()> {
    type MariaDb = databases::MariaDb;
    let scene = Scene::<MariaDb>::new(2, None).await?;
    let (others, other) = MariaDb::open(&scene.database.url(), 2, None).await?;
    let (engine, runs, others, other) = (&scene.engine, &Cell::new(0), &others, &other);
    let held = &RefCell::new(None);
    let result = in_transaction(&scene.pool, |mut transaction| async move {
        let call = call(engine, "a").run_in(&mut transaction, async |connection| {
            runs.set(runs.get() + 1);
            sqlx::raw_sql("ROLLBACK").execute(&mut *connection).await?;
            MariaDb::add(connection, "a", "after").await?;
            let mut holding = others.begin().await?;
            call(other, "a").run_in(&mut holding, async |_| Ok::<_, Fault>(String::new())).await?;
            held.replace(Some(holding));
            sqlx::raw_sql("SET SESSION innodb_lock_wait_timeout = 1")
                .execute(&mut *connection)
                .await?;
            Ok::<_, Fault>(String::from("after"))
        });
        call.await
    });
    assert_open(result.await, "its own record is locked");
    drop(held.take());
    assert_eq!((runs.get(), scene.effects().await?["a"].len()), (1, 1));
    Ok(())
}

/// How a body ends that meets another writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meets {
    /// When its record is written.
    AfterTheBody,
    InTheBody,
}

/// The lock is gone with the transaction, and another writer has it when the body goes on.
#[tokio::test]
async fn on_sqlite_another_writer_after_the_transaction_is_no_reason_to_make_the_body_again()
-> anyhow::Result<()> {
    for meets in [Meets::AfterTheBody, Meets::InTheBody] {
        let world = World::new().await?;
        sqlx::raw_sql("CREATE TABLE audit (id INTEGER PRIMARY KEY); INSERT INTO audit VALUES (1)")
            .execute(&world.pool)
            .await?;
        let (world, runs) = (&world, &Cell::new(0));
        let writer = &RefCell::new(None);
        let result = in_transaction(&world.pool, |mut transaction| async move {
            let call = world.call("a").run_in(&mut transaction, async |connection| {
                runs.set(runs.get() + 1);
                ignored_undoing(connection).await;
                add(connection, "a").await?;
                writer.replace(Some(world.pool.begin_with("BEGIN IMMEDIATE").await?));
                if meets == Meets::InTheBody {
                    add(connection, "a").await?;
                }
                Ok::<_, Fault>(String::from("a"))
            });
            let result = call.await;
            drop(writer.take());
            result
        });
        assert_open(result.await, &format!("{meets:?}"));
        assert_eq!((runs.get(), world.entries("a").await?), (1, 1), "{meets:?}");
    }
    Ok(())
}

/// SQLite undoes the whole transaction for this statement.
async fn ignored_undoing(connection: &mut SqliteConnection) {
    let ignored = sqlx::query("INSERT OR ROLLBACK INTO audit VALUES (1)").execute(connection).await;
    assert!(ignored.is_err(), "it is there");
}

/// What undoes a transaction of SQLite's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Undoes {
    /// An error beside the call, of which nobody takes notice.
    Beside,
    /// A full disk, which the body returns.
    Returned,
    /// As the first, while the transaction is dropped with its future.
    Dropped,
}

/// The client believes that its transaction is still there.
#[tokio::test]
async fn on_sqlite_the_connection_of_a_transaction_that_the_database_has_undone_serves_the_next_one()
-> anyhow::Result<()> {
    for undoes in [Undoes::Beside, Undoes::Returned, Undoes::Dropped] {
        let scene = Scene::<databases::Sqlite>::new(1, None).await?;
        let (engine, pool) = (&scene.engine, &scene.pool);
        let prepare = "CREATE TABLE audit (id INTEGER PRIMARY KEY); INSERT INTO audit VALUES (1);
            CREATE TEMP TABLE mark (id INT); CREATE TABLE large (body BLOB); PRAGMA max_page_count = 50";
        sqlx::raw_sql(prepare).execute(pool).await?;
        let (runs, reached) = (&Cell::new(0), &Notify::new());
        let charge = async |key: &str, is_undone: bool| {
            in_transaction(pool, |mut transaction| async move {
                let call = call(engine, key).run_in(&mut transaction, async |connection| {
                    runs.set(runs.get() + 1);
                    databases::Sqlite::add(connection, key, "value").await?;
                    if is_undone && undoes == Undoes::Returned {
                        sqlx::query("INSERT INTO large VALUES (zeroblob(1000000))")
                            .execute(&mut *connection)
                            .await?;
                    }
                    Ok::<_, Fault>(String::from("value"))
                });
                let value = call.await?;
                if is_undone {
                    ignored_undoing(&mut transaction).await;
                    if undoes == Undoes::Dropped {
                        reached.notify_one();
                        std::future::pending::<()>().await;
                    }
                }
                Ok::<_, Fault>(value)
            })
            .await
        };
        let undone = charge("undone", true);
        match undoes {
            Undoes::Beside => drop(assert_open(undone.await, "undone beside the call")),
            Undoes::Returned => assert!(matches!(undone.await, Err(Fault::Client(_)))),
            Undoes::Dropped => {
                let reached =
                    within("the body", select(Box::pin(undone), Box::pin(reached.notified())))
                        .await?;
                drop(reached);
            }
        }
        assert_eq!(runs.get(), 1, "{undoes:?}: it is not made again");
        assert_eq!(charge("next", false).await?, "value", "{undoes:?}");
        // Nor does the pool have another one: what is of one connection only is there.
        sqlx::raw_sql("INSERT INTO mark VALUES (1)").execute(pool).await?;
        let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
        call(engine, "by hand")
            .run_in(&mut transaction, async |_| Ok::<_, Fault>(String::new()))
            .await?;
        transaction.commit().await?;
        let effects = scene.effects().await?;
        assert_eq!(effects.into_keys().collect::<Vec<_>>(), ["next"], "{undoes:?}");
    }
    Ok(())
}

/// Puts another transaction in the place of the one that `in_transaction` has begun, and makes the
/// call in that.
macro_rules! a_transaction_in_the_place {
    ($database:ty) => {{
        let scene = Scene::<$database>::new(2, None).await?;
        let (engine, pool) = (&scene.engine, &scene.pool);
        let result = in_transaction(pool, |mut transaction| async move {
            let own = std::mem::replace(&mut *transaction, pool.begin().await?);
            own.rollback().await?;
            let call = call(engine, "a").run_in(&mut transaction, async |connection| {
                <$database>::add(connection, "a", "value").await?;
                Ok::<_, Fault>(String::from("value"))
            });
            call.await
        });
        (result.await, scene)
    }};
}

#[tokio::test]
async fn on_sqlite_a_transaction_that_was_put_in_the_place_is_committed() -> anyhow::Result<()> {
    let (result, scene) = a_transaction_in_the_place!(databases::Sqlite);
    scene.is_exact(&["a".into()], &[("a".into(), result?)]).await
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_a_transaction_that_was_put_in_the_place_is_committed() -> anyhow::Result<()>
{
    let (result, scene) = a_transaction_in_the_place!(databases::Postgres);
    scene.is_exact(&["a".into()], &[("a".into(), result?)]).await
}

/// What ends a transaction beside the call, and lets the body go on.
#[cfg(feature = "postgres")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    /// One in it that cannot begin, because of an error of which nobody takes notice: the client
    /// rolls back both.
    NestedThatFails,
    /// One in it whose beginning nobody waits for. The client does the same.
    NestedThatIsDropped,
    /// The body itself.
    Statement,
}

#[cfg(feature = "postgres")]
impl Ends {
    async fn end(self, transaction: &mut sqlx::Transaction<'_, sqlx::Postgres>) {
        use futures::FutureExt as _;
        use sqlx::Connection as _;

        match self {
            Self::NestedThatFails => {
                let broken = sqlx::query("SELECT 1 / 0").execute(&mut **transaction).await;
                assert!(broken.is_err());
                assert!(transaction.begin().await.is_err(), "its savepoint is refused");
            }
            // One that begins at once is rolled back alone.
            Self::NestedThatIsDropped => while transaction.begin().now_or_never().is_some() {},
            Self::Statement => {
                let ended = sqlx::raw_sql("ROLLBACK").execute(&mut **transaction).await;
                ended.expect("it can always be rolled back");
            }
        }
    }
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_a_transaction_that_was_ended_beside_the_call_is_not_taken_for_a_commit()
-> anyhow::Result<()> {
    type Postgres = databases::Postgres;
    let scene = Scene::<Postgres>::new(2, None).await?;
    let (engine, runs) = (&scene.engine, &Cell::new(0));
    for ends in [Ends::NestedThatFails, Ends::NestedThatIsDropped, Ends::Statement] {
        for writes in [false, true] {
            let key = &*format!("{ends:?}, writes: {writes}");
            runs.set(0);
            let result = in_transaction(&scene.pool, |mut transaction| async move {
                let call = call(engine, key).run_in(&mut transaction, async |connection| {
                    runs.set(runs.get() + 1);
                    Postgres::add(connection, key, "value").await?;
                    Ok::<_, Fault>(String::from("value"))
                });
                let value = call.await?;
                ends.end(&mut transaction).await;
                if writes {
                    Postgres::add(&mut transaction, key, "after").await?;
                }
                Ok::<_, Fault>(value)
            });
            assert_open(result.await, key);
            assert_eq!(runs.get(), 1, "{key}: it is not made again");
            assert!(engine.record(OPERATION, key).inspect().await?.is_none(), "{key}");
            let effects = scene.effects().await?.remove(key).unwrap_or_default();
            let after: &[&str] = if writes { &["after"] } else { &[] };
            assert_eq!(effects, after, "{key}");
        }
    }
    // The connections serve the next ones.
    let value = in_transaction(&scene.pool, |mut transaction| async move {
        let call = call(engine, "next").run_in(&mut transaction, async |connection| {
            Postgres::add(connection, "next", "value").await?;
            Ok::<_, Fault>(String::from("value"))
        });
        call.await
    });
    let value = value.await?;
    scene.is_exact(&["next".into()], &[("next".into(), value)]).await
}

/// The server asks for the transaction once more, and what was written after it is there already.
#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_what_was_written_after_the_transaction_is_not_written_once_more()
-> anyhow::Result<()> {
    type Postgres = databases::Postgres;
    const CONFLICT: &str =
        "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'serialization_failure'; END $$";
    let scene = Scene::<Postgres>::new(2, None).await?;
    let (engine, runs) = (&scene.engine, &Cell::new(0));
    for ends in [Ends::NestedThatFails, Ends::NestedThatIsDropped, Ends::Statement] {
        let key = &*format!("{ends:?}");
        runs.set(0);
        let result = in_transaction(&scene.pool, |mut transaction| async move {
            let call = call(engine, key).run_in(&mut transaction, async |_| {
                runs.set(runs.get() + 1);
                Ok::<_, Fault>(String::from("value"))
            });
            let value = call.await?;
            ends.end(&mut transaction).await;
            Postgres::add(&mut transaction, key, "after").await?;
            sqlx::raw_sql(CONFLICT).execute(&mut **transaction).await?;
            Ok::<_, Fault>(value)
        });
        assert_open(result.await, key);
        assert_eq!(runs.get(), 1, "{key}");
        assert_eq!(scene.effects().await?[key], ["after"], "{key}");
    }
    Ok(())
}

/// The client knows that it has rolled back, also when the server is not there to be asked any more.
#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_what_was_written_after_the_transaction_is_not_written_once_more_without_its_session()
-> anyhow::Result<()> {
    type Postgres = databases::Postgres;
    const END_OF_SESSION: &str = "SELECT pg_terminate_backend(pg_backend_pid())";
    let scene = Scene::<Postgres>::new(2, None).await?;
    let (engine, runs) = (&scene.engine, &Cell::new(0));
    for ends in [Ends::NestedThatFails, Ends::NestedThatIsDropped] {
        for is_ignored in [false, true] {
            let key = &*format!("{ends:?}, ignored: {is_ignored}");
            runs.set(0);
            let result = in_transaction(&scene.pool, |mut transaction| async move {
                let call = call(engine, key).run_in(&mut transaction, async |_| {
                    runs.set(runs.get() + 1);
                    Ok::<_, Fault>(String::from("value"))
                });
                let value = call.await?;
                ends.end(&mut transaction).await;
                Postgres::add(&mut transaction, key, "after").await?;
                let lost = sqlx::raw_sql(END_OF_SESSION).execute(&mut **transaction).await;
                if !is_ignored {
                    lost?;
                }
                Ok::<_, Fault>(value)
            });
            assert_open(result.await, key);
            assert_eq!(runs.get(), 1, "{key}");
            assert_eq!(scene.effects().await?[key], ["after"], "{key}");
        }
    }
    Ok(())
}

/// Nothing tells it from one that was undone.
#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_a_transaction_that_was_put_in_the_place_is_rolled_back() -> anyhow::Result<()> {
    let (result, scene) = a_transaction_in_the_place!(databases::MariaDb);
    assert_open(result, "another one");
    assert!(scene.effects().await?.is_empty());
    assert!(scene.engine.record(OPERATION, "a").inspect().await?.is_none());
    Ok(())
}

/// The server commits everything before such a statement.
#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_a_statement_beside_the_call_that_commits_by_itself_is_not_told_as_undone()
-> anyhow::Result<()> {
    type MariaDb = databases::MariaDb;
    let scene = Scene::<MariaDb>::new(2, None).await?;
    let engine = &scene.engine;
    let result = in_transaction(&scene.pool, |mut transaction| async move {
        let call = call(engine, "a").run_in(&mut transaction, async |connection| {
            MariaDb::add(connection, "a", "value").await?;
            Ok::<_, Fault>(String::from("value"))
        });
        let value = call.await?;
        sqlx::raw_sql("CREATE TABLE report (id INT)").execute(&mut **transaction).await?;
        Ok::<_, Fault>(value)
    });
    assert_open(result.await, "committed by itself");
    scene.is_exact(&["a".into()], &[("a".into(), "value".into())]).await
}

/// What it would wait for does not undo what was written before.
#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_a_transaction_that_was_over_is_not_made_again_for_a_call_outside()
-> anyhow::Result<()> {
    type MariaDb = databases::MariaDb;
    let scene = Scene::<MariaDb>::new(4, Some("SERIALIZABLE")).await?;
    let engine = &scene.engine;
    let (holds, held) = tokio::sync::oneshot::channel();
    let outside = call(engine, "a").run(async || {
        let _ = holds.send(());
        std::future::pending::<Result<String, Fault>>().await
    });
    let inside = async {
        held.await?;
        let result = in_transaction(&scene.pool, |mut transaction| async move {
            MariaDb::add(&mut transaction, "beside", "value").await?;
            sqlx::raw_sql("CREATE TABLE IF NOT EXISTS report (id INT)")
                .execute(&mut **transaction)
                .await?;
            call(engine, "a")
                .run_in(&mut transaction, async |_| Ok::<_, Fault>(String::new()))
                .await
        });
        anyhow::Ok(result.await)
    };
    let result = tokio::select! {
        _ = outside => unreachable!("it never ends"),
        result = inside => result?,
    };
    assert_open(result, "committed by itself");
    assert_eq!(scene.effects().await?.get("beside").map(Vec::len), Some(1));
    Ok(())
}
