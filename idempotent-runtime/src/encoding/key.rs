//! The text that a map's key becomes.

use std::fmt::{self, Display, Write as _};

use serde::Serialize;
use serde::ser::{Impossible, Serializer};

use super::check::{Reason, Refusal, finite};

/// Returns the text of `key`, as `serde_json` writes it. Two floats have the same text only if they
/// are the same number, whatever writes it.
pub(super) fn text<T: Serialize + ?Sized>(key: &T) -> Result<String, Refusal> {
    key.serialize(Text)
}

struct Text;

macro_rules! displayed {
    ($($method:ident: $type:ty;)*) => {$(
        fn $method(self, value: $type) -> Result<String, Refusal> {
            Ok(value.to_string())
        }
    )*};
}

macro_rules! unfit {
    ($($method:ident($($argument:ty),*) -> $ok:ty;)*) => {$(
        fn $method(self, $(_: $argument),*) -> Result<$ok, Refusal> {
            Err(Reason::UnfitKey.into())
        }
    )*};
}

type Never = Impossible<String, Refusal>;

impl Serializer for Text {
    type Ok = String;
    type Error = Refusal;
    type SerializeSeq = Never;
    type SerializeTuple = Never;
    type SerializeTupleStruct = Never;
    type SerializeTupleVariant = Never;
    type SerializeMap = Never;
    type SerializeStruct = Never;
    type SerializeStructVariant = Never;

    displayed! {
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
    }

    unfit! {
        serialize_bytes(&[u8]) -> String;
        serialize_none() -> String;
        serialize_unit() -> String;
        serialize_unit_struct(&'static str) -> String;
        serialize_seq(Option<usize>) -> Never;
        serialize_tuple(usize) -> Never;
        serialize_tuple_struct(&'static str, usize) -> Never;
        serialize_tuple_variant(&'static str, u32, &'static str, usize) -> Never;
        serialize_map(Option<usize>) -> Never;
        serialize_struct(&'static str, usize) -> Never;
        serialize_struct_variant(&'static str, u32, &'static str, usize) -> Never;
    }

    fn serialize_f32(self, value: f32) -> Result<String, Refusal> {
        finite(value.into())?;
        Ok(format!("{value:?}"))
    }

    fn serialize_f64(self, value: f64) -> Result<String, Refusal> {
        finite(value)?;
        Ok(format!("{value:?}"))
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<String, Refusal> {
        value.serialize(self)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<String, Refusal> {
        value.serialize(self)
    }

    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
    ) -> Result<String, Refusal> {
        Ok(variant.to_owned())
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result<String, Refusal> {
        Err(Reason::UnfitKey.into())
    }

    fn collect_str<T: Display + ?Sized>(self, value: &T) -> Result<String, Refusal> {
        let mut text = String::new();
        // `to_string` would panic.
        write!(text, "{value}").map_err(|fmt::Error| Reason::Unwritable)?;
        Ok(text)
    }
}
