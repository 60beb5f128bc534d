//! The order of the fences that one process grants.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock::Timestamp;
use crate::store::{Claim, ClaimOutcome, Record, transition};

/// The largest fence that this process knows of. A record's time is in milliseconds, and a key can
/// be claimed, released and claimed again within one.
#[derive(Debug, Default)]
pub(crate) struct Fences(AtomicU64);

impl Fences {
    /// Applies [`transition::claim`] with a fence above all known ones.
    pub(crate) fn claim(
        &self,
        slot: &mut Option<Record>,
        claim: &Claim,
        now: Timestamp,
    ) -> ClaimOutcome {
        // The load and the `fetch_max` in `granted` are not one step: two claims at once may get
        // the same fence. They are claims of different keys, or only one of them succeeds in
        // writing the row.
        let claimed = transition::claim_above(slot, claim, now, self.0.load(Ordering::Acquire));
        if let ClaimOutcome::Granted(grant) = &claimed {
            self.granted(grant.record.fence);
        }
        claimed
    }

    /// The largest fence that this process knows of.
    #[cfg(feature = "sqlite")]
    pub(crate) fn last(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Records that `fence` was granted.
    pub(crate) fn granted(&self, fence: u64) {
        self.0.fetch_max(fence, Ordering::AcqRel);
    }

    /// Records the store's time in microseconds: fences of other processes may be as large.
    #[cfg(any(feature = "mysql", feature = "postgres"))]
    pub(crate) fn reached(&self, micros: u64) {
        self.granted(micros.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::Fences;
    use crate::clock::Timestamp;
    use crate::key::KeyHash;
    use crate::store::{Claim, ClaimOutcome, Token};

    #[test]
    fn fences_grow_while_the_clock_stands_still() {
        let fences = Fences::default();
        let claim =
            Claim::new(KeyHash::from_bytes([7; 32]), Token::from_bits(1), "payments.charge".into());
        let next = || match fences.claim(&mut None, &claim, Timestamp::from_millis(5)) {
            ClaimOutcome::Granted(grant) => grant.record.fence,
            held => panic!("{held:?}"),
        };
        assert_eq!([next(), next(), next()], [5_000, 5_001, 5_002]);
        fences.granted(6_000);
        assert_eq!(next(), 6_001);
    }
}
