//! The thread of a proxy: accepts connections and starts their forwarding.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Context as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::connection::{self, Shared};
use crate::port;

/// The number of ports that are tried if another process was faster.
const PORT_ATTEMPTS: usize = 10;

/// An order to accept new connections or not. Answered once it is in effect.
pub(super) enum Door {
    Open(oneshot::Sender<anyhow::Result<()>>),
    Close(oneshot::Sender<anyhow::Result<()>>),
}

pub(super) fn run(
    server: &str,
    shared: &Arc<Shared>,
    orders: mpsc::UnboundedReceiver<Door>,
    started: oneshot::Sender<anyhow::Result<SocketAddr>>,
) {
    // If the starter is gone, the error is not needed.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return drop(started.send(Err(error.into()))),
    };
    runtime.block_on(async {
        match listen().await {
            Ok((listener, address)) => {
                let _ = started.send(Ok(address));
                serve(listener, address, server, shared, orders).await;
            }
            Err(error) => drop(started.send(Err(error))),
        }
    });
}

async fn listen() -> anyhow::Result<(TcpListener, SocketAddr)> {
    let mut failure = None;
    for _ in 0..PORT_ATTEMPTS {
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port::free()?)).await {
            Ok(listener) => {
                let address = listener.local_addr()?;
                return Ok((listener, address));
            }
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
        .context("the proxy found no free port")
}

/// Serves until the proxy is dropped; its connections end with it.
async fn serve(
    listener: TcpListener,
    address: SocketAddr,
    server: &str,
    shared: &Arc<Shared>,
    mut orders: mpsc::UnboundedReceiver<Door>,
) {
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            order = orders.recv() => match order {
                None => {
                    close(&mut listener);
                    return;
                }
                Some(Door::Close(done)) => {
                    close(&mut listener);
                    let _ = done.send(Ok(()));
                }
                Some(Door::Open(done)) => {
                    let opened = open(&mut listener, address).await;
                    let _ = done.send(opened);
                }
            },
            Ok(client) = next(listener.as_ref()) => {
                connections.spawn(connection::run(client, String::from(server), Arc::clone(shared)));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn next(listener: Option<&TcpListener>) -> io::Result<TcpStream> {
    match listener {
        Some(listener) => Ok(listener.accept().await?.0),
        None => std::future::pending().await,
    }
}

fn close(listener: &mut Option<TcpListener>) {
    if let Some(listener) = listener.take() {
        // A process that is being started at this moment has a copy of the socket until it executes
        // its program, and closing would take effect only then.
        let _ = rustix::net::shutdown(&listener, rustix::net::Shutdown::Both);
    }
}

async fn open(listener: &mut Option<TcpListener>, address: SocketAddr) -> anyhow::Result<()> {
    if listener.is_none() {
        *listener =
            Some(TcpListener::bind(address).await.context("the port of the proxy was taken")?);
    }
    Ok(())
}
