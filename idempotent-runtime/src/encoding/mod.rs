//! The encoding of results, stored errors and steps as JSON, and their decoding.
//!
//! Every caller gets what was stored, the owner too: a value is read back as soon as it is encoded,
//! and the owner returns what was read. A value whose JSON would say something else is rejected
//! before that, by a check that writes nothing:
//!
//! - a number that is not finite, which becomes `null`;
//! - `Some` of something that becomes `null`, which reads back as `None`;
//! - a map with two keys of the same text, of which readers keep one;
//! - a map with a key that `serde_json` takes for an instruction;
//! - a text that its `Display` fails to write, at which `serde_json` panics.
//!
//! A value that is rejected or does not read back has no encoding. That is detected when the body
//! ends, and reported to every caller.

mod check;
mod collection;
mod key;
mod place;
#[cfg(test)]
mod tests;

use std::fmt;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use check::Refusal;

/// The maximum nesting depth of values, counting each `Some`, each newtype struct and each
/// container. It covers all that `serde_json` reads, with an `Option` and a newtype around each
/// container. Deeper values would exhaust the stack, which ends the process.
const MAX_DEPTH: usize = 384;

/// The struct by which `serde_json` marks a number if its feature `arbitrary_precision` is enabled
/// by any crate.
pub(crate) const NUMBER: &str = "$serde_json::private::Number";

/// The struct by which `serde_json` marks a text as JSON.
pub(crate) const RAW_VALUE: &str = "$serde_json::private::RawValue";

/// A value in its stored form.
#[derive(Debug)]
pub struct Encoded<T, B = Bytes> {
    /// The stored form.
    pub(crate) body: B,
    /// The value that every caller reads from it.
    pub(crate) value: T,
}

/// Returns the stored form of `value`, and the value that reads back from it.
pub(crate) fn encode<T: Serialize + DeserializeOwned>(
    value: &T,
) -> Result<Encoded<T>, NotEncodable> {
    check::check(value)?;
    let body = serde_json::to_vec(value)?;
    let value = decode(&body).map_err(NotEncodable::unreadable)?;
    Ok(Encoded { body: body.into(), value })
}

/// Like [`encode`], as a part of another JSON document.
pub(crate) fn encode_part<T: Serialize + DeserializeOwned>(
    value: &T,
) -> Result<Encoded<T, Box<RawValue>>, NotEncodable> {
    check::check(value)?;
    let body = serde_json::value::to_raw_value(value)?;
    let value = decode(body.get().as_bytes()).map_err(NotEncodable::unreadable)?;
    Ok(Encoded { body, value })
}

/// Returns the stored form of a value whose reader is not known: it reads back as JSON of some
/// type.
pub(crate) fn encode_for_any_reader<T: Serialize>(value: &T) -> Result<Bytes, NotEncodable> {
    check::check(value)?;
    let body = serde_json::to_vec(value)?;
    decode::<serde_json::Value>(&body).map_err(NotEncodable::unreadable)?;
    Ok(body.into())
}

/// Reads a stored form.
pub(crate) fn decode<'de, T: Deserialize<'de>>(body: &'de [u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice(body)
}

/// The reason why a value cannot be stored. It shows names of fields and variants, and nothing that
/// the value holds.
#[derive(Debug)]
pub struct NotEncodable(Box<Why>);

#[derive(Debug)]
enum Why {
    /// JSON would say something else, or the value's own `Serialize` fails.
    Refused(Refusal),
    /// An error of `serde_json`.
    Unwritten(serde_json::Error),
    Unreadable(Redacted),
}

impl NotEncodable {
    #[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` gives")]
    fn unreadable(error: serde_json::Error) -> Self {
        Self(Box::new(Why::Unreadable(Redacted::of(&error))))
    }
}

impl From<Refusal> for NotEncodable {
    fn from(refusal: Refusal) -> Self {
        Self(Box::new(Why::Refused(refusal)))
    }
}

impl From<serde_json::Error> for NotEncodable {
    fn from(error: serde_json::Error) -> Self {
        Self(Box::new(Why::Unwritten(error)))
    }
}

impl fmt::Display for NotEncodable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Why::Refused(refusal) => refusal.fmt(f),
            Why::Unwritten(error) => error.fmt(f),
            Why::Unreadable(error) => {
                write!(f, "what was written cannot be read back as its type: {error}")
            }
        }
    }
}

impl std::error::Error for NotEncodable {}

/// The position where decoding failed, without the stored text that serde's message quotes.
#[derive(Debug)]
pub(crate) struct Redacted {
    category: serde_json::error::Category,
    column: usize,
}

impl Redacted {
    pub(crate) fn of(error: &serde_json::Error) -> Self {
        Self { category: error.classify(), column: error.column() }
    }
}

impl fmt::Display for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} error at byte {} of the stored result", self.category, self.column)
    }
}

impl std::error::Error for Redacted {}
