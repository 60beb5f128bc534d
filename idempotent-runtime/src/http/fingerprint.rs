//! The fingerprint of a request: the parts that a retry must repeat.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_RANGE, HeaderMap, HeaderName, IF_MATCH, IF_UNMODIFIED_SINCE};
use http::request::Parts;
use sha2::{Digest as _, Sha256};

use super::{canonical_json, content};
use crate::key::Fingerprint;

/// The parts of a request that a retry must repeat. A request with the same key that differs in one
/// of them is refused (422).
///
/// These always count: the method, the path, the type, encoding and range of the body
/// (`Content-Type`, `Content-Encoding`, `Content-Range`) and the preconditions (`If-Match`,
/// `If-Unmodified-Since`). The query counts, unless [`without_query`](Self::without_query) is
/// called. Of the path, what a router in front has cut off counts too if the feature `axum` is on:
/// see [`without_original_path`](Self::without_original_path). Additional headers are named by
/// [`with_headers`](Self::with_headers). The body counts in one of these ways:
///
/// ```
/// use idempotency::http::RequestFingerprint;
///
/// let bytes = RequestFingerprint::body(); // the default
/// let value = RequestFingerprint::json();
/// let fields = RequestFingerprint::fields(["/amount", "/currency"]);
/// let nothing = RequestFingerprint::custom(|_request, _body| Vec::new());
/// ```
///
/// A service that changes its fingerprint names the previous one with [`formerly`](Self::formerly).
/// Otherwise retries of requests from before the change are refused.
#[derive(Clone, Debug)]
pub struct RequestFingerprint {
    payload: Payload,
    query: bool,
    /// Whether the path that the client sent counts beside the one that the layer sees.
    original_path: bool,
    headers: Arc<[HeaderName]>,
    version: u8,
    former: Vec<Self>,
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

    /// Returns true if a parameter of the content type counts. The boundary of a multipart body is
    /// different in each attempt, so the custom function, which reads such bodies itself, excludes
    /// it.
    fn counts_parameter(&self, name: &str) -> bool {
        !matches!(self, Self::Custom(_)) || name != "boundary"
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl RequestFingerprint {
    /// Compares every byte of the body. Clients that write the same JSON in another order are
    /// refused, and so are clients that generate a new boundary for each attempt of a multipart
    /// body.
    pub fn body() -> Self {
        Self::new(Payload::Body, 1)
    }

    /// Compares the JSON value of the body: the order of members, white space, and the spelling of
    /// numbers and strings do not count (RFC 8785).
    ///
    /// Every digit of a number counts: `1`, `1.0` and `10e-1` are the same number, and
    /// `1.000000000000000001` is another one, even where a float would round it.
    ///
    /// Every byte of the body is compared instead if readers would interpret it differently: it
    /// names a member twice, has a number beyond the range of floats, is nested more than 127
    /// levels deep, or is not JSON at all. The same applies if it is not sent as JSON: with a
    /// `Content-Type` other than `application/json`, `text/json` and `…+json`, or with a
    /// `Content-Encoding`. A body without a type is treated as JSON.
    pub fn json() -> Self {
        Self::new(Payload::Json, 2)
    }

    /// Compares the values at these JSON pointers (RFC 6901) in the body, for example `"/amount"`.
    /// A missing value differs from `null`.
    ///
    /// If something other than an object or an array is on the way, or an array where the pointer
    /// has a name, that whole value is compared: readers take `[100, "EUR"]` for a struct, with its
    /// fields in order. This includes `null`. An object without the member also differs from a
    /// missing object: for `"/address/city"`, `{"address": null}`, `{"address": {}}` and `{}` are
    /// three different requests. A patch may use them to remove, empty or keep the address. And for
    /// `"/items/0"`, an array of items differs from an object whose members have numbers for names.
    ///
    /// Every byte of the body is compared instead if readers would interpret it differently, and if
    /// it is not sent as JSON, as in [`json`](Self::json).
    pub fn fields<P: Into<String>>(pointers: impl IntoIterator<Item = P>) -> Self {
        Self::new(Payload::Fields(pointers.into_iter().map(Into::into).collect()), 3)
    }

    /// Compares the bytes that `payload` returns for the head and the body of the request.
    ///
    /// The `boundary` of a multipart body does not count in addition: such bodies have a different
    /// one in each attempt. A service that accepts them with keys reads them here and returns the
    /// bytes of their parts.
    pub fn custom(payload: impl Fn(&Parts, &Bytes) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::new(Payload::Custom(Arc::new(payload)), 4)
    }

    fn new(payload: Payload, version: u8) -> Self {
        Self {
            payload,
            query: true,
            original_path: true,
            headers: Arc::new([]),
            version,
            former: Vec::new(),
        }
    }

    /// Excludes the query: two requests that differ only in it are the same.
    #[must_use]
    pub fn without_query(mut self) -> Self {
        self.query = false;
        self
    }

    /// Excludes the part of the path that a router in front has cut off, as axum's `nest` does:
    /// only the path that the layer sees counts.
    ///
    /// With the feature `axum` the whole path counts, and a build without the feature does not know
    /// it. So the feature changes the fingerprint of each request that comes through such a router,
    /// also where another crate of the workspace enables it. A release that enables it names the
    /// fingerprint of the one before:
    ///
    /// ```
    /// use idempotency::http::RequestFingerprint;
    ///
    /// let fingerprint = RequestFingerprint::json()
    ///     .formerly(RequestFingerprint::json().without_original_path());
    /// ```
    ///
    /// `json().without_original_path()` is the same in every build. Requests that differ only in the
    /// part that was cut off are then one request; with `formerly`, where the record has no such part,
    /// of the earlier release or of a route that is not behind such a router. Give the layers behind such routers
    /// [operations](super::IdempotencyLayer::with_operation) of their own.
    #[must_use]
    pub fn without_original_path(mut self) -> Self {
        self.original_path = false;
        self
    }

    /// Additional headers that a retry must repeat, for handlers that read them: the version of the
    /// API, or the account on whose behalf the client acts.
    #[must_use]
    pub fn with_headers(mut self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        self.headers = names.into_iter().collect();
        self
    }

    /// Sets the version that is stored with the fingerprint and is part of it: fingerprints of two
    /// versions never match. Change it when the meaning of [`custom`](Self::custom) changes. The
    /// default is 1 for [`body`](Self::body), 2 for [`json`](Self::json), 3 for
    /// [`fields`](Self::fields) and 4 for [`custom`](Self::custom).
    #[must_use]
    pub fn version(mut self, version: u8) -> Self {
        self.version = version;
        self
    }

    /// Accepts records of an earlier release that used `former`. Such a record is compared with the
    /// fingerprint of that release, so a retry of its request is replayed and another request is
    /// still refused.
    ///
    /// It is required for as long as such records exist, and is computed for each request in
    /// addition to this one. It can be called more than once.
    ///
    /// ```
    /// use idempotency::http::RequestFingerprint;
    ///
    /// let fingerprint = RequestFingerprint::json().formerly(RequestFingerprint::body());
    /// ```
    ///
    /// Servers of the earlier release do not know the new fingerprint, and refuse retries of
    /// requests that a new server has answered. If both run for a while, first release
    /// `body().formerly(json())`, which reads both and writes the old one. Release the line above
    /// when all servers have it.
    #[must_use]
    pub fn formerly(mut self, former: Self) -> Self {
        self.former.push(former);
        self
    }

    /// The JSON pointers of this fingerprint and its former ones, each with the name of its option.
    pub(super) fn pointers(&self) -> Vec<(&'static str, &str)> {
        let own: &[String] =
            if let Payload::Fields(pointers) = &self.payload { pointers } else { &[] };
        let own = own.iter().map(|pointer| ("RequestFingerprint::fields", pointer.as_str()));
        own.chain(self.former.iter().flat_map(Self::pointers)).collect()
    }

    /// Computes the fingerprint of one request.
    pub(super) fn of(&self, request: &Parts, body: &Bytes) -> Fingerprint {
        let mut hash = Hash(Sha256::new_with_prefix(b"idempotency/http/1"));
        // R30: another method or path is another request.
        hash.part(request.method.as_str().as_bytes());
        hash.part(request.uri.path().as_bytes());
        let original = original_path(request).filter(|_| self.original_path);
        hash.maybe(original.map(str::as_bytes));
        // R31.
        if self.query {
            hash.maybe(request.uri.query().map(str::as_bytes));
        } else {
            hash.left_out();
        }
        hash.maybe(
            content::content_type(&request.headers, |name| self.payload.counts_parameter(name))
                .as_deref(),
        );
        hash.maybe(content::content_encoding(&request.headers).as_deref());
        // R46: preconditions are compared, never evaluated again.
        for name in [CONTENT_RANGE, IF_MATCH, IF_UNMODIFIED_SINCE] {
            hash.header(&request.headers, &name);
        }
        hash.count(self.headers.len());
        for name in &*self.headers {
            hash.part(name.as_str().as_bytes());
            hash.header(&request.headers, name);
        }
        hash.part(self.payload.name().as_bytes());
        // R32, R33.
        match &self.payload {
            Payload::Body => hash.part(body),
            // A handler that receives text may distinguish `1.10` from `1.1`.
            Payload::Json | Payload::Fields(_) if !content::may_be_json(&request.headers) => {
                hash.value_or_bytes(None, body);
            }
            Payload::Json => hash.value_or_bytes(canonical_json::canonical(body).as_deref(), body),
            Payload::Fields(pointers) => match canonical_json::fields(body, pointers) {
                None => hash.value_or_bytes(None, body),
                Some(fields) => hash.fields(pointers, &fields),
            },
            Payload::Custom(payload) => hash.part(&payload(request, body)),
        }
        Fingerprint { version: self.version, bits: hash.bits() }
    }

    /// The fingerprints that earlier releases computed for the same request (R35).
    pub(super) fn former(&self, request: &Parts, body: &Bytes) -> Vec<Fingerprint> {
        let mut all = Vec::new();
        for former in &self.former {
            all.push(former.of(request, body));
            all.extend(former.former(request, body));
        }
        all
    }
}

/// The path that the client sent, if a router in front has stripped a part of it: the rest can be
/// equal to the path of another route.
fn original_path(request: &Parts) -> Option<&str> {
    #[cfg(feature = "axum")]
    let original =
        request.extensions.get::<::axum::extract::OriginalUri>().map(|original| original.0.path());
    #[cfg(not(feature = "axum"))]
    let original = None;
    original.filter(|path| *path != request.uri.path())
}

impl Default for RequestFingerprint {
    fn default() -> Self {
        Self::body()
    }
}

/// A hash of length-prefixed parts, so that no two lists of parts have the same bytes.
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

    /// Marks an excluded part. It differs from an absent part, so that a former fingerprint never
    /// takes one for the other.
    fn left_out(&mut self) {
        self.0.update([2]);
    }

    fn header(&mut self, headers: &HeaderMap, name: &HeaderName) {
        let values = headers.get_all(name);
        self.count(values.iter().count());
        values.iter().for_each(|value| self.part(value.as_bytes()));
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
    use std::collections::HashMap;

    use bytes::Bytes;
    use http::Request;
    use http::header::HeaderName;

    use super::RequestFingerprint;
    use crate::key::Fingerprint;

    fn of(fingerprint: &RequestFingerprint, body: &'static str) -> Fingerprint {
        let (head, ()) = Request::post("/pay?a=1").body(()).unwrap().into_parts();
        fingerprint.of(&head, &Bytes::from_static(body.as_bytes()))
    }

    /// Stored records are compared with this hash.
    #[test]
    fn the_hash_is_what_released_versions_computed() {
        let bits = |fingerprint| format!("{:032x}", of(&fingerprint, r#"{"b":1,"a":"x"}"#).bits);
        let all = [
            bits(RequestFingerprint::body()),
            bits(RequestFingerprint::json()),
            bits(RequestFingerprint::fields(["/a"]).without_query()),
            bits(RequestFingerprint::custom(|_, body| body.to_vec())),
        ];
        let expected = [
            "45a9dc61802f420ef620131cc0384e26",
            "614c143597eaaf80d70685b6e0b43fad",
            "9ceefe94614c7ef654b9f0c0360b1674",
            "9abf861d0bacf54b81bc3c17c8e40486",
        ];
        assert_eq!(all, expected);
    }

    #[test]
    fn a_missing_field_is_not_null() {
        let fields = RequestFingerprint::fields(["/a", "/b/0"]);
        let all =
            [r#"{"a":1}"#, r#"{"a":1,"b":[null]}"#, r#"{"b":[1]}"#, "{}", "[]", r#"{"a":1,"a":1}"#];
        for (index, one) in all.iter().enumerate() {
            for other in &all[..index] {
                assert_ne!(of(&fields, one), of(&fields, other), "{one} {other}");
            }
        }
        assert_eq!(of(&fields, r#"{"a":1,"c":1}"#), of(&fields, r#"{"c":2,"a":1.0}"#));
    }

    /// The parts in which requests may differ, each in a way that no other part can compensate.
    #[test]
    fn every_part_of_a_request_counts_for_itself() {
        let plain = || Request::post("/pay?a=1");
        let headers = [
            "content-type",
            "content-encoding",
            "content-range",
            "if-match",
            "if-unmodified-since",
            "x-version",
        ];
        let mut requests = vec![
            plain(),
            Request::put("/pay?a=1"),
            Request::post("/pay"),
            Request::post("/pay?"),
            Request::post("/pay?a=2"),
            Request::post("/refund?a=1"),
        ];
        for name in headers {
            requests.push(plain().header(name, "x"));
            requests.push(plain().header(name, "x, x"));
            requests.push(plain().header(name, "y"));
            requests.push(plain().header(name, "x").header("content-language", "x"));
        }
        let ways = [
            RequestFingerprint::body(),
            RequestFingerprint::json(),
            RequestFingerprint::fields(["/a"]),
            RequestFingerprint::custom(|_, _| Vec::new()),
        ];
        let mut seen = HashMap::new();
        for way in ways {
            let way = way.with_headers([HeaderName::from_static("x-version")]);
            for (number, request) in requests.iter().enumerate() {
                let mut copy = Request::builder()
                    .method(request.method_ref().unwrap())
                    .uri(request.uri_ref().unwrap());
                *copy.headers_mut().unwrap() = request.headers_ref().unwrap().clone();
                let (head, ()) = copy.body(()).unwrap().into_parts();
                let is_other_language =
                    request.headers_ref().unwrap().contains_key("content-language");
                let before = seen.insert(way.of(&head, &Bytes::from_static(b"{}")).bits, number);
                assert_eq!(before, is_other_language.then(|| number - 3), "{request:?}");
            }
        }
    }

    #[test]
    fn a_request_without_a_query_is_not_one_whose_query_does_not_count() {
        let with = RequestFingerprint::body();
        let without = RequestFingerprint::body().without_query();
        let [bare, other] = ["/pay", "/pay?amount=5"]
            .map(|uri| Request::post(uri).body(()).unwrap().into_parts().0);
        let body = Bytes::new();
        assert_eq!(without.of(&bare, &body), without.of(&other, &body));
        // A record stored by a release that counts queries is not compared in the way of the
        // release before.
        let way = with.clone().formerly(without);
        assert!(!way.former(&other, &body).contains(&with.of(&bare, &body)));
    }

    #[test]
    fn former_ways_are_computed_with_theirs() {
        let (head, ()) = Request::post("/pay").body(()).unwrap().into_parts();
        let body = Bytes::from_static(b"{}");
        let (bytes, fields) =
            (RequestFingerprint::body(), RequestFingerprint::fields(["/a"]).version(9));
        let way = RequestFingerprint::json()
            .formerly(bytes.clone().formerly(fields.clone()))
            .formerly(bytes.clone());
        let expected = [&bytes, &fields, &bytes].map(|former| former.of(&head, &body));
        assert_eq!(way.former(&head, &body), expected);
        assert_eq!(way.of(&head, &body), RequestFingerprint::json().of(&head, &body));
    }
}
