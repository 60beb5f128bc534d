//! The parts of sequences, maps and structs.

use serde::Serialize;
use serde::ser::{
    SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant,
};

use super::check::{Check, Reason, Refusal, Shape, finite};
use super::place::Step;
use super::{NUMBER, RAW_VALUE, key};

pub(super) struct Sequence {
    check: Check,
    variant: Option<&'static str>,
    next: usize,
}

impl Sequence {
    pub(super) fn new(check: Check, variant: Option<&'static str>) -> Self {
        Self { check, variant, next: 0 }
    }

    fn add<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refusal> {
        let index = self.next;
        self.next += 1;
        value
            .serialize(self.check)
            .map_err(|refusal| of_variant(refusal.within(Step::Element(index)), self.variant))?;
        Ok(())
    }
}

fn of_variant(refusal: Refusal, variant: Option<&'static str>) -> Refusal {
    match variant {
        Some(variant) => refusal.within(Step::Variant(variant)),
        None => refusal,
    }
}

macro_rules! sequences {
    ($($shape:ident: $method:ident;)*) => {$(
        impl $shape for Sequence {
            type Ok = Shape;
            type Error = Refusal;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refusal> {
                self.add(value)
            }

            fn end(self) -> Result<Shape, Refusal> {
                Ok(Shape::Other)
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

/// The entries of a map. Structs with flattened fields are maps too, so a field and a flattened one
/// may have the same name.
pub(super) struct Map {
    check: Check,
    /// The texts of the keys, in the order in which they came.
    keys: Vec<String>,
}

impl Map {
    pub(super) fn new(check: Check) -> Self {
        Self { check, keys: Vec::new() }
    }

    /// Returns true if a key is there twice. Maps that are in order, as most are, need no sorting.
    fn repeats_key(mut self) -> bool {
        let is_in_order = self.keys.windows(2).all(|pair| pair[0] < pair[1]);
        if is_in_order {
            return false;
        }
        self.keys.sort_unstable();
        self.keys.windows(2).any(|pair| pair[0] == pair[1])
    }
}

impl SerializeMap for Map {
    type Ok = Shape;
    type Error = Refusal;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Refusal> {
        let key = key::text(key)?;
        // A reader of any JSON takes the content of such a map for a number, or for JSON in a
        // string.
        if key == NUMBER || key == RAW_VALUE {
            return Err(Reason::ReservedKey.into());
        }
        self.keys.push(key);
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refusal> {
        let index = self.keys.len().saturating_sub(1);
        value.serialize(self.check).map_err(|refusal| refusal.within(Step::Entry(index)))?;
        Ok(())
    }

    fn end(self) -> Result<Shape, Refusal> {
        if self.repeats_key() { Err(Reason::RepeatedKey.into()) } else { Ok(Shape::Other) }
    }
}

/// The fields of a struct, or one of the two structs to which `serde_json` gives a special meaning.
pub(super) enum Struct {
    Fields { check: Check, variant: Option<&'static str> },
    Number,
    RawValue(Shape),
}

impl Struct {
    fn add<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), Refusal> {
        match self {
            Self::Fields { check, variant } => {
                let checked = value.serialize(*check);
                checked
                    .map_err(|refusal| of_variant(refusal.within(Step::Field(name)), *variant))?;
            }
            // A number beyond the range of floats could not be read by any other reader.
            Self::Number => finite(key::text(value)?.parse().unwrap_or(f64::NAN))?,
            Self::RawValue(shape) => {
                if key::text(value)?.trim() == "null" {
                    *shape = Shape::Null;
                }
            }
        }
        Ok(())
    }

    fn shape(&self) -> Shape {
        match self {
            Self::Fields { .. } | Self::Number => Shape::Other,
            Self::RawValue(shape) => *shape,
        }
    }
}

macro_rules! structs {
    ($($kind:ident;)*) => {$(
        impl $kind for Struct {
            type Ok = Shape;
            type Error = Refusal;

            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                name: &'static str,
                value: &T,
            ) -> Result<(), Refusal> {
                self.add(name, value)
            }

            fn end(self) -> Result<Shape, Refusal> {
                Ok(self.shape())
            }
        }
    )*};
}

structs! {
    SerializeStruct;
    SerializeStructVariant;
}
