//! The errors of keys and fingerprints.

use std::error::Error as StdError;
use std::fmt;

use crate::canonical::CanonicalError;

/// The reason why a key or a scope cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum KeyError {
    /// A part of it is `None`.
    Missing(String),
    Invalid(String),
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Missing(detail) | Self::Invalid(detail)) = self;
        f.write_str(detail)
    }
}

/// The error of a value that has no [fingerprint](crate::key::Fingerprint): it holds a number that
/// equals nothing (`NaN`), or its `Serialize` fails. As an [`Error`](crate::Error), it is of the
/// kind [`Encode`](crate::ErrorKind::Encode).
///
/// ```
/// use idempotency::key::Fingerprint;
///
/// let error = Fingerprint::of(&f64::NAN).unwrap_err();
/// assert!(error.to_string().starts_with("the fingerprint could not be computed"));
/// ```
#[derive(Debug)]
pub struct FingerprintError(CanonicalError);

impl FingerprintError {
    pub(crate) fn new(error: CanonicalError) -> Self {
        Self(error)
    }

    pub(crate) fn into_cause(self) -> CanonicalError {
        self.0
    }
}

impl fmt::Display for FingerprintError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the fingerprint could not be computed")
    }
}

impl StdError for FingerprintError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.0)
    }
}
