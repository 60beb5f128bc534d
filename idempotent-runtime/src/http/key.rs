//! The key of a request: how it is read, and what reaches the handler.

use std::fmt;
use std::sync::Arc;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use sfv::visitor::Ignored;
use sfv::{BareItemFromInput, Parser};

use super::content;
use super::json::{Json, Target};
use crate::engine::scope;
use crate::key::{IntoKey, Key, KeyEncoder};

/// The name of the header that carries the key.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// What a service asks of the keys of its clients, beyond what the header allows.
///
/// ```
/// use idempotent_runtime::http::KeyFormat;
///
/// let format = KeyFormat::matching(|key| key.starts_with("order-"));
/// assert!(format.accepts("order-7"));
/// assert!(!KeyFormat::uuid().accepts("order-7"));
/// ```
#[derive(Clone)]
pub struct KeyFormat(Arc<dyn Fn(&str) -> bool + Send + Sync>);

impl KeyFormat {
    /// UUIDs of any version, in the form with hyphens.
    pub fn uuid() -> Self {
        const WITH_HYPHENS: usize = 36;
        Self::matching(|key| key.len() == WITH_HYPHENS && uuid::Uuid::try_parse(key).is_ok())
    }

    /// At least this many octets.
    pub fn min_length(octets: usize) -> Self {
        Self::matching(move |key| key.len() >= octets)
    }

    /// Those for which `accepts` is true.
    pub fn matching(accepts: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(accepts))
    }

    /// Whether `key` is of this format.
    pub fn accepts(&self, key: &str) -> bool {
        (self.0)(key)
    }
}

impl fmt::Debug for KeyFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyFormat(…)")
    }
}

/// Where keys come from, and which are accepted.
#[derive(Clone, Debug)]
pub(super) struct KeyRules {
    pub(super) header: HeaderName,
    pub(super) structured_only: bool,
    pub(super) longest: usize,
    pub(super) format: Option<KeyFormat>,
    /// A JSON pointer into the body, in place of the header.
    pub(super) in_body: Option<Arc<str>>,
}

impl Default for KeyRules {
    fn default() -> Self {
        Self {
            header: IDEMPOTENCY_KEY,
            structured_only: false,
            longest: 255,
            format: None,
            in_body: None,
        }
    }
}

/// Why there is no usable key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

impl KeyRules {
    /// The key in the header, `None` without one.
    pub(super) fn of_headers(&self, headers: &HeaderMap) -> Result<Option<String>, Malformed> {
        let mut lines = headers.get_all(&self.header).iter();
        let Some(line) = lines.next() else { return Ok(None) };
        if lines.next().is_some() {
            return Err(Malformed("the header is there more than once"));
        }
        let key = if self.structured_only || line.as_bytes().trim_ascii().starts_with(b"\"") {
            structured(line)?
        } else {
            bare(line)?
        };
        self.check(key).map(Some)
    }

    /// The key in the body at `pointer`, `None` without one.
    ///
    /// That there is none is said only where no handler can find one either: the body is empty, or
    /// it is JSON, is sent as JSON, and has nothing at the place. A handler may read what this
    /// cannot, so everything else is malformed.
    pub(super) fn of_body(
        &self,
        pointer: &str,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Option<String>, Malformed> {
        if body.is_empty() {
            return Ok(None);
        }
        let Some(value) = Json::read(body) else {
            return Err(Malformed("the body cannot be read as JSON"));
        };
        match value.pointer(pointer) {
            Target::Found(Json::String(key))
                if key.bytes().all(|byte| (b' '..=b'~').contains(&byte)) =>
            {
                self.check(key.clone()).map(Some)
            }
            Target::Found(Json::Null) | Target::Absent(_) | Target::Astray(_, Json::Null) => {
                if content::may_be_json(headers) {
                    Ok(None)
                } else {
                    Err(Malformed("the body is not sent as JSON"))
                }
            }
            Target::Found(_) => {
                Err(Malformed("the field is no string of printable ASCII characters"))
            }
            Target::Repeated => Err(Malformed("the field is there more than once")),
            Target::Astray(..) => {
                Err(Malformed("the field would be in a value that has no fields"))
            }
        }
    }

    fn check(&self, key: String) -> Result<String, Malformed> {
        if key.trim_ascii().is_empty() {
            return Err(Malformed("it is blank"));
        }
        if key.len() > self.longest {
            return Err(Malformed("it is too long"));
        }
        if self.format.as_ref().is_some_and(|format| !format.accepts(&key)) {
            return Err(Malformed("it is not of the format that this service asks for"));
        }
        Ok(key)
    }
}

/// A structured field whose item is a string. Its parameters say nothing about the key.
fn structured(line: &HeaderValue) -> Result<String, Malformed> {
    let mut key = None;
    let item = |item: BareItemFromInput<'_>| {
        if let BareItemFromInput::String(string) = item {
            key = Some(string.into_owned());
        }
        Ok::<_, std::convert::Infallible>(Ignored)
    };
    Parser::new(line.as_bytes())
        .parse_item_with_visitor(item)
        .map_err(|_| Malformed("it is no string of a structured field"))?;
    key.map(String::from).ok_or(Malformed("it is no string of a structured field"))
}

/// What many clients send: the key without quotes.
fn bare(line: &HeaderValue) -> Result<String, Malformed> {
    let bytes = line.as_bytes();
    if bytes.iter().any(|byte| !byte.is_ascii_graphic() || b"\",;\\".contains(byte)) {
        return Err(Malformed(
            "without quotes it is made of visible ASCII characters other than `\"`, `,`, `;` and `\\`",
        ));
    }
    Ok(bytes.iter().copied().map(char::from).collect())
}

/// The key of the request that runs, and whose it is.
///
/// The layer puts it into the extensions of the request, and the feature `axum` makes it an
/// extractor. In functions that the handler calls, [`current`](Self::current) finds it. As a part
/// of a key it stands for all that names the request's record: the layer's
/// [operation](super::IdempotencyLayer::with_operation), scope and key together, so that two
/// tenants with one key are two, and so are two routes whose layers have records of their own:
///
/// ```
/// # use std::time::Duration;
/// # use idempotent_runtime::{Error, Idempotency};
/// use idempotent_runtime::http::IdempotencyKey;
///
/// # async fn example(engine: &Idempotency) -> Result<(), Error> {
/// let call = engine.call("mail.receipt", IdempotencyKey::current()).ttl(Duration::from_secs(86_400));
/// # call.run(|| async { Ok::<_, Error>(()) }).await
/// # }
/// ```
///
/// `Debug` does not show it: keys are not for logs.
#[derive(Clone, PartialEq, Eq)]
pub struct IdempotencyKey(Arc<Parts>);

#[derive(PartialEq, Eq)]
struct Parts {
    operation: Arc<str>,
    key: String,
    scope: Option<Key>,
}

impl IdempotencyKey {
    pub(super) fn new(operation: Arc<str>, key: String, scope: Option<Key>) -> Self {
        Self(Arc::new(Parts { operation, key, scope }))
    }

    /// The key of the request whose handler runs the current code, `None` outside of one.
    pub fn current() -> Option<Self> {
        scope::Scope::current().request().cloned()
    }

    /// The key as the client means it: without quotes.
    pub fn as_str(&self) -> &str {
        &self.0.key
    }

    /// Whose key it is, for `scope = …` and [`Call::scope`](crate::Call::scope) of calls inside of
    /// the handler. The request's own record is under what the layer's [`Scope`](super::Scope)
    /// gives, and not under this.
    pub fn scope(&self) -> RequestScope {
        RequestScope(self.clone())
    }

    pub(super) fn tenant(&self) -> Option<Key> {
        self.0.scope.clone()
    }
}

impl IntoKey for IdempotencyKey {
    fn encode(&self, encoder: &mut KeyEncoder) {
        encoder.tuple(|parts| {
            parts.add(&*self.0.operation).add(&self.scope()).add(self.as_str());
        });
    }
}

impl fmt::Debug for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdempotencyKey({} octets)", self.as_str().len())
    }
}

/// Whose request it is, as the layer's [`Scope`](super::Scope) says. Made by
/// [`IdempotencyKey::scope`].
#[derive(Clone, PartialEq, Eq)]
pub struct RequestScope(IdempotencyKey);

impl IntoKey for RequestScope {
    fn encode(&self, encoder: &mut KeyEncoder) {
        match &self.0.0.scope {
            None => encoder.bytes(&[]),
            // A scope that cannot be used was refused before the handler.
            Some(scope) => match scope.as_scope(usize::MAX) {
                Ok(bytes) => encoder.bytes(bytes),
                Err(_) => encoder.missing(),
            },
        }
    }
}

impl fmt::Debug for RequestScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RequestScope(…)")
    }
}

#[cfg(test)]
mod tests {
    use http::header::{HeaderMap, HeaderValue};

    use super::{IDEMPOTENCY_KEY, KeyRules};

    fn read(rules: &KeyRules, line: &[u8]) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.insert(IDEMPOTENCY_KEY, HeaderValue::from_bytes(line).unwrap());
        rules.of_headers(&headers).ok().flatten()
    }

    #[test]
    fn quoted_and_bare_keys_are_one() {
        let rules = KeyRules::default();
        for line in ["\"abc\"", "abc", " \"abc\" ", "\"abc\";a=1;b"] {
            assert_eq!(read(&rules, line.as_bytes()).as_deref(), Some("abc"), "{line}");
        }
        assert_eq!(read(&rules, br#""a\"b\\c""#).as_deref(), Some(r#"a"b\c"#));
        assert_eq!(read(&rules, b"\" abc\"").as_deref(), Some(" abc"));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let rules = KeyRules::default();
        for line in [
            &b""[..],
            b"\"\"",
            b"\"  \"",
            b"\"abc",
            b"abc\"",
            b"a b",
            b"a,b",
            b"\"a\", \"b\"",
            b"a;b",
            b"\"a\\b\"",
            b"\xe9",
            b"\"\xe9\"",
            b"a\tb",
        ] {
            assert_eq!(read(&rules, line), None, "{}", line.escape_ascii());
        }
    }

    #[test]
    fn a_structured_field_is_a_string() {
        let rules = KeyRules { structured_only: true, ..KeyRules::default() };
        for line in ["abc", "12", "?1", ":YWJj:", "(\"abc\")"] {
            assert_eq!(read(&rules, line.as_bytes()), None, "{line}");
        }
        assert_eq!(read(&rules, b"\"abc\"").as_deref(), Some("abc"));
    }
}
