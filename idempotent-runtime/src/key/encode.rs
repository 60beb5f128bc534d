//! The canonical encoding: type tags and length prefixes, so that different keys never share their bytes.

use std::fmt;
use std::time::Duration;

use super::{IntoKey, InvalidKey, Slot};

// Part of the stored format: a changed tag would make every record of a released version unreachable.
const STRING: u8 = b's';
const INTEGER: u8 = b'i';
const BOOL: u8 = b'b';
const CHAR: u8 = b'c';
const BYTES: u8 = b'x';
const UUID: u8 = b'u';
const TUPLE: u8 = b't';
const DIGEST: u8 = b'd';
const WINDOW: u8 = b'w';

/// Writes one value in the canonical encoding. Implementations of [`IntoKey`] call one of its methods, once.
pub struct KeyEncoder {
    bytes: Vec<u8>,
    invalid: Option<InvalidKey>,
    window: Option<Slot>,
}

impl KeyEncoder {
    pub(super) fn new() -> Self {
        Self { bytes: Vec::with_capacity(48), invalid: None, window: None }
    }

    pub(super) fn finish(self) -> (Result<Vec<u8>, InvalidKey>, Option<Slot>) {
        (self.invalid.map_or(Ok(self.bytes), Err), self.window)
    }

    fn prefixed(&mut self, tag: u8, bytes: &[u8]) {
        self.bytes.push(tag);
        self.bytes.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
        self.bytes.extend_from_slice(bytes);
    }

    /// A text.
    pub fn string(&mut self, value: &str) {
        self.prefixed(STRING, value.as_bytes());
    }

    /// A byte string.
    pub fn bytes(&mut self, value: &[u8]) {
        self.prefixed(BYTES, value);
    }

    /// An integer that is not negative. `1_u8` and `1_i64` are the same key.
    pub fn unsigned(&mut self, value: u128) {
        self.integer(false, value);
    }

    /// An integer of any sign.
    pub fn signed(&mut self, value: i128) {
        self.integer(value.is_negative(), value.unsigned_abs());
    }

    fn integer(&mut self, negative: bool, magnitude: u128) {
        self.bytes.extend_from_slice(&[INTEGER, u8::from(negative)]);
        self.bytes.extend_from_slice(&magnitude.to_be_bytes());
    }

    /// A truth value.
    pub fn bool(&mut self, value: bool) {
        self.bytes.extend_from_slice(&[BOOL, u8::from(value)]);
    }

    /// One character. `'a'` and `"a"` are two keys.
    pub fn char(&mut self, value: char) {
        self.bytes.push(CHAR);
        self.bytes.extend_from_slice(&u32::from(value).to_be_bytes());
    }

    /// The sixteen bytes of a UUID.
    pub fn uuid(&mut self, value: [u8; 16]) {
        self.bytes.push(UUID);
        self.bytes.extend_from_slice(&value);
    }

    pub(super) fn digest(&mut self, value: [u8; 32]) {
        self.bytes.push(DIGEST);
        self.bytes.extend_from_slice(&value);
    }

    /// A window of time. Its number is known when the call is made.
    pub(super) fn window(&mut self, length: Duration) {
        let Some(length) = u64::try_from(length.as_millis()).ok().filter(|&length| length > 0) else {
            self.invalid("its window is shorter than a millisecond, or longer than time");
            return;
        };
        self.bytes.push(WINDOW);
        self.bytes.extend_from_slice(&length.to_be_bytes());
        let slot = Slot { number_at: self.bytes.len(), length };
        self.bytes.extend_from_slice(&[0; 8]);
        if self.window.replace(slot).is_some() {
            self.invalid("it has two windows, and each looks at the one before it: keep one");
        }
    }

    /// A tuple of the parts that `add` adds.
    pub fn tuple(&mut self, add: impl FnOnce(&mut KeyParts<'_>)) {
        self.bytes.push(TUPLE);
        let count_at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        let mut parts = KeyParts { encoder: self, count: 0 };
        add(&mut parts);
        let count = parts.count;
        self.bytes[count_at..count_at + 4].copy_from_slice(&count.to_be_bytes());
    }

    /// The value is absent: the call fails with [`MissingKey`](crate::ErrorKind::MissingKey).
    pub fn missing(&mut self) {
        self.invalid.get_or_insert(InvalidKey::Missing);
    }

    /// The value cannot be a key: the call fails with [`InvalidKey`](crate::ErrorKind::InvalidKey) and this reason.
    pub fn invalid(&mut self, reason: impl Into<String>) {
        self.invalid.get_or_insert_with(|| InvalidKey::Unfit(reason.into()));
    }
}

/// Shows the size: keys are not for logs.
impl fmt::Debug for KeyEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyEncoder({} bytes)", self.bytes.len())
    }
}

/// Adds the parts of a tuple. See [`KeyEncoder::tuple`] and [`Key::from_parts`](super::Key::from_parts).
#[derive(Debug)]
pub struct KeyParts<'a> {
    encoder: &'a mut KeyEncoder,
    count: u32,
}

impl KeyParts<'_> {
    /// Adds one part.
    pub fn add<K: IntoKey + ?Sized>(&mut self, value: &K) -> &mut Self {
        value.encode(self.encoder);
        self.count += 1;
        self
    }

    /// Adds one part that is a tuple of the parts that `add` adds.
    pub fn tuple(&mut self, add: impl FnOnce(&mut KeyParts<'_>)) -> &mut Self {
        self.encoder.tuple(add);
        self.count += 1;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::KeyEncoder;

    #[test]
    fn a_key_is_not_printed_while_it_is_written() {
        let mut encoder = KeyEncoder::new();
        encoder.string("4242");
        encoder.tuple(|parts| assert_eq!(format!("{parts:?}"), "KeyParts { encoder: KeyEncoder(18 bytes), count: 0 }"));
    }
}
