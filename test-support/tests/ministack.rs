//! A private MiniStack.

use idempotency_test_support::server::{MiniStackOptions, MiniStackServer, is_running};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Sends a request, and returns the answer with its head.
async fn ask(server: &MiniStackServer, action: &str) -> anyhow::Result<String> {
    let mut connection = TcpStream::connect(server.address()).await?;
    let request = format!("GET /?{action} HTTP/1.1\r\nHost: sqs\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn a_server_keeps_its_queues_over_a_stop_and_leaves_no_process() -> anyhow::Result<()> {
    let mut server = MiniStackServer::start(MiniStackOptions::new()).await?;
    let created = ask(&server, "Action=CreateQueue&QueueName=kept").await?;
    assert!(created.contains("<QueueUrl>"), "{created}");
    let url = server.url();
    server.stop().await?;
    assert_eq!(server.pid(), None);
    server.restart().await?;
    assert_eq!(server.url(), url);
    let queues = ask(&server, "Action=ListQueues").await?;
    assert!(queues.contains("/kept</QueueUrl>"), "{queues}");
    let (pid, directory) = (server.pid().unwrap(), server.directory()?.to_path_buf());
    drop(server);
    assert!(!is_running(pid)?);
    assert!(!directory.exists());
    Ok(())
}
