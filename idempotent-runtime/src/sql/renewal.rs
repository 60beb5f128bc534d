//! Renewals that found no row to prolong.

use crate::clock::Timestamp;
use crate::store::{Record, Renewal, WriteOutcome, transition};

/// Returns the reason why a renewal did nothing, judged by its row afterwards.
pub(crate) fn not_renewed(
    slot: &mut Option<Record>,
    renewal: &Renewal,
    now: Timestamp,
) -> WriteOutcome {
    match transition::renew(slot, renewal, now) {
        // It can be renewed after all: another transaction had locked the row, or wrote it between
        // the two statements.
        WriteOutcome::Applied => WriteOutcome::Unanswered,
        lost => lost,
    }
}
