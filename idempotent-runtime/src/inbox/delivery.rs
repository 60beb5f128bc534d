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
    is_suspect: bool,
    /// The place under which it is counted in the store, if that is not its key.
    #[cfg_attr(not(feature = "__sql"), expect(dead_code, reason = "transactions are counted"))]
    place: Option<Key>,
    /// How many deliveries came before those that are counted in the store.
    before: u32,
    /// The failed tries of a consumer that has not returned the message in between.
    failures: u32,
}

impl<'a> Delivery<'a> {
    /// Creates a delivery of the message with this key. One that is `None` makes it a dead letter
    /// ([`MissingKey`](super::DeadReason::MissingKey)), and so does one that is too long
    /// ([`InvalidKey`](super::DeadReason::InvalidKey)).
    ///
    /// Keys of different origin, such as a header and a position, are kept apart with a tag:
    /// `("header", id)` and `("position", partition, offset)`.
    pub fn new<K: IntoKey>(key: K) -> Self {
        Self {
            key: Key::of(&key),
            payload: None,
            deliveries: None,
            is_suspect: false,
            place: None,
            before: 0,
            failures: 0,
        }
    }

    /// Sets the payload, which a redelivery must repeat. A message with the same key and another
    /// payload is a [dead letter](super::DeadReason::Mismatch).
    pub fn payload(self, payload: &'a [u8]) -> Self {
        Self { payload: Some(payload), ..self }
    }

    /// Sets how often the broker has delivered the message, this time included.
    ///
    /// The record of the message counts its attempts, also those of processes that died. This
    /// number is used where there is no such record. While the operation is
    /// [disabled](crate::Idempotency::disable) it is that of the attempts. With `handle_in`, where the
    /// record is rolled back, it says which deliveries are repetitions: they are counted in the store
    /// as those that are [`redelivered`](Self::redelivered). A broker also counts what was delivered
    /// and not tried: beside a message that kills its process, or while another transaction has it.
    pub fn deliveries(self, count: u32) -> Self {
        Self { deliveries: Some(count), ..self }
    }

    /// Marks a delivery that may be a repetition which the broker does not count. With `handle_in`
    /// it is counted in the store, in one more request: a message that kills its process is then a
    /// dead letter in the end. Without effect otherwise, where the record of the message counts.
    ///
    /// ```
    /// use idempotency::inbox::Delivery;
    ///
    /// /// A log that says nothing of earlier deliveries: the first ones after a start are suspects.
    /// fn delivery(offset: u64, is_after_a_start: bool) -> Delivery<'static> {
    ///     let delivery = Delivery::new(("offset", offset));
    ///     if is_after_a_start { delivery.suspect() } else { delivery }
    /// }
    /// # let _ = delivery(7, true);
    /// ```
    pub fn suspect(self) -> Self {
        Self { is_suspect: true, ..self }
    }

    /// Marks a [suspect](Self::suspect) that is counted under its place in a log, and not under its
    /// key.
    ///
    /// The count of a message whose attempts are used up stays, for as long as a record: where the
    /// process dies before its broker knows that the message is a dead letter, the next delivery is
    /// one at once, and kills no process again. A redrive has another place, and begins to count from
    /// one.
    ///
    /// ```
    /// use idempotency::inbox::Delivery;
    ///
    /// fn delivery(id: &str, partition: i32, offset: i64) -> Delivery<'static> {
    ///     Delivery::new(("id", id)).suspect_at(("orders", partition, offset))
    /// }
    /// # let _ = delivery("7", 0, 7);
    /// ```
    pub fn suspect_at<K: IntoKey>(self, place: K) -> Self {
        Self { is_suspect: true, place: Some(Key::of(&place)), ..self }
    }

    /// Marks a delivery that is a repetition, by a broker that says that and not how often. It is
    /// counted as a [suspect](Self::suspect), and the first one, which was not, counts too.
    ///
    /// ```
    /// use idempotency::inbox::Delivery;
    ///
    /// fn delivery(id: &str, redelivered: bool) -> Delivery<'static> {
    ///     let delivery = Delivery::new(("id", id));
    ///     if redelivered { delivery.redelivered() } else { delivery }
    /// }
    /// # let _ = delivery("7", true);
    /// ```
    pub fn redelivered(self) -> Self {
        Self { is_suspect: true, before: 1, ..self }
    }

    pub(super) fn key(&self) -> Key {
        self.key.clone()
    }

    /// The key under which the store counts it.
    #[cfg(feature = "__sql")]
    pub(super) fn counted_under(&self) -> Key {
        self.place.clone().unwrap_or_else(|| self.key())
    }

    /// Returns true if its count stays when its attempts are used up.
    #[cfg(feature = "__sql")]
    pub(super) fn stays_counted(&self) -> bool {
        self.place.is_some()
    }

    /// Counts the failed tries of a consumer that has not returned the message in between.
    pub(super) fn failed_here(self, failures: u32) -> Self {
        Self { failures, ..self }
    }

    /// The number of the attempt that this is. `counted` is the number of deliveries that the store
    /// has counted.
    pub(super) fn attempt(&self, counted: u32) -> u32 {
        let number = match counted {
            0 => self.deliveries.unwrap_or(1),
            // The first delivery, which did not look like a repetition, was not counted.
            _ if !self.is_suspect => counted.saturating_add(1),
            _ => counted.saturating_add(self.before),
        };
        number.max(1).saturating_add(self.failures)
    }

    /// Returns true if the store is to count it.
    #[cfg(feature = "__sql")]
    pub(super) fn is_suspect(&self) -> bool {
        self.is_suspect || self.deliveries.is_some_and(|deliveries| deliveries > 1)
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
            .field("is_suspect", &self.is_suspect)
            .finish_non_exhaustive()
    }
}
