//! Choices that a seed repeats.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The variable that names the seed of a run to repeat.
const SEED_VARIABLE: &str = "IDEMPOTENCY_SEED";

/// Numbers that look random and are the same for the same seed (`SplitMix64`).
///
/// ```
/// use idempotency_test_support::random::Random;
///
/// let (mut a, mut b) = (Random::new(7), Random::new(7));
/// assert_eq!(a.below(1_000), b.below(1_000));
/// assert_ne!(a.token(), a.token());
/// ```
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Creates the numbers of `seed`.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns the next number of 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number from zero up to `limit`, exclusive. Zero if `limit` is zero.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.bits().checked_rem(limit).unwrap_or_default()
    }

    /// Returns true in `percent` of 100 cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// Returns a time up to `limit`, exclusive, to the microsecond.
    pub fn duration_below(&mut self, limit: Duration) -> Duration {
        Duration::from_micros(self.below(u64::try_from(limit.as_micros()).unwrap_or(u64::MAX)))
    }

    /// Returns 128 bits that no other call returns.
    pub fn token(&mut self) -> u128 {
        u128::from(self.bits()) << 64 | u128::from(self.bits())
    }

    /// Returns a separate source of numbers, which consumes none of these.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self(self.bits())
    }
}

/// Returns the seed that `IDEMPOTENCY_SEED` names, or a different one in every run. A test that
/// fails reports it. The seed repeats the choices of the tasks, but not how they interleave.
pub fn seed() -> u64 {
    let named = std::env::var(SEED_VARIABLE).ok().and_then(|seed| seed.parse().ok());
    let of_now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    // The lower half changes fastest.
    named.unwrap_or_else(|| {
        Random::new(u64::try_from(of_now() & u128::from(u64::MAX)).unwrap_or_default()).bits()
    })
}
