//! The time between two attempts of a message.

use std::time::Duration;

use crate::key::KeyHash;

/// Bounds of the pauses between attempts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pauses {
    /// The bound of the pause after the first attempt. It doubles with each attempt.
    pub(super) first: Duration,
    /// The upper limit of every bound.
    pub(super) longest: Duration,
}

impl Pauses {
    /// Returns the pause after attempt `attempt` of the message with this record: between the half
    /// of its bound and all of it. The share is taken from the hash of the key, so that messages
    /// which fail together do not come back together, and no source of randomness can fail.
    pub(super) fn after(self, attempt: u32, record: Option<&KeyHash>) -> Duration {
        let doubled = 2_u32.saturating_pow(attempt.saturating_sub(1));
        let bound = self.first.saturating_mul(doubled).min(self.longest);
        let share = record.map_or(u8::MAX, |record| {
            let bytes = record.as_bytes();
            bytes[attempt as usize % bytes.len()]
        });
        bound / 2 + bound / 2 / u32::from(u8::MAX) * u32::from(share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const PAUSES: Pauses = Pauses { first: SECOND, longest: Duration::from_secs(5) };

    #[test]
    fn the_bound_doubles_up_to_the_longest() {
        let whole = [1, 2, 3, 4, u32::MAX].map(|attempt| PAUSES.after(attempt, None).as_secs_f64());
        for (pause, bound) in whole.into_iter().zip([1.0, 2.0, 4.0, 5.0, 5.0]) {
            assert!((pause - bound).abs() < 0.001, "{whole:?}");
        }
        let longest = Pauses { first: Duration::MAX, longest: Duration::MAX }.after(9, None);
        assert!(longest > Duration::MAX / 2);
    }

    #[test]
    fn messages_come_back_at_different_times_within_the_bound() {
        let pauses: std::collections::BTreeSet<_> = (0..64_u8)
            .map(|first| {
                let mut bytes = [7; 32];
                bytes[1] = first * 4;
                PAUSES.after(1, Some(&KeyHash::from_bytes(bytes)))
            })
            .collect();
        assert_eq!(pauses.len(), 64);
        assert!(pauses.iter().all(|pause| (SECOND / 2..=SECOND).contains(pause)), "{pauses:?}");
    }
}
