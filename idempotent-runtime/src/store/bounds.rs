//! Bounds for the values that a store's builder accepts.

use crate::store::Operation;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::{StoreError, StoreErrorKind};

/// Servers store their limits as milliseconds in 31 bits, and a wait of a day is as good as
/// endless.
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(86_400);

/// Rejects a time limit that some client or server cannot represent.
pub(crate) fn check_timeout(name: &str, timeout: Duration) -> Result<(), StoreError> {
    if TIMEOUTS.contains(&timeout) {
        return Ok(());
    }
    let detail = format!("`{name}` is {timeout:?}; it must be from 1ms to a day");
    Err(StoreError::new(StoreErrorKind::Config, Operation::Connect).with_detail(detail))
}
