//! The key of a request: parsing, validation, and what the handler gets.

use std::fmt;
use std::sync::Arc;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use sfv::visitor::Ignored;
use sfv::{BareItemFromInput, Parser};

use super::content;
use super::json::{Json, Target};
use crate::edge::Extensions;
use crate::key::{IntoKey, Key, KeyEncoder};

/// The name of the header that carries the key.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The format that a service requires of its clients' keys, beyond what the header allows.
///
/// ```
/// use idempotency::http::KeyFormat;
///
/// let format = KeyFormat::matching(|key| key.starts_with("order-"));
/// assert!(format.accepts("order-7"));
/// assert!(!KeyFormat::uuid().accepts("order-7"));
/// ```
#[derive(Clone)]
pub struct KeyFormat(Arc<dyn Fn(&str) -> bool + Send + Sync>);

impl KeyFormat {
    /// Accepts UUIDs of any version, in the form with hyphens.
    pub fn uuid() -> Self {
        const WITH_HYPHENS: usize = 36;
        Self::matching(|key| key.len() == WITH_HYPHENS && uuid::Uuid::try_parse(key).is_ok())
    }

    /// Accepts keys of at least this many octets.
    pub fn min_length(octets: usize) -> Self {
        Self::matching(move |key| key.len() >= octets)
    }

    /// Accepts keys for which `accepts` returns true.
    pub fn matching(accepts: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(accepts))
    }

    /// Returns true if `key` has this format.
    pub fn accepts(&self, key: &str) -> bool {
        (self.0)(key)
    }
}

impl fmt::Debug for KeyFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyFormat(…)")
    }
}

/// Rules for keys: their source, and which ones are accepted.
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

/// The reason why a key cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

impl KeyRules {
    /// Returns the key in the header, or `None` without one.
    pub(super) fn of_headers(&self, headers: &HeaderMap) -> Result<Option<String>, Malformed> {
        let mut lines = headers.get_all(&self.header).iter();
        let Some(line) = lines.next() else { return Ok(None) };
        if lines.next().is_some() {
            // R6.
            return Err(Malformed("the header is present more than once"));
        }
        // R1, R2: a key without quotes is accepted unless a structured field is required.
        let key = if self.structured_only || line.as_bytes().trim_ascii().starts_with(b"\"") {
            structured(line)?
        } else {
            bare(line)?
        };
        self.check(key).map(Some)
    }

    /// Returns the key in the body at `pointer`, or `None` without one.
    ///
    /// `None` is returned only if no handler can find a key either: the body is empty, or it is
    /// JSON, is sent as JSON, and has nothing at that place. Everything else is malformed, because
    /// a handler may be able to read what this cannot.
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
                Err(Malformed("the field is not a string of printable ASCII characters"))
            }
            Target::Repeated => Err(Malformed("the field is present more than once")),
            Target::Astray(..) => {
                Err(Malformed("the field would be in a value that has no fields"))
            }
        }
    }

    /// Returns the reason to refuse a request in which no key was found at its place, and another
    /// place has one. Its client believes that it is protected, so passing it on would mislead it.
    ///
    /// `is_keyed` is true if a layer in front guards it. The usual header may then be that layer's.
    pub(super) fn misplaced(&self, headers: &HeaderMap, is_keyed: bool) -> Option<Malformed> {
        let may_be_of_front = is_keyed && self.header == IDEMPOTENCY_KEY;
        if self.in_body.is_some() && headers.contains_key(&self.header) && !may_be_of_front {
            return Some(Malformed("it is in the header, and this service takes it from the body"));
        }
        let is_usual = !is_keyed && headers.contains_key(IDEMPOTENCY_KEY);
        is_usual.then_some(Malformed(
            "it is in `Idempotency-Key`, and this service takes it from another place",
        ))
    }

    fn check(&self, key: String) -> Result<String, Malformed> {
        // R3. Nothing is trimmed from the key itself (R9).
        if key.trim_ascii().is_empty() {
            return Err(Malformed("it is blank"));
        }
        // R4.
        if key.len() > self.longest {
            return Err(Malformed("it is too long"));
        }
        // R8.
        if self.format.as_ref().is_some_and(|format| !format.accepts(&key)) {
            return Err(Malformed("it does not have the format that this service requires"));
        }
        Ok(key)
    }
}

/// Parses a structured field whose item is a string (R1). Its parameters are not part of the key
/// (R7).
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
        .map_err(|_| Malformed("it is not a string of a structured field"))?;
    key.map(String::from).ok_or(Malformed("it is not a string of a structured field"))
}

/// Parses a key without quotes, which many clients send (R2). Everything with another meaning in a
/// structured field is rejected (R5, R6).
fn bare(line: &HeaderValue) -> Result<String, Malformed> {
    let bytes = line.as_bytes();
    if bytes.iter().any(|byte| !byte.is_ascii_graphic() || b"\",;\\".contains(byte)) {
        return Err(Malformed(
            "without quotes it must consist of visible ASCII characters other than `\"`, `,`, `;` \
             and `\\`",
        ));
    }
    Ok(bytes.iter().copied().map(char::from).collect())
}

/// The key of the running request, and its scope.
///
/// The layer inserts it into the extensions of the request, and with the feature `axum` it is an
/// extractor. Functions that the handler calls find it with [`current`](Self::current).
///
/// As a part of another key it represents everything that names the request's record: the
/// [namespace](crate::Builder::namespace) of the layer's engine, the layer's
/// [operation](super::IdempotencyLayer::with_operation), the scope and the key. So two tenants with
/// the same key remain distinct, and so do two routes whose layers have separate records, and two
/// services in one process that call the same function. Two stores are not distinguished: give
/// engines on different stores different namespaces if their handlers share guarded functions.
///
/// ```
/// # use std::time::Duration;
/// # use idempotency::{Error, Idempotency};
/// use idempotency::http::IdempotencyKey;
///
/// # async fn example(engine: &Idempotency) -> Result<(), Error> {
/// let call = engine.call("mail.receipt", IdempotencyKey::current()).ttl(Duration::from_secs(86_400));
/// # call.run(|| async { Ok::<_, Error>(()) }).await
/// # }
/// ```
///
/// `Debug` does not show the key: keys must not appear in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct IdempotencyKey(Arc<Parts>);

#[derive(PartialEq, Eq)]
struct Parts {
    namespace: Arc<str>,
    operation: Arc<str>,
    key: String,
    scope: Option<Key>,
}

impl IdempotencyKey {
    pub(super) fn new(
        namespace: Arc<str>,
        operation: Arc<str>,
        key: String,
        scope: Option<Key>,
    ) -> Self {
        Self(Arc::new(Parts { namespace, operation, key, scope }))
    }

    /// Returns the key of the request whose handler runs the current code, or `None` outside of a
    /// handler, and in the handler of a request without a key.
    pub fn current() -> Option<Self> {
        Extensions::current().get().cloned()
    }

    /// Calls `function` with `key` as the [current](Self::current) one.
    pub(super) fn scoped<R>(key: Option<&Self>, function: impl FnOnce() -> R) -> R {
        if Extensions::current().get() == key {
            return function();
        }
        Extensions::scope(key.cloned(), function)
    }

    /// Returns the key without quotes. It is unique only together with the [scope](Self::scope): to
    /// another service, send a key that is [derived](crate::Context::derive_key), which contains both.
    pub fn as_str(&self) -> &str {
        &self.0.key
    }

    /// Returns the scope of the key, for `scope = …` and [`Call::scope`](crate::Call::scope) of
    /// calls inside the handler. The request's own record is stored under the value that the
    /// layer's [`Scope`](super::Scope) returns, not under this one.
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
            parts.add(&*self.0.namespace).add(&*self.0.operation);
            parts.add(&self.scope()).add(self.as_str());
        });
    }
}

impl fmt::Debug for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // R47: never the key itself.
        write!(f, "IdempotencyKey({} octets)", self.as_str().len())
    }
}

/// The scope of a request, as determined by the layer's [`Scope`](super::Scope). Returned by
/// [`IdempotencyKey::scope`].
#[derive(Clone, PartialEq, Eq)]
pub struct RequestScope(IdempotencyKey);

impl IntoKey for RequestScope {
    fn encode(&self, encoder: &mut KeyEncoder) {
        match &self.0.0.scope {
            None => encoder.bytes(&[]),
            // An invalid scope was refused before the handler.
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
