//! Servers that no longer accept writes because another one has taken their place.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::lock::Mutex;

/// The period for which the connections closed for this reason are counted.
const PERIOD: Duration = Duration::from_secs(1);

/// The time at which a server last said that it accepts no writes.
///
/// The address may lead to its successor by now, but a connection that was opened before leads to
/// the old server. The connection on which it said so is closed, and so are the store's own that
/// are older, so that not each of them has to be refused first.
#[derive(Clone, Debug)]
pub(crate) struct Demotions {
    /// The maximum number of connections closed for this reason in a period. A server that accepts
    /// no writes for long still answers reads, and must not have to accept a new connection for
    /// each of these requests.
    most: u32,
    last: Arc<Mutex<Option<Last>>>,
}

#[derive(Clone, Copy, Debug)]
struct Last {
    since: Instant,
    closed: u32,
}

#[expect(
    clippy::disallowed_methods,
    reason = "the age of connections is real time, whatever clock records have"
)]
impl Demotions {
    /// Creates the demotions of a server with at most this many connections.
    pub(crate) fn of(connections: u32) -> Self {
        Self { most: connections, last: Arc::default() }
    }

    /// Records that a server just said so. Returns true if the connection on which it did is to be
    /// closed.
    pub(crate) fn seen(&self) -> bool {
        self.seen_at(Instant::now())
    }

    fn seen_at(&self, now: Instant) -> bool {
        let mut last = self.last.lock();
        match last.as_mut().filter(|last| now.saturating_duration_since(last.since) < PERIOD) {
            Some(last) if last.closed >= self.most => false,
            Some(last) => {
                last.closed += 1;
                true
            }
            None => {
                *last = Some(Last { since: now, closed: 1 });
                true
            }
        }
    }

    /// Returns true if a connection of this `age` was opened before the last demotion.
    pub(crate) fn are_younger_than(&self, age: Duration) -> bool {
        let last = *self.last.lock();
        last.is_some_and(|last| last.since.elapsed() < age)
    }
}

#[cfg(test)]
mod tests {
    use super::{Demotions, Duration, Instant};

    const HOUR: Duration = Duration::from_secs(3_600);

    #[test]
    fn only_connections_that_are_older_than_what_the_server_said_lead_to_it() {
        let demotions = Demotions::of(10);
        assert!(!demotions.are_younger_than(HOUR));
        assert!(demotions.seen());
        assert!(demotions.are_younger_than(HOUR));
        assert!(!demotions.are_younger_than(Duration::ZERO));
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any time will do")]
    fn no_more_connections_are_closed_at_once_than_there_are() {
        let demotions = Demotions::of(2);
        let start = Instant::now();
        let closed = [0, 100, 200, 999, 1_000]
            .map(|millis| demotions.seen_at(start + Duration::from_millis(millis)));
        assert_eq!(closed, [true, true, false, false, true]);
    }
}
