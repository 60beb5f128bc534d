//! Sequences in their order, maps and structs in the order of their encoded keys.

use serde::Serialize;
use serde::ser::{
    SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant,
};

use super::CanonicalError;
use super::serializer::Encoder;

const SEQUENCE: u8 = b'[';
const MAP: u8 = b'{';

/// Elements one after the other. Their count is written at the end, because serde need not know it
/// in advance.
pub(super) struct Sequence<'a> {
    encoder: &'a mut Encoder,
    start: usize,
    count: usize,
}

impl<'a> Sequence<'a> {
    pub(super) fn new(encoder: &'a mut Encoder) -> Self {
        encoder.bytes.push(SEQUENCE);
        let start = encoder.bytes.len();
        encoder.length(0);
        Self { encoder, start, count: 0 }
    }

    fn add<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), CanonicalError> {
        self.count += 1;
        self.encoder.nested(value)
    }

    fn finish(self) {
        let count = (self.count as u64).to_be_bytes();
        self.encoder.bytes[self.start..self.start + count.len()].copy_from_slice(&count);
    }
}

/// Entries that are sorted at the end.
pub(super) struct Entries<'a> {
    encoder: &'a mut Encoder,
    start: usize,
    /// The position at which each entry begins.
    begins: Vec<usize>,
}

impl<'a> Entries<'a> {
    pub(super) fn new(encoder: &'a mut Encoder) -> Self {
        encoder.bytes.push(MAP);
        let start = encoder.bytes.len();
        encoder.length(0);
        Self { encoder, start, begins: Vec::new() }
    }

    fn key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), CanonicalError> {
        self.begins.push(self.encoder.bytes.len());
        self.encoder.nested(key)
    }

    fn value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), CanonicalError> {
        self.encoder.nested(value)
    }

    /// Sorts the entries. No encoded key is a prefix of another one, so the order of whole entries
    /// is the order of their keys.
    fn finish(self) {
        let Self { encoder, start, begins } = self;
        let count = (begins.len() as u64).to_be_bytes();
        let first = start + count.len();
        encoder.bytes[start..first].copy_from_slice(&count);
        let ends = begins.iter().skip(1).copied().chain([encoder.bytes.len()]);
        let entries =
            begins.iter().copied().zip(ends).map(|(begin, end)| &encoder.bytes[begin..end]);
        if !entries.clone().is_sorted() {
            let mut entries: Vec<&[u8]> = entries.collect();
            entries.sort_unstable();
            let in_order = entries.concat();
            encoder.bytes[first..].copy_from_slice(&in_order);
        }
    }
}

macro_rules! sequences {
    ($($shape:ident: $method:ident;)*) => {$(
        impl $shape for Sequence<'_> {
            type Ok = ();
            type Error = CanonicalError;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), CanonicalError> {
                self.add(value)
            }

            fn end(self) -> Result<(), CanonicalError> {
                self.finish();
                Ok(())
            }
        }
    )*};
}

sequences! {
    SerializeSeq: serialize_element;
    SerializeTuple: serialize_element;
    SerializeTupleStruct: serialize_field;
    SerializeTupleVariant: serialize_field;
}

impl Entries<'_> {
    fn field<T: Serialize + ?Sized>(
        &mut self,
        name: &'static str,
        value: &T,
    ) -> Result<(), CanonicalError> {
        self.key(name)?;
        self.value(value)
    }
}

/// A struct, or the one by which `serde_json` marks a number.
pub(super) enum Struct<'a> {
    Fields(Entries<'a>),
    Number(&'a mut Encoder),
}

impl SerializeStruct for Struct<'_> {
    type Ok = ();
    type Error = CanonicalError;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        name: &'static str,
        value: &T,
    ) -> Result<(), CanonicalError> {
        match self {
            Self::Fields(entries) => entries.field(name, value),
            Self::Number(encoder) => encoder.spelled(value),
        }
    }

    fn end(self) -> Result<(), CanonicalError> {
        if let Self::Fields(entries) = self {
            entries.finish();
        }
        Ok(())
    }
}

impl SerializeStructVariant for Entries<'_> {
    type Ok = ();
    type Error = CanonicalError;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        name: &'static str,
        value: &T,
    ) -> Result<(), CanonicalError> {
        self.field(name, value)
    }

    fn end(self) -> Result<(), CanonicalError> {
        self.finish();
        Ok(())
    }
}

impl SerializeMap for Entries<'_> {
    type Ok = ();
    type Error = CanonicalError;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), CanonicalError> {
        self.key(key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), CanonicalError> {
        self.value(value)
    }

    fn end(self) -> Result<(), CanonicalError> {
        self.finish();
        Ok(())
    }
}
