//! One delivery of a message, as an inbox needs to know it.

use std::fmt;

use sha2::{Digest as _, Sha256};

use crate::Error;
use crate::key::{Fingerprint, IntoKey, Key};

/// The version of the fingerprints. Others are never compared with these.
const FINGERPRINTS: &[u8] = b"idempotency/inbox/1";

/// One delivery of a message: its key, its payload, and what the broker says of earlier deliveries.
///
/// ```
/// use idempotency::inbox::Delivery;
///
/// let delivery = Delivery::new(("orders", 7)).payload(b"{\"amount\":100}").deliveries(2);
/// // Payloads do not belong in logs.
/// assert!(!format!("{delivery:?}").contains("amount"));
/// ```
#[derive(Clone)]
#[must_use = "a delivery does nothing until an inbox handles it"]
pub struct Delivery<'a> {
    key: Key,
    payload: Option<&'a [u8]>,
    deliveries: Option<u32>,
}

impl<'a> Delivery<'a> {
    /// Creates a delivery of the message with this key. One that is `None` makes it a dead letter
    /// ([`MissingKey`](super::DeadReason::MissingKey)), and so does one that is too long
    /// ([`InvalidKey`](super::DeadReason::InvalidKey)).
    ///
    /// Keys of different origin, such as a header and a position, are kept apart with a tag:
    /// `("header", id)` and `("position", partition, offset)`.
    pub fn new<K: IntoKey>(key: K) -> Self {
        Self { key: Key::of(&key), payload: None, deliveries: None }
    }

    /// Sets the payload, which a redelivery must repeat. A message with the same key and another
    /// payload is a [dead letter](super::DeadReason::Mismatch).
    pub fn payload(self, payload: &'a [u8]) -> Self {
        Self { payload: Some(payload), ..self }
    }

    /// Sets how often the broker has delivered the message, this time included.
    ///
    /// The record of the message counts its attempts, also those of processes that died. This
    /// number is used where there is no record: while the operation is
    /// [disabled](crate::Idempotency::disable).
    pub fn deliveries(self, count: u32) -> Self {
        Self { deliveries: Some(count), ..self }
    }

    pub(super) fn key(&self) -> Key {
        self.key.clone()
    }

    /// Counts the tries of a consumer that has not returned the message in between.
    pub(super) fn tried_here(self, tries: u32) -> Self {
        if tries < 2 {
            return self;
        }
        let deliveries = self.deliveries.map_or(tries, |count| count.saturating_add(tries - 1));
        Self { deliveries: Some(deliveries), ..self }
    }

    pub(super) fn count(&self) -> Option<u32> {
        self.deliveries
    }

    /// Returns the fingerprint of the payload, if there is one.
    pub(super) fn fingerprint(&self) -> Result<Option<Fingerprint>, Error> {
        let Some(payload) = self.payload else { return Ok(None) };
        let mut hash = Sha256::new_with_prefix(FINGERPRINTS);
        hash.update(payload);
        let hash: [u8; 32] = hash.finalize().into();
        Ok(Some(Fingerprint::of(&hash)?))
    }
}

/// Shows neither the key, which may be personal, nor the payload.
impl fmt::Debug for Delivery<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("payload", &self.payload.map(<[u8]>::len))
            .field("deliveries", &self.deliveries)
            .finish_non_exhaustive()
    }
}
