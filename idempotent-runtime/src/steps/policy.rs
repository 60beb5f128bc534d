//! The number of tries of a step.

use std::time::Duration;

/// The number of tries of a step within one attempt of its call, and the pauses between them, which
/// double each time. The pauses are on the engine's clock.
///
/// ```
/// use std::time::Duration;
/// use idempotency::step::StepRetry;
///
/// // At once, after 200 ms, after 400 ms, after 500 ms.
/// let policy = StepRetry::tries(4).first_pause(Duration::from_millis(200)).longest_pause(Duration::from_millis(500));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "it is given to a step with `retry`"]
pub struct StepRetry {
    tries: u32,
    first_pause: Duration,
    longest_pause: Duration,
}

impl StepRetry {
    /// Tries the step at most this often, the first time included; zero counts as one. The first
    /// pause is 100 ms, the longest 10 s.
    pub const fn tries(tries: u32) -> Self {
        Self {
            tries,
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(10),
        }
    }

    /// Sets the pause before the second try.
    pub const fn first_pause(mut self, pause: Duration) -> Self {
        self.first_pause = pause;
        self
    }

    /// Sets the longest pause.
    pub const fn longest_pause(mut self, pause: Duration) -> Self {
        self.longest_pause = pause;
        self
    }

    pub(super) fn pauses(self) -> Pauses {
        Pauses {
            left: self.tries.saturating_sub(1),
            next: self.first_pause,
            longest: self.longest_pause,
        }
    }
}

/// The remaining pauses.
#[derive(Debug)]
pub(super) struct Pauses {
    left: u32,
    next: Duration,
    longest: Duration,
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.left = self.left.checked_sub(1)?;
        let pause = self.next.min(self.longest);
        self.next = pause.saturating_mul(2);
        Some(pause)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::StepRetry;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let millis = |policy: StepRetry| {
            // More than there are: an end that never comes would be waited for.
            let pauses = policy.pauses().take(9);
            pauses.map(|pause| pause.as_millis()).collect::<Vec<_>>()
        };
        let policy = StepRetry::tries(5).first_pause(Duration::from_millis(10));
        assert_eq!(millis(policy), [10, 20, 40, 80]);
        assert_eq!(millis(policy.longest_pause(Duration::from_millis(30))), [10, 20, 30, 30]);
        assert_eq!(millis(StepRetry::tries(1)), [0; 0]);
        assert_eq!(millis(StepRetry::tries(0)), [0; 0]);
    }
}
