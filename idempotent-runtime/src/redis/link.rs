//! One connection to the server for each runtime, opened on demand and replaced when it breaks.
//!
//! A connection moves only as fast as the runtime in which it was opened. A single one would keep
//! all callers waiting behind a runtime that stands still between its calls, whose executor a body
//! blocks, or that stopped while it connected.
//!
//! The client's own `ConnectionManager` keeps a connection on which an answer timed out; on a
//! half-open connection nothing would ever be answered again. Here a time-out ends the connection.
//! And if an answer has been missing for a while, even one whose caller has gone, the next request
//! takes another connection instead of waiting behind the first. The answer to a request whose
//! caller has gone arrives unnoticed, so a request of the link's own follows it: its answer stands
//! for both.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ErrorKind, RedisError, RedisResult, Value};
use tokio::runtime::{Handle, Id};
use tokio::sync::oneshot;

use super::error::store_error;
use super::tracking::Waiters;
use crate::clock::{Clock, Timestamp};
use crate::lock::RwLock;
use crate::runtime::PerRuntime;
use crate::store::{Operation, StoreError, StoreErrorKind};

/// The time without any answer after which the next request takes another connection.
const SILENCE: Duration = Duration::from_secs(1);

/// The setup of a new connection.
pub(super) type Setup = fn(MultiplexedConnection) -> super::SetupFuture;

pub(super) struct Link(Arc<Shared>);

struct Shared {
    client: Client,
    config: AsyncConnectionConfig,
    clock: Arc<dyn Clock>,
    setup: Option<Setup>,
    /// Those that wait for pushes on these connections. A connection that is given up pushes
    /// nothing more that anyone could rely on.
    waiters: Option<Arc<Waiters>>,
    homes: PerRuntime<Arc<Home>>,
    generations: AtomicU64,
}

/// The part of the link that belongs to one runtime.
#[derive(Default)]
struct Home {
    current: RwLock<Option<Open>>,
    connecting: tokio::sync::Mutex<()>,
}

/// An open connection, and the server's clock when it was opened.
#[derive(Clone)]
pub(super) struct Open {
    pub(super) connection: MultiplexedConnection,
    runtime: Id,
    generation: u64,
    server_time: Duration,
    read_at: Duration,
    traffic: Arc<Traffic>,
}

/// An open connection, for one request.
pub(super) struct Connected {
    open: Open,
    /// The time of the request, in monotonic nanoseconds.
    asked: u64,
    is_answered: AtomicBool,
    shared: Arc<Shared>,
}

impl Deref for Connected {
    type Target = Open;

    fn deref(&self) -> &Open {
        &self.open
    }
}

impl DerefMut for Connected {
    fn deref_mut(&mut self) -> &mut Open {
        &mut self.open
    }
}

impl Drop for Connected {
    /// The request was dropped before its answer. Without this, the next request would take the
    /// connection for silent although it answers.
    fn drop(&mut self) {
        if *self.is_answered.get_mut() || !self.open.traffic.is_left(self.asked) {
            return;
        }
        // Only on its own runtime does the connection move.
        let runtime = Handle::try_current().ok().filter(|it| it.id() == self.open.runtime);
        match runtime {
            Some(runtime) => {
                runtime.spawn(Arc::clone(&self.shared).follow_up(self.open.clone()));
            }
            None => self.open.traffic.is_followed.store(false, Ordering::SeqCst),
        }
    }
}

/// Tracks whether a connection answers, in monotonic nanoseconds. Answers arrive in the order of
/// the requests, so the answer to a later request stands for the earlier ones, even for requests
/// whose callers have gone.
#[derive(Default)]
struct Traffic {
    last_asked: AtomicU64,
    /// The latest request whose answer was noted: answers of a burst are noted in any order.
    last_answered: AtomicU64,
    /// The time since which an answer is missing without any other having arrived; zero if none is
    /// missing.
    waiting_since: AtomicU64,
    /// The latest request that was dropped before its answer.
    last_left: AtomicU64,
    /// True while a request of the link's own follows dropped ones.
    is_followed: AtomicBool,
}

impl Traffic {
    /// Notes that the request made at `asked` was dropped. Returns true if the caller must send one
    /// that follows it.
    fn is_left(&self, asked: u64) -> bool {
        self.last_left.fetch_max(asked, Ordering::SeqCst);
        !self.is_followed.swap(true, Ordering::SeqCst)
    }

    /// Notes that the follower of the request made at `followed` has ended. Returns true if a later
    /// request was dropped meanwhile, and the caller must send another one.
    fn is_left_again(&self, followed: u64) -> bool {
        self.is_followed.store(false, Ordering::SeqCst);
        self.last_left.load(Ordering::SeqCst) > followed
            && !self.is_followed.swap(true, Ordering::SeqCst)
    }

    fn asked(&self, now: u64) {
        self.last_asked.fetch_max(now, Ordering::SeqCst);
        self.is_waiting(now);
    }

    /// Notes the answer to the request made at `asked`.
    ///
    /// A request made at the same time may find the mark (`waiting_since`) of earlier requests
    /// still set, and leave it; it is then cleared here, and nothing would show that this request
    /// waits. So this clears the mark first and then checks for a later request, while a request
    /// records itself in `last_asked` first and then sets the mark. Whichever of the two is second
    /// restores the mark.
    fn answered(&self, asked: u64, now: u64) {
        self.last_answered.fetch_max(asked, Ordering::SeqCst);
        self.waiting_since.store(0, Ordering::SeqCst);
        if self.last_asked.load(Ordering::SeqCst) > self.last_answered.load(Ordering::SeqCst) {
            self.is_waiting(now);
        }
    }

    fn is_waiting(&self, now: u64) {
        let _ = self.waiting_since.compare_exchange(0, now, Ordering::SeqCst, Ordering::SeqCst);
    }

    fn is_silent(&self, now: u64) -> bool {
        let since = self.waiting_since.load(Ordering::Acquire);
        since > 0 && Duration::from_nanos(now.saturating_sub(since)) > SILENCE
    }
}

impl Link {
    pub(super) fn new(
        client: Client,
        config: AsyncConnectionConfig,
        clock: Arc<dyn Clock>,
        setup: Option<Setup>,
        waiters: Option<Arc<Waiters>>,
    ) -> Self {
        Self(Arc::new(Shared {
            client,
            config,
            clock,
            setup,
            waiters,
            homes: PerRuntime::default(),
            generations: AtomicU64::new(0),
        }))
    }

    /// Returns the connection, for one request of the store operation `operation`.
    pub(super) async fn connected(&self, operation: Operation) -> Result<Connected, StoreError> {
        let open = self.opened(operation).await?;
        let asked = self.0.now();
        open.traffic.asked(asked);
        let (is_answered, shared) = (AtomicBool::new(false), Arc::clone(&self.0));
        Ok(Connected { open, asked, is_answered, shared })
    }

    /// Returns the connection, and opens it if there is none.
    pub(super) async fn opened(&self, operation: Operation) -> Result<Open, StoreError> {
        let home = self.0.home();
        if let Some(open) = self.0.current(&home) {
            return Ok(open);
        }
        // In a task of its own: the first caller opens the connection for all callers on the
        // runtime, and may never be polled again. A caller that goes away takes its place among
        // those that wait with it, or their number would grow for as long as the server is silent.
        let shared = Arc::clone(&self.0);
        let (caller, opened) = oneshot::channel();
        tokio::spawn(shared.connect_for(home, caller));
        match opened.await {
            Ok(open) => open.map_err(|error| store_error(operation, error)),
            Err(error) => {
                let detail =
                    "the task that makes the connection has ended, perhaps with its runtime";
                Err(StoreError::new(StoreErrorKind::Unavailable, operation)
                    .with_detail(detail)
                    .with_source(error))
            }
        }
    }

    /// Returns the server's time, as far as it is known without a query.
    pub(super) fn now(&self, open: &Open) -> Timestamp {
        let passed = self.0.clock.monotonic().saturating_sub(open.read_at);
        Timestamp::default() + open.server_time + passed
    }

    /// Converts the answer to a request on `connected`. An error after which the connection cannot
    /// be trusted ends it.
    pub(super) fn answer<T>(
        &self,
        operation: Operation,
        connected: &Connected,
        answer: RedisResult<T>,
    ) -> Result<T, StoreError> {
        connected.is_answered.store(true, Ordering::Relaxed);
        self.0.note(connected, connected.asked, &answer);
        answer.map_err(|error| store_error(operation, error))
    }
}

impl Shared {
    /// Returns the home of the current runtime.
    fn home(&self) -> Arc<Home> {
        self.homes.with(Arc::default, |home| Arc::clone(home))
    }

    /// Opens the connection for `caller`, unless that goes away before its turn. A connection that
    /// is being opened is one for all, and is not given up.
    async fn connect_for(
        self: Arc<Self>,
        home: Arc<Home>,
        mut caller: oneshot::Sender<RedisResult<Open>>,
    ) {
        let _connecting = tokio::select! {
            biased;
            () = caller.closed() => return,
            turn = home.connecting.lock() => turn,
        };
        // Another task may have connected while this one waited for the lock.
        let open = if let Some(open) = self.current(&home) {
            Ok(open)
        } else {
            let opened = self.connect().await;
            if let Ok(open) = &opened {
                *home.current.write() = Some(open.clone());
            }
            opened
        };
        // The caller may be gone.
        let _ = caller.send(open);
    }

    /// Returns the existing connection, unless it has been silent for too long.
    fn current(&self, home: &Home) -> Option<Open> {
        let current = home.current.read().clone()?;
        if current.traffic.is_silent(self.now()) {
            self.give_up(home, current.generation);
            return None;
        }
        Some(current)
    }

    /// Notes the answer to the request made at `asked`. An error after which the connection cannot
    /// be trusted ends it.
    fn note<T>(&self, open: &Open, asked: u64, answer: &RedisResult<T>) {
        if !answer.as_ref().is_err_and(ends_connection) {
            open.traffic.answered(asked, self.now());
        } else if let Some(home) = self.homes.of(open.runtime) {
            self.give_up(&home, open.generation);
        }
    }

    /// Asks once more on a connection on which requests were dropped. Answers arrive in the order
    /// of the requests. The command needs no other right than connecting does.
    async fn follow_up(self: Arc<Self>, mut open: Open) {
        loop {
            let asked = open.traffic.last_left.load(Ordering::SeqCst);
            let answer = redis::cmd("TIME").query_async::<Value>(&mut open.connection).await;
            self.note(&open, asked, &answer);
            let is_over = answer.is_err_and(|error| ends_connection(&error));
            if !open.traffic.is_left_again(asked) || is_over {
                return;
            }
        }
    }

    /// Gives up the connection of `home` of this generation, and wakes those that wait for its
    /// pushes: they register on another connection when they look again.
    fn give_up(&self, home: &Home, generation: u64) {
        if home.give_up(generation)
            && let Some(waiters) = &self.waiters
        {
            waiters.wake_all();
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.clock.monotonic().as_nanos()).unwrap_or(u64::MAX)
    }

    async fn connect(&self) -> RedisResult<Open> {
        let mut connection =
            self.client.get_multiplexed_async_connection_with_config(&self.config).await?;
        let (seconds, micros): (u64, u64) = redis::cmd("TIME").query_async(&mut connection).await?;
        let read_at = self.clock.monotonic();
        if let Some(setup) = self.setup {
            setup(connection.clone()).await?;
        }
        let server_time = Duration::from_secs(seconds) + Duration::from_micros(micros);
        let generation = self.generations.fetch_add(1, Ordering::AcqRel);
        let (runtime, traffic) = (Handle::current().id(), Arc::default());
        Ok(Open { connection, runtime, generation, server_time, read_at, traffic })
    }
}

impl Home {
    /// Removes the connection of this generation, and no newer one. Requests that wait for an
    /// answer on it keep waiting, and no other request uses it. Returns true if it was there.
    fn give_up(&self, generation: u64) -> bool {
        let mut current = self.current.write();
        let is_there = current.as_ref().is_some_and(|current| current.generation == generation);
        if is_there {
            *current = None;
        }
        is_there
    }
}

fn ends_connection(error: &RedisError) -> bool {
    // A demoted primary stays a replica: the next connection may reach its successor.
    matches!(error.kind(), ErrorKind::Io | ErrorKind::Parse | ErrorKind::AuthenticationFailed)
        || error.kind() == ErrorKind::Server(redis::ServerErrorKind::ReadOnly)
        || error.is_unrecoverable_error()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use redis::{AsyncConnectionConfig, Client};
    use tokio::net::TcpListener;
    use tokio::runtime::Handle;
    use tokio::time::timeout;

    use super::{Link, Traffic};
    use crate::clock::SystemClock;
    use crate::store::Operation;

    const LATER: u64 = 60_000_000_000;

    /// The server takes connections and says nothing: opening one lasts for an hour.
    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "callers that give up, in real time")]
    async fn callers_that_go_away_leave_one_attempt_to_connect_behind() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = Client::open(format!("redis://{}", listener.local_addr().unwrap())).unwrap();
        let hour = Some(Duration::from_secs(3600));
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(hour).set_response_timeout(hour);
        let link = Link::new(client, config, Arc::new(SystemClock::new()), None, None);
        let tasks = || Handle::current().metrics().num_alive_tasks();
        for _ in 0..50 {
            let opened = link.opened(Operation::Claim);
            assert!(timeout(Duration::from_millis(2), opened).await.is_err());
        }
        let few = async {
            while tasks() > 2 {
                tokio::task::yield_now().await;
            }
        };
        let few = timeout(Duration::from_secs(10), few).await;
        assert!(few.is_ok(), "{} tasks", tasks());
    }

    #[test]
    fn a_connection_is_silent_while_an_answer_is_missing_and_no_longer() {
        let traffic = Traffic::default();
        traffic.asked(1);
        traffic.asked(2);
        assert!(traffic.is_silent(LATER));
        // Noted in reverse order.
        traffic.answered(2, 3);
        traffic.answered(1, 4);
        assert!(!traffic.is_silent(LATER));
        traffic.asked(5);
        traffic.asked(6);
        traffic.answered(5, 7);
        assert!(traffic.is_silent(LATER), "the last one is missing");
    }

    #[test]
    fn one_request_follows_those_that_were_dropped_before_it() {
        let traffic = Traffic::default();
        assert!(traffic.is_left(1));
        assert!(!traffic.is_left(2), "one is on its way");
        assert!(traffic.is_left_again(1), "the second was dropped after that one was sent");
        assert!(!traffic.is_left_again(2));
        assert!(traffic.is_left(3));
    }
}
