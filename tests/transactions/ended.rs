//! The server ends the session of a transaction: its timeouts, for clients that vanish.

use std::cell::Cell;

use idempotency::tx::in_transaction;
use idempotency_test_support::deadline::{eventually_async, within};

use crate::databases;
use crate::scene::{Database, Scene, call};
use crate::world::Fault;

/// When the client hears of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Noticed {
    InTheBody,
    AtTheCommit,
}

/// In its first attempt a transaction is idle until the server has ended it, which it says of
/// itself in `$end`.
macro_rules! a_session_that_the_server_ends {
    ($database:ty, $end:expr, $number:expr, $is_there:expr) => {{
        for noticed in [Noticed::InTheBody, Noticed::AtTheCommit] {
            let scene = Scene::<$database>::new(1, None).await?;
            let watching =
                sqlx::Pool::<<$database as Database>::Sqlx>::connect(&scene.database.url()).await?;
            let (attempts, engine, watching) = (&Cell::new(0), &scene.engine, &watching);
            let result = in_transaction(&scene.pool, |mut transaction| async move {
                attempts.set(attempts.get() + 1);
                let is_first = attempts.get() == 1;
                let (number,): (i64,) =
                    sqlx::query_as($number).fetch_one(&mut **transaction).await?;
                if is_first {
                    sqlx::raw_sql($end).execute(&mut **transaction).await?;
                }
                let value = call(engine, "a").run_in(&mut transaction, async |connection| {
                    <$database>::add(connection, "a", "value").await?;
                    Ok::<_, Fault>(String::from("value"))
                });
                let value = value.await?;
                if is_first {
                    let is_gone = async || {
                        let there = sqlx::query_as($is_there).bind(number).fetch_one(watching);
                        there.await.is_ok_and(|(there,): (i64,)| there == 0)
                    };
                    eventually_async("the server to end the session", is_gone)
                        .await
                        .expect("it ends it");
                    if noticed == Noticed::InTheBody {
                        <$database>::add(&mut transaction, "b", "value").await?;
                    }
                }
                Ok::<_, Fault>(value)
            });
            assert_eq!(within(format!("{noticed:?}"), result).await??, "value");
            assert_eq!(attempts.get(), 2, "{noticed:?}");
            scene.is_exact(&["a".into()], &[("a".into(), "value".into())]).await?;
        }
        Ok(())
    }};
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgresql_a_transaction_whose_session_the_server_has_ended_is_made_again()
-> anyhow::Result<()> {
    a_session_that_the_server_ends!(
        databases::Postgres,
        "SET idle_in_transaction_session_timeout = 50",
        "SELECT pg_backend_pid()::int8",
        "SELECT count(*) FROM pg_stat_activity WHERE pid = $1"
    )
}

#[cfg(feature = "mysql")]
#[tokio::test]
async fn on_mariadb_a_transaction_whose_session_the_server_has_ended_is_made_again()
-> anyhow::Result<()> {
    a_session_that_the_server_ends!(
        databases::MariaDb,
        "SET SESSION idle_transaction_timeout = 1",
        "SELECT CAST(CONNECTION_ID() AS SIGNED)",
        "SELECT count(*) FROM information_schema.processlist WHERE id = ?"
    )
}
