//! The connection to the broker, on which frames are lost, forged and cut.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use idempotency_test_support::deadline::eventually;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The class and the method of a frame.
const CONSUME: (u16, u16) = (60, 20);
const ACK: (u16, u16) = (60, 80);
/// The type of a frame with a method, and the last byte of each.
const METHOD: u8 = 1;
const END: u8 = 0xce;

/// A proxy between consumers and the broker. It ends with this value.
pub struct Wire {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepts: JoinHandle<()>,
}

struct Shared {
    orders: Mutex<Orders>,
    /// How often all connections were cut.
    cuts: watch::Sender<u32>,
}

#[derive(Default)]
struct Orders {
    swallows_acks: bool,
    swallowed: usize,
    /// The channels that consume are closed once.
    closes_channels: bool,
    consumers: usize,
}

impl Wire {
    pub async fn to(server: String) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { orders: Mutex::default(), cuts: watch::channel(0).0 });
        let accepts = tokio::spawn({
            let shared = shared.clone();
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    if let Ok(server) = TcpStream::connect(&server).await {
                        tokio::spawn(carry(client, server, shared.clone()));
                    }
                }
            }
        });
        Ok(Self { address, shared, accepts })
    }

    /// The URL of the broker, by this way.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@{}/%2f", self.address)
    }

    /// Loses all acknowledgements from now on.
    pub fn swallow_acks(&self) {
        self.shared.orders().swallows_acks = true;
    }

    /// Waits until so many were lost.
    pub async fn has_swallowed(&self, acks: usize) -> anyhow::Result<()> {
        eventually("a lost acknowledgement", || self.shared.orders().swallowed >= acks).await
    }

    /// Makes the broker close a channel that consumes: it gets an acknowledgement of a message that
    /// it has never delivered there, with the next that the consumer sends.
    pub fn close_channel(&self) {
        self.shared.orders().closes_channels = true;
    }

    /// Refuses new connections, and cuts all.
    pub fn close(&self) {
        self.accepts.abort();
        self.cut();
    }

    /// How often a consumer was asked for.
    pub fn consumers(&self) -> usize {
        self.shared.orders().consumers
    }

    /// Cuts all connections. New ones are accepted.
    pub fn cut(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn orders(&self) -> std::sync::MutexGuard<'_, Orders> {
        self.orders.lock().expect("no holder panics")
    }
}

async fn carry(client: TcpStream, server: TcpStream, shared: Arc<Shared>) {
    let (mut cuts, (from_client, to_client)) = (shared.cuts.subscribe(), client.into_split());
    let (mut from_server, to_server) = server.into_split();
    let back = async {
        let mut to_client = to_client;
        tokio::io::copy(&mut from_server, &mut to_client).await
    };
    tokio::select! {
        _ = pass(from_client, to_server, &shared) => {}
        _ = back => {}
        _ = cuts.changed() => {}
    }
}

/// Passes frames to the broker.
async fn pass(
    mut client: OwnedReadHalf,
    mut server: OwnedWriteHalf,
    shared: &Shared,
) -> anyhow::Result<()> {
    let mut greeting = [0; 8];
    client.read_exact(&mut greeting).await?;
    server.write_all(&greeting).await?;
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
        let (is_swallowed, forges) = {
            let mut orders = shared.orders();
            orders.consumers += usize::from(method == Some(CONSUME));
            let is_ack = method == Some(ACK);
            let is_swallowed = is_ack && orders.swallows_acks;
            orders.swallowed += usize::from(is_swallowed);
            (is_swallowed, is_ack && std::mem::take(&mut orders.closes_channels))
        };
        if forges {
            server.write_all(&ack([head[1], head[2]], u64::MAX)).await?;
        }
        if !is_swallowed {
            server.write_all(&[&head[..], &rest].concat()).await?;
        }
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
