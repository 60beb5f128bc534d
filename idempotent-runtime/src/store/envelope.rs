//! The versioned bytes of a record, for stores that keep each record as one value.
//!
//! [`encode`] writes everything but the key, under which the store keeps the value, and
//! [`read_at`](Record::read_at). [`decode`] accepts what `encode` wrote, in this and every earlier
//! release, and nothing else: any other bytes are an [`EnvelopeError`].
//!
//! Version 1 consists of these fields one after the other, numbers in big-endian order:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 1 | format version, `1` |
//! | 1 | 1 | state: in progress 1, in doubt 2, completed 3, failed 4, released 5, tombstone 6 |
//! | 2 | 16 | owner |
//! | 18 | 8 | fence |
//! | 26 | 8 | `linger`, milliseconds |
//! | 34 | 8 | `after_expiry`, milliseconds |
//! | 42 | 1 + 1 + 16 | fingerprint: 1 and its version and bits, or zeros |
//! | 60 | 1 | policy: retry 1, resume 2, verify 3, hold 4 |
//! | 61 | 8 | `created`, milliseconds since 1970 |
//! | 69 | 4 | attempts |
//! | 73 | 1 | reason: none 0, crashed 1, dropped 2, panicked 3, lease lost 4, error 5, not stored 6, shut down 7, too large 8, not encodable 9, resolved 10, unverified 11 |
//! | 74 | 8 | `lease_until`, milliseconds since 1970; a store that keeps it elsewhere overwrites it after decoding |
//! | 82 | 8 | `expires`, milliseconds since 1970; likewise |
//! | 90 | 4 | schema |
//! | 94 | 4 | checkpoints |
//! | 98 | 1 | the state from which the claim was taken over, or 0 |
//! | 99 | 4 | length of the operation |
//! | 103 | 1 + 1 + 1 | lengths of namespace, holder and trace context |
//! | 106 | 2 | length of the padding |
//! | 108 | 8 | length of the body |
//! | 116 | | body, operation, namespace, holder, trace context (UTF-8; no trace context has no bytes) and padding (zeros) |
//!
//! All but the last row have a fixed place, so that a store's own scripts can read and write them.
//! The texts follow the body: a store that replaces the body puts the same texts after the new one,
//! and need not know where the body comes from. Those that change with the owner come last, so that
//! a takeover writes them in place and does not move the body either; what is left of longer ones
//! becomes padding. `encode` writes none.

use crate::store::Operation;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes};

use super::codes::{self, POLICIES, REASONS, STATES, code};
use super::{Record, StoreError, StoreErrorKind, Token, texts};
use crate::clock::{Timestamp, millis};
use crate::fingerprint::Fingerprint;
use crate::key::KeyHash;

/// The format version that [`encode`] writes.
pub const VERSION: u8 = 1;

/// The value that stands for a missing fingerprint.
const NO_FINGERPRINT: Fingerprint = Fingerprint { version: 0, bits: 0 };

fn value<T: Copy>(table: &[(T, u8)], code: u8, field: &'static str) -> Result<T, EnvelopeError> {
    codes::value(table, code).ok_or(EnvelopeError::UnknownCode { field, code })
}

/// The bytes of `record`.
///
/// ```
/// use bytes::Bytes;
/// use idempotency::clock::Timestamp;
/// use idempotency::key::KeyHash;
/// use idempotency::store::{Record, Token, envelope};
///
/// let record = Record::new(KeyHash::from_bytes([7; 32]), Token::from_bits(1), "payments.charge".into());
/// let bytes = Bytes::from(envelope::encode(&record));
/// assert_eq!(envelope::decode(record.key, bytes.clone(), Timestamp::default())?, record);
/// assert!(envelope::decode(record.key, bytes.slice(1..), Timestamp::default()).is_err());
/// # Ok::<(), envelope::EnvelopeError>(())
/// ```
pub fn encode(record: &Record) -> Vec<u8> {
    let operation = beginning(&record.operation, u32::MAX as usize);
    let [namespace, holder, trace] =
        [&*record.namespace, &*record.holder, record.trace.as_deref().unwrap_or_default()]
            .map(|text| beginning(text, u8::MAX.into()));
    let variable =
        operation.len() + namespace.len() + holder.len() + trace.len() + record.body.len();
    let mut bytes = Vec::with_capacity(128 + variable);
    bytes.put_u8(VERSION);
    bytes.put_u8(code(&STATES, record.state));
    bytes.put_u128(record.owner.bits());
    bytes.put_u64(record.fence);
    bytes.put_u64(millis(record.linger));
    bytes.put_u64(millis(record.after_expiry));
    bytes.put_u8(record.fingerprint.is_some().into());
    let Fingerprint { version, bits } = record.fingerprint.unwrap_or(NO_FINGERPRINT);
    bytes.put_u8(version);
    bytes.put_u128(bits);
    bytes.put_u8(code(&POLICIES, record.policy));
    bytes.put_u64(record.created.as_millis());
    bytes.put_u32(record.attempts);
    bytes.put_u8(record.reason.map_or(0, |reason| code(&REASONS, reason)));
    bytes.put_u64(record.lease_until.as_millis());
    bytes.put_u64(record.expires.as_millis());
    bytes.put_u32(record.schema);
    bytes.put_u32(record.checkpoints);
    bytes.put_u8(record.taken_over.map_or(0, |state| code(&STATES, state)));
    bytes.put_u32(u32::try_from(operation.len()).unwrap_or(u32::MAX));
    for text in [namespace, holder, trace] {
        bytes.put_u8(u8::try_from(text.len()).unwrap_or(u8::MAX));
    }
    bytes.put_u16(0);
    bytes.put_u64(record.body.len() as u64);
    for part in [&record.body, operation, namespace, holder, trace] {
        bytes.extend_from_slice(part);
    }
    bytes
}

/// The number of bytes of the fields with a fixed place.
#[cfg(feature = "redis")]
pub(crate) const FIELDS: usize = 116;

/// The place of the lengths of texts and body, which follow all other fields.
#[cfg(feature = "redis")]
pub(crate) const LENGTHS: usize = 99;

/// The number of bytes at the end of a record that contain its texts, unless a name is longer than
/// any reasonable one.
#[cfg(feature = "redis")]
pub(crate) const LONGEST_WORDS: usize = 4096;

/// Returns a record without its body, and the length of the body. `fields` begins with the first
/// [`FIELDS`] bytes of the record; `end` is enough of its end to contain its texts.
#[cfg(feature = "redis")]
pub(crate) fn without_body(fields: &[u8], end: &[u8]) -> Result<(Vec<u8>, u64), EnvelopeError> {
    let fields = fields.get(..FIELDS).ok_or(EnvelopeError::Truncated("body"))?;
    let mut lengths = Bytes::copy_from_slice(&fields[LENGTHS..]);
    let mut words = u64::from(lengths.get_u32());
    for _ in 0..3 {
        words += u64::from(lengths.get_u8());
    }
    words += u64::from(lengths.get_u16());
    let body = lengths.get_u64();
    let start = usize::try_from(words).ok().and_then(|words| end.len().checked_sub(words));
    let words = &end[start.ok_or(EnvelopeError::Truncated("operation"))?..];
    Ok(([&fields[..FIELDS - 8], &[0; 8], words].concat(), body))
}

/// Returns the text, cut to the longest prefix of at most `longest` bytes, which its length field
/// can express. The texts are only for people.
fn beginning(text: &str, longest: usize) -> &[u8] {
    let longest = text.len().min(longest);
    let end = (0..=longest).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    &text.as_bytes()[..end]
}

/// Reads the record that [`encode`] wrote, as read under `key` at `read_at` of the store's time.
/// Its body shares `bytes`.
///
/// # Errors
/// If the bytes are not an envelope of a version that this release reads.
pub fn decode(key: KeyHash, bytes: Bytes, read_at: Timestamp) -> Result<Record, EnvelopeError> {
    let mut reader = Reader(bytes);
    let version = reader.u8("version")?;
    if version != VERSION {
        return Err(EnvelopeError::UnknownVersion(version));
    }
    let state = value(&STATES, reader.u8("state")?, "state")?;
    let owner = Token::from_bits(reader.number("owner", Bytes::get_u128)?);
    let mut record = Record::new(key, owner, Arc::default());
    record.state = state;
    record.fence = reader.u64("fence")?;
    record.linger = Duration::from_millis(reader.u64("linger")?);
    record.after_expiry = Duration::from_millis(reader.u64("after_expiry")?);
    let has_fingerprint = reader.flag("fingerprint")?;
    let fingerprint = Fingerprint {
        version: reader.u8("fingerprint")?,
        bits: reader.number("fingerprint", Bytes::get_u128)?,
    };
    record.fingerprint = match (has_fingerprint, fingerprint) {
        (true, fingerprint) => Some(fingerprint),
        (false, NO_FINGERPRINT) => None,
        (false, Fingerprint { version, .. }) => {
            return Err(EnvelopeError::UnknownCode { field: "fingerprint", code: version });
        }
    };
    record.policy = value(&POLICIES, reader.u8("policy")?, "policy")?;
    record.created = Timestamp::from_millis(reader.u64("created")?);
    record.attempts = reader.u32("attempts")?;
    record.reason = reader.optional("reason", &REASONS)?;
    record.lease_until = Timestamp::from_millis(reader.u64("lease_until")?);
    record.expires = Timestamp::from_millis(reader.u64("expires")?);
    record.schema = reader.u32("schema")?;
    record.checkpoints = reader.u32("checkpoints")?;
    record.taken_over = reader.optional("taken_over", &STATES)?;
    let operation = u64::from(reader.u32("operation")?);
    let namespace = u64::from(reader.u8("namespace")?);
    let holder = u64::from(reader.u8("holder")?);
    let trace = u64::from(reader.u8("trace")?);
    let padding = u64::from(reader.number("padding", Bytes::get_u16)?);
    let body = reader.u64("body")?;
    record.body = reader.part("body", body)?;
    record.operation = reader.text("operation", operation, texts::shared)?;
    record.namespace = reader.text("namespace", namespace, texts::shared)?;
    record.holder = reader.text("holder", holder, texts::shared)?;
    record.trace =
        if trace == 0 { None } else { Some(reader.text("trace", trace, |text| text.into())?) };
    let padding = reader.part("padding", padding)?;
    if let Some(code) = padding.iter().copied().find(|byte| *byte != 0) {
        return Err(EnvelopeError::UnknownCode { field: "padding", code });
    }
    record.read_at = read_at;
    if reader.0.is_empty() { Ok(record) } else { Err(EnvelopeError::Trailing(reader.0.len())) }
}

struct Reader(Bytes);

impl Reader {
    fn number<T>(
        &mut self,
        field: &'static str,
        get: impl FnOnce(&mut Bytes) -> T,
    ) -> Result<T, EnvelopeError> {
        if self.0.len() < size_of::<T>() {
            return Err(EnvelopeError::Truncated(field));
        }
        Ok(get(&mut self.0))
    }

    fn u8(&mut self, field: &'static str) -> Result<u8, EnvelopeError> {
        self.number(field, Bytes::get_u8)
    }

    fn u32(&mut self, field: &'static str) -> Result<u32, EnvelopeError> {
        self.number(field, Bytes::get_u32)
    }

    fn u64(&mut self, field: &'static str) -> Result<u64, EnvelopeError> {
        self.number(field, Bytes::get_u64)
    }

    fn flag(&mut self, field: &'static str) -> Result<bool, EnvelopeError> {
        value(&[(false, 0), (true, 1)], self.u8(field)?, field)
    }

    fn optional<T: Copy>(
        &mut self,
        field: &'static str,
        table: &[(T, u8)],
    ) -> Result<Option<T>, EnvelopeError> {
        match self.u8(field)? {
            0 => Ok(None),
            code => value(table, code, field).map(Some),
        }
    }

    fn part(&mut self, field: &'static str, length: u64) -> Result<Bytes, EnvelopeError> {
        let length = usize::try_from(length).ok().filter(|length| *length <= self.0.len());
        Ok(self.0.split_to(length.ok_or(EnvelopeError::Truncated(field))?))
    }

    fn text(
        &mut self,
        field: &'static str,
        length: u64,
        keep: impl FnOnce(&str) -> Arc<str>,
    ) -> Result<Arc<str>, EnvelopeError> {
        let bytes = self.part(field, length)?;
        std::str::from_utf8(&bytes).map(keep).map_err(|_| EnvelopeError::NotText(field))
    }
}

/// The reason why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EnvelopeError {
    /// The format version is not one that this release reads: a newer release wrote it, or the
    /// bytes are not an envelope.
    UnknownVersion(u8),
    /// A field holds a code that this format version does not have.
    UnknownCode {
        /// The field.
        field: &'static str,
        /// The code that it holds.
        code: u8,
    },
    /// The bytes end within this field.
    Truncated(&'static str),
    /// This field is not UTF-8.
    NotText(&'static str),
    /// This many bytes follow the record.
    Trailing(usize),
}

impl EnvelopeError {
    /// Converts this to an error of kind [`Corrupt`](StoreErrorKind::Corrupt) of the store
    /// operation that read the bytes.
    #[must_use]
    pub fn during(self, operation: Operation) -> StoreError {
        StoreError::new(StoreErrorKind::Corrupt, operation).with_source(self)
    }
}

impl fmt::Display for EnvelopeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownVersion(version) => {
                write!(
                    f,
                    "the record has format version {version}, this release reads version {VERSION}"
                )
            }
            Self::UnknownCode { field, code } => {
                write!(f, "the record's field {field} holds the unknown code {code}")
            }
            Self::Truncated(field) => write!(f, "the record ends within its field {field}"),
            Self::NotText(field) => write!(f, "the record's field {field} is not UTF-8"),
            Self::Trailing(count) => write!(f, "{count} bytes follow the record"),
        }
    }
}

impl std::error::Error for EnvelopeError {}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use bytes::Bytes;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::{EnvelopeError, Operation, POLICIES, REASONS, STATES, decode, encode};
    use crate::clock::Timestamp;
    use crate::fingerprint::Fingerprint;
    use crate::key::{KeyHash, hex};
    use crate::store::{CrashPolicy, Reason, Record, State, StoreErrorKind, Token};

    const KEY: KeyHash = KeyHash::from_bytes([7; 32]);
    const READ_AT: Timestamp = Timestamp::from_millis(99);

    fn decoded(bytes: &[u8]) -> Result<Record, EnvelopeError> {
        decode(KEY, Bytes::copy_from_slice(bytes), READ_AT)
    }

    fn full_record() -> Record {
        let mut record = Record::new(
            KEY,
            Token::from_bits(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10),
            "op".into(),
        );
        record.state = State::InDoubt;
        record.fence = 3;
        record.linger = Duration::from_millis(0x1111);
        record.after_expiry = Duration::from_millis(0x2222);
        record.fingerprint = Some(Fingerprint { version: 1, bits: 0xfeed });
        record.policy = CrashPolicy::Verify;
        record.created = Timestamp::from_millis(0x3333);
        record.attempts = 4;
        record.reason = Some(Reason::LeaseLost);
        record.lease_until = Timestamp::from_millis(0x4444);
        record.expires = Timestamp::from_millis(0x5555);
        record.schema = 5;
        record.checkpoints = 6;
        record.taken_over = Some(State::InProgress);
        record.namespace = "ns".into();
        record.holder = "pod".into();
        record.trace = Some("tr".into());
        record.body = Bytes::from_static(b"body");
        record.read_at = READ_AT;
        record
    }

    const FULL_RECORD: &str = concat!(
        "01",
        "02",
        "0102030405060708090a0b0c0d0e0f10",
        "0000000000000003",
        "0000000000001111",
        "0000000000002222",
        "01010000000000000000000000000000feed",
        "03",
        "0000000000003333",
        "00000004",
        "04",
        "0000000000004444",
        "0000000000005555",
        "00000005",
        "00000006",
        "01",
        "00000002",
        "020302",
        "0000",
        "0000000000000004",
        "626f6479",
        "6f70",
        "6e73",
        "706f64",
        "7472",
    );

    #[test]
    fn golden_bytes_of_version_1() {
        assert_eq!(hex(&encode(&full_record())), FULL_RECORD);
        let empty = Record::new(KEY, Token::from_bits(0), "".into());
        let expected = [
            "01",
            "01",
            &"0".repeat(2 * 58),
            "04",
            &"0".repeat(16),
            "00000001",
            &"0".repeat(2 * 43),
        ]
        .concat();
        assert_eq!(hex(&encode(&empty)), expected);
    }

    #[test]
    fn codes_of_version_1_do_not_change() {
        assert_eq!(STATES.map(|(_, code)| code), [1, 2, 3, 4, 5, 6]);
        assert_eq!(
            STATES.map(|(state, _)| state),
            [
                State::InProgress,
                State::InDoubt,
                State::Completed,
                State::Failed,
                State::Released,
                State::Tombstone
            ]
        );
        assert_eq!(
            POLICIES,
            [
                (CrashPolicy::Retry, 1),
                (CrashPolicy::Resume, 2),
                (CrashPolicy::Verify, 3),
                (CrashPolicy::Hold, 4)
            ]
        );
        assert_eq!(REASONS.map(|(_, code)| code), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
        assert_eq!(
            REASONS.map(|(reason, _)| reason),
            [
                Reason::Crashed,
                Reason::Dropped,
                Reason::Panicked,
                Reason::LeaseLost,
                Reason::Error,
                Reason::NotStored,
                Reason::ShutDown,
                Reason::TooLarge,
                Reason::NotEncodable,
                Reason::Resolved,
                Reason::Unverified
            ]
        );
    }

    /// Fails to compile when a value is added: it then needs a code in the table.
    #[test]
    fn every_value_has_a_code() {
        let all = |state| match state {
            State::InProgress
            | State::InDoubt
            | State::Completed
            | State::Failed
            | State::Released
            | State::Tombstone => STATES.len() == 6,
        };
        assert!(all(State::InProgress));
        let all = |reason| match reason {
            Reason::Crashed
            | Reason::Dropped
            | Reason::Panicked
            | Reason::LeaseLost
            | Reason::Error
            | Reason::NotStored
            | Reason::ShutDown
            | Reason::TooLarge
            | Reason::NotEncodable
            | Reason::Resolved
            | Reason::Unverified => REASONS.len() == 11,
        };
        assert!(all(Reason::Crashed));
        let all = |policy| match policy {
            CrashPolicy::Retry | CrashPolicy::Resume | CrashPolicy::Verify | CrashPolicy::Hold => {
                POLICIES.len() == 4
            }
        };
        assert!(all(CrashPolicy::Hold));
    }

    #[test]
    fn an_unknown_version_is_named() {
        let mut bytes = encode(&full_record());
        bytes[0] = 9;
        let error = decoded(&bytes).unwrap_err();
        assert_eq!(error, EnvelopeError::UnknownVersion(9));
        assert!(error.to_string().contains("format version 9"), "{error}");
        let error = error.during(Operation::Read);
        assert_eq!((error.kind(), error.operation()), (StoreErrorKind::Corrupt, Operation::Read));
    }

    #[test]
    fn unknown_codes_are_errors_of_their_field() {
        for (position, field) in
            [(1, "state"), (42, "fingerprint"), (60, "policy"), (73, "reason"), (98, "taken_over")]
        {
            let mut bytes = encode(&full_record());
            bytes[position] = 77;
            assert_eq!(decoded(&bytes), Err(EnvelopeError::UnknownCode { field, code: 77 }));
        }
    }

    #[test]
    fn a_length_beyond_the_end_allocates_nothing() {
        let mut bytes = encode(&full_record());
        bytes[108..116].copy_from_slice(&u64::MAX.to_be_bytes());
        assert_eq!(decoded(&bytes), Err(EnvelopeError::Truncated("body")));
    }

    #[test]
    fn trailing_bytes_and_bytes_that_are_no_text_are_errors() {
        let mut bytes = encode(&full_record());
        bytes.push(0);
        assert_eq!(decoded(&bytes), Err(EnvelopeError::Trailing(1)));
        bytes.pop();
        bytes[116 + 4] = 0xff;
        assert_eq!(decoded(&bytes), Err(EnvelopeError::NotText("operation")));
    }

    /// As a takeover leaves it whose holder has a shorter name than the one before.
    #[test]
    fn padding_is_skipped_and_is_nothing_but_zeros() {
        let mut bytes = encode(&full_record());
        bytes[107] = 3;
        bytes.extend([0; 3]);
        assert_eq!(decoded(&bytes), Ok(full_record()));
        *bytes.last_mut().unwrap() = 7;
        let error = EnvelopeError::UnknownCode { field: "padding", code: 7 };
        assert_eq!(decoded(&bytes), Err(error));
    }

    #[test]
    fn longer_texts_than_the_engine_allows_are_cut_between_two_characters() {
        let mut record = full_record();
        record.holder = "ö".repeat(200).into();
        assert_eq!(&*decoded(&encode(&record)).unwrap().holder, "ö".repeat(127));
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = encode(&full_record());
        for length in 0..bytes.len() {
            assert!(
                matches!(decoded(&bytes[..length]), Err(EnvelopeError::Truncated(_))),
                "{length}"
            );
        }
    }

    prop_compose! {
        fn numbers()(
            owner: u128, fence: u64, linger: u64, after_expiry: u64, created: u64, attempts: u32,
            lease_until: u64, expires: u64, schema: u32, checkpoints: u32,
        ) -> Record {
            let mut record = Record::new(KEY, Token::from_bits(owner), "".into());
            record.fence = fence;
            record.linger = Duration::from_millis(linger);
            record.after_expiry = Duration::from_millis(after_expiry);
            record.created = Timestamp::from_millis(created);
            record.attempts = attempts;
            record.lease_until = Timestamp::from_millis(lease_until);
            record.expires = Timestamp::from_millis(expires);
            record.schema = schema;
            record.checkpoints = checkpoints;
            record.read_at = READ_AT;
            record
        }
    }

    prop_compose! {
        fn records()(
            record in numbers(),
            state in select(STATES.map(|(state, _)| state).to_vec()),
            policy in select(POLICIES.map(|(policy, _)| policy).to_vec()),
            reason in proptest::option::of(select(REASONS.map(|(reason, _)| reason).to_vec())),
            taken_over in proptest::option::of(select(STATES.map(|(state, _)| state).to_vec())),
            fingerprint: Option<(u8, u128)>,
            operation: String,
            namespace in "[^x]{0,16}",
            holder in "[^x]{0,16}",
            trace in proptest::option::of(".{1,60}"),
            body: Vec<u8>,
        ) -> Record {
            Record {
                state, policy, reason, taken_over,
                fingerprint: fingerprint.map(|(version, bits)| Fingerprint { version, bits }),
                operation: operation.into(),
                namespace: namespace.into(),
                holder: holder.into(),
                trace: trace.map(Arc::from),
                body: body.into(),
                ..record
            }
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(record in records()) {
            prop_assert_eq!(decoded(&encode(&record)), Ok(record));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, version in 0_u8..3) {
            let _ = decoded(&bytes);
            let _ = decoded(&[&[version], &bytes[..]].concat());
        }

        #[test]
        fn changed_bytes_never_panic_and_never_read_as_the_same(record in records(), at: prop::sample::Index, to: u8) {
            let mut bytes = encode(&record);
            let at = at.index(bytes.len());
            prop_assume!(bytes[at] != to);
            bytes[at] = to;
            prop_assert_ne!(decoded(&bytes), Ok(record));
        }
    }
}
