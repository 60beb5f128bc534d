//! JSON bodies as values, independent of their spelling (R32, R33).

use std::collections::HashSet;

use super::json::{Json, Target};

/// Returns the same bytes for bodies of the same value. Returns `None` if readers differ in what
/// the value is: the body is not JSON, or an object names a member twice.
///
/// The order of members, white space and the spelling of strings and numbers do not count, as in
/// RFC 8785. But numbers are compared as decimals here, not rounded to floats first.
pub(super) fn canonical(body: &[u8]) -> Option<Vec<u8>> {
    unambiguous(body).map(|value| bytes(&value))
}

/// Returns the bytes of the value at each of these JSON pointers, `None` for a pointer that leads
/// nowhere. Returns `None` altogether if readers differ in what the body is.
///
/// If a value on the way has no members, that value and its depth count, marked as not found.
/// Readers take an array for a struct, with its fields in order, so the pointer's field may be in
/// it; and they take `null` for a whole that is removed. If the way ends in an object without the
/// member, the depth counts: that object is a value too, which may replace another one. An array on
/// the way counts as one, because `{"0": …}` has a member where it has an element.
pub(super) fn fields(body: &[u8], pointers: &[String]) -> Option<Vec<Option<Vec<u8>>>> {
    let value = unambiguous(body)?;
    let field = |pointer: &String| {
        let mut arrays = Vec::new();
        let field = match value.follow(pointer, |depth| arrays.push(depth)) {
            Target::Found(field) => Some(bytes(field)),
            Target::Astray(depth, value) => Some(ended(b'?', depth, &bytes(value))),
            Target::Absent(0) | Target::Repeated => None,
            Target::Absent(depth) => Some(ended(b'-', depth, &[])),
        };
        if arrays.is_empty() { field } else { Some(through(&arrays, field.as_deref())) }
    };
    Some(pointers.iter().map(field).collect())
}

/// Encodes a field whose way leads through arrays, by the steps before each. No value has this tag,
/// and no field is empty.
fn through(arrays: &[usize], field: Option<&[u8]>) -> Vec<u8> {
    let mut bytes = vec![b'@'];
    encode_count(arrays.len(), &mut bytes);
    for depth in arrays {
        encode_count(*depth, &mut bytes);
    }
    bytes.extend(field.unwrap_or_default());
    bytes
}

/// Encodes a way that ends before its last step. No value has this tag.
fn ended(tag: u8, depth: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    encode_count(depth, &mut bytes);
    bytes.extend(value);
    bytes
}

fn unambiguous(body: &[u8]) -> Option<Json<'_>> {
    Json::read(body).filter(names_are_unique)
}

fn names_are_unique(value: &Json<'_>) -> bool {
    match value {
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => true,
        Json::Array(elements) => elements.iter().all(names_are_unique),
        Json::Object(members) => {
            let mut names = HashSet::with_capacity(members.len());
            members.iter().all(|(name, value)| names.insert(name) && names_are_unique(value))
        }
    }
}

fn bytes(value: &Json<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(value, &mut bytes);
    bytes
}

/// Appends `value` so that no two values have the same bytes: every value begins with a tag, and
/// everything without a fixed length has a length or an end mark that occurs nowhere else.
fn encode(value: &Json<'_>, bytes: &mut Vec<u8>) {
    match value {
        Json::Null => bytes.push(b'n'),
        Json::Bool(false) => bytes.push(b'f'),
        Json::Bool(true) => bytes.push(b't'),
        Json::Number(number) => {
            bytes.push(b'd');
            number.encode(bytes);
        }
        Json::String(text) => {
            bytes.push(b's');
            encode_text(text, bytes);
        }
        Json::Array(elements) => {
            bytes.push(b'a');
            encode_count(elements.len(), bytes);
            for element in elements {
                encode(element, bytes);
            }
        }
        Json::Object(members) => {
            bytes.push(b'o');
            encode_count(members.len(), bytes);
            let mut members: Vec<_> = members.iter().collect();
            members.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
            for (name, value) in members {
                encode_text(name, bytes);
                encode(value, bytes);
            }
        }
    }
}

fn encode_count(count: usize, bytes: &mut Vec<u8>) {
    bytes.extend((count as u64).to_be_bytes());
}

fn encode_text(text: &str, bytes: &mut Vec<u8>) {
    encode_count(text.len(), bytes);
    bytes.extend(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::{canonical, fields};

    fn of(body: &str) -> Option<Vec<u8>> {
        canonical(body.as_bytes())
    }

    #[test]
    fn order_space_and_the_spelling_of_numbers_and_strings_do_not_count() {
        let expected = of(r#"{"a":[1,100,"é"],"b":null}"#);
        assert!(expected.is_some());
        assert_eq!(of(" {\"b\" : null ,\n\"a\":[1.0, 1e2, \"\\u00e9\"]} "), expected);
        assert_eq!(of(r#"["\ud83d\ude00\/"]"#), of(r#"["😀/"]"#));
    }

    /// Stored records are compared with these bytes.
    #[test]
    fn the_bytes_are_what_released_versions_computed() {
        let bytes = of(r#"{"b":[-12.50,true,false,null],"a":"é"}"#).unwrap();
        let expected = b"o\0\0\0\0\0\0\0\x02\
            \0\0\0\0\0\0\0\x01as\0\0\0\0\0\0\0\x02\xc3\xa9\
            \0\0\0\0\0\0\0\x01ba\0\0\0\0\0\0\0\x04d\x01\xff\xff\xff\xff\xff\xff\xff\xff125\0tfn";
        assert_eq!(bytes.escape_ascii().to_string(), expected.escape_ascii().to_string());
    }

    #[test]
    fn what_a_string_says_is_no_part_of_the_body() {
        let nested = r#"{"$serde_json::private::RawValue":"{\"amount\":1}"}"#;
        assert_ne!(of(nested), of(r#"{"amount":1}"#));
        assert_ne!(of(nested), None);
    }

    #[test]
    fn what_readers_read_differently_is_no_value() {
        for body in [
            r#"{"a":1,"a":1}"#,
            r#"[{"a":1,"\u0061":2}]"#,
            "1e999",
            "{",
            "",
            "1 2",
            "\u{feff}1",
            r#"["\ud800"]"#,
        ] {
            assert_eq!(of(body), None, "{body}");
            assert_eq!(fields(body.as_bytes(), &["/a".to_owned()]), None, "{body}");
        }
    }

    #[test]
    fn an_element_is_not_the_member_whose_name_is_its_index() {
        for (pointer, array, object) in [
            ("/0/amount", r#"[{"amount":1}]"#, r#"{"0":{"amount":1}}"#),
            ("/items/0", r#"{"items":[1]}"#, r#"{"items":{"0":1}}"#),
            ("/items/0", r#"{"items":[]}"#, r#"{"items":{}}"#),
            ("/0", "[]", "{}"),
            ("/0/amount", "[]", "{}"),
            ("/0/amount", "[{}]", r#"{"0":{}}"#),
            ("/0/amount", "[5]", r#"{"0":5}"#),
            ("/0/0", "[[1]]", r#"[{"0":1}]"#),
            ("/0/0", "[[1]]", r#"{"0":[1]}"#),
            ("/0/0", r#"[{"0":1}]"#, r#"{"0":[1]}"#),
            ("/0/0", "[[]]", "[{}]"),
        ] {
            let of = |body: &str| fields(body.as_bytes(), &[pointer.to_owned()]).unwrap();
            assert_ne!(of(array), of(object), "{pointer} {array} {object}");
        }
    }

    #[test]
    fn what_surrounds_an_element_does_not_count() {
        let of = |body: &str| fields(body.as_bytes(), &["/items/0/id".to_owned()]).unwrap();
        assert_eq!(of(r#"{"items":[{"id":1,"b":2},3],"a":4}"#), of(r#"{"items":[{"id":1.0}]}"#));
    }

    /// The value of a body, as the property compares it: numbers are counted in tenths of
    /// thousandths.
    #[derive(Clone, Debug, PartialEq)]
    enum Value {
        Null,
        Bool(bool),
        Number(i64),
        String(String),
        Array(Vec<Value>),
        Object(BTreeMap<String, Value>),
    }

    /// Few of each kind, so that two values are often equal or nearly so.
    fn value() -> impl Strategy<Value = Value> {
        let text = || {
            proptest::sample::select(vec!["", "a", "b", "ab", "\"", "é", "1", "null", "\0"])
                .prop_map(str::to_owned)
        };
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            (-3..4_i64).prop_map(|number| Value::Number(number * 10_000)),
            // More digits than a float has.
            proptest::sample::select(vec![
                1,
                -1,
                12_500,
                900_719_925_474_099_300,
                900_719_925_474_099_301
            ])
            .prop_map(Value::Number),
            text().prop_map(Value::String),
        ];
        leaf.prop_recursive(3, 12, 3, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
                proptest::collection::btree_map(text(), inner, 0..3).prop_map(Value::Object),
            ]
        })
    }

    /// Returns one of the spellings of `value`, chosen by the bits of `taste`.
    fn spell(value: &Value, taste: &mut u64) -> String {
        let mut choice = |of: u64| {
            *taste = taste
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (*taste >> 33) % of
        };
        let space = ["", " ", "\n\t"][usize::try_from(choice(3)).unwrap()];
        let text = |text: &str, escaped: bool| {
            if escaped {
                let units: Vec<_> =
                    text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
                let units = units.concat();
                format!("\"{units}\"")
            } else {
                serde_json::to_string(text).unwrap()
            }
        };
        let spelled = match value {
            Value::Null => "null".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Number(number) => match choice(3) {
                0 => format!("{number}e-4"),
                1 => format!(
                    "{}{}.{:04}0",
                    if *number < 0 { "-" } else { "" },
                    number.abs() / 10_000,
                    number.abs() % 10_000
                ),
                _ => format!("{number}.00E-4"),
            },
            Value::String(value) => text(value, choice(2) == 0),
            Value::Array(elements) => {
                let elements: Vec<_> =
                    elements.iter().map(|element| spell(element, taste)).collect();
                format!("[{space}{}]", elements.join(","))
            }
            Value::Object(members) => {
                let is_turned = choice(2) == 0;
                let escaped = choice(2) == 0;
                let mut members: Vec<_> = members
                    .iter()
                    .map(|(name, value)| {
                        format!("{}{space}:{}", text(name, escaped), spell(value, taste))
                    })
                    .collect();
                if is_turned {
                    members.reverse();
                }
                format!("{{{}{space}}}", members.join(","))
            }
        };
        format!("{space}{spelled}{space}")
    }

    proptest! {
        #[test]
        fn equal_bytes_are_equal_values(one in value(), other in value(), taste in any::<u64>()) {
            let mut taste = taste;
            let (this, that) = (spell(&one, &mut taste), spell(&other, &mut taste));
            prop_assert!(of(&this).is_some(), "{}", this);
            prop_assert_eq!(of(&this) == of(&that), one == other, "{} {}", this, that);
        }

        #[test]
        fn every_spelling_of_a_value_has_the_same_bytes(value in value(), taste in any::<u64>()) {
            let mut taste = taste;
            let (this, that) = (spell(&value, &mut taste), spell(&value, &mut taste));
            prop_assert_eq!(of(&this), of(&that), "{} {}", this, that);
        }
    }
}
