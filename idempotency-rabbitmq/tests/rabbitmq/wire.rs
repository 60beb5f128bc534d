//! The connection to the broker, on which frames are lost, forged and cut.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::Context as _;
use idempotency_test_support::consuming::{self, LostAcks, Protocol};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// The class and the method of a frame.
const CONSUME: (u16, u16) = (60, 20);
const ACK: (u16, u16) = (60, 80);
/// The type of a frame with a method, and the last byte of each.
const METHOD: u8 = 1;
const END: u8 = 0xce;

/// A proxy between consumers and the broker.
pub type Wire = consuming::Wire<Amqp>;

/// Frames.
#[derive(Default)]
pub struct Amqp {
    /// The next channel that acknowledges is closed.
    closes_channel: AtomicBool,
    consumers: AtomicUsize,
}

impl Amqp {
    /// Makes the broker close a channel that consumes: it gets an acknowledgement of a message that
    /// it has never delivered there, with the next that the consumer sends.
    pub fn close_channel(&self) {
        self.closes_channel.store(true, Ordering::SeqCst);
    }

    /// How often a consumer was asked for.
    pub fn consumers(&self) -> usize {
        self.consumers.load(Ordering::SeqCst)
    }
}

impl Protocol for Amqp {
    fn url(address: SocketAddr) -> String {
        format!("amqp://guest:guest@{address}/%2f")
    }

    async fn pass(
        &self,
        mut client: OwnedReadHalf,
        mut broker: OwnedWriteHalf,
        lost: &LostAcks,
    ) -> anyhow::Result<()> {
        let mut greeting = [0; 8];
        client.read_exact(&mut greeting).await?;
        broker.write_all(&greeting).await?;
        loop {
            let mut head = [0; 7];
            client.read_exact(&mut head).await?;
            let size = u32::from_be_bytes(head[3..].try_into()?);
            let mut rest = vec![0; usize::try_from(size)? + 1];
            client.read_exact(&mut rest).await?;
            let number = |at: usize| -> anyhow::Result<u16> {
                Ok(u16::from_be_bytes(rest.get(at..at + 2).context("a short frame")?.try_into()?))
            };
            let method = if head[0] == METHOD { Some((number(0)?, number(2)?)) } else { None };
            self.consumers.fetch_add(usize::from(method == Some(CONSUME)), Ordering::SeqCst);
            let is_ack = method == Some(ACK);
            if is_ack && self.closes_channel.swap(false, Ordering::SeqCst) {
                broker.write_all(&ack([head[1], head[2]], u64::MAX)).await?;
            }
            garble(&mut rest);
            if !lost.takes(is_ack) {
                broker.write_all(&[&head[..], &rest].concat()).await?;
            }
        }
    }
}

/// What a client that knows no UTF-8 makes of this text.
pub const LATIN: &str = "latin-one";

fn garble(frame: &mut [u8]) {
    let found = frame.windows(LATIN.len()).position(|text| text == LATIN.as_bytes());
    if let Some(at) = found {
        frame[at] = 0xe9;
    }
}

/// An acknowledgement on this channel.
fn ack(channel: [u8; 2], tag: u64) -> Vec<u8> {
    let (class, method) = ACK;
    let payload =
        [&class.to_be_bytes()[..], &method.to_be_bytes(), &tag.to_be_bytes(), &[0]].concat();
    let size = u32::try_from(payload.len()).expect("a short frame");
    [&[METHOD][..], &channel, &size.to_be_bytes(), &payload, &[END]].concat()
}
