//! One connection through a proxy.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::conversation::{Conversation, Protocol};
use super::fault::{self, Action, Moment, Plan, Struck};
use super::request::Request;
use crate::resp::Length;

/// The state that all connections of a proxy share.
#[derive(Debug)]
pub(super) struct Shared {
    protocol: Protocol,
    plans: Mutex<Vec<Plan>>,
    counts: Mutex<BTreeMap<String, usize>>,
    round_trips: AtomicUsize,
    connections: AtomicUsize,
    conditions: watch::Sender<Conditions>,
}

/// The conditions that the test can change while connections are open.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conditions {
    pub(super) request_delay: Duration,
    pub(super) answer_delay: Duration,
    pub(super) flows: bool,
    pub(super) answers_flow: bool,
    /// A counter that grows when all connections are to end.
    pub(super) ended: u64,
    pub(super) end: Ending,
}

impl Default for Conditions {
    fn default() -> Self {
        let none = Duration::ZERO;
        Self {
            request_delay: none,
            answer_delay: none,
            flows: true,
            answers_flow: true,
            ended: 0,
            end: Ending::Close,
        }
    }
}

/// The way in which a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Close,
    Reset,
}

impl Shared {
    pub(super) fn new(protocol: Protocol) -> Self {
        Self {
            protocol,
            plans: Mutex::default(),
            counts: Mutex::default(),
            round_trips: AtomicUsize::default(),
            connections: AtomicUsize::default(),
            conditions: watch::Sender::default(),
        }
    }

    pub(super) fn plans(&self) -> MutexGuard<'_, Vec<Plan>> {
        // A matching function that panicked has left the list intact.
        self.plans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn counts(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn round_trips(&self) -> usize {
        self.round_trips.load(Ordering::SeqCst)
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Conditions)) {
        self.conditions.send_modify(change);
    }

    /// Counts the request and returns the fault that it meets.
    fn meet(&self, request: &Request) -> Option<Struck> {
        *self.counts().entry(request.command()).or_default() += 1;
        fault::meet(&mut self.plans(), request)
    }

    async fn until_due_and(&self, due: Instant, flows: fn(&Conditions) -> bool) {
        tokio::time::sleep_until(due).await;
        // The sender lives as long as `self`.
        let _ = self.conditions.subscribe().wait_for(flows).await;
    }

    async fn until_all_end(&self, since: u64) -> Ending {
        let mut conditions = self.conditions.subscribe();
        match conditions.wait_for(|conditions| conditions.ended != since).await {
            Ok(conditions) => conditions.end,
            Err(_) => Ending::Close,
        }
    }
}

/// Counts a connection as long as it lives.
struct Counted<'a>(&'a Shared);

impl<'a> Counted<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.connections.fetch_add(1, Ordering::SeqCst);
        Self(shared)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::SeqCst);
    }
}

pub(super) async fn run(mut client: TcpStream, server: String, shared: Arc<Shared>) {
    let _counted = Counted::new(&shared);
    let since = shared.conditions.borrow().ended;
    let ending = tokio::select! {
        ending = shared.until_all_end(since) => ending,
        // A connection that fails is closed.
        ending = forward(&mut client, &server, &shared) => ending.unwrap_or(Ending::Close),
    };
    if ending == Ending::Reset {
        // Not towards the server: a reset there can take back a request that it has not read yet.
        let _ = client.set_zero_linger();
    }
}

/// The queue from the request direction to the answer direction: for each request without an
/// answer, the fault that its answer meets.
type Unanswered = Mutex<VecDeque<Option<Struck>>>;

async fn forward(client: &mut TcpStream, server: &str, shared: &Shared) -> io::Result<Ending> {
    let mut server = TcpStream::connect(server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let action = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let unanswered = Unanswered::default();
        let conversation = Mutex::new(Conversation::new(shared.protocol));
        let request_length = |bytes: &[u8]| lock(&conversation).request_length(bytes);
        let answer_length = |bytes: &[u8]| lock(&conversation).answer_length(bytes);
        let (request, requests) = mpsc::unbounded_channel();
        let (answer, answers) = mpsc::unbounded_channel();
        let request_delay = || shared.conditions.borrow().request_delay;
        let answer_delay = || shared.conditions.borrow().answer_delay;
        tokio::select! {
            action = write_requests(requests, to_server, &conversation, &unanswered, shared) => action?,
            action = write_answers(answers, to_client, &conversation, &unanswered, shared) => action?,
            // A side that has closed its stream: what it sent is still passed on, and then the
            // connection ends.
            never = read(from_client, request, request_length, request_delay) => match never? {},
            never = read(from_server, answer, answer_length, answer_delay) => match never? {},
        }
    };
    match action {
        Action::Close => Ok(Ending::Close),
        Action::Reset => Ok(Ending::Reset),
        // Both sockets stay open until the proxy ends them.
        Action::Silence => std::future::pending().await,
    }
}

/// A unit that is passed on as a whole.
struct Message {
    /// The time from which it may be passed on.
    due: Instant,
    bytes: Vec<u8>,
    /// True if it is a message of the protocol. If not, these are just the bytes that arrived
    /// together.
    understood: bool,
}

/// Reads complete messages until the stream ends, then waits for the messages to be passed on.
async fn read(
    mut from: ReadHalf<'_>,
    to: mpsc::UnboundedSender<Message>,
    length: impl Fn(&[u8]) -> Length,
    delay: impl Fn() -> Duration,
) -> io::Result<std::convert::Infallible> {
    let mut buffer = Vec::new();
    // Once lost, the beginning of a message cannot be found again.
    let mut understood = true;
    while from.read_buf(&mut buffer).await? > 0 {
        while !buffer.is_empty() {
            let end = match length(&buffer) {
                Length::Complete(end) if understood => end,
                Length::Incomplete if understood => break,
                Length::Complete(_) | Length::Incomplete | Length::Invalid => {
                    understood = false;
                    buffer.len()
                }
            };
            let rest = buffer.split_off(end);
            let bytes = std::mem::replace(&mut buffer, rest);
            // The receiver is gone if the connection has ended.
            let _ = to.send(Message { due: Instant::now() + delay(), bytes, understood });
        }
    }
    if !buffer.is_empty() {
        let _ =
            to.send(Message { due: Instant::now() + delay(), bytes: buffer, understood: false });
    }
    drop(to);
    std::future::pending().await
}

async fn write_requests(
    mut requests: mpsc::UnboundedReceiver<Message>,
    mut to: WriteHalf<'_>,
    conversation: &Mutex<Conversation>,
    unanswered: &Unanswered,
    shared: &Shared,
) -> io::Result<Action> {
    while let Some(message) = requests.recv().await {
        shared.until_due_and(message.due, |conditions| conditions.flows).await;
        let (request, has_answer) = if message.understood {
            lock(conversation).request(message.bytes)
        } else {
            (Request::unknown(message.bytes), true)
        };
        let mut struck = shared.meet(&request);
        match struck.as_ref().map(|struck| struck.fault.moment) {
            Some(Moment::BeforeRequest) => return Ok(announce(struck)),
            Some(Moment::InsideRequest) => {
                let bytes = request.bytes();
                to.write_all(&bytes[..bytes.len() / 2]).await?;
                return Ok(announce(struck));
            }
            Some(Moment::AfterRequest | Moment::InsideAnswer) | None => {
                if has_answer {
                    let mut unanswered = lock(unanswered);
                    if unanswered.is_empty() {
                        shared.round_trips.fetch_add(1, Ordering::SeqCst);
                    }
                    unanswered.push_back(struck.take());
                }
                to.write_all(request.bytes()).await?;
                if struck.is_some() {
                    return Ok(announce(struck));
                }
            }
        }
    }
    Ok(Action::Close)
}

async fn write_answers(
    mut answers: mpsc::UnboundedReceiver<Message>,
    mut to: WriteHalf<'_>,
    conversation: &Mutex<Conversation>,
    unanswered: &Unanswered,
    shared: &Shared,
) -> io::Result<Action> {
    while let Some(answer) = answers.recv().await {
        shared
            .until_due_and(answer.due, |conditions| conditions.flows && conditions.answers_flow)
            .await;
        let struck = struck_by(&answer, conversation, unanswered);
        let answer = answer.bytes;
        match struck.as_ref().map(|struck| struck.fault.moment) {
            None => to.write_all(&answer).await?,
            Some(Moment::InsideAnswer) => {
                to.write_all(&answer[..answer.len() / 2]).await?;
                return Ok(announce(struck));
            }
            Some(_) => return Ok(announce(struck)),
        }
    }
    Ok(Action::Close)
}

/// Returns the fault of the request to which this is the answer.
fn struck_by(
    answer: &Message,
    conversation: &Mutex<Conversation>,
    unanswered: &Unanswered,
) -> Option<Struck> {
    if !answer.understood {
        return lock(unanswered).drain(..).flatten().next();
    }
    if lock(conversation).is_answer(&answer.bytes) {
        lock(unanswered).pop_front().flatten()
    } else {
        None
    }
}

fn announce(struck: Option<Struck>) -> Action {
    struck.map_or(Action::Close, Struck::announce)
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
