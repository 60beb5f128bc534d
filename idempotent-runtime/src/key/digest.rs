//! The digest of a whole value as a key.

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::KeyEncoder;
use crate::canonical;

/// The digest of a value, made by [`digest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest(Result<[u8; 32], String>);

impl Digest {
    pub(super) fn encode_into(&self, encoder: &mut KeyEncoder) {
        match &self.0 {
            Ok(bytes) => encoder.digest(*bytes),
            Err(reason) => encoder.invalid(reason.clone()),
        }
    }
}

/// A key made of everything in `value`, for requests that carry no identifier.
///
/// Two requests with equal content are one call then, also when the user meant to order the same thing twice: prefer
/// an identifier that the client chose once per intent. The order of fields, of map entries and the width of
/// integers do not count; the order of a sequence does, which for a `HashSet` is random: use a `BTreeSet`.
///
/// A value that has no canonical encoding (`NaN`) makes the call fail with
/// [`InvalidKey`](crate::ErrorKind::InvalidKey).
///
/// ```
/// use idempotent_runtime::key::digest;
///
/// assert_eq!(digest(&("ada", [1, 2])), digest(&("ada", [1, 2])));
/// assert_ne!(digest(&("ada", [1, 2])), digest(&("ada", [2, 1])));
/// ```
pub fn digest<T: Serialize + ?Sized>(value: &T) -> Digest {
    Digest(canonical::to_bytes(value).map(|bytes| Sha256::digest(bytes).into()).map_err(|error| error.to_string()))
}
