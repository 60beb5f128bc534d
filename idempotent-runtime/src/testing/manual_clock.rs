//! A clock that moves only when a test moves it.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::Notify;

use super::ClockJump;
use crate::clock::{Clock, Sleep, Timestamp};
use crate::lock::Mutex;

/// The initial wall-clock time of a [`ManualClock`]: 2026-01-01 00:00:00 UTC.
const START: Timestamp = Timestamp::from_millis(1_767_225_600_000);

/// A clock that a test moves by hand. Clones share the same time.
///
/// A test waits until the code under test sleeps, moves the clock and observes the effect, without
/// any real waiting. [`advance`](Self::advance) moves the clock in a single step: code that sleeps
/// again after it woke starts from the end of the step. A test of something periodic therefore
/// advances one period at a time.
///
/// The store and the engine both need it. A store that was not given it, or that has a clock of its
/// own, notices nothing when it is moved: a record does not expire, and no assertion shows why. A
/// test that something is remembered for a time therefore also tests that it is forgotten after it.
///
/// ```
/// use std::time::Duration;
/// use idempotency::clock::Clock;
/// use idempotency::testing::ManualClock;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let clock = ManualClock::new();
/// let alarm = tokio::spawn({
///     let clock = clock.clone();
///     async move { clock.sleep(Duration::from_secs(3600)).await }
/// });
///
/// clock.wait_for_sleepers(1).await;
/// clock.advance(Duration::from_secs(3599));
/// assert_eq!(clock.sleepers(), 1);
/// clock.advance(Duration::from_secs(1));
/// alarm.await.unwrap();
/// # }
/// ```
#[derive(Clone)]
pub struct ManualClock {
    shared: Arc<Shared>,
}

struct Shared {
    hands: Mutex<Hands>,
    sleepers_changed: Notify,
}

struct Hands {
    /// Since 1970-01-01 UTC, finer than a [`Timestamp`] so that small steps add up.
    wall: Duration,
    monotonic: Duration,
    next_sleeper: u64,
    sleepers: BTreeMap<Alarm, Waker>,
}

/// The time at which a sleeper wakes, and its number.
type Alarm = (Duration, u64);

impl ManualClock {
    /// Creates a clock that shows 2026-01-01 00:00:00 UTC.
    pub fn new() -> Self {
        let hands = Hands {
            wall: Duration::from_millis(START.as_millis()),
            monotonic: Duration::ZERO,
            next_sleeper: 0,
            sleepers: BTreeMap::new(),
        };
        Self {
            shared: Arc::new(Shared { hands: Mutex::new(hands), sleepers_changed: Notify::new() }),
        }
    }

    /// Advances both the wall clock and the monotonic clock by `duration`, and wakes the sleepers
    /// that are due.
    pub fn advance(&self, duration: Duration) {
        let due = {
            let mut hands = self.hands();
            hands.wall = hands.wall.saturating_add(duration);
            hands.monotonic = hands.monotonic.saturating_add(duration);
            // The upper bound of all that are due: no sleeper reaches this number.
            let after_now = (hands.monotonic, u64::MAX);
            let later = hands.sleepers.split_off(&after_now);
            std::mem::replace(&mut hands.sleepers, later)
        };
        self.shared.sleepers_changed.notify_waiters();
        due.into_values().for_each(Waker::wake);
    }

    /// Sets the wall clock, as an administrator does. The monotonic clock and the sleepers are not
    /// affected.
    pub fn set_wall(&self, wall: Timestamp) {
        self.hands().wall = Duration::from_millis(wall.as_millis());
    }

    /// Moves the wall clock forward, or back to 1970 at most. The monotonic clock and the sleepers
    /// are not affected.
    pub fn jump(&self, jump: ClockJump) {
        let mut hands = self.hands();
        hands.wall = match jump {
            ClockJump::Forward(by) => hands.wall.saturating_add(by),
            ClockJump::Back(by) => hands.wall.saturating_sub(by),
        };
    }

    /// Returns the number of futures of [`Clock::sleep`] that were polled and still sleep.
    pub fn sleepers(&self) -> usize {
        self.hands().sleepers.len()
    }

    /// Resolves once at least `count` futures sleep.
    pub async fn wait_for_sleepers(&self, count: usize) {
        loop {
            // Create the future before the check: `notify_waiters` between the check and the
            // `await` then still wakes it.
            let changed = self.shared.sleepers_changed.notified();
            if self.sleepers() >= count {
                return;
            }
            changed.await;
        }
    }

    fn hands(&self) -> MutexGuard<'_, Hands> {
        self.shared.hands.lock()
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for ManualClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManualClock")
            .field("now", &self.now())
            .field("monotonic", &self.monotonic())
            .finish_non_exhaustive()
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::default() + self.hands().wall
    }

    fn monotonic(&self) -> Duration {
        self.hands().monotonic
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        let mut hands = self.hands();
        let alarm = (hands.monotonic.saturating_add(duration), hands.next_sleeper);
        hands.next_sleeper += 1;
        Box::pin(Sleeper { clock: self.clone(), alarm })
    }
}

struct Sleeper {
    clock: ManualClock,
    alarm: Alarm,
}

impl Future for Sleeper {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut hands = self.clock.hands();
        if hands.monotonic >= self.alarm.0 {
            hands.sleepers.remove(&self.alarm);
            return Poll::Ready(());
        }
        let is_new = hands.sleepers.insert(self.alarm, cx.waker().clone()).is_none();
        drop(hands);
        if is_new {
            self.clock.shared.sleepers_changed.notify_waiters();
        }
        Poll::Pending
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        if self.clock.hands().sleepers.remove(&self.alarm).is_some() {
            self.clock.shared.sleepers_changed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::ManualClock;
    use crate::clock::{Clock as _, Timestamp};
    use crate::testing::ClockJump;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn sleepers_of_other_threads_wake_when_their_time_has_come() {
        let clock = ManualClock::new();
        let sleep = |seconds| {
            let clock = clock.clone();
            tokio::spawn(async move {
                clock.sleep(SECOND * seconds).await;
                clock.monotonic()
            })
        };
        let (short, long) = (sleep(1), sleep(3));
        clock.wait_for_sleepers(2).await;
        clock.advance(SECOND);
        assert_eq!(short.await.unwrap(), SECOND);
        assert_eq!(clock.sleepers(), 1);
        assert!(!long.is_finished());
        clock.advance(2 * SECOND);
        assert_eq!(long.await.unwrap(), 3 * SECOND);
        assert_eq!(clock.sleepers(), 0);
    }

    #[tokio::test]
    async fn a_sleep_counts_from_the_call_and_not_from_the_first_poll() {
        let clock = ManualClock::new();
        let sleep = clock.sleep(SECOND);
        clock.advance(SECOND);
        sleep.await;
    }

    #[tokio::test]
    async fn time_comes_to_its_end_and_everybody_wakes() {
        let clock = ManualClock::new();
        let sleepers = [SECOND, Duration::MAX].map(|duration| tokio::spawn(clock.sleep(duration)));
        clock.wait_for_sleepers(2).await;
        for _ in 0..2 {
            clock.advance(Duration::MAX);
        }
        for sleeper in sleepers {
            sleeper.await.unwrap();
        }
        clock.sleep(SECOND).await;
        assert_eq!(
            (clock.monotonic(), clock.now()),
            (Duration::MAX, Timestamp::from_millis(u64::MAX))
        );
    }

    #[tokio::test]
    async fn a_dropped_sleep_is_no_sleeper() {
        let clock = ManualClock::new();
        let task = tokio::spawn({
            let clock = clock.clone();
            async move { clock.sleep(SECOND).await }
        });
        clock.wait_for_sleepers(1).await;
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        assert_eq!(clock.sleepers(), 0);
    }

    #[tokio::test]
    async fn the_wall_clock_jumps_without_the_monotonic_one() {
        let clock = ManualClock::new();
        let start = clock.now();
        let task = tokio::spawn({
            let clock = clock.clone();
            async move { clock.sleep(SECOND).await }
        });
        clock.wait_for_sleepers(1).await;
        clock.jump(ClockJump::Forward(60 * SECOND));
        assert_eq!(clock.now(), start + 60 * SECOND);
        clock.jump(ClockJump::Back(90 * SECOND));
        assert_eq!(clock.now() + 30 * SECOND, start);
        clock.set_wall(Timestamp::from_millis(5));
        assert_eq!(clock.now(), Timestamp::from_millis(5));
        assert_eq!((clock.monotonic(), clock.sleepers()), (Duration::ZERO, 1));
        clock.advance(SECOND);
        task.await.unwrap();
        assert_eq!(clock.now(), Timestamp::from_millis(1005));
    }

    #[test]
    fn steps_below_a_millisecond_add_up() {
        let clock = ManualClock::new();
        let start = clock.now();
        for _ in 0..4 {
            clock.advance(Duration::from_micros(250));
        }
        assert_eq!(clock.now(), start + Duration::from_millis(1));
    }
}
