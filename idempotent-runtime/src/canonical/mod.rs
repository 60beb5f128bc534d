//! The canonical encoding of any `Serialize` value, for fingerprints and digests.
//!
//! Serialized JSON is not suitable: its maps come in any order, `NaN` becomes `null`, `Some(())` is
//! `None`, and the key `1` is the key `"1"`. Here every value starts with a tag, everything of
//! variable length is preceded by its length, and
//!
//! - the entries of maps and structs are sorted by their encoded keys, and a struct is a map of its
//!   fields' names;
//! - an integer is a sign and a magnitude, whatever its width; an `f32` is an `f64`; `-0.0` is
//!   `0.0`;
//! - `Some` has a tag of its own; newtype structs are what they wrap; tuples, arrays and sequences
//!   are the same;
//! - variants are identified by their names, not by their numbers;
//! - a `serde_json::Value` has the same encoding whichever features of `serde_json` other crates of
//!   the build have enabled.
//!
//! The encoding is part of the stored format: a change to it requires a new
//! [`Fingerprint::VERSION`](crate::key::Fingerprint).

mod collection;
mod number;
mod serializer;
#[cfg(test)]
mod tests;

use std::fmt;

use serde::Serialize;

use serializer::Encoder;

/// The maximum nesting depth of values. Deeper values would exhaust the stack, which ends the
/// process.
const MAX_DEPTH: usize = 128;

/// The reason why a value has no canonical encoding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CanonicalError {
    /// A floating point number is `NaN` or infinite.
    NotFinite,
    /// A number of `serde_json` has more digits than a build without its feature
    /// `arbitrary_precision` would keep.
    Inexact,
    /// The value is nested deeper than [`MAX_DEPTH`].
    TooDeep,
    /// A `Display` that provides the text fails.
    Unwritable,
    /// An error of the value's own `Serialize`.
    Custom(String),
}

impl fmt::Display for CanonicalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFinite => {
                f.write_str("a floating point number is NaN or infinite, which equals nothing")
            }
            Self::Inexact => {
                f.write_str("a JSON number has more digits than a float keeps: make it a string")
            }
            Self::TooDeep => write!(f, "the value is nested deeper than {MAX_DEPTH} levels"),
            Self::Unwritable => f.write_str("a `Display` implementation failed to write its text"),
            Self::Custom(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for CanonicalError {}

impl serde::ser::Error for CanonicalError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::Custom(message.to_string())
    }
}

/// Returns the encoding of `value`.
pub(crate) fn to_bytes<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, CanonicalError> {
    let mut encoder = Encoder::new();
    value.serialize(&mut encoder)?;
    Ok(encoder.into_bytes())
}
