//! Private servers, by the example of Redis.

use std::net::TcpStream;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use idempotency_test_support::deadline::{eventually, within};
use idempotency_test_support::server::{RedisOptions, RedisServer, TlsClients, is_running};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

fn private() -> RedisOptions {
    RedisOptions::new().private()
}

#[tokio::test]
async fn a_server_answers_and_ends_when_it_is_dropped() -> anyhow::Result<()> {
    let server = RedisServer::start(private()).await?;
    assert_eq!(server.command(&["PING"]).await?, "PONG");
    assert_eq!(server.url(), format!("redis://127.0.0.1:{}", server.port()));

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
async fn two_servers_do_not_know_each_other() -> anyhow::Result<()> {
    let (first, second) =
        tokio::try_join!(RedisServer::start(private()), RedisServer::start(private()))?;
    assert_ne!(first.port(), second.port());
    first.command(&["SET", "key", "first"]).await?;
    second.command(&["SET", "key", "second"]).await?;
    assert_eq!(first.command(&["GET", "key"]).await?, "first");
    drop(first);
    assert_eq!(second.command(&["GET", "key"]).await?, "second");
    Ok(())
}

#[tokio::test]
async fn what_was_answered_survives_a_kill_with_append_only_and_not_without() -> anyhow::Result<()>
{
    for (options, expected) in [(private().append_only(), "value"), (private(), "")] {
        let mut server = RedisServer::start(options).await?;
        let (url, pid) = (server.url(), server.pid());
        server.command(&["SET", "key", "value"]).await?;
        server.kill()?;
        assert_eq!(server.pid(), None);
        server.restart().await?;
        assert_eq!(server.url(), url);
        assert_ne!(server.pid(), pid);
        assert_eq!(server.command(&["GET", "key"]).await?, expected);
    }
    Ok(())
}

#[tokio::test]
async fn a_stopped_server_refuses_connections_until_it_is_started_again() -> anyhow::Result<()> {
    let mut server = RedisServer::start(private().append_only()).await?;
    server.command(&["SET", "key", "value"]).await?;
    server.stop().await?;
    assert!(TcpStream::connect(("127.0.0.1", server.port())).is_err());
    assert!(server.stop().await.unwrap_err().to_string().contains("does not run"));
    server.restart().await?;
    server.restart().await?;
    assert_eq!(server.command(&["GET", "key"]).await?, "value");
    Ok(())
}

#[tokio::test]
async fn a_restarted_server_has_read_its_files() -> anyhow::Result<()> {
    // Reading then takes half a second: a pause, in microseconds, for each key.
    let mut server =
        RedisServer::start(private().append_only().setting("key-load-delay", "50")).await?;
    server.command(&["EVAL", "for i = 1, 5000 do redis.call('SET', i, i) end", "0"]).await?;
    server.restart().await?;
    assert_eq!(server.command(&["DBSIZE"]).await?, "5000");
    Ok(())
}

#[tokio::test]
async fn a_paused_server_keeps_its_connections_and_answers_later() -> anyhow::Result<()> {
    let server = RedisServer::start(private()).await?;
    server.pause()?;
    let mut answer = Box::pin(server.command(&["PING"]));
    // The server cannot answer however long this waits: a pause without effect fails here.
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut answer).await.is_err());
    server.resume()?;
    assert_eq!(within("the answer", answer).await??, "PONG");
    Ok(())
}

#[tokio::test]
async fn a_paused_server_ends_too() -> anyhow::Result<()> {
    let mut stopped = RedisServer::start(private()).await?;
    stopped.pause()?;
    stopped.stop().await?;
    let dropped = RedisServer::start(private()).await?;
    dropped.pause()?;
    let pid = dropped.pid().unwrap();
    drop(dropped);
    assert!(!is_running(pid)?);
    Ok(())
}

#[tokio::test]
async fn options_reach_the_server() -> anyhow::Result<()> {
    let options = RedisOptions::new()
        .append_only()
        .password("secret")
        .user("app", "on >other ~app:* +get")
        .max_memory(50_000_000, "allkeys-lru")
        .debug_command()
        .setting("hz", "50");
    let server = RedisServer::start(options).await?;
    for (setting, value) in [
        ("appendfsync", "always"),
        ("appendonly", "yes"),
        ("maxmemory", "50000000"),
        ("maxmemory-policy", "allkeys-lru"),
        ("enable-debug-command", "yes"),
        ("hz", "50"),
    ] {
        let answer = server.command(&["CONFIG", "GET", setting]).await?;
        assert!(answer.ends_with(value), "{setting}: {answer:?}");
    }
    assert!(server.command(&["ACL", "LIST"]).await?.contains("user app on"));
    assert_eq!(server.url(), format!("redis://:secret@127.0.0.1:{}", server.port()));
    Ok(())
}

#[tokio::test]
async fn a_server_with_tls_has_certificates_and_a_second_port() -> anyhow::Result<()> {
    for (clients, value) in [(TlsClients::Anybody, "no"), (TlsClients::WithCertificate, "yes")] {
        let mut server = RedisServer::start(RedisOptions::new().tls(clients)).await?;
        let url = server.tls_url()?;
        let port = url.rsplit_once(':').unwrap().1;
        TcpStream::connect(format!("127.0.0.1:{port}"))?;
        assert!(server.command(&["CONFIG", "GET", "tls-auth-clients"]).await?.ends_with(value));
        let certificates = server.certificates()?;
        for file in [&certificates.authority, &certificates.server, &certificates.client] {
            assert!(
                std::fs::read_to_string(file)?.contains("BEGIN CERTIFICATE"),
                "{}",
                file.display()
            );
        }
        server.restart().await?;
        assert_eq!(server.tls_url()?, url);
    }
    let server = RedisServer::start(private()).await?;
    assert!(server.tls_url().unwrap_err().to_string().contains("without TLS"));
    Ok(())
}

#[tokio::test]
async fn a_server_that_does_not_start_says_why() {
    let error =
        RedisServer::start(RedisOptions::new().setting("no-such-setting", "1")).await.unwrap_err();
    assert!(error.to_string().contains("no-such-setting"), "{error}");
}

#[tokio::test]
async fn a_server_ends_with_the_process_that_started_it_also_when_that_is_killed()
-> anyhow::Result<()> {
    let mut holder = Command::new(env!("CARGO_BIN_EXE_hold_server"))
        .arg("redis")
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    let pid = within("the server's id", lines.next_line()).await??.unwrap().parse()?;
    let directory = within("the server's directory", lines.next_line()).await??.unwrap();
    assert!(is_running(pid)?);
    assert!(Path::new(&directory).exists());

    holder.kill().await?;
    eventually("the server to end", || !is_running(pid).unwrap()).await?;
    eventually("its directory to be removed", || !Path::new(&directory).exists()).await
}
