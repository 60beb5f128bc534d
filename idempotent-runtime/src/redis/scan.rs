//! Listing records, for operators: every page walks the whole key space of the database.

use std::collections::BTreeSet;

use super::{RedisStore, placed};
use crate::key::KeyHash;
use crate::store::{Page, Record, Scan, StoreError, envelope};

/// How many keys one `SCAN` step looks at.
const STEP: usize = 1000;
/// How many records are read in one round trip.
const BATCH: usize = 100;
/// The page size where none is asked for.
const PAGE: usize = 100;

impl RedisStore {
    pub(super) async fn scan_records(&self, scan: &Scan) -> Result<Page, StoreError> {
        let limit = if scan.limit == 0 { PAGE } else { scan.limit };
        let keys: Vec<KeyHash> = self.keys_after(scan.after).await?.into_iter().collect();
        let mut records = Vec::new();
        for batch in keys.chunks(BATCH) {
            for record in self.heads(batch).await? {
                let wanted = scan.state.is_none_or(|state| record.state == state)
                    && scan.operation.as_ref().is_none_or(|operation| record.operation == *operation);
                if !wanted {
                    continue;
                }
                if records.len() == limit {
                    let next = records.last().map(|record: &Record| record.key);
                    return Ok(Page::new(records, next));
                }
                records.push(record);
            }
        }
        Ok(Page::new(records, None))
    }

    /// The names of all records after `after`, in order.
    async fn keys_after(&self, after: Option<KeyHash>) -> Result<BTreeSet<KeyHash>, StoreError> {
        const OPERATION: &str = "scan";
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
                name.strip_prefix(&self.0.prefix)?.strip_prefix('{')?.strip_suffix('}')?.parse::<KeyHash>().ok()
            });
            keys.extend(hashes.filter(|hash| after.is_none_or(|after| *hash > after)));
            if next == 0 {
                return Ok(keys);
            }
            cursor = next;
        }
    }

    /// The records without their bodies.
    async fn heads(&self, keys: &[KeyHash]) -> Result<Vec<Record>, StoreError> {
        let mut records = Vec::new();
        // What is left are records with names that are longer than any reasonable one: they are read as a whole.
        let left = self.add_heads(keys, envelope::LONGEST_HEAD, &mut records).await?;
        if !left.is_empty() {
            self.add_heads(&left, usize::MAX, &mut records).await?;
            records.sort_unstable_by_key(|record| record.key);
        }
        Ok(records)
    }

    /// Adds the records of which everything but the body is in their first `length` bytes, and gives the keys of the others.
    async fn add_heads(
        &self,
        keys: &[KeyHash],
        length: usize,
        records: &mut Vec<Record>,
    ) -> Result<Vec<KeyHash>, StoreError> {
        const OPERATION: &str = "scan";
        let link = &self.0.commands;
        let mut connected = link.connected(OPERATION).await?;
        let mut pipeline = redis::pipe();
        // Counted from the end of the value, the last one is -1.
        let last = i64::try_from(length).map_or(-1, |length| length - 1);
        for key in keys {
            let name = self.key(key);
            pipeline.cmd("GETRANGE").arg(&name).arg(0).arg(last);
            pipeline.pttl(&name);
        }
        let answer = pipeline.query_async::<Vec<redis::Value>>(&mut connected.connection).await;
        let values = link.answer(OPERATION, &connected, answer)?;
        let now = link.now(&connected);
        let mut left = Vec::new();
        for (key, pair) in keys.iter().zip(values.chunks(2)) {
            let [redis::Value::BulkString(bytes), redis::Value::Int(remaining)] = pair else { continue };
            if bytes.is_empty() {
                continue;
            }
            let mut bytes = bytes.clone();
            match envelope::cut_body(&mut bytes) {
                Err(_) if bytes.len() == length => {
                    left.push(*key);
                    continue;
                }
                cut => cut.map_err(|error| error.during(OPERATION))?,
            };
            let record = envelope::decode(*key, bytes.into(), now).map_err(|error| error.during(OPERATION))?;
            let record = placed(record, *remaining, now);
            if record.expires > now {
                records.push(record);
            }
        }
        Ok(left)
    }
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
