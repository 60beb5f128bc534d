//! `PgBouncer` in front of a private PostgreSQL server.

use std::net::TcpStream;

use idempotency_test_support::server::{
    PgBouncer, PgBouncerOptions, PostgresOptions, PostgresServer, Rows, is_running,
};

fn one(value: &str) -> Rows {
    vec![vec![Some(String::from(value))]]
}

async fn server() -> anyhow::Result<PostgresServer> {
    PostgresServer::start(PostgresOptions::new().private()).await
}

#[tokio::test]
async fn transactions_reach_the_server_and_sessions_do_not() -> anyhow::Result<()> {
    let server = server().await?;
    let pooler =
        PgBouncer::start(PgBouncerOptions::before(&server).setting("default_pool_size", "1"))
            .await?;
    let url = pooler.through(&server.database("shop").await?);
    server.sql_at(&url, "CREATE TABLE t (a int); BEGIN; INSERT INTO t VALUES (1); COMMIT").await?;
    assert_eq!(server.sql_at(&url, "SELECT a FROM t").await?, one("1"));
    assert_eq!(
        server.sql_at(&pooler.url(), "SELECT current_database()").await?,
        one("idempotency")
    );
    // Two clients share the one connection: what the first has set is there for the second.
    let first = server.sql_at(&url, "SET work_mem = '7MB'; SELECT pg_backend_pid()").await?;
    let second = server.sql_at(&url, "SHOW work_mem; SELECT pg_backend_pid()").await?;
    assert_eq!(second, [one("7MB"), first].concat());
    Ok(())
}

#[tokio::test]
async fn it_ends_when_it_is_dropped_and_comes_back_when_it_is_restarted() -> anyhow::Result<()> {
    let server = server().await?;
    let mut pooler = PgBouncer::start(PgBouncerOptions::before(&server)).await?;
    pooler.kill()?;
    assert!(TcpStream::connect(pooler.address()).is_err());
    pooler.restart().await?;
    pooler.stop().await?;
    pooler.restart().await?;
    assert_eq!(server.sql_at(&pooler.url(), "SELECT 1").await?, one("1"));
    let (pid, address) = (pooler.pid().unwrap(), pooler.address());
    drop(pooler);
    assert!(!is_running(pid)?);
    assert!(TcpStream::connect(address).is_err());
    Ok(())
}

#[tokio::test]
async fn other_roles_log_in_when_they_are_named() -> anyhow::Result<()> {
    let server = server().await?;
    server.sql("CREATE ROLE app LOGIN; CREATE ROLE other LOGIN").await?;
    let pooler = PgBouncer::start(PgBouncerOptions::before(&server).user("app")).await?;
    let url = |role: &str| format!("postgres://{role}@{}/idempotency", pooler.address());
    assert_eq!(server.sql_at(&url("app"), "SELECT current_user").await?, one("app"));
    server.sql_at(&url("other"), "SELECT 1").await.unwrap_err();
    Ok(())
}
