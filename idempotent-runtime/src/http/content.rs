//! The type and the encoding of a request's body, as its headers declare them.

use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue};
use mime::Mime;

/// Returns the type of the body in one spelling, or `None` if no header declares it.
///
/// Type, subtype, the names of parameters and the value of `charset` are in lower case, and
/// parameters are sorted by name. Parameters of the same name keep their order, because a reader
/// may take the first of them or the last. A value that is not a media type is only trimmed.
pub(super) fn content_type(headers: &HeaderMap, counts: impl Fn(&str) -> bool) -> Option<Vec<u8>> {
    let line = lines(headers, CONTENT_TYPE)?;
    let Some(media_type) = media_type(&line) else { return Some(line) };
    let mut parameters: Vec<_> =
        media_type.params().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    parameters.retain(|(name, _)| counts(name));
    parameters.sort_by(|(one, _), (other, _)| one.cmp(other));
    let mut text = media_type.essence_str().to_owned();
    for (name, value) in parameters {
        // Always quoted, whether the request quoted it or not.
        text.extend([";", &name, "=\"", &value, "\""]);
    }
    Some(text.into_bytes())
}

/// Returns the encoding of the body (compression or encryption) in lower case, or `None` if it has
/// none.
pub(super) fn content_encoding(headers: &HeaderMap) -> Option<Vec<u8>> {
    let line = lines(headers, CONTENT_ENCODING)?.to_ascii_lowercase();
    let codings: Vec<_> = line.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).collect();
    if codings.iter().all(|coding| coding.is_empty() || *coding == b"identity") {
        None
    } else {
        Some(codings.join(&b','))
    }
}

/// Returns true if a body that is JSON is meant to be read as JSON: it has no type or a type of
/// JSON, and no encoding.
pub(super) fn may_be_json(headers: &HeaderMap) -> bool {
    let is_json = |line: Vec<u8>| {
        media_type(&line).is_some_and(|media_type| {
            let essence = media_type.essence_str();
            ["application/json", "text/json"].contains(&essence)
                || media_type.suffix().is_some_and(|it| it == mime::JSON)
        })
    };
    lines(headers, CONTENT_TYPE).is_none_or(is_json) && content_encoding(headers).is_none()
}

fn media_type(line: &[u8]) -> Option<Mime> {
    let text = std::str::from_utf8(line).ok()?;
    // `mime` takes no white space before a semicolon, which RFC 9110, section 5.6.6, allows.
    text.parse().or_else(|_| close_semicolons(text).parse()).ok()
}

/// Removes the white space before the semicolons outside of quotes.
fn close_semicolons(text: &str) -> String {
    let (mut closed, mut is_quoted, mut is_escaped) = (String::new(), false, false);
    for character in text.chars() {
        if character == ';' && !is_quoted {
            closed.truncate(closed.trim_end_matches([' ', '\t']).len());
        }
        is_quoted ^= character == '"' && !is_escaped;
        is_escaped = is_quoted && character == '\\' && !is_escaped;
        closed.push(character);
    }
    closed
}

/// Joins the lines of one header, each without the white space around it.
fn lines(headers: &HeaderMap, name: HeaderName) -> Option<Vec<u8>> {
    let lines: Vec<_> =
        headers.get_all(name).iter().map(HeaderValue::as_bytes).map(<[u8]>::trim_ascii).collect();
    (!lines.is_empty()).then(|| lines.join(&b", "[..]))
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use http::header::{CONTENT_ENCODING, CONTENT_TYPE};

    use super::{content_encoding, content_type, may_be_json};

    fn typed(lines: &[&'static str]) -> HeaderMap {
        lines.iter().map(|line| (CONTENT_TYPE, line.parse().unwrap())).collect()
    }

    fn spelled(line: &'static str) -> Option<String> {
        content_type(&typed(&[line]), |_| true).map(|text| String::from_utf8(text).unwrap())
    }

    #[test]
    fn a_type_has_one_spelling() {
        for (line, expected) in [
            ("application/json", "application/json"),
            ("Application/JSON ", "application/json"),
            ("text/plain; Charset=UTF-8", "text/plain;charset=\"utf-8\""),
            ("text/plain;charset=\"UTF-8\"", "text/plain;charset=\"utf-8\""),
            ("text/plain; b=2; A=X", "text/plain;a=\"X\";b=\"2\""),
            ("text/plain ; charset=utf-8 ;a=1", "text/plain;a=\"1\";charset=\"utf-8\""),
            ("text/plain ; a=\"x ;\"", "text/plain;a=\"x ;\""),
            ("text/plain; a=\"x;b=\"; b=2", "text/plain;a=\"x;b=\";b=\"2\""),
            ("text/plain; b=2; a=1; B=1", "text/plain;a=\"1\";b=\"2\";b=\"1\""),
            ("application/vnd.a+JSON", "application/vnd.a+json"),
            ("JSON", "JSON"),
            ("text/plain; a", "text/plain; a"),
            ("", ""),
        ] {
            assert_eq!(spelled(line).as_deref(), Some(expected), "{line}");
        }
        assert_eq!(content_type(&HeaderMap::new(), |_| true), None);
        let two = content_type(&typed(&["text/plain", "text/html"]), |_| true);
        assert_eq!(two.as_deref(), Some(&b"text/plain, text/html"[..]));
        let form = typed(&["multipart/form-data; boundary=x; a=1"]);
        let without = content_type(&form, |parameter| parameter != "boundary");
        assert_eq!(without.as_deref(), Some(&b"multipart/form-data;a=\"1\""[..]));
    }

    #[test]
    fn a_body_that_is_encoded_or_of_another_type_is_no_json() {
        for (line, is_json) in [
            ("application/json", true),
            ("Application/Json; charset=utf-8", true),
            ("application/json ; charset=utf-8", true),
            ("text/json", true),
            ("application/problem+json", true),
            ("application/json-seq", false),
            ("application/x-ndjson", false),
            ("application/x-www-form-urlencoded", false),
            ("text/plain", false),
            ("application/json, text/plain", false),
            ("json", false),
            ("", false),
        ] {
            assert_eq!(may_be_json(&typed(&[line])), is_json, "{line}");
        }
        assert!(may_be_json(&HeaderMap::new()));
        assert!(!may_be_json(&typed(&["application/json", "application/json"])));
        for (lines, encoding) in [
            (&[][..], None),
            (&["identity"], None),
            (&["", "IDENTITY , "], None),
            (&["GZIP"], Some("gzip")),
            (&["gzip ,BR"], Some("gzip,br")),
            (&["gzip", "br"], Some("gzip,br")),
            (&["identity,gzip"], Some("identity,gzip")),
        ] {
            let headers: HeaderMap =
                lines.iter().map(|line| (CONTENT_ENCODING, line.parse().unwrap())).collect();
            assert_eq!(
                content_encoding(&headers).as_deref(),
                encoding.map(str::as_bytes),
                "{lines:?}"
            );
            assert_eq!(may_be_json(&headers), encoding.is_none(), "{lines:?}");
        }
    }
}
