//! The time that a case takes beyond the time that it lets pass.

use std::time::Duration;

use crate::clock::Clock;
use crate::lock::Mutex;

/// A stopwatch that starts with a case and runs on the machine's clock, whatever clock the store
/// has.
///
/// Cases leave every store a lease for its responses. If time is real and the machine was so busy
/// that a lease has passed, a failure says nothing about the store.
#[derive(Debug)]
pub struct Stopwatch<C> {
    clock: C,
    started: Duration,
    expected: Mutex<Expected>,
}

#[derive(Debug)]
struct Expected {
    passed: Duration,
    matters: bool,
}

impl<C: Clock> Stopwatch<C> {
    pub(super) fn start(clock: C) -> Self {
        let started = clock.monotonic();
        Self {
            clock,
            started,
            expected: Mutex::new(Expected { passed: Duration::ZERO, matters: true }),
        }
    }

    /// Notes that the case lets `duration` pass.
    pub(super) fn expects(&self, duration: Duration) {
        self.change(|expected| expected.passed += duration);
    }

    /// Notes that time does not matter from here on.
    pub(super) fn is_timeless(&self) {
        self.change(|expected| expected.matters = false);
    }

    /// Returns true if a `lease` may have expired that the case relied on.
    pub(super) fn was_late(&self, lease: Duration) -> bool {
        let passed = self.clock.monotonic().saturating_sub(self.started);
        // A margin, because server and process may round differently.
        self.change(|expected| {
            expected.matters && passed.saturating_sub(expected.passed) > lease / 4 * 3
        })
    }

    fn change<A>(&self, change: impl FnOnce(&mut Expected) -> A) -> A {
        change(&mut self.expected.lock())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Stopwatch;
    use crate::testing::ManualClock;

    const LEASE: Duration = Duration::from_secs(4);

    #[test]
    fn a_case_is_late_by_what_it_takes_beyond_what_it_waits_for() {
        let clock = ManualClock::new();
        let stopwatch = Stopwatch::start(clock.clone());
        clock.advance(LEASE * 2);
        assert!(stopwatch.was_late(LEASE));
        stopwatch.expects(LEASE * 2);
        assert!(!stopwatch.was_late(LEASE));
        clock.advance(LEASE);
        assert!(stopwatch.was_late(LEASE));
    }

    #[test]
    fn where_time_does_not_matter_nothing_is_late() {
        let clock = ManualClock::new();
        let stopwatch = Stopwatch::start(clock.clone());
        stopwatch.is_timeless();
        clock.advance(LEASE * 2);
        assert!(!stopwatch.was_late(LEASE));
    }
}
