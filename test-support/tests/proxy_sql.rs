//! The proxy in front of SQL databases: the server itself shows what reaches it.

use idempotency_test_support::deadline::within;
use idempotency_test_support::proxy::{Action, Fault, Moment, Protocol, Proxy};
use idempotency_test_support::server::{
    MariaDbOptions, MariaDbServer, PgBouncer, PgBouncerOptions, PostgresOptions, PostgresServer,
    Rows,
};
use sqlx::postgres::PgListener;
use sqlx::{Connection as _, Executor as _, MySqlConnection, PgConnection, Row as _};

fn rows(values: &[&str]) -> Rows {
    values.iter().map(|value| vec![Some(String::from(*value))]).collect()
}

async fn postgres() -> anyhow::Result<(PostgresServer, Proxy)> {
    let server = PostgresServer::start(PostgresOptions::new().private()).await?;
    let proxy = Proxy::start_for(Protocol::Postgres, server.address()).await?;
    server.sql("CREATE TABLE t (a int)").await?;
    Ok((server, proxy))
}

async fn mariadb() -> anyhow::Result<(MariaDbServer, Proxy)> {
    let server = MariaDbServer::start(MariaDbOptions::new().private()).await?;
    let proxy = Proxy::start_for(Protocol::MySql, server.address()).await?;
    server.sql("CREATE TABLE t (a int)").await?;
    Ok((server, proxy))
}

/// The same tests on another database.
macro_rules! on {
    ($database:ident, $connection:ty) => {
        mod $database {
            use super::*;

            #[tokio::test]
            async fn requests_are_counted_by_what_they_run() -> anyhow::Result<()> {
                let (server, proxy) = $database().await?;
                let mut connection = <$connection>::connect(&proxy.url(&server.url())).await?;
                assert_eq!(proxy.requests_of("login"), 1);
                // The second time it is already prepared.
                for _ in 0..2 {
                    sqlx::query("INSERT INTO t VALUES (1)").execute(&mut connection).await?;
                }
                connection.execute(sqlx::raw_sql("UPDATE t SET a = 2")).await?;
                let counts =
                    ["PREPARE", "INSERT", "UPDATE"].map(|command| proxy.requests_of(command));
                assert_eq!(counts, [1, 2, 1], "{:?}", proxy.requests_by_command());
                assert_eq!(server.sql("SELECT a FROM t").await?, rows(&["2", "2"]));
                Ok(())
            }

            #[tokio::test]
            async fn a_fault_strikes_exactly_at_its_moment() -> anyhow::Result<()> {
                let (server, proxy) = $database().await?;
                for (moment, action) in [
                    (Moment::BeforeRequest, Action::Close),
                    (Moment::InsideRequest, Action::Reset),
                    (Moment::AfterRequest, Action::Close),
                    (Moment::AfterRequest, Action::Reset),
                    (Moment::InsideAnswer, Action::Close),
                ] {
                    for is_prepared in [true, false] {
                        server.sql("DELETE FROM t").await?;
                        let mut connection =
                            <$connection>::connect(&proxy.url(&server.url())).await?;
                        let fault = proxy.nth(
                            2,
                            |request| request.runs("VALUES (1)"),
                            Fault::new(moment, action),
                        );
                        let mut insert = async || {
                            if is_prepared {
                                sqlx::query("INSERT INTO t VALUES (1)")
                                    .execute(&mut connection)
                                    .await
                                    .map(drop)
                            } else {
                                connection
                                    .execute(sqlx::raw_sql("INSERT INTO t VALUES (1)"))
                                    .await
                                    .map(drop)
                            }
                        };
                        insert().await?;
                        within("the lost answer", insert()).await?.unwrap_err();
                        fault.happened().await?;
                        let is_applied =
                            matches!(moment, Moment::AfterRequest | Moment::InsideAnswer);
                        let expected = rows(if is_applied { &["1", "1"] } else { &["1"] });
                        let found = server.sql("SELECT a FROM t").await?;
                        assert_eq!(
                            found, expected,
                            "{moment:?} {action:?} prepared: {is_prepared}"
                        );
                    }
                }
                Ok(())
            }

            #[tokio::test]
            async fn a_commit_can_be_lost_before_it_takes_effect_and_after() -> anyhow::Result<()> {
                for (moment, stored) in
                    [(Moment::BeforeRequest, &[][..]), (Moment::AfterRequest, &["1"])]
                {
                    let (server, proxy) = $database().await?;
                    let mut connection = <$connection>::connect(&proxy.url(&server.url())).await?;
                    let mut transaction = connection.begin().await?;
                    sqlx::query("INSERT INTO t VALUES (1)").execute(&mut *transaction).await?;
                    let fault = proxy.next("commit", Fault::new(moment, Action::Close));
                    within("the lost answer", transaction.commit()).await?.unwrap_err();
                    fault.happened().await?;
                    assert_eq!(server.sql("SELECT a FROM t").await?, rows(stored), "{moment:?}");
                }
                Ok(())
            }

            #[tokio::test]
            async fn long_answers_pass_and_the_next_request_has_its_own() -> anyhow::Result<()> {
                let (server, proxy) = $database().await?;
                let mut connection = <$connection>::connect(&proxy.url(&server.url())).await?;
                let fault = proxy.next("INSERT", Fault::new(Moment::AfterRequest, Action::Close));
                for length in [1, 3_000_000] {
                    let query = format!("SELECT REPEAT('x', {length})");
                    let row =
                        sqlx::query(sqlx::AssertSqlSafe(query)).fetch_one(&mut connection).await?;
                    assert_eq!(row.try_get::<String, _>(0)?.len(), length);
                }
                sqlx::query("INSERT INTO t VALUES (1)").execute(&mut connection).await.unwrap_err();
                fault.happened().await?;
                assert_eq!(server.sql("SELECT a FROM t").await?, rows(&["1"]));
                Ok(())
            }

            #[tokio::test]
            async fn a_client_that_is_silenced_hears_nothing() -> anyhow::Result<()> {
                let (server, proxy) = $database().await?;
                let mut connection = <$connection>::connect(&proxy.url(&server.url())).await?;
                let fault = proxy.next("INSERT", Fault::new(Moment::AfterRequest, Action::Silence));
                let mut insert =
                    Box::pin(sqlx::query("INSERT INTO t VALUES (1)").execute(&mut connection));
                tokio::select! {
                    answer = &mut insert => panic!("{answer:?}"),
                    struck = fault.happened() => struck?,
                }
                assert_eq!(server.sql("SELECT a FROM t").await?, rows(&["1"]));
                proxy.close_all();
                within("the end", insert).await?.unwrap_err();
                Ok(())
            }
        }
    };
}

on!(postgres, PgConnection);
on!(mariadb, MySqlConnection);

#[tokio::test]
async fn notifications_pass_when_nobody_asks() -> anyhow::Result<()> {
    let (server, proxy) = postgres().await?;
    let mut listener = PgListener::connect(&proxy.url(&server.url())).await?;
    listener.listen("changes").await?;
    server.sql("NOTIFY changes, 'first'").await?;
    assert_eq!(within("the notification", listener.recv()).await??.payload(), "first");
    Ok(())
}

#[tokio::test]
async fn a_proxy_may_stand_before_a_pooler() -> anyhow::Result<()> {
    let (server, _) = postgres().await?;
    let pooler = PgBouncer::start(PgBouncerOptions::before(&server)).await?;
    let proxy = Proxy::start_for(Protocol::Postgres, pooler.address()).await?;
    let mut connection = PgConnection::connect(&proxy.url(&server.url())).await?;
    connection.execute(sqlx::raw_sql("INSERT INTO t VALUES (1)")).await?;
    let fault = proxy.next("INSERT", Fault::new(Moment::AfterRequest, Action::Close));
    connection.execute(sqlx::raw_sql("INSERT INTO t VALUES (2)")).await.unwrap_err();
    fault.happened().await?;
    assert_eq!(server.sql("SELECT a FROM t").await?, rows(&["1", "2"]));
    assert_eq!(proxy.requests_of("INSERT"), 2);
    Ok(())
}
