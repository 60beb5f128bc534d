//! The connections to the broker, on which commits are lost and all is cut.

use std::net::SocketAddr;

use anyhow::ensure;
use idempotency_test_support::consuming::{self, LostAcks};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// A proxy between consumers and the broker.
pub type Wire = consuming::Wire<Protocol>;

/// The number of the request that commits offsets.
const COMMIT: [u8; 2] = [0, 8];

/// Requests and answers, each behind its length.
#[derive(Default)]
pub struct Protocol;

impl consuming::Protocol for Protocol {
    fn url(address: SocketAddr) -> String {
        address.to_string()
    }

    async fn pass(
        &self,
        mut client: OwnedReadHalf,
        mut broker: OwnedWriteHalf,
        lost: &LostAcks,
    ) -> anyhow::Result<()> {
        loop {
            let request = frame(&mut client).await?;
            if !lost.takes(request[4..].starts_with(&COMMIT)) {
                broker.write_all(&request).await?;
            }
        }
    }

    /// A broker says where it is, and clients go there: it is here.
    async fn pass_back(
        &self,
        mut broker: OwnedReadHalf,
        mut client: OwnedWriteHalf,
        at: SocketAddr,
        here: SocketAddr,
    ) -> anyhow::Result<()> {
        let written = |address: SocketAddr| {
            let mut written = address.ip().to_string().into_bytes();
            written.extend(u32::from(address.port()).to_be_bytes());
            written
        };
        let (at, here) = (written(at), written(here));
        loop {
            let mut answer = frame(&mut broker).await?;
            for from in 0..=answer.len().saturating_sub(at.len()) {
                if answer[from..].starts_with(&at) {
                    answer[from..from + at.len()].copy_from_slice(&here);
                }
            }
            client.write_all(&answer).await?;
        }
    }
}

/// Reads a request or an answer, with its length.
async fn frame(from: &mut OwnedReadHalf) -> anyhow::Result<Vec<u8>> {
    let length = from.read_u32().await?;
    ensure!(length < 100_000_000, "{length} bytes");
    let mut frame = length.to_be_bytes().to_vec();
    frame.resize(4 + usize::try_from(length)?, 0);
    from.read_exact(&mut frame[4..]).await?;
    Ok(frame)
}
