//! Time: Tokio's paused clock, which goes on when nobody can do anything before. A process sees it
//! through its life.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use idempotency::clock::{Clock, Randomness, Sleep, Timestamp};
use idempotency_test_support::random::Random;
use tokio::time::Instant;

use crate::life::Life;

/// 2026-01-01 00:00:00 UTC.
const EPOCH: Timestamp = Timestamp::from_millis(1_767_225_600_000);

/// The clock of a run, and of the store.
#[derive(Clone, Copy, Debug)]
pub struct RunClock {
    start: Instant,
}

impl RunClock {
    /// Starts now, in a runtime whose clock is paused.
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for RunClock {
    fn now(&self) -> Timestamp {
        EPOCH + self.monotonic()
    }

    fn monotonic(&self) -> Duration {
        Instant::now() - self.start
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// The clock of one process: while it stands still, nothing that sleeps in it wakes. While its
/// machine is suspended, the clock goes on and the timers do not.
#[derive(Clone, Debug)]
pub struct ProcessClock {
    pub run: RunClock,
    pub life: Arc<Life>,
    /// For a mutant: the clock does not go on either.
    pub stops: bool,
}

impl Clock for ProcessClock {
    fn now(&self) -> Timestamp {
        self.run.now()
    }

    fn monotonic(&self) -> Duration {
        let now = self.run.monotonic();
        if self.stops { self.life.awake(now) } else { now }
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        let (run, life) = (self.run, self.life.clone());
        let ends = life.awake(run.monotonic()).saturating_add(duration);
        Box::pin(async move {
            loop {
                tokio::time::sleep(ends.saturating_sub(life.awake(run.monotonic()))).await;
                life.goes_on().await;
                if life.awake(run.monotonic()) >= ends {
                    return;
                }
            }
        })
    }
}

/// Owner tokens that the seed decides.
#[derive(Debug)]
pub struct Tokens(Mutex<Random>);

impl Tokens {
    pub fn new(random: Random) -> Self {
        Self(Mutex::new(random))
    }
}

impl Randomness for Tokens {
    fn fill(&self, bytes: &mut [u8]) -> std::io::Result<()> {
        let mut random = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&random.bits().to_be_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}
