//! What a retry must repeat of the first request.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{IF_MATCH, IF_UNMODIFIED_SINCE};
use http::request::Parts;
use sha2::{Digest as _, Sha256};

use super::canonical_json;
use crate::fingerprint::Fingerprint;

/// What a retry must repeat; a request with the same key that differs in it is refused (422).
///
/// Always: the method, the path, `If-Match` and `If-Unmodified-Since`. The query, unless
/// [`without_query`](Self::without_query). And the body in one of these ways:
///
/// ```
/// use idempotent_runtime::http::RequestFingerprint;
///
/// let bytes = RequestFingerprint::body(); // the default
/// let value = RequestFingerprint::json();
/// let fields = RequestFingerprint::fields(["/amount", "/currency"]);
/// let nothing = RequestFingerprint::custom(|_request, _body| Vec::new());
/// ```
#[derive(Clone, Debug)]
pub struct RequestFingerprint {
    payload: Payload,
    query: bool,
    version: u8,
}

type Custom = dyn Fn(&Parts, &Bytes) -> Vec<u8> + Send + Sync;

#[derive(Clone)]
enum Payload {
    Body,
    Json,
    Fields(Arc<[String]>),
    Custom(Arc<Custom>),
}

impl Payload {
    fn name(&self) -> &'static str {
        match self {
            Self::Body => "body",
            Self::Json => "json",
            Self::Fields(_) => "fields",
            Self::Custom(_) => "custom",
        }
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl RequestFingerprint {
    /// Every byte of the body. Clients that write the same JSON in another order are refused.
    pub fn body() -> Self {
        Self::new(Payload::Body, 1)
    }

    /// The JSON value of the body: neither the order of members nor white space nor the spelling of numbers and strings
    /// count (RFC 8785). Every byte of it where readers would read it differently: it names a member twice, has a
    /// number beyond 2⁵³, or is no JSON at all.
    pub fn json() -> Self {
        Self::new(Payload::Json, 2)
    }

    /// The values that these JSON pointers (RFC 6901) lead to in the body, `"/amount"` for example; a value that is
    /// missing differs from `null`. Every byte of the body where readers would read it differently, as in
    /// [`json`](Self::json).
    pub fn fields<P: Into<String>>(pointers: impl IntoIterator<Item = P>) -> Self {
        Self::new(Payload::Fields(pointers.into_iter().map(Into::into).collect()), 3)
    }

    /// What `payload` makes of the head and the body of the request.
    pub fn custom(payload: impl Fn(&Parts, &Bytes) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::new(Payload::Custom(Arc::new(payload)), 4)
    }

    fn new(payload: Payload, version: u8) -> Self {
        Self { payload, query: true, version }
    }

    /// Leaves the query out: two requests that differ in it alone are the same.
    #[must_use]
    pub fn without_query(mut self) -> Self {
        self.query = false;
        self
    }

    /// The number that is stored beside the fingerprint: those of different versions are never compared. Change it, for
    /// as long as older records live, with everything that changes the fingerprints of unchanged requests: other fields,
    /// another function, the query in or out. The default is 1 for [`body`](Self::body), 2 for [`json`](Self::json), 3
    /// for [`fields`](Self::fields) and 4 for [`custom`](Self::custom), so a change from one to another needs nothing.
    #[must_use]
    pub fn version(mut self, version: u8) -> Self {
        self.version = version;
        self
    }

    /// The fingerprint of one request.
    pub(super) fn of(&self, request: &Parts, body: &Bytes) -> Fingerprint {
        let mut hash = Hash(Sha256::new_with_prefix(b"idempotency/http/1"));
        hash.part(request.method.as_str().as_bytes());
        hash.part(request.uri.path().as_bytes());
        hash.maybe(request.uri.query().filter(|_| self.query).map(str::as_bytes));
        for precondition in [IF_MATCH, IF_UNMODIFIED_SINCE] {
            let values = request.headers.get_all(precondition);
            hash.count(values.iter().count());
            values.iter().for_each(|value| hash.part(value.as_bytes()));
        }
        hash.part(self.payload.name().as_bytes());
        match &self.payload {
            Payload::Body => hash.part(body),
            Payload::Json => hash.value_or_bytes(canonical_json::canonical(body).as_deref(), body),
            Payload::Fields(pointers) => match canonical_json::fields(body, pointers) {
                None => hash.value_or_bytes(None, body),
                Some(fields) => hash.fields(pointers, &fields),
            },
            Payload::Custom(payload) => hash.part(&payload(request, body)),
        }
        Fingerprint { version: self.version, bits: hash.bits() }
    }
}

impl Default for RequestFingerprint {
    fn default() -> Self {
        Self::body()
    }
}

/// Parts with their lengths in front, so that no two lists of parts have the same bytes.
struct Hash(Sha256);

impl Hash {
    fn count(&mut self, count: usize) {
        self.0.update((count as u64).to_be_bytes());
    }

    fn part(&mut self, part: &[u8]) {
        self.count(part.len());
        self.0.update(part);
    }

    fn maybe(&mut self, part: Option<&[u8]>) {
        self.0.update([u8::from(part.is_some())]);
        if let Some(part) = part {
            self.part(part);
        }
    }

    fn value_or_bytes(&mut self, value: Option<&[u8]>, bytes: &[u8]) {
        self.maybe(value);
        if value.is_none() {
            self.part(bytes);
        }
    }

    fn fields(&mut self, pointers: &[String], fields: &[Option<Vec<u8>>]) {
        self.count(pointers.len());
        for (pointer, field) in pointers.iter().zip(fields) {
            self.part(pointer.as_bytes());
            self.maybe(field.as_deref());
        }
    }

    fn bits(self) -> u128 {
        let hash: [u8; 32] = self.0.finalize().into();
        let mut bits = [0; 16];
        bits.copy_from_slice(&hash[..16]);
        u128::from_be_bytes(bits)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::Request;

    use super::RequestFingerprint;
    use crate::fingerprint::Fingerprint;

    fn of(fingerprint: &RequestFingerprint, body: &'static str) -> Fingerprint {
        let (head, ()) = Request::post("/pay?a=1").body(()).unwrap().into_parts();
        fingerprint.of(&head, &Bytes::from_static(body.as_bytes()))
    }

    /// Stored records are compared with it.
    #[test]
    fn the_hash_is_what_released_versions_computed() {
        let bits = |fingerprint| format!("{:032x}", of(&fingerprint, r#"{"b":1,"a":"x"}"#).bits);
        assert_eq!(bits(RequestFingerprint::body()), "8f2b143ef8ae4b0816e3ff306891adcb");
        assert_eq!(bits(RequestFingerprint::json()), "4bed268393152436529666e49b1bab37");
        assert_eq!(bits(RequestFingerprint::fields(["/a"]).without_query()), "5af1915c863417c48be36b36fcb5770c");
        assert_eq!(bits(RequestFingerprint::custom(|_, body| body.to_vec())), "5f7293e281579cb52fbeb9a0ea843176");
    }

    #[test]
    fn a_missing_field_is_not_null() {
        let fields = RequestFingerprint::fields(["/a", "/b/0"]);
        let all = [r#"{"a":1}"#, r#"{"a":1,"b":[null]}"#, r#"{"b":[1]}"#, "{}", "[]", r#"{"a":1,"a":1}"#];
        for (index, one) in all.iter().enumerate() {
            for other in &all[..index] {
                let same = [*one, *other].iter().all(|body| ["{}", "[]"].contains(body));
                assert_eq!(of(&fields, one) == of(&fields, other), same, "{one} {other}");
            }
        }
        assert_eq!(of(&fields, r#"{"a":1,"c":1}"#), of(&fields, r#"{"c":2,"a":1.0}"#));
    }
}
