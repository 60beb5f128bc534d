//! The connections to a broker, on which acknowledgements are lost and all is cut.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::deadline::eventually;

/// What a client and a broker send each other.
pub trait Protocol: Default + Send + Sync + 'static {
    /// Returns the URL of the broker at this address.
    fn url(address: SocketAddr) -> String;

    /// Passes what a client sends, without the acknowledgements that are [lost](LostAcks::takes).
    /// It ends with an error when the client does.
    fn pass(
        &self,
        client: OwnedReadHalf,
        broker: OwnedWriteHalf,
        lost: &LostAcks,
    ) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// Passes what the broker answers, `at` its address. `here` is where the client has connected
    /// to: a broker may say where it is.
    fn pass_back(
        &self,
        mut broker: OwnedReadHalf,
        mut client: OwnedWriteHalf,
        _at: SocketAddr,
        _here: SocketAddr,
    ) -> impl Future<Output = anyhow::Result<()>> + Send {
        async move {
            tokio::io::copy(&mut broker, &mut client).await?;
            Ok(())
        }
    }
}

/// The acknowledgements that do not arrive.
#[derive(Debug, Default)]
pub struct LostAcks {
    are_lost: AtomicBool,
    count: AtomicUsize,
}

impl LostAcks {
    /// Returns true if this one does not arrive.
    pub fn takes(&self, is_ack: bool) -> bool {
        let is_lost = is_ack && self.are_lost.load(Ordering::SeqCst);
        self.count.fetch_add(usize::from(is_lost), Ordering::SeqCst);
        is_lost
    }
}

/// A proxy between consumers and the broker. It ends with this value.
#[derive(Debug)]
pub struct Wire<P> {
    address: SocketAddr,
    shared: Arc<Shared<P>>,
    accepts: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared<P> {
    protocol: P,
    lost: LostAcks,
    /// How often all connections were cut.
    cuts: watch::Sender<u32>,
    /// The broker is not to be reached.
    is_away: AtomicBool,
}

impl<P: Protocol> Wire<P> {
    /// Opens a way to the broker at this host and port.
    ///
    /// # Errors
    /// If there is no port.
    pub async fn to(broker: String) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (protocol, lost) = (P::default(), LostAcks::default());
        let is_away = AtomicBool::new(false);
        let shared = Arc::new(Shared { protocol, lost, cuts: watch::channel(0).0, is_away });
        let accepts = tokio::spawn({
            let shared = shared.clone();
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    if shared.is_away.load(Ordering::SeqCst) {
                        continue;
                    }
                    if let Ok(broker) = TcpStream::connect(&broker).await {
                        tokio::spawn(carry(client, broker, shared.clone()));
                    }
                }
            }
        });
        Ok(Self { address, shared, accepts })
    }

    /// Returns the URL of the broker, by this way.
    pub fn url(&self) -> String {
        P::url(self.address)
    }

    /// Returns what the adapter's tests know of the connections.
    pub fn protocol(&self) -> &P {
        &self.shared.protocol
    }

    /// Loses all acknowledgements from now on.
    pub fn swallow_acks(&self) {
        self.shared.lost.are_lost.store(true, Ordering::SeqCst);
    }

    /// Waits until so many were lost.
    ///
    /// # Errors
    /// At the deadline.
    pub async fn has_swallowed(&self, acks: usize) -> anyhow::Result<()> {
        let count = &self.shared.lost.count;
        eventually("a lost acknowledgement", || count.load(Ordering::SeqCst) >= acks).await
    }

    /// Keeps the broker away, or lets it come back: all connections are cut, and new ones end at once.
    /// Its port stays its own meanwhile.
    pub fn keep_away(&self, is_away: bool) {
        self.shared.is_away.store(is_away, Ordering::SeqCst);
        if is_away {
            self.cut();
        }
    }

    /// Cuts all connections. New ones are accepted.
    pub fn cut(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }
}

impl<P> Wire<P> {
    /// Refuses new connections, and cuts all.
    pub fn close(&self) {
        self.accepts.abort();
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }
}

impl<P> Drop for Wire<P> {
    fn drop(&mut self) {
        self.close();
    }
}

async fn carry<P: Protocol>(client: TcpStream, broker: TcpStream, shared: Arc<Shared<P>>) {
    let (Ok(at), Ok(here)) = (broker.peer_addr(), client.local_addr()) else { return };
    let (mut cuts, (from_client, to_client)) = (shared.cuts.subscribe(), client.into_split());
    let (from_broker, to_broker) = broker.into_split();
    tokio::select! {
        _ = shared.protocol.pass(from_client, to_broker, &shared.lost) => {}
        _ = shared.protocol.pass_back(from_broker, to_client, at, here) => {}
        _ = cuts.changed() => {}
    }
}
