//! The hash under which a store keeps a record.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

const DOMAIN: &[u8] = b"idempotency/1";
const DERIVE_DOMAIN: &[u8] = b"idempotency/derive/1";
const DERIVE_IN_STEP_DOMAIN: &[u8] = b"idempotency/derive-in-step/1";

/// The 256-bit hash of namespace, scope, operation and key: the name of a record in its store.
///
/// `Display` shows the first twelve of its 64 hexadecimal characters, which is what logs and errors
/// carry; [`to_hex`](Self::to_hex) returns all of them.
///
/// ```
/// use idempotency::key::KeyHash;
///
/// let hash: KeyHash = "ab".repeat(32).parse()?;
/// assert_eq!(hash.to_string(), "abababababab");
/// assert_eq!(hash.to_hex().parse(), Ok(hash));
/// # Ok::<(), idempotency::key::ParseKeyHashError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// Creates the hash with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes of the hash.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns all 64 hexadecimal characters, in lower case.
    pub fn to_hex(&self) -> String {
        hex(&self.0)
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] =
        ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(DIGITS[usize::from(byte >> 4)]);
        text.push(DIGITS[usize::from(byte & 0xf)]);
    }
    text
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..6].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyHash({self})")
    }
}

/// The error for a text that is not 64 hexadecimal characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseKeyHashError;

impl fmt::Display for ParseKeyHashError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key hash is written as 64 hexadecimal characters")
    }
}

impl std::error::Error for ParseKeyHashError {}

impl FromStr for KeyHash {
    type Err = ParseKeyHashError;

    fn from_str(text: &str) -> Result<Self, ParseKeyHashError> {
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(ParseKeyHashError);
        }
        for (byte, pair) in bytes.iter_mut().zip(0..) {
            *byte = u8::from_str_radix(&text[pair * 2..pair * 2 + 2], 16)
                .map_err(|_| ParseKeyHashError)?;
        }
        Ok(Self(bytes))
    }
}

/// The first digits of [`KeyHash`]es: 8 to 64 hexadecimal characters, in upper or lower case. Errors
/// and logs show twelve.
///
/// ```
/// use idempotency::key::{HashPrefix, KeyHash};
///
/// let prefix: HashPrefix = "abababab".parse()?;
/// assert!(prefix.includes(&KeyHash::from_bytes([0xab; 32])));
/// assert!("ababab".parse::<HashPrefix>().is_err());
/// # Ok::<(), idempotency::key::ParseHashPrefixError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct HashPrefix {
    digits: usize,
    first: KeyHash,
    last: KeyHash,
}

impl HashPrefix {
    /// The fewest digits that are worth a search.
    const FEWEST: usize = 8;

    /// Returns true if `hash` begins with these digits.
    pub fn includes(&self, hash: &KeyHash) -> bool {
        (self.first..=self.last).contains(hash)
    }

    /// The first hash that begins with these digits, in their order.
    pub const fn first(&self) -> KeyHash {
        self.first
    }

    /// The last hash that begins with these digits, in their order.
    pub const fn last(&self) -> KeyHash {
        self.last
    }
}

/// Shows the digits, in lower case.
impl fmt::Display for HashPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.first.to_hex()[..self.digits])
    }
}

impl fmt::Debug for HashPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HashPrefix({self})")
    }
}

impl FromStr for HashPrefix {
    type Err = ParseHashPrefixError;

    fn from_str(text: &str) -> Result<Self, ParseHashPrefixError> {
        if text.len() < Self::FEWEST {
            return Err(ParseHashPrefixError);
        }
        let filled = |text: String| text.parse().map_err(|_| ParseHashPrefixError);
        let (first, last) = (filled(format!("{text:0<64}"))?, filled(format!("{text:f<64}"))?);
        Ok(Self { digits: text.len(), first, last })
    }
}

/// The error for a text that is not 8 to 64 hexadecimal characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseHashPrefixError;

impl fmt::Display for ParseHashPrefixError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the first digits of a key hash are 8 to 64 hexadecimal characters")
    }
}

impl std::error::Error for ParseHashPrefixError {}

fn update_prefixed(hasher: &mut Sha256, bytes: &[u8]) {
    hasher.update((bytes.len() as u64).to_be_bytes());
    hasher.update(bytes);
}

/// Hashes the name of a record. `scope` and `key` are canonical encodings; an empty `scope` means
/// no scope.
pub(crate) fn hash_key(namespace: &str, scope: &[u8], operation: &str, key: &[u8]) -> KeyHash {
    let mut hasher = Sha256::new();
    hasher.update(DOMAIN);
    update_prefixed(&mut hasher, namespace.as_bytes());
    update_prefixed(&mut hasher, scope);
    update_prefixed(&mut hasher, operation.as_bytes());
    hasher.update(key);
    KeyHash(hasher.finalize().into())
}

/// Derives a key for a downstream service: 64 characters, the same in all attempts, and different
/// for each purpose.
pub(crate) fn derive(key: &KeyHash, purpose: &str) -> String {
    let mut hasher = Sha256::new();
    hasher.update(DERIVE_DOMAIN);
    hasher.update(key.0);
    update_prefixed(&mut hasher, purpose.as_bytes());
    hex(&hasher.finalize())
}

/// Like [`derive`], and different for each step of the call.
pub(crate) fn derive_in_step(key: &KeyHash, step: &str, index: u64, purpose: &str) -> String {
    let mut hasher = Sha256::new();
    hasher.update(DERIVE_IN_STEP_DOMAIN);
    hasher.update(key.0);
    update_prefixed(&mut hasher, step.as_bytes());
    hasher.update(index.to_be_bytes());
    update_prefixed(&mut hasher, purpose.as_bytes());
    hex(&hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::{HashPrefix, KeyHash, derive, derive_in_step, hash_key};
    use crate::key::Key;

    fn canonical(key: &Key) -> Vec<u8> {
        key.in_window(0, 1024).unwrap().to_vec()
    }

    #[test]
    fn golden_hash_of_a_released_format() {
        let key = canonical(&Key::of(&("order", 7, true)));
        let hash = hash_key("default", &canonical(&Key::of("tenant-7")), "payments.charge", &key);
        assert_eq!(
            hash.to_hex(),
            "52a6a1e3e6feb504412fdb7fd83e85d5a20b268c5ad22640a8bcb9ead9c84a6e"
        );
    }

    #[test]
    fn every_part_counts() {
        let key = canonical(&Key::of(&7));
        let hashes = [
            hash_key("a", b"", "b", &key),
            hash_key("a", b"b", "", &key),
            hash_key("ab", b"", "", &key),
            hash_key("", b"", "ab", &key),
            hash_key("a", b"", "b", &canonical(&Key::of(&8))),
        ];
        for (position, one) in hashes.iter().enumerate() {
            assert!(!hashes[position + 1..].contains(one));
        }
    }

    #[test]
    fn a_prefix_includes_every_hash_that_begins_with_its_digits() {
        let hash = |text: String| text.parse::<KeyHash>().unwrap();
        let prefix: HashPrefix = "00aB00ff1".parse().unwrap();
        let (first, last) = (format!("{:0<64}", "00ab00ff1"), format!("{:f<64}", "00ab00ff1"));
        assert_eq!((prefix.first(), prefix.last()), (hash(first), hash(last)));
        assert!(prefix.includes(&prefix.first()) && prefix.includes(&prefix.last()));
        assert!(!prefix.includes(&hash(format!("{:f<64}", "00ab00ff0"))));
        assert!(!prefix.includes(&hash(format!("{:0<64}", "00ab00ff2"))));
        assert_eq!(prefix.to_string(), "00ab00ff1");
        let whole: HashPrefix = "AB".repeat(32).parse().unwrap();
        assert!(whole.includes(&hash("ab".repeat(32))));
        for refused in ["", "1234567", "1234567g", "123 5678", "€€€", &"a".repeat(65)] {
            assert!(refused.parse::<HashPrefix>().is_err(), "{refused}");
        }
    }

    #[test]
    fn derived_keys_differ_by_purpose_and_fit_64_characters() {
        let key = hash_key("a", b"", "b", b"c");
        assert_eq!(derive(&key, "psp"), derive(&key, "psp"));
        assert_ne!(derive(&key, "psp"), derive(&key, "mail"));
        assert_eq!(derive(&key, "psp").len(), 64);
    }

    #[test]
    fn golden_derived_key() {
        let key = hash_key("a", b"", "b", b"c");
        assert_eq!(
            derive(&key, "psp"),
            "688a2ed1dfaf1f99f0b1ad78aa228d0966b94853c0f69284acba84aafd87e238"
        );
    }

    #[test]
    fn golden_key_of_a_step() {
        let key = hash_key("a", b"", "b", b"c");
        assert_eq!(
            derive_in_step(&key, "charge", 3, "psp"),
            "acb3ab65217f3d00f0627d222377a062026454d8223fe61df1e4c443adce80bd"
        );
    }

    #[test]
    fn keys_of_steps_differ_by_every_part() {
        let key = hash_key("a", b"", "b", b"c");
        let keys = [
            derive(&key, "psp"),
            derive_in_step(&key, "psp", 0, "psp"),
            derive_in_step(&key, "psp", 0, ""),
            derive_in_step(&key, "", 0, "psp"),
            derive_in_step(&key, "psp", 1, "psp"),
        ];
        for (position, one) in keys.iter().enumerate() {
            assert!(!keys[position + 1..].contains(one));
            assert_eq!(one.len(), 64);
        }
    }
}
