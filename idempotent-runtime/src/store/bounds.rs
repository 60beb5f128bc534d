//! The bounds of what a store's builder is told.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::{StoreError, StoreErrorKind};

/// Servers count their limits in milliseconds of 31 bits, and a day of waiting is for ever.
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(86_400);

/// A time limit that every client and server can count.
pub(crate) fn check_timeout(name: &str, timeout: Duration) -> Result<(), StoreError> {
    if TIMEOUTS.contains(&timeout) {
        return Ok(());
    }
    let detail = format!("`{name}` is {timeout:?}; it goes from 1ms to a day");
    Err(StoreError::new(StoreErrorKind::Config, "connect").with_detail(detail))
}
