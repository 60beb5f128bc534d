//! Keys: they identify a call of an operation.
//!
//! A key is any value that is [`IntoKey`]. It is encoded with type tags and length prefixes, so
//! that `("a", "bc")` and `("ab", "c")` are two keys, and so are `1` and `"1"`. It is then hashed
//! together with the namespace, the scope and the operation's name:
//!
//! ```text
//! sha256("idempotency/1" ‖ len‖namespace ‖ len‖scope ‖ len‖operation ‖ canonical(key))
//! ```
//!
//! Stores see only the hash. People see its first twelve characters.

mod digest;
mod encode;
mod error;
mod hash;
mod into_key;
mod window;

pub use crate::fingerprint::{Fingerprint, Fingerprintable};
pub use digest::{Digest, digest};
pub use encode::{KeyEncoder, KeyParts};
pub use error::FingerprintError;
pub(crate) use error::KeyError;
#[cfg(any(test, feature = "__external"))]
pub(crate) use hash::hex;
pub use hash::{HashPrefix, KeyHash, ParseHashPrefixError, ParseKeyHashError};
pub(crate) use hash::{derive, derive_in_step, hash_key};
pub use into_key::IntoKey;
pub use window::{Window, window};

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use crate::clock::Timestamp;

/// An encoded key or scope, or the reason why it is invalid.
///
/// The reason is kept until the call runs, which then fails with it.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    canonical: Result<Vec<u8>, InvalidKey>,
    window: Option<Slot>,
}

/// The position of a window's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    number_at: usize,
    /// In milliseconds.
    length: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum InvalidKey {
    Missing,
    Unfit(String),
}

/// Shows only the size: keys do not belong in logs.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.canonical {
            Ok(bytes) => write!(f, "Key({} bytes)", bytes.len()),
            Err(invalid) => write!(f, "Key({invalid:?})"),
        }
    }
}

impl Key {
    /// Encodes `value`.
    ///
    /// ```
    /// use idempotency::key::Key;
    ///
    /// assert_ne!(Key::of(&("a", "bc")), Key::of(&("ab", "c")));
    /// assert_ne!(Key::of(&1), Key::of(&"1"));
    /// assert_eq!(Key::of(&1_u8), Key::of(&1_i64));
    /// ```
    pub fn of<K: IntoKey + ?Sized>(value: &K) -> Self {
        Self::encoded(|encoder| value.encode(encoder))
    }

    /// Creates the key that `encode` writes.
    #[doc(hidden)]
    pub fn encoded(encode: impl FnOnce(&mut KeyEncoder)) -> Self {
        let mut encoder = KeyEncoder::new();
        encoder.one(encode);
        Self::from_encoder(encoder)
    }

    /// Encodes a tuple whose parts are added one by one: the same key as [`Key::of`] the tuple.
    ///
    /// ```
    /// use idempotency::key::Key;
    ///
    /// let (user, order) = ("ada", 7);
    /// assert_eq!(Key::from_parts(|parts| parts.add(&user).add(&order)), Key::of(&("ada", 7)));
    /// ```
    pub fn from_parts(
        add: impl for<'a, 'b> FnOnce(&'b mut KeyParts<'a>) -> &'b mut KeyParts<'a>,
    ) -> Self {
        let mut encoder = KeyEncoder::new();
        encoder.tuple(|parts| {
            add(parts);
        });
        Self::from_encoder(encoder)
    }

    fn from_encoder(encoder: KeyEncoder) -> Self {
        let (canonical, window) = encoder.finish();
        Self { canonical, window }
    }

    /// The length of the window in the key, if it has one.
    pub(crate) fn window(&self) -> Option<Duration> {
        self.window.map(|slot| Duration::from_millis(slot.length))
    }

    /// The number of the window that contains `now`; zero without a window.
    pub(crate) fn window_number(&self, now: Timestamp) -> u64 {
        self.window.map_or(0, |slot| now.as_millis() / slot.length)
    }

    /// Returns the encoding of the key in the window with this number, at most `limit` bytes.
    pub(crate) fn in_window(&self, number: u64, limit: usize) -> Result<Cow<'_, [u8]>, KeyError> {
        let bytes = self.bytes("key", limit)?;
        let Some(slot) = self.window else { return Ok(bytes.into()) };
        let mut bytes = bytes.to_vec();
        bytes[slot.number_at..slot.number_at + 8].copy_from_slice(&number.to_be_bytes());
        Ok(bytes.into())
    }

    /// Returns true if a part of it is `None`: a call with it fails with
    /// [`MissingKey`](crate::ErrorKind::MissingKey).
    ///
    /// ```
    /// use idempotency::key::Key;
    ///
    /// assert!(Key::of(&("ada", None::<u32>)).is_missing());
    /// assert!(!Key::of(&("ada", Some(7))).is_missing());
    /// ```
    pub fn is_missing(&self) -> bool {
        matches!(self.canonical, Err(InvalidKey::Missing))
    }

    /// Returns the encoding of a scope, at most `limit` bytes.
    pub(crate) fn as_scope(&self, limit: usize) -> Result<&[u8], KeyError> {
        if self.window.is_some() {
            let detail = "the scope has a window; a window is a part of the key";
            return Err(KeyError::Invalid(detail.to_owned()));
        }
        self.bytes("scope", limit)
    }

    fn bytes(&self, what: &str, limit: usize) -> Result<&[u8], KeyError> {
        match &self.canonical {
            Ok(bytes) if bytes.len() > limit => Err(KeyError::Invalid(format!(
                "the {what} takes {} bytes and the limit is {limit}; use `idempotency::key::digest` for large values, \
                 or raise the limit with `max_key_size`",
                bytes.len()
            ))),
            Ok(bytes) => Ok(bytes),
            Err(InvalidKey::Missing) => Err(KeyError::Missing(format!(
                "a part of the {what} is `None`; give a value, or refuse the request before the call"
            ))),
            Err(InvalidKey::Unfit(reason)) => {
                Err(KeyError::Invalid(format!("the {what} cannot be used: {reason}")))
            }
        }
    }
}
