//! Private MariaDB servers.

use std::net::TcpStream;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use idempotency_test_support::deadline::{eventually, eventually_async, within};
use idempotency_test_support::server::{MariaDbOptions, MariaDbServer, Rows, is_running};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

fn private() -> MariaDbOptions {
    MariaDbOptions::new().private()
}

fn row(values: &[Option<&str>]) -> Vec<Option<String>> {
    values.iter().map(|value| value.map(String::from)).collect()
}

fn one(value: &str) -> Rows {
    vec![row(&[Some(value)])]
}

#[tokio::test]
async fn a_server_answers_and_ends_when_it_is_dropped() -> anyhow::Result<()> {
    let server = MariaDbServer::start(private()).await?;
    assert_eq!(server.url(), format!("mysql://root@{}/idempotency", server.address()));
    let rows =
        server.sql(r"SELECT 1, NULL, 'a\nb\\c\td'; CREATE TABLE t (a text); SELECT 2; SELECT 3 WHERE false; SELECT ''");
    assert_eq!(
        rows.await?,
        [row(&[Some("1"), None, Some("a\nb\\c\td")]), row(&[Some("2")]), row(&[Some("")])]
    );
    let settings =
        server.sql("SELECT @@character_set_server, @@max_connections, DATABASE()").await?;
    assert_eq!(settings, [row(&[Some("utf8mb4"), Some("300"), Some("idempotency")])]);

    let (pid, port) = (server.pid().unwrap(), server.port());
    let directory = server.directory()?.to_path_buf();
    assert!(is_running(pid)?);
    drop(server);
    assert!(!is_running(pid)?);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    assert!(!directory.exists());
    Ok(())
}

#[tokio::test]
async fn what_was_committed_survives_a_kill_and_what_was_not_does_not() -> anyhow::Result<()> {
    for options in [private(), private().durable()] {
        let mut server = MariaDbServer::start(options).await?;
        let (url, pid) = (server.url(), server.pid());
        server
            .sql(
                "CREATE TABLE t (a int); INSERT INTO t VALUES (1); BEGIN; INSERT INTO t VALUES (2)",
            )
            .await?;
        server.kill()?;
        assert_eq!(server.pid(), None);
        server.restart().await?;
        assert_eq!(server.url(), url);
        assert_ne!(server.pid(), pid);
        assert_eq!(server.sql("SELECT a FROM t").await?, one("1"));
    }
    Ok(())
}

#[tokio::test]
async fn a_stopped_server_does_not_wait_for_its_clients() -> anyhow::Result<()> {
    let mut server = MariaDbServer::start(private()).await?;
    tokio::select! {
        ended = server.sql("SELECT SLEEP(1000)") => anyhow::bail!("the statement has ended: {ended:?}"),
        running = until_others_run(&server) => running?,
    }
    server.stop().await?;
    assert!(TcpStream::connect(("127.0.0.1", server.port())).is_err());
    server.restart().await?;
    assert_eq!(server.sql("SELECT 1").await?, one("1"));
    Ok(())
}

async fn until_others_run(server: &MariaDbServer) -> anyhow::Result<()> {
    eventually_async("the statement to run", async || {
        let others =
            "SELECT count(*) FROM information_schema.processlist WHERE info LIKE 'SELECT SLEEP%'";
        server.sql(others).await.is_ok_and(|rows| rows == one("1"))
    })
    .await
}

#[tokio::test]
async fn a_paused_server_keeps_its_connections_and_answers_later() -> anyhow::Result<()> {
    let server = MariaDbServer::start(private()).await?;
    // Long enough not to have ended when the server pauses, even on a busy machine.
    let mut answer = Box::pin(server.sql("SELECT SLEEP(5)"));
    tokio::select! {
        ended = &mut answer => anyhow::bail!("the statement has ended: {ended:?}"),
        running = until_others_run(&server) => running?,
    }
    server.pause()?;
    let mut late = Box::pin(server.sql("SELECT 1"));
    // The server cannot answer however long this waits: a pause without effect fails here.
    assert!(tokio::time::timeout(Duration::from_millis(5_500), &mut answer).await.is_err());
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut late).await.is_err());
    server.resume()?;
    assert_eq!(within("the answer", answer).await??, one("0"));
    assert_eq!(within("the late answer", late).await??, one("1"));
    Ok(())
}

#[tokio::test]
async fn every_test_can_have_a_database_of_its_own() -> anyhow::Result<()> {
    let server = MariaDbServer::start(MariaDbOptions::new()).await?;
    let (first, second) = (server.database("shop").await?, server.database("shop").await?);
    server.sql_at(&first, "CREATE TABLE t (a int); INSERT INTO t VALUES (1)").await?;
    assert_eq!(server.sql_at(&first, "SELECT a FROM t").await?, one("1"));
    let error = server.sql_at(&second, "SELECT a FROM t").await.unwrap_err();
    assert!(error.to_string().contains("doesn't exist"), "{error}");
    Ok(())
}

#[tokio::test]
async fn other_users_log_in_with_their_password() -> anyhow::Result<()> {
    let server = MariaDbServer::start(private()).await?;
    server
        .sql("CREATE USER app@'127.0.0.1' IDENTIFIED BY 'secret'; GRANT SELECT ON idempotency.* TO app@'127.0.0.1'")
        .await?;
    let url = |password: &str| format!("mysql://app:{password}@{}/idempotency", server.address());
    assert_eq!(server.sql_at(&url("secret"), "SELECT CURRENT_USER()").await?, one("app@127.0.0.1"));
    let error = server.sql_at(&url("other"), "SELECT 1").await.unwrap_err();
    assert!(error.to_string().contains("Access denied"), "{error}");
    Ok(())
}

#[tokio::test]
async fn settings_reach_the_server_and_wrong_ones_are_named() -> anyhow::Result<()> {
    let server = MariaDbServer::start(private().setting("lock_wait_timeout", "7")).await?;
    assert_eq!(server.sql("SELECT @@lock_wait_timeout").await?, one("7"));
    let error = MariaDbServer::start(private().setting("no_such_setting", "1")).await.unwrap_err();
    assert!(
        error.to_string().contains("no_such_setting")
            || error.to_string().contains("no-such-setting"),
        "{error}"
    );
    Ok(())
}

#[tokio::test]
async fn a_server_ends_with_the_process_that_started_it_also_when_that_is_killed()
-> anyhow::Result<()> {
    let mut holder = Command::new(env!("CARGO_BIN_EXE_hold_server"))
        .arg("mariadb")
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    let pid = within("the server's id", lines.next_line()).await??.unwrap().parse()?;
    let directory = within("the server's directory", lines.next_line()).await??.unwrap();
    assert!(is_running(pid)?);
    holder.kill().await?;
    eventually("its directory to be removed", || !Path::new(&directory).exists()).await?;
    assert!(!is_running(pid)?);
    Ok(())
}
