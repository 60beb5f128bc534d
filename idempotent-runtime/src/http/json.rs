//! JSON values of a body, read without loss.

use std::fmt;
use std::ops::Range;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::decimal::Decimal;

/// A JSON value.
///
/// This is not the type of `serde_json`, which rounds numbers and treats certain member names as
/// instructions. With its feature `raw_value` it also parses the text in
/// `{"$serde_json::private::RawValue": "…"}` as JSON: two different bodies become one value, and a
/// small body becomes deeper than the stack.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Json<'a> {
    Null,
    Bool(bool),
    Number(Decimal<'a>),
    String(String),
    Array(Vec<Json<'a>>),
    /// In the order of the text. Names may repeat.
    Object(Vec<(String, Json<'a>)>),
}

/// The result of following a JSON pointer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Target<'a> {
    Found(&'a Json<'a>),
    /// The place where it would be exists after this many steps, but the value does not: an object
    /// without the member, or an array that is too short.
    Absent(usize),
    /// A member on the way is repeated.
    Repeated,
    /// After this many steps, this value has no members, or none of that kind. This includes
    /// `null`: to a merge patch it differs from a missing member.
    Astray(usize, &'a Json<'a>),
}

impl<'a> Json<'a> {
    /// Returns the value of `body`. Returns `None` if it is not JSON, or is JSON on which readers
    /// do not agree: it is nested too deep, has half of a surrogate pair, or has a number that is
    /// infinite for a reader with floats.
    ///
    /// `serde_json` parses structure and strings. Numbers, which it would round, and the other
    /// scalars are taken from the text; the parser sees `null` in place of each. The result
    /// therefore does not depend on the parser's features, which any crate of a build can enable.
    pub(super) fn read(body: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(body).ok()?;
        // The worst case is a scalar of one letter and its comma: two bytes become five.
        let mut structure = String::with_capacity(text.len() / 2 * 5 + 5);
        for piece in Pieces::of(text) {
            match piece {
                Piece::Scalar(place) => {
                    scalar(&text[place])?;
                    structure.push_str("null");
                }
                Piece::Other(place) => structure.push_str(&text[place]),
            }
        }
        let mut parser = serde_json::Deserializer::from_str(&structure);
        let mut scalars = Scalars { text, pieces: Pieces::of(text) };
        let value = Reader(&mut scalars).deserialize(&mut parser).ok()?;
        parser.end().ok()?;
        Some(value)
    }

    /// Follows a JSON pointer (RFC 6901).
    pub(super) fn pointer(&self, pointer: &str) -> Target<'_> {
        self.follow(pointer, |_| {})
    }

    /// Follows a JSON pointer. Calls `in_array` for each array whose elements a step counts, with
    /// the number of steps before it.
    pub(super) fn follow(&self, pointer: &str, mut in_array: impl FnMut(usize)) -> Target<'_> {
        let Some(steps) = pointer.strip_prefix('/') else {
            return if pointer.is_empty() { Target::Found(self) } else { Target::Astray(0, self) };
        };
        let mut value = self;
        for (depth, step) in steps.split('/').enumerate() {
            let next = match value {
                Self::Object(members) => {
                    let name = step.replace("~1", "/").replace("~0", "~");
                    let mut found = members.iter().filter(|(member, _)| *member == name);
                    let first = found.next();
                    if found.next().is_some() {
                        return Target::Repeated;
                    }
                    first.map(|(_, value)| value)
                }
                Self::Array(elements) => match index(step) {
                    Some(index) => {
                        in_array(depth);
                        elements.get(index)
                    }
                    None => return Target::Astray(depth, value),
                },
                Self::Null | Self::Bool(_) | Self::Number(_) | Self::String(_) => {
                    return Target::Astray(depth, value);
                }
            };
            let Some(next) = next else { return Target::Absent(depth) };
            value = next;
        }
        Target::Found(value)
    }
}

/// Parses an array index. RFC 6901 allows neither signs nor leading zeros.
fn index(step: &str) -> Option<usize> {
    let is_index =
        step == "0" || (!step.starts_with('0') && step.bytes().all(|byte| byte.is_ascii_digit()));
    if is_index { step.parse().ok() } else { None }
}

/// Returns the scalar for a word outside of strings.
fn scalar(word: &str) -> Option<Json<'_>> {
    match word {
        "null" => Some(Json::Null),
        "true" => Some(Json::Bool(true)),
        "false" => Some(Json::Bool(false)),
        // Infinite numbers are excluded: some readers with floats reject them.
        number => Decimal::read(number).filter(Decimal::is_finite).map(Json::Number),
    }
}

/// A part of a text, as a range.
enum Piece {
    /// The text between brackets, commas, colons, white space and strings.
    Scalar(Range<usize>),
    /// One of those. A string includes its quotes, or only the first one if the text ends in it.
    Other(Range<usize>),
}

/// Splits a text into scalars and the rest, without checking that they are in valid places.
struct Pieces<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Pieces<'a> {
    fn of(text: &'a str) -> Self {
        Self { bytes: text.as_bytes(), at: 0 }
    }

    /// Returns the end of the string that begins at `start`.
    fn end_of_string(&self, start: usize) -> usize {
        let mut at = start + 1;
        while let Some(byte) = self.bytes.get(at) {
            match byte {
                b'"' => return at + 1,
                b'\\' => at += 2,
                _ => at += 1,
            }
        }
        self.bytes.len()
    }
}

impl Iterator for Pieces<'_> {
    type Item = Piece;

    // Every piece ends next to an ASCII character or at the end of the text, so its range is on
    // character boundaries. If a `\` is the last character, or precedes a character of several
    // bytes, the bytes after it are not quotes.
    fn next(&mut self) -> Option<Piece> {
        let start = self.at;
        let first = *self.bytes.get(start)?;
        let is_scalar = |byte: &u8| !b"{}[],:\" \t\r\n".contains(byte);
        if is_scalar(&first) {
            self.at = self.bytes[start..]
                .iter()
                .position(|byte| !is_scalar(byte))
                .map_or(self.bytes.len(), |n| start + n);
            return Some(Piece::Scalar(start..self.at));
        }
        self.at = if first == b'"' { self.end_of_string(start) } else { start + 1 };
        Some(Piece::Other(start..self.at))
    }
}

/// The scalars of a text, in the order in which the parser reaches them.
struct Scalars<'a> {
    text: &'a str,
    pieces: Pieces<'a>,
}

impl<'a> Iterator for Scalars<'a> {
    type Item = Json<'a>;

    fn next(&mut self) -> Option<Json<'a>> {
        self.pieces.find_map(|piece| match piece {
            Piece::Scalar(place) => scalar(&self.text[place]),
            Piece::Other(_) => None,
        })
    }
}

/// Reads a value and takes its scalars from the text.
struct Reader<'r, 'a>(&'r mut Scalars<'a>);

impl<'de, 'a> DeserializeSeed<'de> for Reader<'_, 'a> {
    type Value = Json<'a>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json<'a>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, 'a> Visitor<'de> for Reader<'_, 'a> {
    type Value = Json<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Json<'a>, E> {
        self.0.next().ok_or_else(|| E::custom("there are more scalars than the text has"))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Json<'a>, E> {
        Ok(Json::String(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Json<'a>, A::Error> {
        let mut read = Vec::new();
        while let Some(element) = elements.next_element_seed(Reader(&mut *self.0))? {
            read.push(element);
        }
        read.shrink_to_fit();
        Ok(Json::Array(read))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Json<'a>, A::Error> {
        let mut read = Vec::new();
        while let Some(name) = members.next_key::<String>()? {
            read.push((name, members.next_value_seed(Reader(&mut *self.0))?));
        }
        read.shrink_to_fit();
        Ok(Json::Object(read))
    }
}

#[cfg(test)]
mod tests {
    use super::super::decimal::Decimal;
    use super::{Json, Target};

    fn read(body: &str) -> Option<Json<'_>> {
        Json::read(body.as_bytes())
    }

    fn string(text: &str) -> Json<'static> {
        Json::String(text.to_owned())
    }

    fn number(text: &str) -> Json<'_> {
        Json::Number(Decimal::read(text).unwrap())
    }

    /// The documentation states the memory per value; `[0,0,…]` is the worst body.
    #[test]
    fn a_value_takes_no_more_than_four_words() {
        assert!(size_of::<Json<'_>>() <= 4 * size_of::<usize>());
    }

    #[test]
    fn pointers_lead_to_members_and_elements() {
        let value = read(r#"{"a":{"b/c":[1,"x"],"":null},"m~n":true,"0":"zero"}"#).unwrap();
        let at = |pointer| match value.pointer(pointer) {
            Target::Found(found) => found.clone(),
            other => panic!("{pointer} leads to {other:?}"),
        };
        assert_eq!(at(""), value);
        assert_eq!(at("/a/b~1c/0"), number("1"));
        assert_eq!(at("/a/b~1c/1"), string("x"));
        assert_eq!(at("/a/"), Json::Null);
        assert_eq!(at("/m~0n"), Json::Bool(true));
        assert_eq!(at("/0"), string("zero"));
        for (absent, depth) in
            [("/", 0), ("/b", 0), ("/b/x", 0), ("/a/b", 1), ("/a/b~1c/2", 2), ("/a/b~1c/2/x", 2)]
        {
            assert_eq!(value.pointer(absent), Target::Absent(depth), "{absent}");
        }
        assert_eq!(value.pointer("/a//x"), Target::Astray(2, &Json::Null));
        for astray in [
            "a",
            "/a/b~1c/01",
            "/a/b~1c/+1",
            "/a/b~1c/-",
            "/a/b~1c/",
            "/a/b~1c/x",
            "/m~0n/x",
            "/0/0",
            "/a//x",
            "/a//0",
        ] {
            assert!(matches!(value.pointer(astray), Target::Astray(..)), "{astray}");
        }
    }

    #[test]
    fn a_member_that_is_repeated_on_the_way_leads_nowhere() {
        let value = read(r#"{"a":1,"a":2,"b":{"c":3,"\u0063":4},"d":5}"#).unwrap();
        for repeated in ["/a", "/b/c", "/a/x"] {
            assert_eq!(value.pointer(repeated), Target::Repeated, "{repeated}");
        }
        assert_eq!(value.pointer("/d"), Target::Found(&number("5")));
    }

    #[test]
    fn names_of_the_parser_s_own_are_names() {
        for name in ["$serde_json::private::RawValue", "$serde_json::private::Number"] {
            for (written, value) in
                [(r#""1""#, string("1")), ("1", number("1")), (r#""\u0031""#, string("1"))]
            {
                let body = format!(r#"{{"{name}":{written}}}"#);
                assert_eq!(
                    read(&body),
                    Some(Json::Object(vec![(name.to_owned(), value)])),
                    "{body}"
                );
            }
        }
    }

    #[test]
    fn scalars_are_in_the_places_that_the_text_has_them_in() {
        let value =
            read(" [ null,true,\t{\"1\":-0.5e1,\"\\\"2\":[false]},\"3,4\",\r\n5 ] ").unwrap();
        let member = |name: &str, value| (name.to_owned(), value);
        let object =
            vec![member("1", number("-5")), member("\"2", Json::Array(vec![Json::Bool(false)]))];
        let expected =
            vec![Json::Null, Json::Bool(true), Json::Object(object), string("3,4"), number("5")];
        assert_eq!(value, Json::Array(expected));
        assert_eq!(read("7"), Some(number("7")));
    }

    #[test]
    fn what_is_no_json_is_not_read() {
        for body in [
            "",
            " ",
            "{",
            "1 2",
            "[1 2]",
            "[1,]",
            "[,1]",
            "[1true]",
            "[\"a\"1]",
            "[1\"a\"]",
            "{1:2}",
            "{null:2}",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "nul",
            "nulll",
            "True",
            "NaN",
            "Infinity",
            "01",
            "+1",
            "1.",
            ".5",
            "1e",
            "0x1",
            "--1",
            "1e5.5",
            "\"",
            "\"\\",
            "\"\\\"",
            "\"\\é",
            "\"\\x\"",
            "\"\t\"",
            "\"\\ud800\"",
            "\u{feff}1",
            "\u{a0}1",
            "1\u{0}",
            "1\u{b}",
            "[1]/**/",
            "//\n1",
            "é",
            "1e999",
            "-1e309",
        ] {
            assert_eq!(read(body), None, "{body}");
        }
        assert_eq!(Json::read(b"\"\xff\""), None);
        let nested = |depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(read(&nested(127)).is_some());
        assert_eq!(read(&nested(128)), None);
    }

    /// The parser that handlers use accepts and rejects the same texts, except for infinite
    /// numbers.
    #[test]
    fn it_reads_what_serde_json_reads() {
        proptest::proptest!(|(body in r#"[\[\]{},:"\\ 019eE.+\-antrufls\u{e9}]{0,12}"#)| {
            let theirs = serde_json::from_str::<serde::de::IgnoredAny>(&body);
            match read(&body) {
                Some(_) => proptest::prop_assert!(theirs.is_ok(), "{}", body),
                None => proptest::prop_assert!(serde_json::from_str::<serde_json::Value>(&body).is_err(), "{}", body),
            }
        });
    }
}
