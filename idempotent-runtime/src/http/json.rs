//! JSON as a body has it.

use std::collections::HashSet;
use std::fmt;

use serde::Serialize;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeMap as _, Serializer};

/// The largest magnitude up to which every integer is a number of JavaScript, and RFC 8785 therefore keeps it.
const LARGEST_EXACT: u64 = 1 << 53;

/// How `serde_json` says "number" to a visitor where somebody has switched its feature `arbitrary_precision` on.
const NUMBER: &str = "$serde_json::private::Number";

/// A value of JSON.
///
/// Not the one of `serde_json`, which takes what a client writes under certain names for instructions: with the feature
/// `raw_value` it reads the text in `{"$serde_json::private::RawValue": "…"}` as JSON too, so that two bodies are one value,
/// and a small body is deeper than a stack.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Json {
    Null,
    Bool(bool),
    Integer(i64),
    Float(f64),
    /// Beyond the numbers that every reader reads alike.
    Large,
    String(String),
    Array(Vec<Json>),
    /// As the text has them: names may repeat.
    Object(Vec<(String, Json)>),
}

/// A member on the way is there more than once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Repeated;

impl Json {
    /// The value of `body`, `None` if it is no JSON.
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        serde_json::from_slice(body).ok()
    }

    /// Whether all readers agree what it says: no object names a member twice, and no number is so large that some would
    /// round it.
    pub(super) fn is_unambiguous(&self) -> bool {
        match self {
            Self::Null | Self::Bool(_) | Self::Integer(_) | Self::Float(_) | Self::String(_) => true,
            Self::Large => false,
            Self::Array(elements) => elements.iter().all(Self::is_unambiguous),
            Self::Object(members) => {
                let mut names = HashSet::with_capacity(members.len());
                members.iter().all(|(name, value)| names.insert(name) && value.is_unambiguous())
            }
        }
    }

    /// What a JSON pointer (RFC 6901) leads to.
    pub(super) fn pointer(&self, pointer: &str) -> Result<Option<&Self>, Repeated> {
        let Some(steps) = pointer.strip_prefix('/') else { return Ok(pointer.is_empty().then_some(self)) };
        let mut value = self;
        for step in steps.split('/') {
            let next = match value {
                Self::Object(members) => {
                    let name = step.replace("~1", "/").replace("~0", "~");
                    let mut found = members.iter().filter(|(member, _)| *member == name);
                    let first = found.next();
                    if found.next().is_some() {
                        return Err(Repeated);
                    }
                    first.map(|(_, value)| value)
                }
                Self::Array(elements) => index(step).and_then(|index| elements.get(index)),
                _ => None,
            };
            let Some(next) = next else { return Ok(None) };
            value = next;
        }
        Ok(Some(value))
    }

    fn integer(number: i64) -> Self {
        if number.unsigned_abs() <= LARGEST_EXACT { Self::Integer(number) } else { Self::Large }
    }

    fn float(number: f64) -> Self {
        // Integers that are too large for the parser come as floats, and are rounded already; so may the limit itself be.
        #[expect(clippy::cast_precision_loss, reason = "it is a power of two")]
        const LIMIT: f64 = LARGEST_EXACT as f64;
        if number.abs() < LIMIT { Self::Float(number) } else { Self::Large }
    }

    /// A number as it is written.
    fn number(text: &str) -> Option<Self> {
        if let Ok(integer) = text.parse() {
            return Some(Self::integer(integer));
        }
        text.parse().ok().map(Self::float)
    }
}

/// RFC 6901 has neither signs nor zeros in front.
fn index(step: &str) -> Option<usize> {
    let is_index = step == "0" || (!step.starts_with('0') && step.bytes().all(|byte| byte.is_ascii_digit()));
    if is_index { step.parse().ok() } else { None }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Json, E> {
        Ok(Json::integer(number))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Json, E> {
        Ok(i64::try_from(number).map_or(Json::Large, Json::integer))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Json, E> {
        Ok(Json::float(number))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Json, E> {
        Ok(Json::String(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Json, A::Error> {
        let mut read = Vec::new();
        while let Some(element) = elements.next_element()? {
            read.push(element);
        }
        read.shrink_to_fit();
        Ok(Json::Array(read))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Json, A::Error> {
        let mut read = Vec::new();
        while let Some(name) = members.next_key::<String>()? {
            if read.is_empty() && name == NUMBER {
                let Spelled(number) = members.next_value()?;
                return Ok(number);
            }
            read.push((name, members.next_value()?));
        }
        read.shrink_to_fit();
        Ok(Json::Object(read))
    }
}

/// A number that `serde_json` gives as its text.
struct Spelled(Json);

impl<'de> Deserialize<'de> for Spelled {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Spelling)
    }
}

struct Spelling;

impl Visitor<'_> for Spelling {
    type Value = Spelled;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number")
    }

    /// A string of the body, written by a client under the name that means a number here.
    fn visit_str<E: Error>(self, _: &str) -> Result<Spelled, E> {
        Err(E::custom("no number"))
    }

    // The parser's own are owned.
    fn visit_string<E: Error>(self, text: String) -> Result<Spelled, E> {
        Json::number(&text).map(Spelled).ok_or_else(|| E::custom("no number"))
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Integer(number) => serializer.serialize_i64(*number),
            Self::Float(number) => serializer.serialize_f64(*number),
            Self::Large => Err(serde::ser::Error::custom("a number that readers read differently")),
            Self::String(text) => serializer.serialize_str(text),
            Self::Array(elements) => serializer.collect_seq(elements),
            Self::Object(members) => {
                let mut map = serializer.serialize_map(Some(members.len()))?;
                for (name, value) in members {
                    map.serialize_entry(name, value)?;
                }
                map.end()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Json, Repeated};

    fn read(body: &str) -> Option<Json> {
        Json::read(body.as_bytes())
    }

    fn string(text: &str) -> Json {
        Json::String(text.to_owned())
    }

    #[test]
    fn pointers_lead_to_members_and_elements() {
        let value = read(r#"{"a":{"b/c":[1,"x"],"":null},"m~n":true,"0":"zero"}"#).unwrap();
        let at = |pointer| value.pointer(pointer).unwrap().cloned();
        assert_eq!(at(""), Some(value.clone()));
        assert_eq!(at("/a/b~1c/1"), Some(string("x")));
        assert_eq!(at("/a/"), Some(Json::Null));
        assert_eq!(at("/m~0n"), Some(Json::Bool(true)));
        assert_eq!(at("/0"), Some(string("zero")));
        for nowhere in ["a", "/", "/b", "/a/b~1c/2", "/a/b~1c/01", "/a/b~1c/+1", "/a/b~1c/-", "/a/b~1c/", "/m~0n/x"] {
            assert_eq!(at(nowhere), None, "{nowhere}");
        }
    }

    #[test]
    fn a_member_that_is_repeated_on_the_way_leads_nowhere() {
        let value = read(r#"{"a":1,"a":2,"b":{"c":3,"\u0063":4},"d":5}"#).unwrap();
        for repeated in ["/a", "/b/c", "/a/x"] {
            assert_eq!(value.pointer(repeated), Err(Repeated), "{repeated}");
        }
        assert_eq!(value.pointer("/d"), Ok(Some(&Json::Integer(5))));
    }

    #[test]
    fn names_of_the_parser_s_own_are_names() {
        let raw = read(r#"{"$serde_json::private::RawValue":"{\"amount\":1}"}"#).unwrap();
        assert_eq!(raw.pointer("/$serde_json::private::RawValue"), Ok(Some(&string(r#"{"amount":1}"#))));
        // A number in name only.
        assert_eq!(read(r#"{"$serde_json::private::Number":"1"}"#), None);
        assert_eq!(read(r#"{"$serde_json::private::Number":"\u0031"}"#), None);
    }

    #[test]
    fn numbers_are_kept_as_far_as_all_readers_read_them_alike() {
        for (text, expected) in [
            ("0", Json::Integer(0)),
            ("-9007199254740992", Json::Integer(-(1 << 53))),
            ("0.5", Json::Float(0.5)),
            ("1e2", Json::Float(100.0)),
            ("9007199254740993", Json::Large),
            ("-9007199254740993", Json::Large),
            ("18446744073709551615", Json::Large),
            ("18446744073709551617", Json::Large),
            ("-340282366920938463463374607431768211455", Json::Large),
            ("1e300", Json::Large),
        ] {
            assert_eq!(read(text), Some(expected.clone()), "{text}");
            assert_eq!(Json::number(text), Some(expected), "{text}");
        }
        for text in ["", "NaN", "Infinity", "1 2", "01", "+1"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
