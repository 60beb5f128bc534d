//! Private PostgreSQL servers.

use std::net::TcpStream;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use idempotency_test_support::deadline::{eventually, eventually_async, within};
use idempotency_test_support::server::{PostgresOptions, PostgresServer, Rows, is_running};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

fn private() -> PostgresOptions {
    PostgresOptions::new().private()
}

fn row(values: &[Option<&str>]) -> Vec<Option<String>> {
    values.iter().map(|value| value.map(String::from)).collect()
}

fn one(value: &str) -> Rows {
    vec![row(&[Some(value)])]
}

/// The number of the segment that the server holds.
fn shared_memory(directory: &Path) -> anyhow::Result<String> {
    let status = std::fs::read_to_string(directory.join("data/postmaster.pid"))?;
    let segment = status.lines().nth(6).and_then(|line| line.split_whitespace().nth(1));
    segment.map(String::from).context("the server holds no shared memory")
}

fn shared_memory_exists(segment: &str) -> bool {
    let listed = std::process::Command::new("ipcs").arg("-m").output().unwrap();
    let listed = String::from_utf8_lossy(&listed.stdout);
    listed.lines().any(|line| line.split_whitespace().nth(1) == Some(segment))
}

#[tokio::test]
async fn a_server_answers_and_ends_when_it_is_dropped() -> anyhow::Result<()> {
    let server = PostgresServer::start(private()).await?;
    assert_eq!(server.url(), format!("postgres://idempotency@{}/idempotency", server.address()));
    let rows =
        server.sql("SELECT 1, NULL, E'a\nb|c'; CREATE TABLE t (a text); SELECT 2; SELECT 3 WHERE false; SELECT ''");
    assert_eq!(
        rows.await?,
        [row(&[Some("1"), None, Some("a\nb|c")]), row(&[Some("2")]), row(&[Some("")])]
    );
    assert_eq!(
        server.sql("SHOW server_encoding; SHOW max_connections").await?,
        [one("UTF8"), one("300")].concat()
    );

    let (pid, port) = (server.pid().unwrap(), server.port());
    let directory = server.directory()?.to_path_buf();
    let memory = shared_memory(server.directory()?)?;
    assert!(is_running(pid)?);
    drop(server);
    assert!(!is_running(pid)?);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    assert!(!directory.exists());
    assert!(!shared_memory_exists(&memory), "shared memory is left behind");
    Ok(())
}

#[tokio::test]
async fn what_was_committed_survives_a_kill_and_what_was_not_does_not() -> anyhow::Result<()> {
    for options in [private(), private().durable()] {
        let mut server = PostgresServer::start(options).await?;
        let (url, pid) = (server.url(), server.pid());
        server
            .sql(
                "CREATE TABLE t (a int); INSERT INTO t VALUES (1); BEGIN; INSERT INTO t VALUES (2)",
            )
            .await?;
        let memory = shared_memory(server.directory()?)?;
        server.kill()?;
        assert_eq!(server.pid(), None);
        assert!(!shared_memory_exists(&memory), "shared memory is left behind");
        server.restart().await?;
        assert_eq!(server.url(), url);
        assert_ne!(server.pid(), pid);
        assert_eq!(server.sql("SELECT a FROM t").await?, one("1"));
    }
    Ok(())
}

/// Begins a statement, and goes when it runs; the server does not notice that.
async fn leave_behind(server: &PostgresServer, statement: &str) -> anyhow::Result<()> {
    tokio::select! {
        ended = server.sql(statement) => anyhow::bail!("the statement has ended: {ended:?}"),
        running = until_others_run(server) => running,
    }
}

async fn until_others_run(server: &PostgresServer) -> anyhow::Result<()> {
    eventually_async("the statement to run", async || {
        let others = "SELECT count(*) FROM pg_stat_activity
                      WHERE state = 'active' AND backend_type = 'client backend' AND pid <> pg_backend_pid()";
        server.sql(others).await.is_ok_and(|rows| rows == one("1"))
    })
    .await
}

#[tokio::test]
async fn a_kill_ends_also_what_does_not_look_whether_the_server_lives() -> anyhow::Result<()> {
    let mut server = PostgresServer::start(private()).await?;
    leave_behind(&server, "SELECT count(*) FROM generate_series(1, 100000000000)").await?;
    let memory = shared_memory(server.directory()?)?;
    server.kill()?;
    assert!(!shared_memory_exists(&memory), "one of its processes lives");
    server.restart().await?;
    assert_eq!(server.sql("SELECT 1").await?, one("1"));
    Ok(())
}

#[tokio::test]
async fn a_stopped_server_does_not_wait_for_its_clients() -> anyhow::Result<()> {
    let mut server = PostgresServer::start(private()).await?;
    leave_behind(&server, "SELECT pg_sleep(1000)").await?;
    server.stop().await?;
    assert!(TcpStream::connect(("127.0.0.1", server.port())).is_err());
    server.restart().await?;
    assert_eq!(server.sql("SELECT 1").await?, one("1"));
    Ok(())
}

#[tokio::test]
async fn a_server_ends_with_the_process_that_started_it_also_when_that_is_killed()
-> anyhow::Result<()> {
    let mut holder = Command::new(env!("CARGO_BIN_EXE_hold_server"))
        .arg("postgres")
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    let pid = within("the server's id", lines.next_line()).await??.unwrap().parse()?;
    let directory = within("the server's directory", lines.next_line()).await??.unwrap();
    let memory = shared_memory(Path::new(&directory))?;
    assert!(is_running(pid)? && shared_memory_exists(&memory));

    holder.kill().await?;
    eventually("its directory to be removed", || !Path::new(&directory).exists()).await?;
    assert!(!is_running(pid)?);
    assert!(!shared_memory_exists(&memory), "shared memory is left behind");
    Ok(())
}

#[tokio::test]
async fn a_paused_server_keeps_its_connections_and_answers_later() -> anyhow::Result<()> {
    let server = PostgresServer::start(private()).await?;
    // Long enough not to have ended when the server pauses, even on a busy machine.
    let mut answer = Box::pin(server.sql("SELECT pg_sleep(5)"));
    tokio::select! {
        ended = &mut answer => anyhow::bail!("the statement has ended: {ended:?}"),
        running = until_others_run(&server) => running?,
    }
    server.pause()?;
    let mut late = Box::pin(server.sql("SELECT 1"));
    // The server cannot answer however long this waits: a pause without effect fails here.
    assert!(
        tokio::time::timeout(Duration::from_millis(5_500), &mut answer).await.is_err(),
        "its processes go on"
    );
    assert!(
        tokio::time::timeout(Duration::from_millis(200), &mut late).await.is_err(),
        "it takes connections"
    );
    server.resume()?;
    assert_eq!(within("the answer", answer).await??, one(""));
    assert_eq!(within("the late answer", late).await??, one("1"));
    Ok(())
}

#[tokio::test]
async fn every_test_can_have_a_database_of_its_own() -> anyhow::Result<()> {
    let server = PostgresServer::start(PostgresOptions::new()).await?;
    let (first, second) = (server.database("shop").await?, server.database("shop").await?);
    server.sql_at(&first, "CREATE TABLE t (a int); INSERT INTO t VALUES (1)").await?;
    assert_eq!(server.sql_at(&first, "SELECT a FROM t").await?, one("1"));
    let error = server.sql_at(&second, "SELECT a FROM t").await.unwrap_err();
    assert!(error.to_string().contains("\"t\" does not exist"), "{error}");
    Ok(())
}

#[tokio::test]
async fn settings_reach_the_server_and_wrong_ones_are_named() -> anyhow::Result<()> {
    let server = PostgresServer::start(private().setting("work_mem", "3MB")).await?;
    assert_eq!(server.sql("SHOW work_mem; SHOW fsync").await?, [one("3MB"), one("off")].concat());
    let error = PostgresServer::start(private().setting("no_such_setting", "1")).await.unwrap_err();
    assert!(error.to_string().contains("no_such_setting"), "{error}");
    Ok(())
}
