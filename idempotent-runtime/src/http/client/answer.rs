//! Responses: which of them settle a request, and the pause after the others.

use std::time::{Duration, SystemTime};

use http::header::{DATE, HeaderName, RETRY_AFTER};
use http::{StatusCode, response};

use crate::http::headers::{IDEMPOTENCY_PROBLEM, STRIPE_SHOULD_RETRY};
use crate::http::{HeaderNames, ProblemKind};

/// The verdict of a response on another attempt of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repetition {
    /// True if the service requires another attempt, false if it excludes one. Nothing overrides
    /// this.
    Ruled(bool),
    /// True if the status alone means that the response can change.
    ByStatus(bool),
}

pub(super) fn repetition(answer: &response::Parts, names: &HeaderNames) -> Repetition {
    // A response from a record does not change. A request that ran without a record would run
    // again.
    if names.mark_final(&answer.headers) {
        return Repetition::Ruled(false);
    }
    // Either an operator has to decide, or the request itself is wrong.
    let settled =
        [ProblemKind::Uncertain, ProblemKind::NotKept, ProblemKind::Expired, ProblemKind::Mismatch];
    let is_settled = |name| {
        text(answer, name).is_some_and(|problem| settled.iter().any(|kind| kind.name() == problem))
    };
    // The usual name counts too, because nothing else uses it.
    if is_settled(names.problem()) || is_settled(&IDEMPOTENCY_PROBLEM) {
        return Repetition::Ruled(false);
    }
    let is_error = answer.status.is_client_error() || answer.status.is_server_error();
    let says = |expected: &[u8]| {
        let mut words = answer.headers.get_all(STRIPE_SHOULD_RETRY).iter();
        words.any(|word| word.as_bytes().trim_ascii().eq_ignore_ascii_case(expected))
    };
    if says(b"false") {
        return Repetition::Ruled(false);
    }
    if is_error && says(b"true") {
        return Repetition::Ruled(true);
    }
    Repetition::ByStatus(matches!(
        answer.status,
        StatusCode::REQUEST_TIMEOUT
            // The service gives no reason: the first attempt may still be running (R69).
            | StatusCode::CONFLICT
            | StatusCode::TOO_EARLY
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    ))
}

/// Returns the delay that the service requires. `now` is used if the response has no date of its
/// own.
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

    use super::{Repetition, repetition, retry_after};
    use crate::http::HeaderNames;

    fn answer(status: u16, headers: &[(&str, &str)]) -> response::Parts {
        let answer =
            headers.iter().fold(Response::builder().status(status), |answer, (name, value)| {
                answer.header(*name, *value)
            });
        answer.body(()).unwrap().into_parts().0
    }

    #[test]
    fn only_what_passes_is_asked_again() {
        let of = |status, headers: &[(&str, &str)]| {
            repetition(&answer(status, headers), &HeaderNames::new())
        };
        let later = ("retry-after", "1");
        for status in [408, 409, 425, 429, 502, 503, 504] {
            assert_eq!(of(status, &[]), Repetition::ByStatus(true), "{status}");
            for marker in ["idempotency-replayed", "idempotent-replayed", "idempotency-bypassed"] {
                assert_eq!(
                    of(status, &[(marker, "true"), later]),
                    Repetition::Ruled(false),
                    "{status} with {marker}"
                );
            }
            for kind in ["uncertain", "not-kept", "expired", "mismatch"] {
                assert_eq!(
                    of(status, &[("idempotency-problem", kind), later]),
                    Repetition::Ruled(false),
                    "{kind}"
                );
            }
            for kind in ["in-progress", "unavailable", "something-else"] {
                assert_eq!(
                    of(status, &[("idempotency-problem", kind)]),
                    Repetition::ByStatus(true),
                    "{kind}"
                );
            }
        }
        for status in [200, 201, 204, 301, 400, 401, 403, 404, 410, 413, 422, 500, 501, 505] {
            assert_eq!(of(status, &[later]), Repetition::ByStatus(false), "{status}");
        }
    }

    #[test]
    fn markers_of_other_names_count_beside_the_usual_ones() {
        let names = HeaderNames::new()
            .with_replayed("x-replayed")
            .and_then(|names| names.with_bypassed("x-open"))
            .unwrap();
        for marker in ["x-replayed", "x-open", "idempotency-replayed", "idempotency-bypassed"] {
            assert_eq!(
                repetition(&answer(503, &[(marker, "true")]), &names),
                Repetition::Ruled(false),
                "{marker}"
            );
        }
    }

    #[test]
    fn seconds_and_dates_say_when() {
        // Sun, 06 Nov 1994 08:49:37 GMT
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
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
            assert_eq!(
                wait(&[("retry-after", value)]),
                expected.map(Duration::from_secs),
                "{value}"
            );
        }
        // A date is on the clock of the service, whose `Date` is therefore the reference.
        let skewed = [
            ("retry-after", "Sun, 06 Nov 1994 09:50:37 GMT"),
            ("date", "Sun, 06 Nov 1994 09:50:30 GMT"),
        ];
        assert_eq!(wait(&skewed), Some(Duration::from_secs(7)));
    }
}
