//! Fingerprints: what a retry must repeat.

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::canonical;
use crate::error::{Error, ErrorKind};

/// The hash of what a retry must repeat. A call with the same key and another fingerprint is a
/// [`Mismatch`](crate::ErrorKind::Mismatch), unless the call says that it is a
/// [former one](crate::Call::former_fingerprint) of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint {
    /// Which encoding made the hash. Fingerprints of different versions are never those of one
    /// request.
    pub version: u8,
    /// The first 128 bits of the SHA-256 of the canonical encoding.
    pub bits: u128,
}

impl Fingerprint {
    /// The version that [`of`](Self::of) writes.
    pub const VERSION: u8 = 1;

    /// The fingerprint of `value`.
    ///
    /// The order of fields and of map entries and the width of integers do not count.
    ///
    /// # Errors
    /// [`Encode`](ErrorKind::Encode) when the value has no canonical encoding (`NaN`) or its
    /// `Serialize` fails.
    ///
    /// ```
    /// use idempotent_runtime::Fingerprint;
    ///
    /// assert_eq!(Fingerprint::of(&("EUR", 100_u8))?, Fingerprint::of(&("EUR", 100_i64))?);
    /// assert_ne!(Fingerprint::of(&("EUR", 100))?, Fingerprint::of(&("EUR", 101))?);
    /// # Ok::<(), idempotent_runtime::Error>(())
    /// ```
    pub fn of<T: Serialize + ?Sized>(value: &T) -> Result<Self, Error> {
        let bytes = canonical::to_bytes(value).map_err(|error| {
            Error::new(ErrorKind::Encode)
                .with_detail("the fingerprint could not be computed, the body did not run")
                .with_source(error)
        })?;
        let hash: [u8; 32] = Sha256::digest(bytes).into();
        let mut bits = [0; 16];
        bits.copy_from_slice(&hash[..16]);
        Ok(Self { version: Self::VERSION, bits: u128::from_be_bytes(bits) })
    }

    /// Whether a retry with `retry` contradicts a record with `recorded`: whether they differ in
    /// anything.
    ///
    /// Also fingerprints of two versions contradict each other, and one contradicts none: what was
    /// not compared is not known to be the same request.
    ///
    /// ```
    /// use idempotent_runtime::Fingerprint;
    ///
    /// let recorded = Fingerprint::of("EUR 100")?;
    /// assert!(Fingerprint::contradicts(Some(recorded), Some(Fingerprint::of("EUR 101")?)));
    /// assert!(Fingerprint::contradicts(Some(recorded), Some(Fingerprint { version: 2, ..recorded })));
    /// assert!(Fingerprint::contradicts(Some(recorded), None));
    /// assert!(!Fingerprint::contradicts(Some(recorded), Some(recorded)));
    /// assert!(!Fingerprint::contradicts(None, None));
    /// # Ok::<(), idempotent_runtime::Error>(())
    /// ```
    pub fn contradicts(recorded: Option<Self>, retry: Option<Self>) -> bool {
        recorded != retry
    }
}
