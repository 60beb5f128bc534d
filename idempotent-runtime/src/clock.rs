//! Time and randomness as the engine sees them: injected, so that tests and simulations decide both.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::runtime::Handle;

/// A point in time in milliseconds since 1970-01-01 UTC, on the clock of whoever wrote it.
///
/// ```
/// use std::time::Duration;
/// use idempotent_runtime::clock::Timestamp;
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

    /// How much later `self` is than `earlier`; zero if it is not later.
    pub const fn saturating_duration_since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for Timestamp {
    type Output = Self;

    /// Saturates at the end of the range.
    fn add(self, duration: Duration) -> Self {
        let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(millis))
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

/// The future that [`Clock::sleep`] returns.
pub type Sleep = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Where the engine, and the stores without a clock of their own, take time from.
///
/// [`SystemClock`] is the default. The feature `testing` has a clock that moves by hand.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The wall clock: what expiry is counted on in stores that use this clock.
    fn now(&self) -> Timestamp;

    /// Time since an arbitrary start that never goes back: what leases and deadlines are counted on.
    fn monotonic(&self) -> Duration;

    /// Resolves once `duration` has passed on the monotonic clock.
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
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    start: std::time::Instant,
}

impl SystemClock {
    /// The machine's clock, its monotonic side starting now.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that asks the machine")]
    pub fn new() -> Self {
        Self { start: std::time::Instant::now() }
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
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp::default() + since_epoch
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        let timer = tokio::time::sleep(duration);
        let ends = self.monotonic().saturating_add(duration);
        Box::pin(SystemSleep { timer, ends, clock: *self, runtime: Handle::current().id() })
    }
}

pin_project! {
    /// A timer belongs to one runtime, and is of no use when that has ended. Polled on another one, the sleep goes on
    /// there for what is left: the engine finishes on a runtime of its own what callers left behind.
    struct SystemSleep {
        #[pin]
        timer: tokio::time::Sleep,
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
        if let Some(runtime) = Handle::try_current().ok().map(|handle| handle.id()).filter(|id| id != this.runtime) {
            *this.runtime = runtime;
            this.timer.set(tokio::time::sleep(this.ends.saturating_sub(this.clock.monotonic())));
        }
        this.timer.poll(cx)
    }
}

/// Where owner tokens come from.
///
/// The values need not be secret, but two processes must never draw the same 128 bits.
pub trait Randomness: fmt::Debug + Send + Sync + 'static {
    /// Fills `bytes` with random ones.
    ///
    /// # Errors
    /// When the source cannot give any; the call is then refused before it reaches the store.
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
