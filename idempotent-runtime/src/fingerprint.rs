//! Fingerprints of requests. A retry must have the same one.

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::canonical;
use crate::key::FingerprintError;

/// A value that a fingerprint can be computed of: `Serialize`.
#[diagnostic::on_unimplemented(
    message = "no fingerprint can be computed of `{Self}`",
    label = "not `Serialize`",
    note = "derive it, for each part of a tuple: `#[derive(serde::Serialize)]`"
)]
pub trait Fingerprintable {
    /// Computes the fingerprint of `value`.
    #[doc(hidden)]
    fn fingerprint(value: &Self) -> Result<Fingerprint, FingerprintError>;
}

#[diagnostic::do_not_recommend]
impl<T: Serialize + ?Sized> Fingerprintable for T {
    fn fingerprint(value: &T) -> Result<Fingerprint, FingerprintError> {
        Fingerprint::of(value)
    }
}

/// The hash of everything that a retry must repeat. A call with the same key and another
/// fingerprint is a [`Mismatch`](crate::ErrorKind::Mismatch), unless the call declares the recorded
/// one as a [former one](crate::Call::former_fingerprint) of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint {
    /// The version of the encoding behind the hash. Fingerprints of different versions never
    /// identify the same request.
    pub version: u8,
    /// The first 128 bits of the SHA-256 of the canonical encoding.
    pub bits: u128,
}

impl Fingerprint {
    /// The version that [`of`](Self::of) writes.
    pub const VERSION: u8 = 1;

    /// Computes the fingerprint of `value`.
    ///
    /// The order of fields and of map entries does not matter, and neither does the width of
    /// integers. What else counts is described at [`digest`](crate::key::digest).
    ///
    /// # Errors
    /// [`FingerprintError`] if the value has no canonical encoding (`NaN`), or its `Serialize` fails.
    ///
    /// ```
    /// use idempotency::key::Fingerprint;
    ///
    /// assert_eq!(Fingerprint::of(&("EUR", 100_u8))?, Fingerprint::of(&("EUR", 100_i64))?);
    /// assert_ne!(Fingerprint::of(&("EUR", 100))?, Fingerprint::of(&("EUR", 101))?);
    /// # Ok::<(), idempotency::Error>(())
    /// ```
    pub fn of<T: Serialize + ?Sized>(value: &T) -> Result<Self, FingerprintError> {
        let bytes = canonical::to_bytes(value).map_err(FingerprintError::new)?;
        let hash: [u8; 32] = Sha256::digest(bytes).into();
        let mut bits = [0; 16];
        bits.copy_from_slice(&hash[..16]);
        Ok(Self { version: Self::VERSION, bits: u128::from_be_bytes(bits) })
    }

    /// Returns true if a retry with the fingerprint `retry` contradicts a record with `recorded`,
    /// that is, if they differ in anything.
    ///
    /// Fingerprints of two versions contradict each other, and so do a fingerprint and `None`:
    /// without a comparison, the requests are not known to be the same.
    ///
    /// ```
    /// use idempotency::key::Fingerprint;
    ///
    /// let recorded = Fingerprint::of("EUR 100")?;
    /// assert!(Fingerprint::contradicts(Some(recorded), Some(Fingerprint::of("EUR 101")?)));
    /// assert!(Fingerprint::contradicts(Some(recorded), Some(Fingerprint { version: 2, ..recorded })));
    /// assert!(Fingerprint::contradicts(Some(recorded), None));
    /// assert!(!Fingerprint::contradicts(Some(recorded), Some(recorded)));
    /// assert!(!Fingerprint::contradicts(None, None));
    /// # Ok::<(), idempotency::Error>(())
    /// ```
    pub fn contradicts(recorded: Option<Self>, retry: Option<Self>) -> bool {
        recorded != retry
    }
}
