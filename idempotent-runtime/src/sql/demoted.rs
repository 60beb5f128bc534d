//! Servers that take no writes any more, because another one has taken their place.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// For how long connections are counted that are closed for it.
const PERIOD: Duration = Duration::from_secs(1);

/// When a server last said that it takes no writes.
///
/// The address may lead to its successor by now, but a connection that was made before leads to the
/// old one. The one on which it said so is closed, and so are the store's own that are older: not
/// each of them has to be refused first.
#[derive(Clone, Debug)]
pub(crate) struct Demotions {
    /// How many connections are closed for it in a period at most. A server that takes no writes
    /// for long still answers what it has, and is not to be asked for a connection with each of
    /// these requests.
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
    /// Of a server to which there are this many connections at most.
    pub(crate) fn of(connections: u32) -> Self {
        Self { most: connections, last: Arc::default() }
    }

    /// A server just said so. Whether the connection is to be closed on which it did.
    pub(crate) fn seen(&self) -> bool {
        self.seen_at(Instant::now())
    }

    fn seen_at(&self, now: Instant) -> bool {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
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

    /// Whether a connection of this `age` was made before that.
    pub(crate) fn are_younger_than(&self, age: Duration) -> bool {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
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
