//! Counting records, for operators: one `GROUP BY` for each stretch of the table.
//!
//! One statement for the whole table has no answer until it has seen all of it, and none at all if
//! the server stops it. A stretch of the table in the order of the keys is answered soon, and its
//! last key says how much of the table was seen. The server counts the rows, each as
//! [`row`](super::row) would read it and [`transition::read`](crate::store::transition::read) would
//! return it.

use std::time::Duration;

use sqlx::{ColumnIndex, Decode, Type};

use super::conditions::{FORGOTTEN, IN_PROGRESS};
use super::row::{AnswerRow, Columns, FORMAT, number, state_code, timestamp};
use super::store::Rows;
use super::stretch::unhex;
use crate::clock::{Clock as _, SystemClock, Timestamp};
use crate::store::census::percent_before;
use crate::store::codes::{self, POLICIES, REASONS, STATES, policy_code};
use crate::store::{
    Census, CensusBudget, CensusGroup, CrashPolicy, Operation, State, StoreError, StoreErrorKind,
    texts,
};

const OPERATION: Operation = Operation::Census;
/// The columns that decide what a row counts as.
const COLUMNS: &str = "key_hash, format, state, owner, operation, namespace, fingerprint, policy, \
    created_at, attempts, reason, after_expiry, lease_until, expires_at, schema_version, \
    checkpoints, taken_over";
/// The kind of a row that cannot be read.
const UNREADABLE: i64 = -1;
/// The kind of a row of which nothing is left.
const GONE: i64 = 0;

/// The number of rows of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stride {
    /// As many as those of a page. Read from a disk one by one, they take a part of the time that a
    /// request has.
    Short,
    /// Some thousands, where the server has shown that it is fast enough. With more, PostgreSQL would
    /// rather read and sort the whole table, in each step, also where that is a large one.
    Long,
}

impl Stride {
    pub(crate) const ALL: [Self; 2] = [Self::Short, Self::Long];

    pub(crate) const fn rows(self) -> u64 {
        match self {
            Self::Short => 1_000,
            Self::Long => 4_000,
        }
    }

    /// Returns the stride for the next step after one that took `took`, if a request may take
    /// `limit`. A long step takes a small part of that, unless the rest of the table is another
    /// matter than this one.
    fn after(self, took: Duration, limit: Duration) -> Self {
        let per_row = took / u32::try_from(self.rows()).unwrap_or(u32::MAX);
        let long = per_row * u32::try_from(Self::Long.rows()).unwrap_or(u32::MAX);
        if long <= limit / 8 { Self::Long } else { Self::Short }
    }
}

/// The parts of the statement that are not the same in every dialect.
pub(crate) struct Dialect<'a> {
    /// `SELECT`, with the bounds of the statement.
    pub(crate) select: &'a str,
    /// The server's time.
    pub(crate) now: &'a str,
    /// The tables before that of the rows, each with a comma or join after it.
    pub(crate) from: &'a str,
    /// The table, and how its rows are found in the order of their keys.
    pub(crate) table: &'a str,
    /// The place of the key after which the step begins.
    pub(crate) after: &'a str,
    /// The number of bytes of the body.
    pub(crate) size: &'a str,
    /// The type of a column that is read as a number of 64 bits.
    pub(crate) integer: &'a str,
    /// The last key of a group, in hexadecimal digits.
    pub(crate) last: &'a str,
    /// Further values to group by, where names that differ in spaces at the end are equal.
    pub(crate) names: &'a str,
}

/// Returns the statement that counts the rows of one step.
pub(crate) fn statement(dialect: &Dialect<'_>, stride: Stride) -> String {
    let Dialect { select, now, from, table, after, size, integer, last, names } = dialect;
    let tombstone = state_code(State::Tombstone);
    let (in_doubt, hold) = (state_code(State::InDoubt), policy_code(CrashPolicy::Hold));
    let most = stride.rows();
    let readable = readable();
    let number = |value: &str| format!("CAST({value} AS {integer})");
    let columns = [
        number("max(now_is)"),
        number("kind"),
        String::from("CASE WHEN kind > 0 THEN namespace ELSE '' END"),
        String::from("CASE WHEN kind > 0 THEN operation ELSE '' END"),
        number(&format!(
            "CASE WHEN kind = {in_doubt}
                 OR (kind = {IN_PROGRESS} AND lease_until <= now_is AND policy = {hold}) THEN 1 ELSE 0 END"
        )),
        number("count(*)"),
        number(&format!("sum(CASE WHEN kind IN ({GONE}, {tombstone}) THEN 0 ELSE size END)")),
        number("min(created_at)"),
        String::from(*last),
    ];
    format!(
        "{select} {} FROM (
             SELECT stretch.*, {now} AS now_is, CASE WHEN NOT ({readable}) THEN {UNREADABLE}
                 WHEN {FORGOTTEN} <= {now} THEN {GONE}
                 WHEN expires_at <= {now} THEN {tombstone}
                 ELSE state END AS kind
             FROM {from}(
                 SELECT {COLUMNS}, {size} AS size FROM {table}
                 WHERE key_hash > {after} ORDER BY key_hash LIMIT {most}
             ) AS stretch
         ) AS judged GROUP BY 2, 3, 4, 5{names}",
        columns.join(", ")
    )
}

/// Returns the condition that a row can be read, as [`found`](super::row::found) decides it.
fn readable() -> String {
    fn codes<T>(table: &[(T, u8)], others: &[u8]) -> String {
        let codes = table.iter().map(|(_, code)| code).chain(others);
        codes.map(u8::to_string).collect::<Vec<_>>().join(", ")
    }
    let count = |column| format!("{column} BETWEEN 0 AND {}", u32::MAX);
    [
        format!("format = {FORMAT}"),
        String::from("length(key_hash) = 32 AND length(owner) = 16"),
        String::from("(fingerprint IS NULL OR length(fingerprint) = 17)"),
        format!("state IN ({})", codes(&STATES, &[])),
        format!("policy IN ({})", codes(&POLICIES, &[])),
        format!("reason IN ({})", codes(&REASONS, &[0])),
        format!("taken_over IN ({})", codes(&STATES, &[0])),
        count("attempts"),
        count("schema_version"),
        count("checkpoints"),
    ]
    .join(" AND ")
}

/// The rows of one kind in a step.
pub(crate) struct Counted {
    now: Timestamp,
    group: Kind,
    /// The number of rows.
    rows: u64,
    /// The last key.
    last: Vec<u8>,
}

enum Kind {
    Records(CensusGroup),
    Unreadable,
    Gone,
}

/// Reads a row of the result of [`statement`].
pub(crate) fn counted<R>(row: &R) -> Result<Counted, StoreError>
where
    R: AnswerRow,
    usize: ColumnIndex<R>,
    for<'r> &'r str: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> i64: Decode<'r, R::Database> + Type<R::Database>,
{
    let mut columns = Columns::after(0, OPERATION, row);
    let now = timestamp(columns.value()?);
    let kind: i64 = columns.value()?;
    // SQLite keeps bytes that are not text as they are.
    let names = (columns.value().map(texts::shared), columns.value().map(texts::shared));
    let in_doubt = columns.value::<i64>()? != 0;
    let rows = number(columns.value()?);
    let (bytes, oldest) = (number(columns.value()?), timestamp(columns.value()?));
    let last = unhex(columns.value()?).ok_or_else(|| {
        StoreError::new(StoreErrorKind::Corrupt, OPERATION).with_detail("a key is not digits")
    })?;
    let state = u8::try_from(kind).ok().and_then(|code| codes::value(&STATES, code));
    let group = match (kind, state, names) {
        (GONE, _, _) => Kind::Gone,
        (_, Some(state), (Ok(namespace), Ok(operation))) => Kind::Records(CensusGroup {
            namespace,
            operation,
            state,
            in_doubt,
            count: rows,
            bytes,
            oldest,
        }),
        _ => Kind::Unreadable,
    };
    Ok(Counted { now, group, rows, last })
}

/// Counts the records of the table step by step.
pub(crate) async fn census(rows: &impl Rows, budget: CensusBudget) -> Result<Census, StoreError> {
    let count = |after: Vec<u8>, stride| async move { rows.count(&after, stride).await };
    in_steps(budget, rows.response_timeout(), count).await
}

/// Adds up the steps that `count` makes, each of which begins after a key and may take `limit`.
async fn in_steps<F>(
    budget: CensusBudget,
    limit: Duration,
    mut count: impl FnMut(Vec<u8>, Stride) -> F,
) -> Result<Census, StoreError>
where
    F: Future<Output = Result<Vec<Counted>, StoreError>>,
{
    // The patience of an operator is real time, whatever clock records have.
    let clock = SystemClock::new();
    let (mut census, mut stride, mut after) = (Census::new(), Stride::Short, Vec::new());
    loop {
        let begins = clock.monotonic();
        let percent = percent_before(&after);
        if begins >= budget.time {
            return Ok(census.stopped(Some(percent)));
        }
        let groups = match count(after.clone(), stride).await {
            Ok(groups) => groups,
            // After the first step there is something that an error would discard.
            Err(error) if error.is_transient() && !after.is_empty() => {
                tracing::debug!(percent, %error, "a census ends early");
                return Ok(census.stopped(Some(percent)));
            }
            Err(error) => return Err(error),
        };
        let mut seen = 0;
        for Counted { now, group, rows, last } in groups {
            census.at = census.at.max(now);
            match group {
                Kind::Records(group) => census.add_group(group),
                Kind::Unreadable => census.unreadable = census.unreadable.saturating_add(rows),
                Kind::Gone => {}
            }
            seen += rows;
            after = after.max(last);
        }
        if seen < stride.rows() {
            return Ok(census);
        }
        stride = stride.after(clock.monotonic().saturating_sub(begins), limit);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Counted, Kind, OPERATION, Stride, in_steps};
    use crate::clock::Timestamp;
    use crate::key::KeyHash;
    use crate::store::{
        Census, CensusBudget, CensusGroup, Record, State, StoreError, StoreErrorKind, Token,
    };

    #[test]
    fn a_step_is_long_where_the_server_is_fast() {
        let limit = Duration::from_secs(2);
        let after = |stride: Stride, millis| stride.after(Duration::from_millis(millis), limit);
        assert_eq!(after(Stride::Short, 2), Stride::Long);
        assert_eq!(after(Stride::Short, 100), Stride::Short);
        assert_eq!(after(Stride::Long, 200), Stride::Long);
        assert_eq!(after(Stride::Long, 300), Stride::Short);
    }

    /// A full step that ends at the middle of the keys.
    fn full(stride: Stride) -> Vec<Counted> {
        let last = KeyHash::from_bytes([0x80; 32]);
        let record = Record::new(last, Token::from_bits(1), "pay".into());
        let group = CensusGroup { count: stride.rows(), ..CensusGroup::of(&record) };
        let (now, last) = (Timestamp::from_millis(7), last.as_bytes().to_vec());
        vec![Counted { now, group: Kind::Records(group), rows: stride.rows(), last }]
    }

    /// A census whose step after `steps` full ones fails.
    async fn failing_after(steps: usize, kind: StoreErrorKind) -> Result<Census, StoreError> {
        let mut answers = (0..=steps).rev();
        in_steps(CensusBudget::of(Duration::MAX), Duration::from_secs(2), |_, stride| {
            let left = answers.next();
            async move {
                match left {
                    None | Some(0) => Err(StoreError::new(kind, OPERATION)),
                    Some(_) => Ok(full(stride)),
                }
            }
        })
        .await
    }

    #[tokio::test]
    async fn a_step_that_fails_leaves_what_was_counted_before_it() {
        for kind in [StoreErrorKind::Unavailable, StoreErrorKind::Refused] {
            let census = failing_after(1, kind).await.unwrap();
            assert_eq!((census.complete, census.percent, census.count()), (false, Some(50), 1_000));
            assert_eq!(census.groups().next().unwrap().state, State::InProgress);
            let error = failing_after(0, kind).await.unwrap_err();
            assert_eq!(error.kind(), kind, "nothing was counted");
        }
        // Not an answer that another try would get.
        let error = failing_after(2, StoreErrorKind::Corrupt).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Corrupt);
    }
}
