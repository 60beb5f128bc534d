//! Which answers settle a request, and when to come back after the others.

use std::time::{Duration, SystemTime};

use http::header::{CONTENT_TYPE, DATE, HeaderName, RETRY_AFTER};
use http::{StatusCode, response};

use super::super::headers::{IDEMPOTENCY_BYPASSED, IDEMPOTENCY_REPLAYED};

/// Whether the same request can get another answer later, and is safe to send again.
pub(super) fn can_change(answer: &response::Parts) -> bool {
    // What comes from a record stays what it is. What ran without one has run, and would run again.
    if [IDEMPOTENCY_REPLAYED, IDEMPOTENCY_BYPASSED].iter().any(|marker| answer.headers.contains_key(marker)) {
        return false;
    }
    match answer.status {
        StatusCode::REQUEST_TIMEOUT
        | StatusCode::TOO_EARLY
        | StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => true,
        StatusCode::CONFLICT => is_in_progress(answer),
        _ => false,
    }
}

/// Of the conflicts that the layer of a service tells, only the one that passes says when to come back.
fn is_in_progress(answer: &response::Parts) -> bool {
    let content_type = text(answer, &CONTENT_TYPE).and_then(|value| value.split(';').next()).unwrap_or_default();
    content_type.trim().eq_ignore_ascii_case("application/problem+json") && answer.headers.contains_key(RETRY_AFTER)
}

/// How long the service asks to wait. `now` stands in for the answer's own date.
pub(super) fn retry_after(answer: &response::Parts, now: SystemTime) -> Option<Duration> {
    let value = text(answer, &RETRY_AFTER)?.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let then = httpdate::parse_http_date(value).ok()?;
    let date = text(answer, &DATE).and_then(|date| httpdate::parse_http_date(date.trim()).ok());
    Some(then.duration_since(date.unwrap_or(now)).unwrap_or_default())
}

fn text<'a>(answer: &'a response::Parts, name: &HeaderName) -> Option<&'a str> {
    answer.headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use http::{Response, response};

    use super::{can_change, retry_after};

    fn answer(status: u16, headers: &[(&str, &str)]) -> response::Parts {
        let answer = headers
            .iter()
            .fold(Response::builder().status(status), |answer, (name, value)| answer.header(*name, *value));
        answer.body(()).unwrap().into_parts().0
    }

    #[test]
    fn only_what_passes_is_asked_again() {
        let problem = ("content-type", "application/problem+json; charset=utf-8");
        let later = ("retry-after", "1");
        for status in [408, 425, 429, 502, 503, 504] {
            assert!(can_change(&answer(status, &[])), "{status}");
            for marker in ["idempotency-replayed", "idempotency-bypassed"] {
                assert!(!can_change(&answer(status, &[(marker, "true")])), "{status} with {marker}");
            }
        }
        for status in [200, 201, 204, 301, 400, 401, 403, 404, 410, 413, 422, 500, 501, 505] {
            assert!(!can_change(&answer(status, &[problem, later])), "{status}");
        }
        assert!(can_change(&answer(409, &[problem, later])));
        for headers in [&[][..], &[problem], &[later], &[later, ("content-type", "application/json")]] {
            assert!(!can_change(&answer(409, headers)), "{headers:?}");
        }
    }

    #[test]
    fn seconds_and_dates_say_when() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777); // Sun, 06 Nov 1994 08:49:37 GMT
        let wait = |headers: &[(&str, &str)]| retry_after(&answer(503, headers), now);
        assert_eq!(wait(&[]), None);
        for (value, expected) in [
            ("0", Some(0)),
            (" 120 ", Some(120)),
            ("99999999999999999999999", Some(u64::MAX)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("-1", None),
            ("1.5", None),
            ("", None),
            ("soon", None),
        ] {
            assert_eq!(wait(&[("retry-after", value)]), expected.map(Duration::from_secs), "{value}");
        }
        // The clock of the service is the one that its date is on.
        let skewed = [("retry-after", "Sun, 06 Nov 1994 09:50:37 GMT"), ("date", "Sun, 06 Nov 1994 09:50:30 GMT")];
        assert_eq!(wait(&skewed), Some(Duration::from_secs(7)));
    }
}
