//! The canonical encoding: type tags and length prefixes, so that different keys never share their
//! bytes.

use std::fmt;
use std::time::Duration;

use super::{IntoKey, InvalidKey, Slot};

// Part of the stored format: changing a tag would make every record of a released version
// unreachable.
const STRING: u8 = b's';
const INTEGER: u8 = b'i';
const BOOL: u8 = b'b';
const CHAR: u8 = b'c';
const BYTES: u8 = b'x';
const UUID: u8 = b'u';
const TUPLE: u8 = b't';
const DIGEST: u8 = b'd';
const WINDOW: u8 = b'w';

/// Writes one value in the canonical encoding. Implementations of [`IntoKey`] call exactly one of
/// its methods, once: a value that writes nothing, or more than one value, could make the key equal
/// to that of another call, and is [`InvalidKey`](crate::ErrorKind::InvalidKey).
pub struct KeyEncoder {
    bytes: Vec<u8>,
    invalid: Option<InvalidKey>,
    window: Option<Slot>,
    /// The number of values so far, in the tuple that is being written or outside of any.
    values: usize,
}

impl KeyEncoder {
    pub(super) fn new() -> Self {
        Self { bytes: Vec::with_capacity(48), invalid: None, window: None, values: 0 }
    }

    /// Calls `encode`, which must write exactly one value.
    pub(super) fn one(&mut self, encode: impl FnOnce(&mut Self)) {
        let before = self.values;
        encode(self);
        let written = self.values - before;
        if written != 1 {
            self.invalid(format!(
                "an `IntoKey` wrote {written} values where one is expected: write a tuple of \
                 several, and `missing` for none"
            ));
        }
    }

    pub(super) fn finish(self) -> (Result<Vec<u8>, InvalidKey>, Option<Slot>) {
        (self.invalid.map_or(Ok(self.bytes), Err), self.window)
    }

    fn begin(&mut self, tag: u8) {
        self.values += 1;
        self.bytes.push(tag);
    }

    fn prefixed(&mut self, tag: u8, bytes: &[u8]) {
        self.begin(tag);
        self.bytes.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
        self.bytes.extend_from_slice(bytes);
    }

    /// Writes a string.
    pub fn string(&mut self, value: &str) {
        self.prefixed(STRING, value.as_bytes());
    }

    /// Writes a byte string.
    pub fn bytes(&mut self, value: &[u8]) {
        self.prefixed(BYTES, value);
    }

    /// Writes an integer that is not negative. `1_u8` and `1_i64` are the same key.
    pub fn unsigned(&mut self, value: u128) {
        self.integer(false, value);
    }

    /// Writes an integer of any sign.
    pub fn signed(&mut self, value: i128) {
        self.integer(value.is_negative(), value.unsigned_abs());
    }

    fn integer(&mut self, negative: bool, magnitude: u128) {
        self.begin(INTEGER);
        self.bytes.push(negative.into());
        self.bytes.extend_from_slice(&magnitude.to_be_bytes());
    }

    /// Writes a Boolean.
    pub fn bool(&mut self, value: bool) {
        self.begin(BOOL);
        self.bytes.push(value.into());
    }

    /// Writes one character. `'a'` and `"a"` are two keys.
    pub fn char(&mut self, value: char) {
        self.begin(CHAR);
        self.bytes.extend_from_slice(&u32::from(value).to_be_bytes());
    }

    /// Writes the sixteen bytes of a UUID.
    pub fn uuid(&mut self, value: [u8; 16]) {
        self.begin(UUID);
        self.bytes.extend_from_slice(&value);
    }

    pub(super) fn digest(&mut self, value: [u8; 32]) {
        self.begin(DIGEST);
        self.bytes.extend_from_slice(&value);
    }

    /// Writes a window of time. Its number is known when the call runs.
    pub(super) fn window(&mut self, length: Duration) {
        let Some(length) = u64::try_from(length.as_millis()).ok().filter(|&length| length > 0)
        else {
            self.invalid("its window is shorter than a millisecond, or too long to be counted");
            return;
        };
        self.begin(WINDOW);
        self.bytes.extend_from_slice(&length.to_be_bytes());
        let slot = Slot { number_at: self.bytes.len(), length };
        self.bytes.extend_from_slice(&[0; 8]);
        if self.window.replace(slot).is_some() {
            self.invalid("it has two windows, and each looks at the one before it: keep one");
        }
    }

    /// Writes a tuple of the parts that `add` adds.
    pub fn tuple(&mut self, add: impl FnOnce(&mut KeyParts<'_>)) {
        self.begin(TUPLE);
        let count_at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        let values = self.values;
        let mut parts = KeyParts { encoder: self, count: 0 };
        add(&mut parts);
        let count = parts.count;
        self.values = values;
        self.bytes[count_at..count_at + 4].copy_from_slice(&count.to_be_bytes());
    }

    /// Marks the value as absent: the call fails with [`MissingKey`](crate::ErrorKind::MissingKey).
    pub fn missing(&mut self) {
        self.values += 1;
        self.invalid.get_or_insert(InvalidKey::Missing);
    }

    /// Marks the value as invalid: the call fails with [`InvalidKey`](crate::ErrorKind::InvalidKey)
    /// and this reason.
    pub fn invalid(&mut self, reason: impl Into<String>) {
        self.invalid.get_or_insert_with(|| InvalidKey::Unfit(reason.into()));
    }
}

/// Shows only the size: keys do not belong in logs.
impl fmt::Debug for KeyEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyEncoder({} bytes)", self.bytes.len())
    }
}

/// Adds the parts of a tuple. See [`KeyEncoder::tuple`] and
/// [`Key::from_parts`](super::Key::from_parts).
#[derive(Debug)]
pub struct KeyParts<'a> {
    encoder: &'a mut KeyEncoder,
    count: u32,
}

impl KeyParts<'_> {
    /// Adds one part.
    pub fn add<K: IntoKey + ?Sized>(&mut self, value: &K) -> &mut Self {
        self.encoded(|encoder| value.encode(encoder))
    }

    /// Adds one part, which `encode` writes.
    #[doc(hidden)]
    pub fn encoded(&mut self, encode: impl FnOnce(&mut KeyEncoder)) -> &mut Self {
        self.encoder.one(encode);
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
    use super::{IntoKey, KeyEncoder};
    use crate::key::{Key, KeyError};

    /// Writes only the days that are present: a period that begins on a day and one that ends on it
    /// would be the same key.
    struct Period {
        from: Option<u8>,
        to: Option<u8>,
    }

    impl IntoKey for Period {
        fn encode(&self, encoder: &mut KeyEncoder) {
            for day in [self.from, self.to].iter().flatten() {
                day.encode(encoder);
            }
        }
    }

    #[test]
    fn a_value_that_is_none_or_several_is_no_key_for_which_another_one_could_be_taken() {
        let refused = |key: &Key| {
            let error = key.in_window(0, 1024).unwrap_err();
            assert!(matches!(error, KeyError::Invalid(_)), "{error:?}");
            error.to_string()
        };
        let (both, none) = (Period { from: Some(1), to: Some(2) }, Period { from: None, to: None });
        assert!(refused(&Key::of(&both)).contains("wrote 2 values"));
        assert!(refused(&Key::of(&(1, (both, 2)))).contains("wrote 2 values"));
        assert!(refused(&Key::of(&none)).contains("wrote 0 values"));
        assert!(
            Key::of(&none).as_scope(1024).is_err(),
            "it would be the scope of those that have none"
        );
        assert!(
            refused(&Key::from_parts(|parts| parts.add(&1).add(&none))).contains("wrote 0 values")
        );
        assert!(Key::of(&(1, (Period { from: Some(1), to: None }, 2))).in_window(0, 1024).is_ok());
    }

    fn written<K: IntoKey + ?Sized>(key: &K) -> Vec<u8> {
        Key::of(key).in_window(0, 1024).unwrap().into_owned()
    }

    /// Sixteen bytes that are a UUID are another key than the same bytes.
    struct Id([u8; 16]);

    impl IntoKey for Id {
        fn encode(&self, encoder: &mut KeyEncoder) {
            encoder.uuid(self.0);
        }
    }

    #[test]
    fn what_a_value_is_distinguishes_it_from_others_with_the_same_bytes() {
        let bytes = [7_u8; 16];
        assert_ne!(written(&Id(bytes)), written(&bytes));
        assert!(written(&Id(bytes)).ends_with(&bytes));
        assert_eq!(written(&Id(bytes)).len(), 1 + 16, "its type comes first");
    }

    #[test]
    fn a_tuple_written_part_by_part_is_the_tuple_of_its_parts() {
        let pairs = Key::from_parts(|parts| {
            parts.add(&1).tuple(|parts| {
                parts.add(&2).add(&3);
            })
        });
        assert_eq!(pairs.in_window(0, 1024).unwrap(), written(&(1, (2, 3))));
        let three = Key::from_parts(|parts| parts.add(&1).add(&2).add(&3));
        assert_eq!(three.in_window(0, 1024).unwrap(), written(&(1, 2, 3)));
    }

    #[test]
    fn a_key_is_not_printed_while_it_is_written() {
        let mut encoder = KeyEncoder::new();
        encoder.string("4242");
        encoder.tuple(|parts| {
            assert_eq!(
                format!("{parts:?}"),
                "KeyParts { encoder: KeyEncoder(18 bytes), count: 0 }"
            );
        });
    }
}
