//! The connections to the server, on which acknowledgements are lost and all is cut.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use idempotency_test_support::consuming::{self, LostAcks, Protocol};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// A proxy between consumers and the server.
pub type Wire = consuming::Wire<Http>;

/// Requests.
#[derive(Default)]
pub struct Http {
    /// By so many milliseconds the next message that is sent comes late.
    send_delay: AtomicU64,
}

impl Http {
    /// Lets the next message that is sent come late.
    pub fn delay_send(&self, millis: u64) {
        self.send_delay.store(millis, Ordering::SeqCst);
    }
}

impl Protocol for Http {
    fn url(address: SocketAddr) -> String {
        format!("http://{address}")
    }

    async fn pass(
        &self,
        client: OwnedReadHalf,
        mut server: OwnedWriteHalf,
        lost: &LostAcks,
    ) -> anyhow::Result<()> {
        let mut client = BufReader::new(client);
        loop {
            let (mut sent, mut length, mut is_ack) = (String::new(), 0, false);
            let mut is_send = false;
            loop {
                let begin = sent.len();
                ensure!(client.read_line(&mut sent).await? > 0, "the end");
                let line = sent[begin..].trim_end().to_ascii_lowercase();
                match line.split_once(": ") {
                    Some(("content-length", value)) => {
                        length = value.parse().context("a length")?;
                    }
                    Some(("x-amz-target", value)) => {
                        is_ack = value.contains(".deletemessage");
                        is_send = value.contains(".sendmessage");
                    }
                    _ => {}
                }
                if line.is_empty() {
                    break;
                }
            }
            let mut body = vec![0; length];
            client.read_exact(&mut body).await?;
            if is_send {
                let delay = self.send_delay.swap(0, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(delay)).await;
            }
            if !lost.takes(is_ack) {
                server.write_all(sent.as_bytes()).await?;
                server.write_all(&body).await?;
            }
        }
    }
}
