//! The part of the table that one page of a list examines: a bounded number of rows in the order of
//! the keys, whatever the filter lets through.
//!
//! A statement with a filter and a limit walks the whole table where little matches: it takes too
//! long, and the next try begins where this one did. So the rows are limited before the filter, and
//! the last row of the stretch is returned whether or not it matches: it is the place that was
//! reached.
//!
//! Only the beginning of a stretch is a condition on its rows, and the last key belongs to the
//! filter. PostgreSQL takes a range between two values that it does not know for a small part of the
//! table, collects all of it, and sorts it.

use super::row::Listed;
use crate::key::{KeyHash, hex};
use crate::store::{Cursor, Scan, StoreError};

/// The number of rows of a stretch. Read from a disk one by one, as rows in the order of their
/// hashes are, they take a part of the time that a request has.
pub(crate) const ROWS: usize = 1_000;
/// The number of records of a page if the caller leaves it to the store.
const DEFAULT_PAGE: usize = 500;
/// Above every key.
const END: [u8; 33] = [0xff; 33];

/// The rows after one key, of which those up to another one are listed. They need not be keys that this release writes: a
/// row of other software must not stop a list.
pub(crate) struct Stretch {
    after: Vec<u8>,
    last: Vec<u8>,
    limit: usize,
}

impl Stretch {
    /// The stretch that a page of `scan` examines in the store named `store`.
    pub(super) fn of(store: &str, scan: &Scan) -> Result<Self, StoreError> {
        let limit = if scan.limit == 0 { DEFAULT_PAGE } else { scan.limit.min(ROWS) };
        let mut after = match &scan.after {
            Some(cursor) => unhex(cursor.place(store)?).ok_or_else(Cursor::altered)?,
            None => Vec::new(),
        };
        let mut last = END.to_vec();
        if let Some(prefix) = &scan.begins_with {
            last = prefix.last().as_bytes().to_vec();
            after = after.max(before(prefix.first()));
        }
        Ok(Self { after, last, limit })
    }

    /// The key after which the stretch begins.
    pub(crate) fn after(&self) -> &[u8] {
        &self.after
    }

    /// The last key that is listed.
    pub(crate) fn last(&self) -> &[u8] {
        &self.last
    }

    /// The largest number of rows that are returned.
    pub(crate) fn limit(&self) -> i64 {
        i64::try_from(self.limit).unwrap_or(i64::MAX)
    }

    /// Returns the place at which the list goes on after the rows that were returned, or `None` if
    /// they are the last ones.
    pub(super) fn next(&self, store: &str, listed: &[Listed]) -> Option<Cursor> {
        let reached = listed.last()?;
        let goes_on = listed.len() >= self.limit || reached.ends_stretch;
        (goes_on && reached.key < self.last).then(|| Cursor::new(store, hex(&reached.key)))
    }
}

/// Returns the rows of a stretch as a table with their numbers, `nth`. `rows` selects them in the
/// order of their keys.
pub(crate) fn numbered(rows: &str) -> String {
    format!(
        "(SELECT stretch.*, row_number() OVER (ORDER BY key_hash) AS nth
          FROM ({rows} LIMIT {ROWS}) AS stretch) AS numbered"
    )
}

/// Returns the largest key below `key`, or the place before all keys.
fn before(key: KeyHash) -> Vec<u8> {
    let mut bytes = *key.as_bytes();
    for byte in bytes.iter_mut().rev() {
        let (less, borrows) = byte.overflowing_sub(1);
        *byte = less;
        if !borrows {
            return bytes.to_vec();
        }
    }
    Vec::new()
}

pub(super) fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::{Stretch, before, unhex};
    use crate::key::KeyHash;
    use crate::store::{Cursor, Scan, StoreErrorKind};

    #[test]
    fn a_stretch_begins_before_the_first_key_with_the_digits() {
        let key = |text: &str| format!("{text:0<64}").parse::<KeyHash>().unwrap();
        assert_eq!(before(key("ab01")), unhex(&format!("{:f<64}", "ab00")).unwrap());
        assert!(before(key("0")).is_empty());
        let scan = |after: &str| {
            let after = Some(Cursor::new("sqlite", after));
            let begins_with = Some("ab010000".parse().unwrap());
            Scan { after, begins_with, ..Scan::default() }
        };
        let stretch = Stretch::of("sqlite", &scan("aa")).unwrap();
        assert_eq!(stretch.after(), before(key("ab01")));
        assert_eq!(Stretch::of("sqlite", &scan("ab0100001234")).unwrap().after().len(), 6);
    }

    #[test]
    fn a_cursor_that_is_no_key_is_refused() {
        for altered in ["a", "zz", "a€a", "-1", "+1"] {
            let scan = Scan { after: Some(Cursor::new("sqlite", altered)), ..Scan::default() };
            let refused = Stretch::of("sqlite", &scan).err().map(|error| error.kind());
            assert_eq!(refused, Some(StoreErrorKind::Unsupported), "{altered}");
        }
    }
}
