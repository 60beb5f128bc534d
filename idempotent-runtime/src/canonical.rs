//! The canonical encoding of any `Serialize` value, for fingerprints and digests.

use serde::Serialize;

/// Why a value has no canonical encoding.
#[derive(Debug)]
pub(crate) struct CanonicalError(String);

impl std::fmt::Display for CanonicalError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CanonicalError {}

/// The encoding of `value`.
pub(crate) fn to_bytes<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, CanonicalError> {
    serde_json::to_vec(value).map_err(|error| CanonicalError(error.to_string()))
}
