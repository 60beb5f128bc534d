//! JSON bodies in the one spelling of RFC 8785.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// The largest magnitude up to which every integer is a number of JavaScript, and RFC 8785 therefore keeps it.
const LARGEST_EXACT: u64 = 1 << 53;

/// The canonical spelling of `body`. `None` where there is none that says the same: it is no JSON, an object names a
/// member twice, or an integer is so large that the canonical spelling would round it.
pub(super) fn canonical(body: &[u8]) -> Option<Vec<u8>> {
    let value = parse(body)?;
    serde_json_canonicalizer::to_vec(&value).ok()
}

/// The canonical spelling of what these JSON pointers lead to, `None` for each that leads nowhere. `None` altogether where
/// `body` has no canonical spelling.
pub(super) fn fields(body: &[u8], pointers: &[String]) -> Option<Vec<Option<Vec<u8>>>> {
    let value = parse(body)?;
    let field = |pointer: &String| value.pointer(pointer).map(serde_json_canonicalizer::to_vec).transpose().ok();
    pointers.iter().map(field).collect()
}

/// The value of `body`, if its canonical spelling says the same.
fn parse(body: &[u8]) -> Option<Value> {
    let Unambiguous = serde_json::from_slice(body).ok()?;
    serde_json::from_slice(body).ok()
}

/// Takes any JSON of which readers agree what it says.
struct Unambiguous;

impl<'de> Deserialize<'de> for Unambiguous {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Unambiguous {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON without duplicate members and without integers beyond 2^53")
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Self, E> {
        if number.unsigned_abs() <= LARGEST_EXACT { Ok(self) } else { Err(E::custom("a large integer")) }
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self, E> {
        if number <= LARGEST_EXACT { Ok(self) } else { Err(E::custom("a large integer")) }
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_unit<E: Error>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self, A::Error> {
        while elements.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self, A::Error> {
        let mut names = HashSet::new();
        while let Some(name) = members.next_key::<String>()? {
            if !names.insert(name) {
                return Err(A::Error::custom("a duplicate member"));
            }
            members.next_value::<Self>()?;
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::canonical;

    fn text(body: &str) -> Option<String> {
        canonical(body.as_bytes()).map(|bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn order_space_and_the_spelling_of_numbers_and_strings_do_not_count() {
        let expected = Some(r#"{"a":[1,100,"é"],"b":null}"#.to_owned());
        assert_eq!(text(r#"{"a":[1,100,"é"],"b":null}"#), expected);
        assert_eq!(text(" {\"b\" : null ,\n\"a\":[1.0, 1e2, \"\\u00e9\"]} "), expected);
    }

    #[test]
    fn what_readers_read_differently_has_no_canonical_spelling() {
        for body in [
            r#"{"a":1,"a":1}"#,
            r#"[{"a":1,"\u0061":2}]"#,
            "9007199254740993",
            "-9007199254740993",
            "18446744073709551616000000000000000000000e999",
            "{",
            "",
            "1 2",
            "\u{feff}1",
        ] {
            assert_eq!(text(body), None, "{body}");
        }
    }
}
