//! Headers: those that are stored and replayed, and those that the layer adds.

use std::time::SystemTime;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode, response};

use super::BoxError;
use super::names::HeaderNames;
use super::problem::ProblemKind;
use crate::clock::Timestamp;

/// The header that is `true` on a response replayed from its record.
pub const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// The header with the time until which a retry is answered from the record: an HTTP date, in the
/// store's time.
pub const IDEMPOTENCY_KEY_EXPIRES: HeaderName = HeaderName::from_static("idempotency-key-expires");

/// The header that is `true` on the response to a request that had a key and ran without
/// protection: the store was not available and the layer fails open, or the operation is
/// [disabled](crate::Idempotency::disable).
pub const IDEMPOTENCY_BYPASSED: HeaderName = HeaderName::from_static("idempotency-bypassed");

/// The header with the reason why the layer refused a request: the [name](ProblemKind::name) of the
/// kind. It shows a client that reads only heads which conflicts are temporary.
pub const IDEMPOTENCY_PROBLEM: HeaderName = HeaderName::from_static("idempotency-problem");

/// The name of [`IDEMPOTENCY_REPLAYED`] in Stripe's API.
pub(super) const STRIPE_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// The header that says, with `true` or `false`, whether a client of Stripe's API should send the
/// request again.
pub(super) const STRIPE_SHOULD_RETRY: HeaderName = HeaderName::from_static("stripe-should-retry");

/// Headers that are replayed by default: they describe the body or the resource, not the exchange
/// (R16).
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

/// Headers that are never replayed: they belong to one connection, one client or one moment (R17).
pub(super) const NEVER: [HeaderName; 18] = [
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
];

/// Headers that only the layers write, under their usual names.
const WRITTEN: [HeaderName; 6] = [
    IDEMPOTENCY_REPLAYED,
    IDEMPOTENCY_KEY_EXPIRES,
    IDEMPOTENCY_BYPASSED,
    IDEMPOTENCY_PROBLEM,
    STRIPE_REPLAYED,
    STRIPE_SHOULD_RETRY,
];

/// Returns true if a header may be replayed at all.
pub(super) fn may_be_replayed(name: &HeaderName) -> bool {
    !NEVER.contains(name) && !WRITTEN.contains(name)
}

/// Returns the headers that may be replayed, including repetitions. A header that `Connection`
/// names belongs to the connection.
pub(super) fn replayable(headers: &HeaderMap) -> Vec<(&HeaderName, &HeaderValue)> {
    let of_connection = |name: &HeaderName| {
        headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok()).any(
            |value| value.split(',').any(|named| named.trim().eq_ignore_ascii_case(name.as_str())),
        )
    };
    headers.iter().filter(|(name, _)| may_be_replayed(name) && !of_connection(name)).collect()
}

/// Returns true if a response with this status has no content.
pub(super) fn is_without_content(status: StatusCode) -> bool {
    matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED)
}

/// Returns true if a server sends nothing of the response's body, even if there is one.
pub(super) fn is_without_body(response: &response::Parts) -> bool {
    is_without_content(response.status) || declared_length(response) == Some(0)
}

/// Returns the length in bytes that the response declares for its body. A response
/// [without a body](is_without_body) may declare the length of one that it does not have.
pub(super) fn declared_length(response: &response::Parts) -> Option<u64> {
    response.headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The error of a body whose length differs from the declared one.
pub(super) fn not_whole() -> BoxError {
    BoxError::from("the body has a different length than the response declares")
}

/// Clamps a time to what dates can express: the end of the year 9999.
pub(super) fn nameable(time: Timestamp) -> SystemTime {
    const LATEST: Timestamp = Timestamp::from_millis(253_402_300_799_000);
    SystemTime::from(time.min(LATEST))
}

/// The headers that a layer adds to responses, under the names that the service chose.
#[derive(Clone, Debug)]
pub(super) struct Markers {
    pub(super) names: HeaderNames,
    /// The headers that browsers may read (R50).
    exposed: HeaderValue,
    /// True if they address clients of Stripe's API too.
    to_stripe: bool,
}

impl Markers {
    pub(super) fn new(names: HeaderNames, to_stripe: bool) -> Self {
        let should_retry = STRIPE_SHOULD_RETRY;
        let stripe = to_stripe.then_some(&should_retry);
        let exposed: Vec<_> =
            names.written().into_iter().chain(stripe).map(HeaderName::as_str).collect();
        // Names and commas: always a valid header value.
        let exposed = HeaderValue::try_from(exposed.join(", "))
            .unwrap_or_else(|_| HeaderValue::from_static(""));
        Self { names, exposed, to_stripe }
    }

    /// The same markers under other names.
    pub(super) fn renamed(&self, names: HeaderNames) -> Self {
        Self::new(names, self.to_stripe)
    }

    /// Returns true if the layer writes the header, so that it is not replayed.
    pub(super) fn contain(&self, name: &HeaderName) -> bool {
        WRITTEN.contains(name) || self.names.written().contains(&name)
    }

    /// Adds a marker and exposes it to browsers. Returns false if there is no room for the marker:
    /// a handler may have filled the map.
    fn mark(&self, headers: &mut HeaderMap, name: &HeaderName, value: HeaderValue) -> bool {
        let is_marked = headers.try_insert(name, value).is_ok();
        let is_exposed = headers
            .get_all(header::ACCESS_CONTROL_EXPOSE_HEADERS)
            .iter()
            .any(|exposed| exposed == self.exposed);
        if !is_exposed {
            // Without it the response is still correct, but a script cannot see its markers.
            let _ = headers.try_append(header::ACCESS_CONTROL_EXPOSE_HEADERS, self.exposed.clone());
        }
        is_marked
    }

    /// Marks the response as final for clients of Stripe's API: a repetition changes nothing, or
    /// must not happen.
    fn end(&self, headers: &mut HeaderMap) {
        if self.to_stripe {
            self.mark(headers, &STRIPE_SHOULD_RETRY, HeaderValue::from_static("false"));
        }
    }

    /// Adds the time until which the response is stored (R58).
    pub(super) fn expiry(&self, headers: &mut HeaderMap, expires: Timestamp) {
        let date = httpdate::fmt_http_date(nameable(expires));
        if let Ok(date) = HeaderValue::try_from(date) {
            self.mark(headers, self.names.expires(), date);
        }
    }

    /// Marks the response as one that ran without protection. Returns false if there is no room for
    /// the marker, which clients rely on.
    #[must_use]
    pub(super) fn bypassed(&self, headers: &mut HeaderMap) -> bool {
        headers.remove(self.names.expires());
        let is_marked = self.mark(headers, self.names.bypassed(), HeaderValue::from_static("true"));
        self.end(headers);
        is_marked
    }

    /// Adds the reason for a refusal, and removes the markers of replayed and stored responses.
    /// Returns false if there is no room for the marker, which clients rely on.
    #[must_use]
    pub(super) fn refused(&self, headers: &mut HeaderMap, kind: ProblemKind) -> bool {
        for name in self.names.written().into_iter().chain([&IDEMPOTENCY_PROBLEM]) {
            headers.remove(name);
        }
        self.mark(headers, self.names.problem(), HeaderValue::from_static(kind.name()))
    }

    /// Prepares a response from the record for sending (R14). Returns `None` if it has so many
    /// headers that there is no room for the marker, which the client relies on.
    pub(super) fn replay(
        &self,
        mut response: Response<Bytes>,
        expires: Timestamp,
    ) -> Option<Response<Bytes>> {
        let headers = response.headers_mut();
        // The record may have been written under other names, or contain the markers of an upstream
        // service.
        for name in self.names.written() {
            headers.remove(name);
        }
        let is_marked = self.mark(headers, self.names.replayed(), HeaderValue::from_static("true"));
        self.end(headers);
        self.expiry(headers, expires);
        is_marked.then_some(response)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{HeaderMap, HeaderValue, Response};

    use super::{Markers, NEVER, STRIPE_SHOULD_RETRY};
    use crate::clock::Timestamp;
    use crate::error::ErrorKind;
    use crate::http::HeaderNames;

    #[test]
    fn a_name_that_cannot_be_one_or_that_is_another_headers_is_refused_when_it_is_set() {
        let not_names = ["", "a b", "ä", "a:b"];
        let of_others = [
            "authorization",
            "Content-Type",
            "retry-after",
            "Idempotency-Problem",
            "host",
            "Expires",
        ];
        let of_others_too = [
            "content-range",
            "user-agent",
            "access-control-allow-origin",
            "sec-fetch-site",
            "origin",
        ];
        for name in [&not_names[..], &of_others, &of_others_too].concat() {
            let error = HeaderNames::new().with_key(name).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{name}");
        }
        for name in &NEVER {
            assert!(HeaderNames::new().with_bypassed(name).is_err(), "{name}");
        }
        let names = HeaderNames::new()
            .with_key("x-key")
            .and_then(|names| names.with_replayed("X-Replayed"))
            .unwrap();
        assert!(
            names.clone().with_expires("x-key").is_err()
                && names.clone().with_problem("x-replayed").is_err()
        );
        // The current name, and the usual name with its usual meaning.
        let names = names
            .with_key("x-key")
            .and_then(|names| names.with_replayed("idempotency-replayed"))
            .unwrap();
        assert_eq!(
            (names.key().as_str(), names.replayed().as_str()),
            ("x-key", "idempotency-replayed")
        );
        // Clients interpret a usual name with its usual meaning, whatever it is used for.
        let free = names
            .with_replayed("idempotent-replayed")
            .and_then(|names| names.with_problem("x-why"))
            .unwrap();
        for name in [
            "idempotency-replayed",
            "idempotent-replayed",
            "idempotency-problem",
            "idempotency-key-expires",
        ] {
            assert!(free.clone().with_bypassed(name).is_err(), "{name}");
            assert!(free.clone().with_key(name).is_err(), "{name}");
        }
        assert!(
            free.clone().with_key("idempotency-key").is_ok()
                && free.with_problem("Idempotency-Problem").is_ok()
        );
    }

    #[test]
    fn a_replay_has_no_other_marker_of_the_layer_than_its_own() {
        let names = HeaderNames::new()
            .with_bypassed("x-open")
            .and_then(|names| names.with_problem("x-why"))
            .unwrap();
        let stored = Response::builder()
            .header("x-open", "true")
            .header("x-why", "none")
            .header("etag", "\"1\"");
        let replay = Markers::new(names, false)
            .replay(stored.body(Bytes::new()).unwrap(), Timestamp::from_millis(1));
        let replay = replay.unwrap();
        let has = ["idempotency-replayed", "x-open", "x-why", "etag"]
            .map(|name| replay.headers().contains_key(name));
        assert_eq!(has, [true, false, false, true]);
    }

    #[test]
    fn what_the_layer_writes_is_exposed_and_is_nobody_elses() {
        let names = HeaderNames::new().with_replayed("x-replayed").unwrap();
        for to_stripe in [false, true] {
            let markers = Markers::new(names.clone(), to_stripe);
            let exposed = markers.exposed.to_str().unwrap();
            assert!(
                names.written().iter().all(|name| exposed.contains(name.as_str())),
                "{exposed}"
            );
            assert_eq!(exposed.contains(STRIPE_SHOULD_RETRY.as_str()), to_stripe, "{exposed}");
            let written = [
                "x-replayed",
                "idempotency-replayed",
                "idempotency-bypassed",
                "stripe-should-retry",
            ];
            assert!(written.into_iter().all(|name| markers.contain(&name.parse().unwrap())));
            assert!(!markers.contain(&"x-request-id".parse().unwrap()));
        }
    }

    #[test]
    fn only_a_response_that_ran_without_protection_is_marked_so_and_is_final_to_stripe() {
        for to_stripe in [false, true] {
            let mut headers = HeaderMap::new();
            headers.insert("idempotency-key-expires", HeaderValue::from_static("soon"));
            assert!(Markers::new(HeaderNames::new(), to_stripe).bypassed(&mut headers));
            let has = ["idempotency-bypassed", "idempotency-key-expires", "stripe-should-retry"]
                .map(|name| headers.contains_key(name));
            assert_eq!(has, [true, false, to_stripe]);
        }
    }
}
