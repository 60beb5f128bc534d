//! Waits for a caller elsewhere.

use std::sync::Arc;
use std::time::Duration;

use super::Inner;
use super::retry::Budget;
use crate::key::KeyHash;
use crate::store::{Record, State, StoreError};

/// The interval at which a waiter checks by itself, whatever the store pushes.
const SAFETY_POLL: Duration = Duration::from_secs(2);
/// Store and process may round the end of a lease differently.
const ROUNDING: Duration = Duration::from_millis(1);

pub(crate) enum WaitOutcome {
    /// The record is in another state than in progress.
    Record(Arc<Record>),
    /// No caller holds the claim.
    Claimable,
    /// The deadline has passed.
    OutOfTime,
}

/// Waits until the call that holds `key` has ended, or until `deadline` on the monotonic clock.
pub(crate) async fn for_change(
    engine: &Arc<Inner>,
    key: KeyHash,
    deadline: Duration,
) -> Result<WaitOutcome, StoreError> {
    loop {
        let left = deadline.saturating_sub(engine.clock.monotonic());
        if left.is_zero() {
            return Ok(WaitOutcome::OutOfTime);
        }
        let watch = engine.store.watch(Budget::of(left), key).await?;
        let lease_left = match &watch.record {
            None => return Ok(WaitOutcome::Claimable),
            Some(record) if record.state == State::Released || record.is_orphaned() => {
                return Ok(WaitOutcome::Claimable);
            }
            Some(record) if record.state != State::InProgress => {
                return Ok(WaitOutcome::Record(Arc::new(record.clone())));
            }
            Some(record) => record.lease_until.saturating_duration_since(record.read_at) + ROUNDING,
        };
        tokio::select! {
            biased;
            () = watch => {}
            () = engine.clock.sleep(lease_left.min(SAFETY_POLL).min(left)) => {}
        }
    }
}
