//! JSON bodies in the one spelling of RFC 8785.

use super::json::Json;

/// The canonical spelling of `body`. `None` where there is none that says the same: it is no JSON, an object names a
/// member twice, or a number is so large that the canonical spelling would round it.
pub(super) fn canonical(body: &[u8]) -> Option<Vec<u8>> {
    let value = unambiguous(body)?;
    serde_json_canonicalizer::to_vec(&value).ok()
}

/// The canonical spelling of what these JSON pointers lead to, `None` for each that leads nowhere. `None` altogether where
/// `body` has no canonical spelling.
pub(super) fn fields(body: &[u8], pointers: &[String]) -> Option<Vec<Option<Vec<u8>>>> {
    let value = unambiguous(body)?;
    let field = |pointer: &String| {
        let field = value.pointer(pointer).ok()?;
        field.map(serde_json_canonicalizer::to_vec).transpose().ok()
    };
    pointers.iter().map(field).collect()
}

fn unambiguous(body: &[u8]) -> Option<Json> {
    Json::read(body).filter(Json::is_unambiguous)
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
    fn what_a_string_says_is_no_part_of_the_body() {
        let nested = r#"{"$serde_json::private::RawValue":"{\"amount\":1}"}"#;
        assert_eq!(text(nested).as_deref(), Some(nested));
    }

    #[test]
    fn what_readers_read_differently_has_no_canonical_spelling() {
        for body in [
            r#"{"a":1,"a":1}"#,
            r#"[{"a":1,"\u0061":2}]"#,
            "9007199254740993",
            "-9007199254740993",
            // Beyond what the parser has integers for.
            r#"{"id":18446744073709551617}"#,
            r#"{"id":340282366920938463463374607431768211457}"#,
            "9007199254740993.0",
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
