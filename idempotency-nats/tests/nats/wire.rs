//! The connection to the server, on which acknowledgements are lost and all is cut.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use idempotency_test_support::consuming::{self, LostAcks, Protocol};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// A proxy between consumers and the server.
pub type Wire = consuming::Wire<Nats>;

/// Lines, with what is published by them.
#[derive(Default)]
pub struct Nats;

impl Protocol for Nats {
    fn url(address: SocketAddr) -> String {
        format!("nats://{address}")
    }

    async fn pass(
        &self,
        client: OwnedReadHalf,
        mut server: OwnedWriteHalf,
        lost: &LostAcks,
    ) -> anyhow::Result<()> {
        let mut client = BufReader::new(client);
        loop {
            let mut line = String::new();
            ensure!(client.read_line(&mut line).await? > 0, "the end");
            let mut sent = line.clone().into_bytes();
            if line.starts_with("PUB ") || line.starts_with("HPUB ") {
                let size: usize = line.split_whitespace().next_back().context("a size")?.parse()?;
                let mut payload = vec![0; size + 2];
                client.read_exact(&mut payload).await?;
                sent.extend(payload);
            }
            let is_ack = line.starts_with("PUB $JS.ACK.") && sent.ends_with(b"+ACK\r\n");
            if !lost.takes(is_ack) {
                server.write_all(&sent).await?;
            }
        }
    }
}
