//! The connection to the server, on which acknowledgements are lost and all is cut.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, ensure};
use idempotency_test_support::deadline::eventually;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A proxy between consumers and the server. It ends with this value.
pub struct Wire {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepts: JoinHandle<()>,
}

struct Shared {
    acks: Mutex<Acks>,
    /// How often all connections were cut.
    cuts: watch::Sender<u32>,
}

#[derive(Default)]
struct Acks {
    are_swallowed: bool,
    swallowed: usize,
}

impl Wire {
    pub async fn to(server: String) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { acks: Mutex::default(), cuts: watch::channel(0).0 });
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

    /// The URL of the server, by this way.
    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// Loses all acknowledgements from now on.
    pub fn swallow_acks(&self) {
        self.shared.acks().are_swallowed = true;
    }

    /// Waits until so many were lost.
    pub async fn has_swallowed(&self, acks: usize) -> anyhow::Result<()> {
        eventually("a lost acknowledgement", || self.shared.acks().swallowed >= acks).await
    }

    /// Cuts all connections. New ones are accepted.
    pub fn cut(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.accepts.abort();
        self.cut();
    }
}

impl Shared {
    fn acks(&self) -> std::sync::MutexGuard<'_, Acks> {
        self.acks.lock().expect("no holder panics")
    }
}

async fn carry(client: TcpStream, server: TcpStream, shared: Arc<Shared>) {
    let (mut cuts, (from_client, mut to_client)) = (shared.cuts.subscribe(), client.into_split());
    let (mut from_server, to_server) = server.into_split();
    tokio::select! {
        _ = pass(from_client, to_server, &shared) => {}
        _ = tokio::io::copy(&mut from_server, &mut to_client) => {}
        _ = cuts.changed() => {}
    }
}

/// Passes lines to the server, with what is published by them.
async fn pass(
    client: OwnedReadHalf,
    mut server: OwnedWriteHalf,
    shared: &Shared,
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
        let is_swallowed = {
            let mut acks = shared.acks();
            let is_swallowed = is_ack && acks.are_swallowed;
            acks.swallowed += usize::from(is_swallowed);
            is_swallowed
        };
        if !is_swallowed {
            server.write_all(&sent).await?;
        }
    }
}
