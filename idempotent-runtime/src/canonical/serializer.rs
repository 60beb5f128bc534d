//! Scalars, and the beginnings of everything else.

use std::fmt::{self, Display, Write as _};

use serde::Serialize;
use serde::ser::Serializer;

use super::collection::{Entries, Sequence, Struct};
use super::number::{self, Number};
use super::{CanonicalError, MAX_DEPTH};
use crate::encoding::NUMBER;

const UNIT: u8 = b'0';
const NONE: u8 = b'n';
const SOME: u8 = b'o';
const BOOL: u8 = b'b';
const INTEGER: u8 = b'i';
const FLOAT: u8 = b'f';
const CHAR: u8 = b'c';
const STRING: u8 = b's';
const BYTES: u8 = b'x';
const UNIT_VARIANT: u8 = b'e';
const VARIANT: u8 = b'v';

/// The position at which the text of a string begins: after its tag and its length.
const TEXT: usize = 9;

pub(super) struct Encoder {
    pub(super) bytes: Vec<u8>,
    depth: usize,
}

impl Encoder {
    pub(super) fn new() -> Self {
        // Enough for most requests: a buffer that grows is copied each time it does.
        Self { bytes: Vec::with_capacity(256), depth: 0 }
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Encodes a value within another one. All of them pass through here.
    pub(super) fn nested<T: Serialize + ?Sized>(
        &mut self,
        value: &T,
    ) -> Result<(), CanonicalError> {
        if self.depth == MAX_DEPTH {
            return Err(CanonicalError::TooDeep);
        }
        self.depth += 1;
        let done = value.serialize(&mut *self);
        self.depth -= 1;
        done
    }

    pub(super) fn length(&mut self, length: usize) {
        self.bytes.extend_from_slice(&(length as u64).to_be_bytes());
    }

    fn prefixed(&mut self, tag: u8, part: &[u8]) {
        self.bytes.push(tag);
        self.length(part.len());
        self.bytes.extend_from_slice(part);
    }

    /// Encodes a number that is passed as text.
    pub(super) fn spelled<T: Serialize + ?Sized>(
        &mut self,
        text: &T,
    ) -> Result<(), CanonicalError> {
        // Written like any text, and then replaced.
        let start = self.bytes.len();
        text.serialize(&mut *self)?;
        let written = self.bytes.split_off(start);
        let text =
            written.get(TEXT..).and_then(|text| std::str::from_utf8(text).ok()).unwrap_or_default();
        match number::read(text)? {
            Number::Unsigned(number) => self.serialize_u64(number),
            Number::Signed(number) => self.serialize_i64(number),
            Number::Float(number) => self.serialize_f64(number),
        }
    }

    fn integer(&mut self, negative: bool, magnitude: u128) {
        self.bytes.extend_from_slice(&[INTEGER, u8::from(negative)]);
        self.bytes.extend_from_slice(&magnitude.to_be_bytes());
    }
}

macro_rules! integers {
    ($($signed:ident: $signed_type:ty, $unsigned:ident: $unsigned_type:ty;)*) => {$(
        fn $signed(self, value: $signed_type) -> Result<(), CanonicalError> {
            self.integer(value.is_negative(), value.unsigned_abs().into());
            Ok(())
        }

        fn $unsigned(self, value: $unsigned_type) -> Result<(), CanonicalError> {
            self.integer(false, value.into());
            Ok(())
        }
    )*};
}

impl<'a> Serializer for &'a mut Encoder {
    type Ok = ();
    type Error = CanonicalError;
    type SerializeSeq = Sequence<'a>;
    type SerializeTuple = Sequence<'a>;
    type SerializeTupleStruct = Sequence<'a>;
    type SerializeTupleVariant = Sequence<'a>;
    type SerializeMap = Entries<'a>;
    type SerializeStruct = Struct<'a>;
    type SerializeStructVariant = Entries<'a>;

    integers! {
        serialize_i8: i8, serialize_u8: u8;
        serialize_i16: i16, serialize_u16: u16;
        serialize_i32: i32, serialize_u32: u32;
        serialize_i64: i64, serialize_u64: u64;
        serialize_i128: i128, serialize_u128: u128;
    }

    fn serialize_bool(self, value: bool) -> Result<(), CanonicalError> {
        self.bytes.extend_from_slice(&[BOOL, u8::from(value)]);
        Ok(())
    }

    fn serialize_f32(self, value: f32) -> Result<(), CanonicalError> {
        self.serialize_f64(value.into())
    }

    fn serialize_f64(self, value: f64) -> Result<(), CanonicalError> {
        if !value.is_finite() {
            return Err(CanonicalError::NotFinite);
        }
        // Adding zero turns `-0.0` into `0.0` and changes nothing else.
        self.bytes.push(FLOAT);
        self.bytes.extend_from_slice(&(value + 0.0).to_bits().to_be_bytes());
        Ok(())
    }

    fn serialize_char(self, value: char) -> Result<(), CanonicalError> {
        self.bytes.push(CHAR);
        self.bytes.extend_from_slice(&u32::from(value).to_be_bytes());
        Ok(())
    }

    fn serialize_str(self, value: &str) -> Result<(), CanonicalError> {
        self.prefixed(STRING, value.as_bytes());
        Ok(())
    }

    fn collect_str<T: Display + ?Sized>(self, value: &T) -> Result<(), CanonicalError> {
        let mut text = String::new();
        // `to_string` would panic.
        write!(text, "{value}").map_err(|fmt::Error| CanonicalError::Unwritable)?;
        self.serialize_str(&text)
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<(), CanonicalError> {
        self.prefixed(BYTES, value);
        Ok(())
    }

    fn serialize_none(self) -> Result<(), CanonicalError> {
        self.bytes.push(NONE);
        Ok(())
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), CanonicalError> {
        self.bytes.push(SOME);
        self.nested(value)
    }

    fn serialize_unit(self) -> Result<(), CanonicalError> {
        self.bytes.push(UNIT);
        Ok(())
    }

    fn serialize_unit_struct(self, _name: &'static str) -> Result<(), CanonicalError> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
    ) -> Result<(), CanonicalError> {
        self.prefixed(UNIT_VARIANT, variant.as_bytes());
        Ok(())
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), CanonicalError> {
        self.nested(value)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), CanonicalError> {
        self.prefixed(VARIANT, variant.as_bytes());
        self.nested(value)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Sequence<'a>, CanonicalError> {
        Ok(Sequence::new(self))
    }

    fn serialize_tuple(self, _: usize) -> Result<Sequence<'a>, CanonicalError> {
        Ok(Sequence::new(self))
    }

    fn serialize_tuple_struct(
        self,
        _: &'static str,
        _: usize,
    ) -> Result<Sequence<'a>, CanonicalError> {
        Ok(Sequence::new(self))
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Sequence<'a>, CanonicalError> {
        self.prefixed(VARIANT, variant.as_bytes());
        Ok(Sequence::new(self))
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Entries<'a>, CanonicalError> {
        Ok(Entries::new(self))
    }

    fn serialize_struct(self, name: &'static str, _: usize) -> Result<Struct<'a>, CanonicalError> {
        Ok(if name == NUMBER { Struct::Number(self) } else { Struct::Fields(Entries::new(self)) })
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Entries<'a>, CanonicalError> {
        self.prefixed(VARIANT, variant.as_bytes());
        Ok(Entries::new(self))
    }
}
