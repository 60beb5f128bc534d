//! A TCP proxy between a client and a server that fails on request.
//!
//! It knows where requests and answers of a [`Protocol`] begin and end, so that a fault strikes
//! exactly between two of them, and so that requests can be counted and recognized. It assumes that
//! the first answer belongs to the first request, and so on; messages that a server sends on its
//! own are not answers. (Redis commands with more or fewer answers than one, such as `SUBSCRIBE` in
//! RESP2, `MONITOR` and `CLIENT REPLY OFF`, break that assumption.) A stream that is not of the
//! protocol, TLS for example, is passed on as it arrives, and each piece that was read counts as
//! one nameless request or as the answer to all requests before it.
//!
//! It runs in a thread of its own: a test may block its executor, and the proxy continues.

mod accept;
mod connection;
mod conversation;
mod fault;
mod request;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::{mpsc, oneshot};

pub use conversation::Protocol;
pub use fault::{Action, Fault, Moment, Planned};
pub use request::Request;

use accept::Door;
use connection::{Ending, Shared};
use fault::Plan;

use crate::server::with_address;

/// The proxy. Its connections end with it.
///
/// ```no_run
/// # async fn test(server: idempotency_test_support::server::RedisServer) -> anyhow::Result<()> {
/// use idempotency_test_support::proxy::{Action, Fault, Moment, Proxy};
///
/// let proxy = Proxy::start(server.address()).await?;
/// let url = proxy.url(&server.url()); // for the client
/// let lost = proxy.next("SET", Fault::new(Moment::AfterRequest, Action::Close));
/// // … the client sends a SET, which the server applies …
/// lost.happened().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    /// Closed to end the thread.
    doors: Option<mpsc::UnboundedSender<Door>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts one in front of a Redis server, whose host and port are `server`.
    ///
    /// While the server refuses connections, the proxy accepts them and closes them at once.
    ///
    /// # Errors
    /// If no port is free.
    pub async fn start(server: impl Into<String>) -> anyhow::Result<Self> {
        Self::start_for(Protocol::Redis, server).await
    }

    /// Starts one like [`start`](Self::start), in front of a server that speaks `protocol`.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_for(protocol: Protocol, server: impl Into<String>) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared::new(protocol));
        let (doors, orders) = mpsc::unbounded_channel();
        let (started, address) = oneshot::channel();
        let thread = std::thread::Builder::new().name(String::from("test-proxy")).spawn({
            let (server, shared) = (server.into(), Arc::clone(&shared));
            move || accept::run(&server, &shared, orders, started)
        })?;
        let address = address.await.context("the proxy has ended")??;
        Ok(Self { address, shared, doors: Some(doors), thread: Some(thread) })
    }

    /// Returns the address to which clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns `url` with the proxy's host and port instead of the server's.
    pub fn url(&self, url: &str) -> String {
        with_address(url, &self.address.to_string())
    }

    /// Plans a fault for the next request of this command, as in [`Request::command`]. The case of
    /// the name does not matter.
    pub fn next(&self, command: &str, fault: Fault) -> Planned {
        let command = command.to_ascii_uppercase();
        self.nth(1, move |request| request.command() == command, fault)
    }

    /// Plans a fault for the `nth` request from now for which `matches` holds, across all
    /// connections. The first is 1.
    ///
    /// Pending faults are checked in the order in which they were planned. A request that meets one
    /// is not counted by those after it.
    pub fn nth(
        &self,
        nth: usize,
        matches: impl Fn(&Request) -> bool + Send + 'static,
        fault: Fault,
    ) -> Planned {
        let (plan, planned) = Plan::new(nth, Box::new(matches), fault);
        self.shared.plans().push(plan);
        planned
    }

    /// Plans a fault for every request for which `matches` holds, until [`clear`](Self::clear).
    pub fn every(&self, matches: impl Fn(&Request) -> bool + Send + 'static, fault: Fault) {
        self.shared.plans().push(Plan::always(Box::new(matches), fault));
    }

    /// Removes all faults that have not struck.
    pub fn clear(&self) {
        self.shared.plans().clear();
    }

    /// Delays every request that arrives from now on. The order is kept.
    pub fn delay_requests(&self, delay: Duration) {
        self.shared.change(|conditions| conditions.request_delay = delay);
    }

    /// Delays every answer that arrives from now on. The order is kept.
    pub fn delay_answers(&self, delay: Duration) {
        self.shared.change(|conditions| conditions.answer_delay = delay);
    }

    /// Stops passing anything on, in both directions, on all connections, new ones included. They
    /// stay open.
    pub fn half_open(&self) {
        self.shared.change(|conditions| conditions.flows = false);
    }

    /// Stops passing answers on, on all connections, while requests still reach the server: those
    /// that arrive now are what clients send without waiting.
    pub fn hold_answers(&self) {
        self.shared.change(|conditions| conditions.answers_flow = false);
    }

    /// Ends [`half_open`](Self::half_open) and [`hold_answers`](Self::hold_answers): everything
    /// that has waited is passed on.
    pub fn heal(&self) {
        self.shared.change(|conditions| (conditions.flows, conditions.answers_flow) = (true, true));
    }

    /// Closes all connections, as a server that ends does.
    pub fn close_all(&self) {
        self.end_all(Ending::Close);
    }

    /// Resets all connections towards their clients (RST), as a server that has crashed or a
    /// firewall does.
    pub fn reset_all(&self) {
        self.end_all(Ending::Reset);
    }

    fn end_all(&self, ending: Ending) {
        self.shared.change(|conditions| {
            conditions.end = ending;
            conditions.ended += 1;
        });
    }

    /// Refuses new connections from now on. Open ones stay.
    ///
    /// # Errors
    /// If the proxy has ended.
    pub async fn refuse(&self) -> anyhow::Result<()> {
        self.order(Door::Close).await
    }

    /// Accepts new connections again, at the same address.
    ///
    /// # Errors
    /// If another process has taken the port.
    pub async fn accept(&self) -> anyhow::Result<()> {
        self.order(Door::Open).await
    }

    async fn order(
        &self,
        door: fn(oneshot::Sender<anyhow::Result<()>>) -> Door,
    ) -> anyhow::Result<()> {
        let (answer, done) = oneshot::channel();
        let doors = self.doors.as_ref().context("the proxy has ended")?;
        doors.send(door(answer)).ok().context("the proxy has ended")?;
        done.await.context("the proxy has ended")?
    }

    /// Returns the number of open connections.
    pub fn connections(&self) -> usize {
        self.shared.connections()
    }

    /// Returns the number of requests so far, those that met a fault included.
    pub fn requests(&self) -> usize {
        self.shared.counts().values().sum()
    }

    /// Returns the number of requests of this command so far.
    pub fn requests_of(&self, command: &str) -> usize {
        self.shared.counts().get(&command.to_ascii_uppercase()).copied().unwrap_or_default()
    }

    /// Returns the number of times that clients have waited for the server so far: a request that
    /// arrives while an answer is still due on its connection shares one round trip with the
    /// request before it. [Hold the answers](Self::hold_answers) to see what a client sends without
    /// waiting; otherwise a quick answer may arrive between two requests that were sent together.
    pub fn round_trips(&self) -> usize {
        self.shared.round_trips()
    }

    /// Returns the number of requests so far, by command.
    pub fn requests_by_command(&self) -> BTreeMap<String, usize> {
        self.shared.counts().clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.doors.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
