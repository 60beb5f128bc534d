//! Which headers are stored and replayed, and the ones that the layer adds.

use std::time::SystemTime;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode, response};

use super::BoxError;
use crate::clock::Timestamp;

/// `true` on an answer that was replayed from its record.
pub const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// Until when a retry is answered from the record: an HTTP date, in the store's time.
pub const IDEMPOTENCY_KEY_EXPIRES: HeaderName = HeaderName::from_static("idempotency-key-expires");

/// `true` on an answer to a request that had a key and ran without protection: the store did not answer and the layer
/// fails open, or the operation is [disabled](crate::Idempotency::disable).
pub const IDEMPOTENCY_BYPASSED: HeaderName = HeaderName::from_static("idempotency-bypassed");

const MARKERS: HeaderValue =
    HeaderValue::from_static("Idempotency-Replayed, Idempotency-Key-Expires, Idempotency-Bypassed");

/// Replayed unless the service says otherwise: they describe the body or the resource, not the exchange.
pub(super) const REPLAYED: [HeaderName; 11] = [
    header::CACHE_CONTROL,
    header::CONTENT_DISPOSITION,
    header::CONTENT_ENCODING,
    header::CONTENT_LANGUAGE,
    header::CONTENT_LOCATION,
    header::CONTENT_TYPE,
    header::ETAG,
    header::LAST_MODIFIED,
    header::LINK,
    header::LOCATION,
    header::VARY,
];

/// Never replayed: they are about one connection, one client or one moment.
const NEVER: [HeaderName; 21] = [
    header::AUTHORIZATION,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::DATE,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::SET_COOKIE,
    header::COOKIE,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::WWW_AUTHENTICATE,
    HeaderName::from_static("authentication-info"),
    HeaderName::from_static("proxy-authentication-info"),
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("set-cookie2"),
    IDEMPOTENCY_REPLAYED,
    IDEMPOTENCY_KEY_EXPIRES,
    IDEMPOTENCY_BYPASSED,
];

/// Whether a header may be replayed at all.
pub(super) fn may_be_replayed(name: &HeaderName) -> bool {
    !NEVER.contains(name)
}

/// The headers that may be replayed, repeated ones repeatedly. What `Connection` names belongs to the connection.
pub(super) fn replayable(headers: &HeaderMap) -> Vec<(&HeaderName, &HeaderValue)> {
    let of_connection = |name: &HeaderName| {
        headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.split(',').any(|named| named.trim().eq_ignore_ascii_case(name.as_str())))
    };
    headers.iter().filter(|(name, _)| may_be_replayed(name) && !of_connection(name)).collect()
}

/// How many bytes the response says that its body has.
pub(super) fn declared_length(response: &response::Parts) -> Option<u64> {
    // These may name the length of a body that they do not have.
    if matches!(response.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        return None;
    }
    response.headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Why a body breaks off that has another length than the response says.
pub(super) fn not_whole() -> BoxError {
    BoxError::from("the body has another length than the response says")
}

/// A time that dates can name: of the year 9999 at the latest.
pub(super) fn nameable(time: Timestamp) -> SystemTime {
    const LATEST: Timestamp = Timestamp::from_millis(253_402_300_799_000);
    SystemTime::from(time.min(LATEST))
}

/// Tells until when the answer is kept.
pub(super) fn mark_expiry(headers: &mut HeaderMap, expires: Timestamp) {
    let date = httpdate::fmt_http_date(nameable(expires));
    if let Ok(date) = HeaderValue::try_from(date) {
        mark(headers, IDEMPOTENCY_KEY_EXPIRES, date);
    }
}

/// Tells that the request ran without protection.
pub(super) fn mark_bypassed(headers: &mut HeaderMap) {
    mark(headers, IDEMPOTENCY_BYPASSED, HeaderValue::from_static("true"));
}

/// A response from the record, as it is sent. `None`: it has so many headers that there is no room for the marker, which
/// the client goes by.
pub(super) fn replay(mut response: Response<Bytes>, expires: Timestamp) -> Option<Response<Bytes>> {
    let headers = response.headers_mut();
    let is_marked = mark(headers, IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
    mark_expiry(headers, expires);
    is_marked.then_some(response)
}

/// Adds a marker and lets browsers read it, where there is room: a handler may have filled the map up.
fn mark(headers: &mut HeaderMap, name: HeaderName, value: HeaderValue) -> bool {
    let is_marked = headers.try_insert(name, value).is_ok();
    let is_exposed = headers.get_all(header::ACCESS_CONTROL_EXPOSE_HEADERS).iter().any(|exposed| exposed == MARKERS);
    if !is_exposed {
        // Without it the answer is the same, and a script cannot tell that it is one of ours.
        let _ = headers.try_append(header::ACCESS_CONTROL_EXPOSE_HEADERS, MARKERS);
    }
    is_marked
}
