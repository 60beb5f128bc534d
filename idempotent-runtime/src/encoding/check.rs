//! A check of a value, which sees it as `serde_json` does, for content that JSON would change
//! silently.

use std::fmt::{self, Write as _};

use serde::Serialize;
use serde::ser::Serializer;

use super::collection::{Map, Sequence, Struct};
use super::place::{Place, Step};
use super::{MAX_DEPTH, NUMBER, RAW_VALUE};

/// Checks that `value` becomes JSON that says the same.
pub(super) fn check<T: Serialize + ?Sized>(value: &T) -> Result<(), Refusal> {
    value.serialize(Check { depth: 0 }).map(|_| ())
}

/// The JSON that a value becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Null,
    Other,
}

/// The reason why a value has no encoding, and the part of it that is responsible.
#[derive(Debug)]
pub(super) struct Refusal(Box<Parts>);

#[derive(Debug)]
struct Parts {
    reason: Reason,
    place: Place,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reason {
    NotFinite,
    NullInSome,
    RepeatedKey,
    UnfitKey,
    ReservedKey,
    TooDeep,
    /// A `Display` that provides the text fails: `serde_json` panics then.
    Unwritable,
    /// An error of the value's own `Serialize`.
    Custom(String),
}

impl Refusal {
    /// Adds a step to the path, which is built on the way back: a valid value costs nothing.
    pub(super) fn within(mut self, step: Step) -> Self {
        self.0.place.within(step);
        self
    }
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self(Box::new(Parts { reason, place: Place::default() }))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Parts { reason, place } = &*self.0;
        match reason {
            Reason::NotFinite => {
                write!(f, "{place} is NaN or infinite, which JSON cannot represent")
            }
            Reason::NullInSome => {
                write!(f, "{place} is a `Some` of what becomes `null`, which reads back as `None`")
            }
            Reason::RepeatedKey => {
                write!(f, "{place} is a map with two keys that have the same text")
            }
            Reason::UnfitKey => {
                write!(f, "{place} is a map with a key that is not a string in JSON")
            }
            Reason::ReservedKey => {
                write!(f, "{place} is a map with a key that `serde_json` reserves for itself")
            }
            Reason::TooDeep => write!(f, "{place} is nested too deeply to be read back"),
            Reason::Unwritable => {
                write!(f, "{place} has a text that its `Display` implementation failed to write")
            }
            Reason::Custom(message) => write!(f, "{place}: {message}"),
        }
    }
}

impl std::error::Error for Refusal {}

impl serde::ser::Error for Refusal {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Reason::Custom(message.to_string()).into()
    }
}

#[derive(Clone, Copy)]
pub(super) struct Check {
    depth: usize,
}

impl Check {
    /// Returns the check for the contents of this value.
    pub(super) fn inside(self) -> Result<Self, Refusal> {
        if self.depth == MAX_DEPTH {
            return Err(Reason::TooDeep.into());
        }
        Ok(Self { depth: self.depth + 1 })
    }
}

pub(super) fn finite(number: f64) -> Result<(), Refusal> {
    if number.is_finite() { Ok(()) } else { Err(Reason::NotFinite.into()) }
}

/// A sink for text that is not read.
struct Nowhere;

impl fmt::Write for Nowhere {
    fn write_str(&mut self, _: &str) -> fmt::Result {
        Ok(())
    }
}

macro_rules! always_fine {
    ($($method:ident: $type:ty;)*) => {$(
        fn $method(self, _: $type) -> Result<Shape, Refusal> {
            Ok(Shape::Other)
        }
    )*};
}

impl Serializer for Check {
    type Ok = Shape;
    type Error = Refusal;
    type SerializeSeq = Sequence;
    type SerializeTuple = Sequence;
    type SerializeTupleStruct = Sequence;
    type SerializeTupleVariant = Sequence;
    type SerializeMap = Map;
    type SerializeStruct = Struct;
    type SerializeStructVariant = Struct;

    always_fine! {
        serialize_bool: bool;
        serialize_i8: i8;
        serialize_i16: i16;
        serialize_i32: i32;
        serialize_i64: i64;
        serialize_i128: i128;
        serialize_u8: u8;
        serialize_u16: u16;
        serialize_u32: u32;
        serialize_u64: u64;
        serialize_u128: u128;
        serialize_char: char;
        serialize_str: &str;
        serialize_bytes: &[u8];
    }

    fn serialize_f32(self, value: f32) -> Result<Shape, Refusal> {
        finite(value.into()).map(|()| Shape::Other)
    }

    fn serialize_f64(self, value: f64) -> Result<Shape, Refusal> {
        finite(value).map(|()| Shape::Other)
    }

    fn serialize_none(self) -> Result<Shape, Refusal> {
        Ok(Shape::Null)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<Shape, Refusal> {
        match value.serialize(self.inside()?)? {
            Shape::Null => Err(Reason::NullInSome.into()),
            Shape::Other => Ok(Shape::Other),
        }
    }

    fn serialize_unit(self) -> Result<Shape, Refusal> {
        Ok(Shape::Null)
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<Shape, Refusal> {
        Ok(Shape::Null)
    }

    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
    ) -> Result<Shape, Refusal> {
        Ok(Shape::Other)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<Shape, Refusal> {
        value.serialize(self.inside()?)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<Shape, Refusal> {
        value
            .serialize(self.inside()?)
            .map_err(|refusal| refusal.within(Step::Variant(variant)))?;
        Ok(Shape::Other)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Sequence, Refusal> {
        Ok(Sequence::new(self.inside()?, None))
    }

    fn serialize_tuple(self, _: usize) -> Result<Sequence, Refusal> {
        Ok(Sequence::new(self.inside()?, None))
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Sequence, Refusal> {
        Ok(Sequence::new(self.inside()?, None))
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Sequence, Refusal> {
        Ok(Sequence::new(self.inside()?, Some(variant)))
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Map, Refusal> {
        Ok(Map::new(self.inside()?))
    }

    fn serialize_struct(self, name: &'static str, _: usize) -> Result<Struct, Refusal> {
        Ok(match name {
            NUMBER => Struct::Number,
            RAW_VALUE => Struct::RawValue(Shape::Other),
            _ => Struct::Fields { check: self.inside()?, variant: None },
        })
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Struct, Refusal> {
        Ok(Struct::Fields { check: self.inside()?, variant: Some(variant) })
    }

    /// Checks the text without keeping it.
    fn collect_str<T: fmt::Display + ?Sized>(self, value: &T) -> Result<Shape, Refusal> {
        write!(Nowhere, "{value}").map_err(|fmt::Error| Reason::Unwritable)?;
        Ok(Shape::Other)
    }
}
