//! The place at which a list of records goes on.

use std::error::Error as StdError;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::{Operation, StoreError, StoreErrorKind};
use crate::key::KeyHash;

/// Between the name of the store and the place in it.
const SEPARATOR: char = ':';

/// The place at which a list goes on: the [`Page::next`](super::Page::next) of one page, and the
/// [`Scan::after`](super::Scan::after) of the next one.
///
/// Opaque: each store has a format of its own, and rejects a cursor of another kind of store, or one
/// that it cannot read, with [`StoreErrorKind::Unsupported`]. It does not notice a cursor of another
/// table or server of its kind: the list would begin somewhere in its middle. `Display` shows it as
/// visible ASCII characters without spaces, and `FromStr` reads that text again, so a list can be
/// continued by another process.
///
/// A store creates one with [`after`](Self::after) if it lists in the order of the keys, or with
/// [`new`](Self::new) in another format.
///
/// ```
/// use idempotency::key::KeyHash;
/// use idempotency::store::Cursor;
///
/// let cursor = Cursor::after("memory", KeyHash::from_bytes([0xab; 32]));
/// assert_eq!(cursor.to_string().parse(), Ok(cursor.clone()));
/// assert!(cursor.place("redis").is_err());
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Cursor(Arc<str>);

impl Cursor {
    /// Creates a cursor of the store named `store` ([`Store::name`](super::Store::name)). `place`
    /// is in the store's own format, and consists of visible ASCII characters.
    pub fn new(store: &str, place: impl fmt::Display) -> Self {
        Self(format!("{}{place}", prefix(store)).into())
    }

    /// Creates the cursor of a store that lists in the order of the keys: the list goes on after
    /// `key`.
    pub fn after(store: &str, key: KeyHash) -> Self {
        Self::new(store, key.to_hex())
    }

    /// Returns the place in the store named `store`.
    ///
    /// # Errors
    /// [`Unsupported`](StoreErrorKind::Unsupported) for a cursor of another store.
    pub fn place(&self, store: &str) -> Result<&str, StoreError> {
        self.0.strip_prefix(&prefix(store)).ok_or_else(|| {
            let of = self.0.split_once(SEPARATOR).map_or("another store", |(of, _)| of);
            Self::rejected(&format!("it is of `{of}`, and this store is `{store}`"))
        })
    }

    /// Returns the key of a cursor that [`after`](Self::after) created.
    ///
    /// # Errors
    /// [`Unsupported`](StoreErrorKind::Unsupported) for a cursor of another store, and for one that
    /// was altered.
    pub fn key(&self, store: &str) -> Result<KeyHash, StoreError> {
        self.place(store)?.parse().map_err(|_| Self::altered())
    }

    /// Returns the error for a cursor whose place cannot be read.
    pub(crate) fn altered() -> StoreError {
        Self::rejected("it is not as the store wrote it")
    }

    pub(crate) fn rejected(reason: &str) -> StoreError {
        StoreError::new(StoreErrorKind::Unsupported, Operation::Scan)
            .with_detail(format!("the list cannot go on at this cursor: {reason}"))
    }
}

/// The beginning of the cursors of `store`, in visible characters.
fn prefix(store: &str) -> String {
    let visible = |c: char| if c.is_ascii_graphic() { c } else { '_' };
    store.chars().map(visible).chain([SEPARATOR]).collect()
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cursor({self})")
    }
}

/// The error for a text that is not a [`Cursor`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseCursorError;

impl fmt::Display for ParseCursorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a cursor is written as the name of its store, a colon and a place")
    }
}

impl StdError for ParseCursorError {}

impl FromStr for Cursor {
    type Err = ParseCursorError;

    fn from_str(text: &str) -> Result<Self, ParseCursorError> {
        let is_visible = text.bytes().all(|byte| byte.is_ascii_graphic());
        match text.split_once(SEPARATOR) {
            Some((store, place)) if is_visible && !store.is_empty() && !place.is_empty() => {
                Ok(Self(text.into()))
            }
            _ => Err(ParseCursorError),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Cursor, ParseCursorError};
    use crate::key::KeyHash;
    use crate::store::StoreErrorKind;

    #[test]
    fn a_cursor_is_read_again_from_its_text() {
        let key = KeyHash::from_bytes([0x5a; 32]);
        let cursor: Cursor = Cursor::after("memory", key).to_string().parse().unwrap();
        assert_eq!(cursor.key("memory").unwrap(), key);
        let cursor: Cursor = Cursor::new("redis", "17:a").to_string().parse().unwrap();
        assert_eq!(cursor.place("redis").unwrap(), "17:a");
        for broken in ["", ":", "redis", "redis:", ":17", "redis: 17", "redis:17\n", "redis:€"] {
            assert_eq!(broken.parse::<Cursor>(), Err(ParseCursorError), "{broken}");
        }
    }

    #[test]
    fn any_name_of_a_store_may_begin_a_cursor() {
        let key = KeyHash::from_bytes([0x5a; 32]);
        for store in ["sealed:file", "a store of another kind", "größe"] {
            let cursor: Cursor = Cursor::after(store, key).to_string().parse().unwrap();
            assert_eq!(cursor.key(store).unwrap(), key, "{store}");
            assert!(cursor.key("sealed").is_err(), "{store}");
        }
    }

    #[test]
    fn a_cursor_of_another_store_or_one_that_was_altered_is_an_error() {
        let cursor = Cursor::after("memory", KeyHash::from_bytes([0x5a; 32]));
        let error = cursor.key("sqlite").unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Unsupported);
        assert!(error.to_string().contains("`memory`"), "{error}");
        for altered in ["memory:5a", "memory:-1", "memory:zz"] {
            let error = altered.parse::<Cursor>().unwrap().key("memory").unwrap_err();
            assert_eq!(error.kind(), StoreErrorKind::Unsupported, "{altered}");
        }
    }
}
