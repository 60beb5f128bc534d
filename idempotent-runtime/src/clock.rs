//! Time and randomness as the engine sees them. Both are injected, so that tests and simulations
//! control them.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::runtime::Handle;

use crate::boot_time;

/// The whole milliseconds of a duration, which is how stores keep it.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Rounds a duration up to whole milliseconds.
pub(crate) fn whole_millis(duration: Duration) -> Duration {
    let part = duration.subsec_nanos() % 1_000_000;
    if part == 0 { duration } else { duration + Duration::from_nanos(u64::from(1_000_000 - part)) }
}

/// A point in time in milliseconds since 1970-01-01 UTC, on the clock of its writer.
///
/// ```
/// use std::time::Duration;
/// use idempotency::clock::Timestamp;
///
/// let start = Timestamp::from_millis(1_000);
/// assert_eq!(start + Duration::from_secs(2), Timestamp::from_millis(3_000));
/// assert_eq!(start.saturating_duration_since(Timestamp::from_millis(400)), Duration::from_millis(600));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The timestamp `millis` milliseconds after 1970-01-01 UTC.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since 1970-01-01 UTC.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// The time from `earlier` to `self`, or zero if `self` is not later.
    pub const fn saturating_duration_since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for Timestamp {
    type Output = Self;

    /// Saturates at the end of the range.
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(millis(duration)))
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.0)
    }
}

impl From<Timestamp> for std::time::SystemTime {
    fn from(timestamp: Timestamp) -> Self {
        Self::UNIX_EPOCH + Duration::from_millis(timestamp.0)
    }
}

/// The future returned by [`Clock::sleep`].
pub type Sleep = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The source of time for the engine and for stores without a clock of their own.
///
/// [`SystemClock`] is the default. The feature `testing` provides a clock that is moved by hand.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The wall clock. Stores that use this clock count expiry on it.
    fn now(&self) -> Timestamp;

    /// Time since an arbitrary start that never goes back. Leases and deadlines are counted on it.
    /// It keeps running while the machine, or whatever this code runs in, is suspended: an owner
    /// that was suspended for longer than its lease must not trust the lease when it resumes.
    fn monotonic(&self) -> Duration;

    /// Resolves once `duration` has passed on the monotonic clock. It may be late, for example by
    /// the time for which the machine was suspended: no decision relies on it alone.
    fn sleep(&self, duration: Duration) -> Sleep;
}

impl<C: Clock + ?Sized> Clock for Arc<C> {
    fn now(&self) -> Timestamp {
        (**self).now()
    }

    fn monotonic(&self) -> Duration {
        (**self).monotonic()
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        (**self).sleep(duration)
    }
}

/// The machine's clock, with Tokio's timer behind [`Clock::sleep`].
///
/// Its monotonic side keeps running while the machine is suspended: it is `CLOCK_BOOTTIME` on
/// Linux, Android and OpenBSD, `CLOCK_MONOTONIC` on Apple's systems and the performance counter on
/// Windows. On other systems it may stop, and in a virtual machine that its host pauses, or saves
/// and resumes, it usually does: the clocks in it stop with it. Tokio's timers do stop; a sleep that
/// is due by this clock ends at most five seconds after the machine has resumed.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    start: Duration,
}

/// The interval at which a sleeper checks whether the clock has advanced without its timer.
const LOOK_EVERY: Duration = Duration::from_secs(5);

impl SystemClock {
    /// Creates a clock whose monotonic side starts now.
    pub fn new() -> Self {
        Self { start: boot_time::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the one place that asks the machine")]
impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since_epoch =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp::default() + since_epoch
    }

    fn monotonic(&self) -> Duration {
        boot_time::now().saturating_sub(self.start)
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        let now = tokio::time::Instant::now();
        // No further away than Tokio's own `sleep` allows.
        let deadline = now.checked_add(duration).unwrap_or_else(|| now + FAR);
        let timer = tokio::time::sleep_until(deadline.min(now + LOOK_EVERY));
        let ends = self.monotonic().saturating_add(duration);
        Box::pin(SystemSleep {
            timer,
            deadline,
            ends,
            clock: *self,
            runtime: Handle::current().id(),
        })
    }
}

/// Thirty years.
const FAR: Duration = Duration::from_secs(86_400 * 365 * 30);

pin_project! {
    /// A timer belongs to one runtime and is useless once that has ended. Polled on another
    /// runtime, the sleep continues there for the remaining time: the engine finishes on a runtime
    /// of its own what callers left behind.
    ///
    /// It ends with whichever comes first: the timer, which a test may have paused and advances by
    /// itself, or the clock, which kept running while the machine was suspended and the timer stood
    /// still.
    struct SystemSleep {
        #[pin]
        timer: tokio::time::Sleep,
        deadline: tokio::time::Instant,
        ends: Duration,
        clock: SystemClock,
        runtime: tokio::runtime::Id,
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the one place that asks the machine")]
impl Future for SystemSleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        if let Some(runtime) =
            Handle::try_current().ok().map(|handle| handle.id()).filter(|id| id != this.runtime)
        {
            *this.runtime = runtime;
            let now = tokio::time::Instant::now();
            *this.deadline = now + this.ends.saturating_sub(this.clock.monotonic()).min(FAR);
            this.timer.set(tokio::time::sleep_until((*this.deadline).min(now + LOOK_EVERY)));
        }
        loop {
            ready!(this.timer.as_mut().poll(cx));
            let now = tokio::time::Instant::now();
            if now >= *this.deadline || this.clock.monotonic() >= *this.ends {
                return Poll::Ready(());
            }
            this.timer.as_mut().reset((*this.deadline).min(now + LOOK_EVERY));
        }
    }
}

/// The source of owner tokens.
///
/// The values need not be secret, but two processes must never draw the same 128 bits.
pub trait Randomness: fmt::Debug + Send + Sync + 'static {
    /// Fills `bytes` with random bytes.
    ///
    /// # Errors
    /// If the source cannot provide any. The call is then rejected before it reaches the store.
    fn fill(&self, bytes: &mut [u8]) -> std::io::Result<()>;
}

/// The operating system's generator.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemRandomness;

impl Randomness for SystemRandomness {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that asks the machine")]
    fn fill(&self, bytes: &mut [u8]) -> std::io::Result<()> {
        getrandom::fill(bytes).map_err(std::io::Error::other)
    }
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "these tests are about Tokio's clock and the machine's"
)]
mod tests {
    use std::time::Duration;

    use tokio::runtime::Handle;
    use tokio::time::Instant;

    use super::{Clock as _, LOOK_EVERY, SystemClock, SystemSleep};
    use crate::boot_time;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn the_monotonic_side_counts_the_time_for_which_the_machine_was_suspended() {
        let (before, clock) = (boot_time::now(), SystemClock::new());
        let (now, after) = (clock.monotonic(), boot_time::now());
        assert!(
            clock.start >= before && clock.start + now <= after,
            "{before:?} {clock:?} {now:?} {after:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_sleep_ends_with_its_timer_where_a_test_has_paused_it() {
        let start = Instant::now();
        SystemClock::new().sleep(HOUR).await;
        assert_eq!(start.elapsed(), HOUR);
        SystemClock::new().sleep(Duration::ZERO).await;
        assert!(start.elapsed() < HOUR + LOOK_EVERY);
    }

    /// The timer has an hour to go, as it had when the machine was suspended, and by the clock the
    /// sleep is due.
    #[tokio::test(start_paused = true)]
    async fn a_sleep_ends_soon_after_the_machine_has_woken_up() {
        let (start, clock) = (Instant::now(), SystemClock::new());
        let timer = tokio::time::sleep_until(start + LOOK_EVERY);
        let (deadline, ends, runtime) = (start + HOUR, Duration::ZERO, Handle::current().id());
        SystemSleep { timer, deadline, ends, clock, runtime }.await;
        assert_eq!(start.elapsed(), LOOK_EVERY);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sleep_without_end_is_none() {
        let sleep = SystemClock::new().sleep(Duration::MAX);
        assert!(tokio::time::timeout(HOUR * 24, sleep).await.is_err());
    }
}
