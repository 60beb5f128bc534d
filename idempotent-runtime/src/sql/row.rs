//! A record as a row: one column per field, numbers, bytes and text only, the same in every
//! dialect.
//!
//! Times are milliseconds since 1970 on the store's clock, durations are milliseconds; codes are
//! those of [`envelope`](crate::store::envelope), whose version is also the row's format.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sqlx::{ColumnIndex, Decode, Type};

use super::change::{Found, Stored};
use super::stretch;
use crate::clock::{Timestamp, millis};
use crate::fingerprint::Fingerprint;
use crate::key::KeyHash;
use crate::store::codes::{self, POLICIES, REASONS, STATES};
use crate::store::envelope::{self, EnvelopeError};
use crate::store::{Operation, Reason, Record, State, StoreError, StoreErrorKind, Token, texts};

/// The columns, in the order in which [`Row::values`] lists and [`found`] reads them.
pub(crate) const COLUMNS: [&str; 24] = [
    "key_hash",
    "format",
    "state",
    "owner",
    "fence",
    "revision",
    "operation",
    "namespace",
    "holder",
    "fingerprint",
    "policy",
    "created_at",
    "attempts",
    "reason",
    "linger",
    "after_expiry",
    "lease_until",
    "expires_at",
    "purge_at",
    "schema_version",
    "checkpoints",
    "taken_over",
    "trace",
    "body",
];

/// The version of the row's format that this release writes, and the only one that it reads.
pub(crate) const FORMAT: i16 = envelope::VERSION as i16;

/// The largest time or duration in a row, so that the sum of several still fits 64 bits. Nothing
/// will be kept until the year 36 million.
const LATEST: i64 = 1 << 60;

/// A record in the form in which it is written.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    key: [u8; 32],
    state: i16,
    owner: [u8; 16],
    fence: i64,
    revision: i64,
    operation: Arc<str>,
    namespace: Arc<str>,
    holder: Arc<str>,
    fingerprint: Option<[u8; 17]>,
    policy: i16,
    created_at: i64,
    attempts: i64,
    reason: i16,
    linger: i64,
    after_expiry: i64,
    lease_until: i64,
    expires_at: i64,
    purge_at: i64,
    schema_version: i64,
    checkpoints: i64,
    taken_over: i16,
    trace: Option<Arc<str>>,
    body: Bytes,
}

impl Row {
    /// Converts `record` to its row. `purge_at` is the time at which a purge would have checked it
    /// so far; `answer_ends` is the time until which its result would be kept if it arrived now, if
    /// a claim provided that.
    pub(crate) fn new(
        record: &Record,
        revision: i64,
        purge_at: Option<i64>,
        answer_ends: Option<Timestamp>,
    ) -> Self {
        Self {
            key: *record.key.as_bytes(),
            state: state_code(record.state),
            owner: record.owner.bits().to_be_bytes(),
            fence: integer(record.fence),
            revision,
            operation: record.operation.clone(),
            namespace: record.namespace.clone(),
            holder: record.holder.clone(),
            fingerprint: record.fingerprint.map(fingerprint_bytes),
            policy: codes::code(&POLICIES, record.policy).into(),
            created_at: integer(record.created.as_millis()),
            attempts: record.attempts.into(),
            reason: reason_code(record.reason),
            linger: integer(millis(record.linger)),
            after_expiry: integer(millis(record.after_expiry)),
            lease_until: integer(record.lease_until.as_millis()),
            expires_at: integer(record.expires.as_millis()),
            purge_at: next_purge(record, purge_at, answer_ends),
            schema_version: record.schema.into(),
            checkpoints: record.checkpoints.into(),
            taken_over: record.taken_over.map_or(0, state_code),
            trace: record.trace.clone(),
            body: record.body.clone(),
        }
    }

    /// Returns all columns in their order.
    pub(crate) fn values(&self) -> [Value<'_>; COLUMNS.len()] {
        [
            Value::Bytes(Some(&self.key)),
            Value::Small(FORMAT),
            Value::Small(self.state),
            Value::Bytes(Some(&self.owner)),
            Value::Integer(self.fence),
            Value::Integer(self.revision),
            Value::Text(Some(&self.operation)),
            Value::Text(Some(&self.namespace)),
            Value::Text(Some(&self.holder)),
            Value::Bytes(self.fingerprint.as_ref().map(|bytes| &bytes[..])),
            Value::Small(self.policy),
            Value::Integer(self.created_at),
            Value::Integer(self.attempts),
            Value::Small(self.reason),
            Value::Integer(self.linger),
            Value::Integer(self.after_expiry),
            Value::Integer(self.lease_until),
            Value::Integer(self.expires_at),
            Value::Integer(self.purge_at),
            Value::Integer(self.schema_version),
            Value::Integer(self.checkpoints),
            Value::Small(self.taken_over),
            Value::Text(self.trace.as_deref()),
            Value::Bytes(Some(&self.body)),
        ]
    }
}

/// Returns the time at which a purge checks a row: never later than the record may be forgotten.
/// The value is in an index, and changing it is what makes an update expensive, so it is chosen at
/// the claim such that the commit need not change it. An early check does no harm: the purge puts
/// the row off.
fn next_purge(record: &Record, purge_at: Option<i64>, answer_ends: Option<Timestamp>) -> i64 {
    let forgotten = forgotten_at(record);
    if record.state != State::InProgress {
        return forgotten;
    }
    let planned =
        answer_ends.map(|ends| integer((ends + record.after_expiry).as_millis())).or(purge_at);
    planned.map_or(forgotten, |purge_at| purge_at.min(forgotten))
}

/// Returns the time at which nothing is left of the record, not even a tombstone.
fn forgotten_at(record: &Record) -> i64 {
    let after = match record.state {
        State::Released | State::Tombstone => Duration::ZERO,
        _ => record.after_expiry,
    };
    integer((record.expires + after).as_millis())
}

/// The value of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    Small(i16),
    Integer(i64),
    Bytes(Option<&'a [u8]>),
    Text(Option<&'a str>),
}

#[cfg(any(feature = "mysql", feature = "sqlite"))]
type Bound<'q, DB> = sqlx::query::Query<'q, DB, <DB as sqlx::Database>::Arguments>;

/// Binds all columns in their order.
#[cfg(any(feature = "mysql", feature = "sqlite"))]
pub(crate) fn bind<'q, DB>(query: Bound<'q, DB>, row: &Row) -> Bound<'q, DB>
where
    DB: sqlx::Database,
    for<'t> Option<&'t [u8]>: sqlx::Encode<'t, DB> + Type<DB>,
    for<'t> Option<&'t str>: sqlx::Encode<'t, DB> + Type<DB>,
    for<'t> i16: sqlx::Encode<'t, DB> + Type<DB>,
    for<'t> i64: sqlx::Encode<'t, DB> + Type<DB>,
{
    bind_values(query.bind(Some(&row.key[..])), row)
}

/// Binds all columns but the key, in their order.
#[cfg(any(feature = "mysql", feature = "sqlite"))]
pub(crate) fn bind_values<'q, DB>(query: Bound<'q, DB>, row: &Row) -> Bound<'q, DB>
where
    DB: sqlx::Database,
    for<'t> Option<&'t [u8]>: sqlx::Encode<'t, DB> + Type<DB>,
    for<'t> Option<&'t str>: sqlx::Encode<'t, DB> + Type<DB>,
    for<'t> i16: sqlx::Encode<'t, DB> + Type<DB>,
    for<'t> i64: sqlx::Encode<'t, DB> + Type<DB>,
{
    bind_all(query, row.values().into_iter().skip(1))
}

/// Binds `values` in their order.
#[cfg(any(feature = "mysql", feature = "sqlite"))]
pub(crate) fn bind_all<'q, 'v, DB>(
    query: Bound<'q, DB>,
    values: impl IntoIterator<Item = Value<'v>>,
) -> Bound<'q, DB>
where
    DB: sqlx::Database,
    for<'t> Option<&'t [u8]>: sqlx::Encode<'t, DB> + Type<DB>,
    for<'t> Option<&'t str>: sqlx::Encode<'t, DB> + Type<DB>,
    for<'t> i16: sqlx::Encode<'t, DB> + Type<DB>,
    for<'t> i64: sqlx::Encode<'t, DB> + Type<DB>,
{
    values.into_iter().fold(query, |query, value| match value {
        Value::Small(value) => query.bind(value),
        Value::Integer(value) => query.bind(value),
        Value::Bytes(value) => query.bind(value),
        Value::Text(value) => query.bind(value),
    })
}

/// A row of an answer to a store's statement.
pub(crate) trait AnswerRow: sqlx::Row {
    /// The number of columns before the values.
    const BEFORE: usize = 0;
}

/// One row of a list.
pub(crate) struct Listed {
    /// The row's place in the order of the keys, which need not be the key of a record.
    pub(crate) key: Vec<u8>,
    pub(crate) found: Result<Found, StoreError>,
    /// True if this is the last row of a [stretch](super::stretch) that is not the last one.
    pub(crate) ends_stretch: bool,
}

/// Reads like [`found`], from a row of a list. The row's number in its stretch follows the columns.
/// An error concerns the whole list: the table is not as this release creates it.
pub(crate) fn listed<R>(operation: Operation, row: &R) -> Result<Listed, StoreError>
where
    R: AnswerRow,
    usize: ColumnIndex<R>,
    for<'r> Vec<u8>: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> &'r str: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> i16: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> i64: Decode<'r, R::Database> + Type<R::Database>,
{
    let key = Columns::after(1, operation, row).value()?;
    let number: i64 = Columns::after(1 + COLUMNS.len(), operation, row).value()?;
    let ends_stretch = usize::try_from(number).is_ok_and(|number| number >= stretch::ROWS);
    Ok(Listed { key, found: found(operation, row), ends_stretch })
}

/// Reads a row of a result that consists of the store's time and all columns, which are empty if
/// there is no record.
pub(crate) fn found<R>(operation: Operation, row: &R) -> Result<Found, StoreError>
where
    R: AnswerRow,
    usize: ColumnIndex<R>,
    for<'r> Vec<u8>: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> &'r str: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> i16: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> i64: Decode<'r, R::Database> + Type<R::Database>,
{
    let mut columns = Columns::after(0, operation, row);
    let now = timestamp(columns.value()?);
    let Some(key) = columns.value::<Option<Vec<u8>>>()? else {
        return Ok(Found { now, stored: None });
    };
    let key = KeyHash::from_bytes(columns.exactly("key_hash", key)?);
    let format = columns.value::<i16>()?;
    if format != FORMAT {
        let version = u8::try_from(format).unwrap_or_default();
        return Err(EnvelopeError::UnknownVersion(version).during(operation));
    }
    let state = columns.code("state", &STATES)?;
    let owner = columns.value::<Vec<u8>>()?;
    let owner = Token::from_bits(u128::from_be_bytes(columns.exactly("owner", owner)?));
    let fence = number(columns.value()?);
    let revision = columns.value()?;
    let mut record = Record::new(key, owner, texts::shared(columns.value()?));
    record.namespace = texts::shared(columns.value()?);
    record.holder = texts::shared(columns.value()?);
    record.state = state;
    record.fence = fence;
    record.fingerprint = match columns.value::<Option<Vec<u8>>>()? {
        None => None,
        Some(bytes) => Some(fingerprint(columns.exactly("fingerprint", bytes)?)),
    };
    record.policy = columns.code("policy", &POLICIES)?;
    record.created = timestamp(columns.value()?);
    record.attempts = columns.count("attempts")?;
    record.reason = columns.optional_code("reason", &REASONS)?;
    record.linger = Duration::from_millis(number(columns.value()?));
    record.after_expiry = Duration::from_millis(number(columns.value()?));
    record.lease_until = timestamp(columns.value()?);
    record.expires = timestamp(columns.value()?);
    let purge_at = columns.value()?;
    record.schema = columns.count("schema_version")?;
    record.checkpoints = columns.count("checkpoints")?;
    record.taken_over = columns.optional_code("taken_over", &STATES)?;
    record.trace = columns.value::<Option<&str>>()?.map(Arc::from);
    record.body = Bytes::from(columns.value::<Vec<u8>>()?);
    record.read_at = now;
    Ok(Found { now, stored: Some(Stored { record, revision, purge_at }) })
}

/// Reads the columns of a row one after the other.
pub(super) struct Columns<'r, R> {
    operation: Operation,
    row: &'r R,
    next: usize,
}

impl<'r, R> Columns<'r, R>
where
    R: AnswerRow,
    usize: ColumnIndex<R>,
{
    /// Begins after the first `values` values.
    pub(super) fn after(values: usize, operation: Operation, row: &'r R) -> Self {
        Self { operation, row, next: R::BEFORE + values }
    }

    pub(super) fn value<T>(&mut self) -> Result<T, StoreError>
    where
        T: Decode<'r, R::Database> + Type<R::Database>,
    {
        let column = self.next;
        self.next += 1;
        self.row.try_get(column).map_err(|error| {
            StoreError::new(StoreErrorKind::Corrupt, self.operation)
                .with_detail(
                    "the table is not as this release creates it: was it changed, or created by \
                     another release?",
                )
                .with_source(error)
        })
    }

    fn exactly<const LENGTH: usize>(
        &self,
        field: &'static str,
        bytes: Vec<u8>,
    ) -> Result<[u8; LENGTH], StoreError> {
        bytes.try_into().map_err(|_| EnvelopeError::Truncated(field).during(self.operation))
    }

    fn code<T: Copy>(&mut self, field: &'static str, table: &[(T, u8)]) -> Result<T, StoreError>
    where
        i16: Decode<'r, R::Database> + Type<R::Database>,
    {
        let code = self.value::<i16>()?;
        let known = u8::try_from(code).ok().and_then(|code| codes::value(table, code));
        known.ok_or_else(|| {
            let code = u8::try_from(code).unwrap_or(u8::MAX);
            EnvelopeError::UnknownCode { field, code }.during(self.operation)
        })
    }

    fn optional_code<T: Copy>(
        &mut self,
        field: &'static str,
        table: &[(T, u8)],
    ) -> Result<Option<T>, StoreError>
    where
        i16: Decode<'r, R::Database> + Type<R::Database>,
    {
        let column = self.next;
        if self.value::<i16>()? == 0 {
            return Ok(None);
        }
        self.next = column;
        self.code(field, table).map(Some)
    }

    fn count(&mut self, field: &'static str) -> Result<u32, StoreError>
    where
        i64: Decode<'r, R::Database> + Type<R::Database>,
    {
        let count = self.value::<i64>()?;
        u32::try_from(count)
            .map_err(|_| EnvelopeError::UnknownCode { field, code: u8::MAX }.during(self.operation))
    }
}

/// Returns the code of `state` in a column.
pub(crate) fn state_code(state: State) -> i16 {
    codes::state_code(state).into()
}

/// Returns the code of `reason` in a column.
pub(crate) fn reason_code(reason: Option<Reason>) -> i16 {
    codes::reason_code(reason).into()
}

/// Converts a number to its form in a row.
pub(crate) fn integer(figure: u64) -> i64 {
    i64::try_from(figure).map_or(LATEST, |figure| figure.min(LATEST))
}

/// Converts a time of a row.
pub(crate) fn timestamp(millis: i64) -> Timestamp {
    Timestamp::from_millis(number(millis))
}

pub(super) fn number(figure: i64) -> u64 {
    u64::try_from(figure).unwrap_or_default()
}

fn fingerprint_bytes(fingerprint: Fingerprint) -> [u8; 17] {
    let mut bytes = [fingerprint.version; 17];
    bytes[1..].copy_from_slice(&fingerprint.bits.to_be_bytes());
    bytes
}

fn fingerprint([version, bits @ ..]: [u8; 17]) -> Fingerprint {
    Fingerprint { version, bits: u128::from_be_bytes(bits) }
}
