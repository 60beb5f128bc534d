//! Listing records, for operators: one walk of the database's keys over all pages of a list.

use std::fmt;
use std::time::Duration;

use redis::Value;

use super::{RedisStore, as_of};
use crate::clock::{Clock as _, Timestamp};
use crate::key::KeyHash;
use crate::store::envelope::{self, EnvelopeError};
use crate::store::{
    Cursor, Operation, Page, Record, Scan, State, Store as _, StoreError, StoreErrorKind,
};

const OPERATION: Operation = Operation::Scan;
/// The largest number of keys that one `SCAN` step visits.
pub(super) const STEP: usize = 1_000;
/// The number of records that are read in one round trip.
pub(super) const BATCH: usize = 250;
/// The page size if the caller does not set one.
const PAGE: usize = 100;
/// The time after which a page takes no further step, a part of the time that a request has.
const ENOUGH: Duration = Duration::from_millis(200);

/// A place in the walk of the keys.
struct Walk {
    /// The server's cursor; `None` after its last step.
    step: Option<u64>,
    /// The records of the last step that were too many for the page.
    left: Vec<KeyHash>,
}

impl Walk {
    /// Returns the place of `cursor`.
    fn at(cursor: &Cursor, store: &str) -> Result<Self, StoreError> {
        let mut parts = cursor.place(store)?.split('.');
        let step = match parts.next() {
            Some("end") => None,
            Some(number) => Some(number.parse().map_err(|_| Cursor::altered())?),
            None => return Err(Cursor::altered()),
        };
        let left: Result<_, _> = parts.map(str::parse).collect();
        Ok(Self { step, left: left.map_err(|_| Cursor::altered())? })
    }

    fn is_over(&self) -> bool {
        self.step.is_none() && self.left.is_empty()
    }

    /// Removes at most `most` records that the last step has left, and returns them.
    fn take_left(&mut self, most: usize) -> Vec<KeyHash> {
        self.left.drain(..self.left.len().min(most)).collect()
    }
}

impl fmt::Display for Walk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.step {
            Some(step) => write!(f, "{step}")?,
            None => f.write_str("end")?,
        }
        self.left.iter().try_for_each(|key| write!(f, ".{}", key.to_hex()))
    }
}

impl RedisStore {
    pub(super) async fn scan_records(&self, scan: &Scan) -> Result<Page, StoreError> {
        let limit = if scan.limit == 0 { PAGE } else { scan.limit };
        let mut walk = match &scan.after {
            Some(cursor) => Walk::at(cursor, self.name())?,
            None => Walk { step: Some(0), left: Vec::new() },
        };
        let (mut records, mut unreadable) = (Vec::new(), Vec::new());
        let began = self.0.clock.monotonic();
        let mut density = None;
        while !walk.is_over() {
            let missing = limit - records.len() - unreadable.len();
            let count = match density {
                Some((count, matches)) => next_count(count, matches, missing),
                // Few keys have the digits that are searched for.
                None if scan.begins_with.is_some() => STEP,
                None => missing.min(STEP),
            };
            let left = walk.take_left(missing);
            let found = if left.is_empty() {
                let found = self.step(scan, &mut walk, count).await?;
                density = Some((count, found.len()));
                found
            } else {
                self.listed(scan, &left).await?
            };
            for (key, head) in found {
                if records.len() + unreadable.len() == limit {
                    walk.left.push(key);
                    continue;
                }
                match head {
                    Ok(head) => records.push(head.record),
                    Err(error) => {
                        tracing::warn!(%key, %error, "a record cannot be read, and is not listed");
                        unreadable.push(key);
                    }
                }
            }
            let is_full = records.len() + unreadable.len() == limit;
            if is_full || self.0.clock.monotonic().saturating_sub(began) >= ENOUGH {
                break;
            }
        }
        let next = (!walk.is_over()).then(|| Cursor::new(self.name(), &walk));
        Ok(Page::new(records, next).with_unreadable(unreadable))
    }

    /// Takes a step of about `count` keys. Returns the records that `scan` lists, and those that
    /// cannot be read.
    async fn step(
        &self,
        scan: &Scan,
        walk: &mut Walk,
        count: usize,
    ) -> Result<Vec<(KeyHash, Head)>, StoreError> {
        let Some(step) = walk.step else { return Ok(Vec::new()) };
        let digits = scan.begins_with.map_or(String::new(), |prefix| prefix.to_string());
        let (next, keys) = self.keys(OPERATION, &digits, step, count).await?;
        walk.step = (next != 0).then_some(next);
        self.listed(scan, &keys).await
    }

    /// Returns the records of `keys` that `scan` lists, and those that cannot be read.
    async fn listed(
        &self,
        scan: &Scan,
        keys: &[KeyHash],
    ) -> Result<Vec<(KeyHash, Head)>, StoreError> {
        let is_listed =
            |head: &Head| head.as_ref().map_or(true, |head| scan.includes(&head.record));
        let mut found = Vec::new();
        for batch in keys.chunks(BATCH) {
            let heads = self.heads(OPERATION, batch).await?.into_iter();
            found.extend(heads.filter(|(_, head)| is_listed(head)));
        }
        Ok(found)
    }

    /// Returns the records among about `count` keys from `step` on whose names begin with `digits`,
    /// each once, and the next step.
    pub(super) async fn keys(
        &self,
        operation: Operation,
        digits: &str,
        step: u64,
        count: usize,
    ) -> Result<(u64, Vec<KeyHash>), StoreError> {
        let link = &self.0.commands;
        let mut connected = link.connected(operation).await?;
        let answer = redis::cmd("SCAN")
            .arg(step)
            .arg("MATCH")
            .arg(format!("{}{{{digits}*}}", glob_escaped(&self.0.prefix)))
            .arg("COUNT")
            .arg(count)
            .query_async(&mut connected.connection)
            .await;
        // A name need not be text: other software may share the database.
        let (next, names): (u64, Vec<Vec<u8>>) = link.answer(operation, &connected, answer)?;
        let mut keys: Vec<_> = names.iter().filter_map(|name| self.key_in(name)).collect();
        // A step may name a key twice.
        keys.sort_unstable();
        keys.dedup();
        Ok((next, keys))
    }

    /// Returns the key of the record that has this name, if it is the name of a record.
    fn key_in(&self, name: &[u8]) -> Option<KeyHash> {
        let digits = name.strip_prefix(self.0.prefix.as_bytes())?;
        let digits = digits.strip_prefix(b"{")?.strip_suffix(b"}")?;
        let key: KeyHash = std::str::from_utf8(digits).ok()?.parse().ok()?;
        // Digits in upper case are another name.
        (self.key(&key).as_bytes() == name).then_some(key)
    }

    /// Reads the records without their bodies, in the order of `keys`, each as far as it can be
    /// read.
    pub(super) async fn heads(
        &self,
        operation: Operation,
        keys: &[KeyHash],
    ) -> Result<Vec<(KeyHash, Head)>, StoreError> {
        let mut heads = self.read_heads(operation, keys, envelope::LONGEST_WORDS).await?;
        let is_cut = |(_, head): &(KeyHash, Head)| head.as_ref().is_err_and(is_cut_off);
        let cut: Vec<_> = heads.iter().filter(|head| is_cut(head)).map(|(key, _)| *key).collect();
        if !cut.is_empty() {
            // Their names are longer than any reasonable one: these records are read completely.
            heads.retain(|head| !is_cut(head));
            heads.extend(self.read_heads(operation, &cut, usize::MAX).await?);
            heads.sort_unstable_by_key(|(key, _)| *key);
        }
        Ok(heads)
    }

    /// Reads the fields of records and the last `length` bytes of each.
    async fn read_heads(
        &self,
        operation: Operation,
        keys: &[KeyHash],
        length: usize,
    ) -> Result<Vec<(KeyHash, Head)>, StoreError> {
        let link = &self.0.commands;
        let mut connected = link.connected(operation).await?;
        let mut pipeline = redis::pipe();
        // Both ends of a record are read at one moment, and a value that is not a record does not
        // cost the others theirs.
        pipeline.atomic().ignore_errors();
        let start = i64::try_from(length).map_or(0, |length| -length);
        for key in keys {
            let name = self.key(key);
            pipeline.cmd("GETRANGE").arg(&name).arg(0).arg(envelope::FIELDS - 1);
            pipeline.cmd("GETRANGE").arg(&name).arg(start).arg(-1);
            pipeline.pttl(&name);
        }
        let answer = pipeline.query_async::<Vec<Value>>(&mut connected.connection).await;
        let values = link.answer(operation, &connected, answer)?;
        let now = link.now(&connected);
        let heads = keys
            .iter()
            .zip(values.chunks(3))
            .map(|(key, values)| (*key, head(operation, *key, values, now)));
        Ok(heads.filter_map(|(key, head)| Some((key, head.transpose()?))).collect())
    }
}

/// A record without its body, or the reason why it cannot be read.
pub(super) type Head = Result<WithoutBody, StoreError>;

/// A record without its body.
pub(super) struct WithoutBody {
    pub(super) record: Record,
    /// The length of the body.
    pub(super) length: u64,
}

/// Reads the three answers for one record. Returns `None` if there is no record, or nothing is left
/// of it.
fn head(
    operation: Operation,
    key: KeyHash,
    values: &[Value],
    now: Timestamp,
) -> Result<Option<WithoutBody>, StoreError> {
    let [Value::BulkString(fields), Value::BulkString(end), Value::Int(remaining)] = values else {
        return Err(StoreError::new(StoreErrorKind::Corrupt, operation)
            .with_detail("the value is not a record"));
    };
    if fields.is_empty() {
        return Ok(None);
    }
    let (bytes, length) =
        envelope::without_body(fields, end).map_err(|error| error.during(operation))?;
    let record =
        envelope::decode(key, bytes.into(), now).map_err(|error| error.during(operation))?;
    Ok(as_of(record, *remaining, now).map(|record| {
        let has_body = record.state != State::Tombstone;
        WithoutBody { record, length: if has_body { length } else { 0 } }
    }))
}

/// Returns true if the part that was read from the end of a record does not contain all of its
/// texts.
fn is_cut_off(error: &StoreError) -> bool {
    let source =
        std::error::Error::source(error).and_then(|source| source.downcast_ref::<EnvelopeError>());
    source == Some(&EnvelopeError::Truncated("operation"))
}

fn glob_escaped(prefix: &str) -> String {
    prefix.chars().fold(String::new(), |mut escaped, letter| {
        if "*?[]\\".contains(letter) {
            escaped.push('\\');
        }
        escaped.push(letter);
        escaped
    })
}

/// Returns the number of keys that will probably fill the page with the records that are `missing`,
/// and not many more: `matches` of `count` were listed.
fn next_count(count: usize, matches: usize, missing: usize) -> usize {
    let count = match matches {
        0 => count.saturating_mul(8),
        matches => missing.saturating_mul(count).div_ceil(matches),
    };
    count.clamp(1, STEP)
}

#[cfg(test)]
mod tests {
    use super::{STEP, Walk, next_count};
    use crate::key::KeyHash;
    use crate::store::{Cursor, StoreErrorKind};

    #[test]
    fn a_walk_goes_on_where_its_cursor_says() {
        let keys = [[1; 32], [2; 32]].map(KeyHash::from_bytes);
        for (step, left) in [(Some(17), &keys[..]), (Some(u64::MAX), &[]), (None, &keys[1..])] {
            let cursor = Cursor::new("redis", Walk { step, left: left.to_vec() });
            let cursor: Cursor = cursor.to_string().parse().unwrap();
            let walk = Walk::at(&cursor, "redis").unwrap();
            assert_eq!((walk.step, &walk.left[..]), (step, left));
        }
        for altered in ["", "x", "-1", "17.", "17.ab", "18446744073709551616"] {
            let refused = Walk::at(&Cursor::new("redis", altered), "redis").err();
            let refused = refused.map(|error| error.kind());
            assert_eq!(refused, Some(StoreErrorKind::Unsupported), "{altered}");
        }
    }

    #[test]
    fn a_step_is_as_long_as_the_page_needs() {
        assert_eq!(next_count(100, 50, 50), 100);
        assert_eq!(next_count(100, 90, 10), 12);
        assert_eq!(next_count(20, 0, 20), 160);
        assert_eq!(next_count(STEP, 0, 20), STEP);
        assert_eq!(next_count(usize::MAX, 1, usize::MAX), STEP);
    }
}
