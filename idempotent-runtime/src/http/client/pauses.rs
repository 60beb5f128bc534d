//! The time between two attempts.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};

use crate::clock::Randomness;

/// Bounds of the pauses between attempts: each pause is random, up to a bound that doubles each
/// time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    /// The bound of the first pause.
    pub(super) first: Duration,
    /// The upper limit of every bound.
    pub(super) longest: Duration,
}

impl Backoff {
    pub(super) fn bounds(self) -> ExponentialBackoff {
        ExponentialBuilder::default()
            .with_min_delay(self.first.min(self.longest))
            .with_max_delay(self.longest)
            .with_factor(2.0)
            .without_max_times()
            .build()
    }
}

/// Returns a random pause up to `bound`, so that clients that failed together do not retry
/// together. Without randomness it is the longest one.
pub(super) fn anything_up_to(bound: Duration, randomness: &dyn Randomness) -> Duration {
    let mut bytes = [0; 8];
    if randomness.fill(&mut bytes).is_err() {
        return bound;
    }
    let share = u128::from(u64::from_be_bytes(bytes));
    // 2⁶⁴ nanoseconds are centuries, so larger bounds are cut off.
    let nanos = u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX);
    let pause = (u128::from(nanos) * share) >> 64;
    Duration::from_nanos(u64::try_from(pause).unwrap_or(nanos))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Backoff, anything_up_to};
    use crate::clock::Randomness;

    #[derive(Debug)]
    struct Drawn(std::io::Result<u8>);

    impl Randomness for Drawn {
        fn fill(&self, bytes: &mut [u8]) -> std::io::Result<()> {
            bytes.fill(*self.0.as_ref().map_err(|error| std::io::Error::from(error.kind()))?);
            Ok(())
        }
    }

    #[test]
    fn the_bound_doubles_up_to_the_longest() {
        let seconds = Duration::from_secs;
        let backoff = Backoff { first: seconds(1), longest: seconds(5) };
        let bounds: Vec<_> = backoff.bounds().take(5).collect();
        assert_eq!(bounds, [1, 2, 4, 5, 5].map(seconds));
        let backoff = Backoff { first: seconds(9), longest: seconds(5) };
        assert_eq!(backoff.bounds().next(), Some(seconds(5)));
    }

    #[test]
    fn a_pause_is_anything_from_nothing_to_the_bound() {
        let bound = Duration::from_secs(8);
        assert_eq!(anything_up_to(bound, &Drawn(Ok(0))), Duration::ZERO);
        assert_eq!(anything_up_to(bound, &Drawn(Ok(0x80))).as_secs(), 4);
        let longest = anything_up_to(bound, &Drawn(Ok(0xff)));
        assert!(longest < bound && longest.as_millis() == 7_999, "{longest:?}");
        assert_eq!(anything_up_to(bound, &Drawn(Err(std::io::ErrorKind::Other.into()))), bound);
        assert!(anything_up_to(Duration::MAX, &Drawn(Ok(0xff))) > Duration::from_secs(1 << 33));
    }
}
