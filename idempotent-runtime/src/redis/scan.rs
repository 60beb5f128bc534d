//! Listing records, for operators: every page walks the whole key space of the database.

use std::collections::BTreeSet;

use redis::Value;

use super::{RedisStore, as_of};
use crate::clock::Timestamp;
use crate::key::KeyHash;
use crate::store::envelope::{self, EnvelopeError};
use crate::store::{Operation, Page, Record, Scan, StoreError, StoreErrorKind};

const OPERATION: Operation = Operation::Scan;
/// The number of keys that one `SCAN` step visits.
const STEP: usize = 1000;
/// The number of records that are read in one round trip.
const BATCH: usize = 100;
/// The page size if the caller does not set one.
const PAGE: usize = 100;

impl RedisStore {
    pub(super) async fn scan_records(&self, scan: &Scan) -> Result<Page, StoreError> {
        let limit = if scan.limit == 0 { PAGE } else { scan.limit };
        let keys: Vec<KeyHash> = self.keys_after(scan.after).await?.into_iter().collect();
        let (mut records, mut unreadable): (Vec<Record>, _) = (Vec::new(), Vec::new());
        for batch in keys.chunks(BATCH) {
            for (key, head) in self.heads(batch).await? {
                if head.as_ref().is_ok_and(|record| !scan.includes(record)) {
                    continue;
                }
                if records.len() + unreadable.len() == limit {
                    let next =
                        records.last().map(|record| record.key).max(unreadable.last().copied());
                    return Ok(Page::new(records, next).with_unreadable(unreadable));
                }
                match head {
                    Ok(record) => records.push(record),
                    Err(error) => {
                        tracing::warn!(%key, %error, "a record cannot be read, and is not listed");
                        unreadable.push(key);
                    }
                }
            }
        }
        Ok(Page::new(records, None).with_unreadable(unreadable))
    }

    /// Returns the keys of all records after `after`, in order.
    async fn keys_after(&self, after: Option<KeyHash>) -> Result<BTreeSet<KeyHash>, StoreError> {
        let link = &self.0.commands;
        let (mut keys, mut cursor) = (BTreeSet::new(), 0_u64);
        loop {
            let mut connected = link.connected(OPERATION).await?;
            let answer = redis::cmd("SCAN")
                .arg(cursor)
                .arg("MATCH")
                .arg(format!("{}{{*}}", glob_escaped(&self.0.prefix)))
                .arg("COUNT")
                .arg(STEP)
                .query_async::<(u64, Vec<String>)>(&mut connected.connection)
                .await;
            let (next, names) = link.answer(OPERATION, &connected, answer)?;
            let hashes = names.iter().filter_map(|name| {
                name.strip_prefix(&self.0.prefix)?
                    .strip_prefix('{')?
                    .strip_suffix('}')?
                    .parse::<KeyHash>()
                    .ok()
            });
            keys.extend(hashes.filter(|hash| after.is_none_or(|after| *hash > after)));
            if next == 0 {
                return Ok(keys);
            }
            cursor = next;
        }
    }

    /// Reads the records without their bodies, in the order of `keys`, each as far as it can be
    /// read.
    async fn heads(&self, keys: &[KeyHash]) -> Result<Vec<(KeyHash, Head)>, StoreError> {
        let mut heads = self.read_heads(keys, envelope::LONGEST_WORDS).await?;
        let is_cut = |(_, head): &(KeyHash, Head)| head.as_ref().is_err_and(is_cut_off);
        let cut: Vec<_> = heads.iter().filter(|head| is_cut(head)).map(|(key, _)| *key).collect();
        if !cut.is_empty() {
            // Their names are longer than any reasonable one: these records are read completely.
            heads.retain(|head| !is_cut(head));
            heads.extend(self.read_heads(&cut, usize::MAX).await?);
            heads.sort_unstable_by_key(|(key, _)| *key);
        }
        Ok(heads)
    }

    /// Reads the fields of records and the last `length` bytes of each.
    async fn read_heads(
        &self,
        keys: &[KeyHash],
        length: usize,
    ) -> Result<Vec<(KeyHash, Head)>, StoreError> {
        let link = &self.0.commands;
        let mut connected = link.connected(OPERATION).await?;
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
        let values = link.answer(OPERATION, &connected, answer)?;
        let now = link.now(&connected);
        let heads =
            keys.iter().zip(values.chunks(3)).map(|(key, values)| (*key, head(*key, values, now)));
        Ok(heads.filter_map(|(key, head)| Some((key, head.transpose()?))).collect())
    }
}

/// A record without its body, or the reason why it cannot be read.
type Head = Result<Record, StoreError>;

/// Reads the three answers for one record. Returns `None` if there is no record, or nothing is left
/// of it.
fn head(key: KeyHash, values: &[Value], now: Timestamp) -> Result<Option<Record>, StoreError> {
    let [Value::BulkString(fields), Value::BulkString(end), Value::Int(remaining)] = values else {
        return Err(StoreError::new(StoreErrorKind::Corrupt, OPERATION)
            .with_detail("the value is not a record"));
    };
    if fields.is_empty() {
        return Ok(None);
    }
    let (bytes, _) =
        envelope::without_body(fields, end).map_err(|error| error.during(OPERATION))?;
    let record =
        envelope::decode(key, bytes.into(), now).map_err(|error| error.during(OPERATION))?;
    Ok(as_of(record, *remaining, now))
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
