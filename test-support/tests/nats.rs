//! Private NATS servers.

use idempotency_test_support::server::{NatsOptions, NatsServer, is_running};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

/// Sends a request of JetStream, and returns its answer.
async fn ask(server: &NatsServer, subject: &str, payload: &str) -> anyhow::Result<String> {
    let mut connection = BufReader::new(TcpStream::connect(server.address()).await?);
    let length = payload.len();
    let request = format!(
        "CONNECT {{\"verbose\":false}}\r\nSUB answer 1\r\nPUB {subject} answer {length}\r\n{payload}\r\n"
    );
    connection.write_all(request.as_bytes()).await?;
    let mut line = String::new();
    while !line.starts_with("MSG ") {
        line.clear();
        anyhow::ensure!(connection.read_line(&mut line).await? > 0, "the server has hung up");
    }
    let length = line.split_whitespace().next_back().unwrap_or_default().parse()?;
    let mut answer = vec![0; length];
    connection.read_exact(&mut answer).await?;
    Ok(String::from_utf8(answer)?)
}

#[tokio::test]
async fn a_server_keeps_its_streams_over_a_kill_and_leaves_no_process() -> anyhow::Result<()> {
    let mut server = NatsServer::start(NatsOptions::new().private()).await?;
    let (url, stream) = (server.url(), r#"{"name":"kept","subjects":["kept"]}"#);
    let created = ask(&server, "$JS.API.STREAM.CREATE.kept", stream).await?;
    assert!(created.contains("\"did_create\":true"), "{created}");
    server.kill()?;
    assert_eq!(server.pid(), None);
    server.restart().await?;
    assert_eq!(server.url(), url);
    let names = ask(&server, "$JS.API.STREAM.NAMES", "").await?;
    assert!(names.contains("\"kept\""), "{names}");
    let (pid, directory) = (server.pid().unwrap(), server.directory()?.to_path_buf());
    drop(server);
    assert!(!is_running(pid)?);
    assert!(!directory.exists());
    Ok(())
}
