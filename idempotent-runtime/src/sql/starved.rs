//! Requests that wait for a connection of a pool that belongs to the user.

use std::time::{Duration, Instant};

use sqlx::{Database, Pool};

use crate::lock::Mutex;

/// The minimum interval between two warnings.
const ONCE_IN: Duration = Duration::from_secs(60);

/// Warns in the log when other users of a pool that a store was given keep the store's requests
/// waiting. Each of these requests fails or is late by itself, and nothing else shows why.
#[derive(Debug, Default)]
pub(super) struct Starved(Mutex<Option<Instant>>);

impl Starved {
    /// Records that a request has waited `waited` for a connection of `pool`, out of the `patience`
    /// that it has for that.
    #[expect(
        clippy::disallowed_methods,
        reason = "the patience with a server is real time, whatever clock records have"
    )]
    pub(super) fn waited<DB: Database>(
        &self,
        pool: &Pool<DB>,
        waited: Duration,
        patience: Duration,
    ) {
        let most = pool.options().get_max_connections();
        // A pool that could open another connection waits for its server, not for its users.
        if waited < patience / 2 || pool.size() < most || !self.is_due(Instant::now()) {
            return;
        }
        tracing::warn!(
            ?waited,
            connections = pool.size(),
            idle = pool.num_idle(),
            most,
            "a request waited for a connection of the pool that the store was given: others hold them, in open \
             transactions for example, and calls are refused while they do. Give the store a pool of its own, or a larger one"
        );
    }

    fn is_due(&self, now: Instant) -> bool {
        let mut last = self.0.lock();
        let is_due = last.is_none_or(|last| now.saturating_duration_since(last) >= ONCE_IN);
        if is_due {
            *last = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::{Duration, Instant, ONCE_IN, Starved};

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any time will do")]
    fn it_is_said_once_a_minute() {
        let (starved, start) = (Starved::default(), Instant::now());
        let said = [0, 1, 59, 60, 61, 120]
            .map(|second| starved.is_due(start + Duration::from_secs(second)));
        assert_eq!(said, [true, false, false, true, false, true]);
        assert_eq!(ONCE_IN, Duration::from_secs(60));
    }
}
