//! One connection to the server for each runtime, opened on demand and replaced when it breaks.
//!
//! A connection moves only as fast as the runtime in which it was opened. A single one would keep
//! all callers waiting behind a runtime that stands still between its calls, whose executor a body
//! blocks, or that stopped while it connected.
//!
//! The client's own `ConnectionManager` keeps a connection on which an answer timed out; on a
//! half-open connection nothing would ever be answered again. Here a time-out ends the connection.
//! And if an answer has been missing for a while, even one whose caller has gone, the next request
//! takes another connection instead of waiting behind the first.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ErrorKind, RedisError, RedisResult};
use tokio::runtime::{Handle, Id};

use super::error::store_error;
use crate::clock::{Clock, Timestamp};
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
    homes: PerRuntime<Arc<Home>>,
    generations: AtomicU64,
}

/// The part of the link that belongs to one runtime.
#[derive(Default)]
struct Home {
    current: RwLock<Option<Connected>>,
    connecting: tokio::sync::Mutex<()>,
}

/// An open connection, and the server's clock when it was opened. Each copy is for one request.
#[derive(Clone)]
pub(super) struct Connected {
    pub(super) connection: MultiplexedConnection,
    runtime: Id,
    generation: u64,
    server_time: Duration,
    read_at: Duration,
    traffic: Arc<Traffic>,
    /// The time of the request, in monotonic nanoseconds.
    asked: u64,
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
}

impl Traffic {
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
    ) -> Self {
        Self(Arc::new(Shared {
            client,
            config,
            clock,
            setup,
            homes: PerRuntime::default(),
            generations: AtomicU64::new(0),
        }))
    }

    /// Returns the connection, for the store operation `operation`.
    pub(super) async fn connected(&self, operation: Operation) -> Result<Connected, StoreError> {
        let home = self.0.home();
        if let Some(connected) = self.0.current(&home) {
            return Ok(connected);
        }
        // In a task of its own: the first caller opens the connection for all callers on the
        // runtime, and may never be polled again.
        let shared = Arc::clone(&self.0);
        match tokio::spawn(async move { shared.connected_anew(&home).await }).await {
            Ok(connected) => connected.map_err(|error| store_error(operation, error)),
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
    pub(super) fn now(&self, connected: &Connected) -> Timestamp {
        let passed = self.0.clock.monotonic().saturating_sub(connected.read_at);
        Timestamp::default() + connected.server_time + passed
    }

    /// Converts the answer to a request on `connected`. An error after which the connection cannot
    /// be trusted ends it.
    pub(super) fn answer<T>(
        &self,
        operation: Operation,
        connected: &Connected,
        answer: RedisResult<T>,
    ) -> Result<T, StoreError> {
        if !answer.as_ref().is_err_and(ends_connection) {
            connected.traffic.answered(connected.asked, self.0.now());
        }
        answer.map_err(|error| {
            if ends_connection(&error) {
                self.0.give_up(connected);
            }
            store_error(operation, error)
        })
    }
}

impl Shared {
    /// Returns the home of the current runtime.
    fn home(&self) -> Arc<Home> {
        self.homes.with(Arc::default, |home| Arc::clone(home))
    }

    async fn connected_anew(&self, home: &Home) -> RedisResult<Connected> {
        let _connecting = home.connecting.lock().await;
        // Another task may have connected while this one waited for the lock.
        if let Some(connected) = self.current(home) {
            return Ok(connected);
        }
        let connected = self.connect().await?;
        connected.traffic.asked(connected.asked);
        *home.current.write().unwrap_or_else(PoisonError::into_inner) = Some(connected.clone());
        Ok(connected)
    }

    /// Returns the existing connection, for one request, unless it has been silent for too long.
    fn current(&self, home: &Home) -> Option<Connected> {
        let current = home.current.read().unwrap_or_else(PoisonError::into_inner).clone()?;
        let now = self.now();
        if current.traffic.is_silent(now) {
            home.give_up(current.generation);
            return None;
        }
        current.traffic.asked(now);
        Some(Connected { asked: now, ..current })
    }

    fn give_up(&self, connected: &Connected) {
        if let Some(home) = self.homes.of(connected.runtime) {
            home.give_up(connected.generation);
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.clock.monotonic().as_nanos()).unwrap_or(u64::MAX)
    }

    async fn connect(&self) -> RedisResult<Connected> {
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
        Ok(Connected {
            connection,
            runtime,
            generation,
            server_time,
            read_at,
            traffic,
            asked: self.now(),
        })
    }
}

impl Home {
    /// Removes the connection of this generation, and no newer one. Requests that wait for an
    /// answer on it keep waiting, and no other request uses it.
    fn give_up(&self, generation: u64) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|current| current.generation == generation) {
            *current = None;
        }
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
    use super::Traffic;

    const LATER: u64 = 60_000_000_000;

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
}
