//! The stored form of a response.
//!
//! ```text
//! kind 1 | until 8 | status 2 | number of headers 2 | { length 2, name, length 4, value } … | body
//! ```
//! All numbers are big-endian. The kind is 0 for a complete response. It is 1 for a response that
//! was too large, or had trailers or too many headers; such a record contains neither headers nor
//! body. `until` is the lifetime that was reported to the first caller, in milliseconds since 1970
//! of the store's time, because a store need not return it with every record. It is zero if none
//! was reported.

use bytes::{Buf as _, BufMut as _, Bytes};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use super::buffer::append;
use super::headers;
use crate::clock::Timestamp;
use crate::edge::{self, EdgeResult};
use crate::record::Resolution;

/// The version of the format, as the record's schema version.
pub(super) const FORMAT: u32 = 1;

/// The largest number of headers that are stored. A `HeaderMap` has room for 24 576 names, and a
/// replay has markers of its own.
const MOST_HEADERS: u16 = 16_384;

const WHOLE: u8 = 0;
const NOT_KEPT: u8 = 1;

/// The content of a record.
#[derive(Debug)]
pub(super) enum Stored {
    /// The response can be sent again, until this time if the record contains one.
    Whole(Response<Bytes>, Option<Timestamp>),
    /// There was a response, but it is not stored.
    NotKept,
}

/// The record of a response while it is written: its head, and the part of its body read so far.
///
/// Pieces are copied, even small ones: each would otherwise keep the buffer alive in which it was
/// received.
pub(super) struct Draft {
    bytes: Vec<u8>,
    /// The offset of the body.
    body: usize,
}

/// The place of `until`.
const UNTIL: std::ops::Range<usize> = 1..9;

impl Draft {
    /// Creates a draft. Returns `None` if there are more headers, or longer ones, than a replay can
    /// have.
    pub(super) fn new(status: StatusCode, headers: &[(&HeaderName, &HeaderValue)]) -> Option<Self> {
        let count = u16::try_from(headers.len()).ok().filter(|count| *count <= MOST_HEADERS)?;
        let mut bytes = Vec::with_capacity(256);
        bytes.put_u8(WHOLE);
        bytes.put_u64(0);
        bytes.put_u16(status.as_u16());
        bytes.put_u16(count);
        for (name, value) in headers {
            bytes.put_u16(u16::try_from(name.as_str().len()).ok()?);
            bytes.put_slice(name.as_str().as_bytes());
            bytes.put_u32(u32::try_from(value.len()).ok()?);
            bytes.put_slice(value.as_bytes());
        }
        let body = bytes.len();
        Some(Self { bytes, body })
    }

    /// Records the lifetime that is reported to the first caller.
    pub(super) fn expires(&mut self, until: Timestamp) {
        self.bytes[UNTIL].copy_from_slice(&until.as_millis().to_be_bytes());
    }

    /// Reserves room for `size` bytes of body.
    pub(super) fn reserve(&mut self, size: usize) {
        self.bytes.reserve_exact(size);
    }

    /// Adds to the body of a record of at most `limit` bytes.
    pub(super) fn push(&mut self, data: &[u8], limit: usize) {
        append(&mut self.bytes, data, limit);
    }

    /// The length in bytes of head and body.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The length in bytes of the body.
    pub(super) fn size(&self) -> usize {
        self.bytes.len() - self.body
    }

    /// Returns the whole record, and the body as a part of it.
    pub(super) fn finish(self) -> (Bytes, Bytes) {
        let Self { mut bytes, body } = self;
        // Records are kept for a long time.
        bytes.shrink_to_fit();
        let record = Bytes::from(bytes);
        let body = record.slice(body..);
        (record, body)
    }
}

/// Creates the record of a response that cannot be sent again.
pub(super) fn not_kept(status: StatusCode) -> Bytes {
    let mut bytes = Vec::with_capacity(13);
    bytes.put_u8(NOT_KEPT);
    bytes.put_u64(0);
    bytes.put_u16(status.as_u16());
    bytes.put_u16(0);
    bytes.into()
}

/// Reads a record. Returns `None` if it does not have this format.
pub(super) fn read(mut record: Bytes) -> Option<Stored> {
    let kind = record.try_get_u8().ok()?;
    let until = record.try_get_u64().ok()?;
    let status = StatusCode::from_u16(record.try_get_u16().ok()?).ok()?;
    let count = record.try_get_u16().ok()?;
    // Without a capacity: in a foreign record the count may be arbitrary, and larger than a map can
    // be.
    let mut headers = HeaderMap::new();
    for _ in 0..count {
        let length = usize::from(record.try_get_u16().ok()?);
        let name = HeaderName::from_bytes(&take(&mut record, length)?).ok()?;
        let length = usize::try_from(record.try_get_u32().ok()?).ok()?;
        let value = HeaderValue::from_maybe_shared(take(&mut record, length)?).ok()?;
        headers.try_append(name, value).ok()?;
    }
    match kind {
        WHOLE => {
            let mut response = Response::new(record);
            *response.status_mut() = status;
            *response.headers_mut() = headers;
            Some(Stored::Whole(response, (until > 0).then_some(Timestamp::from_millis(until))))
        }
        NOT_KEPT if record.is_empty() => Some(Stored::NotKept),
        _ => None,
    }
}

fn take(bytes: &mut Bytes, length: usize) -> Option<Bytes> {
    (bytes.len() >= length).then(|| bytes.split_to(length))
}

/// Returns the result whose `record` is of a response with this status.
pub(super) fn result(status: StatusCode, record: Bytes) -> EdgeResult {
    if status.as_u16() >= 400 { EdgeResult::failed(record) } else { EdgeResult::completed(record) }
}

/// Creates the record of a response that an operator or a verification callback provides.
pub(super) fn of_response(response: Response<Bytes>, until: Option<Timestamp>) -> EdgeResult {
    let (parts, body) = response.into_parts();
    let Some(mut draft) = Draft::new(parts.status, &headers::replayable(&parts.headers)) else {
        return result(parts.status, not_kept(parts.status));
    };
    if let Some(until) = until {
        draft.expires(until);
    }
    // Some servers would send the body all the same, and a client would take it for the next
    // response.
    if !headers::is_without_content(parts.status) {
        draft.push(&body, usize::MAX);
    }
    let (record, _) = draft.finish();
    result(parts.status, record)
}

/// Returns an operator's answer to a record in doubt of the layer: the request took effect, and
/// this is the response that every retry gets from now on.
///
/// Headers that are never replayed are left out, and so is the body of a 204, 205 or 304, which has
/// none. A status of 1xx only announces a response, and [`resolve`](crate::record::RecordHandle::resolve)
/// rejects it ([`Config`](crate::ErrorKind::Config)).
///
/// ```
/// # use idempotency::{Error, Idempotency};
/// use http::Response;
/// use idempotency::http::resolution;
///
/// /// The provider's books show that the payment was made.
/// async fn settle(engine: &Idempotency, tenant: &str, key: &str, receipt: Vec<u8>) -> Result<(), Error> {
///     let record = engine.record("http", key).scope(tenant);
///     let Some(view) = record.inspect().await? else { return Ok(()) };
///     record.resolve(&view, resolution(Response::new(receipt))).await
/// }
/// ```
pub fn resolution(response: Response<impl Into<Bytes>>) -> Resolution {
    edge::resolution(if response.status().is_informational() {
        Err("no response has a status of 1xx; nothing has changed")
    } else {
        Ok(of_response(response.map(Into::into), None))
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::Response;

    use super::{Stored, not_kept, of_response, read};
    use crate::clock::Timestamp;
    use crate::http::HeaderNames;
    use crate::http::headers::Markers;

    #[test]
    fn the_format_is_what_released_versions_wrote() {
        let response = Response::builder()
            .status(201)
            .header("location", "/1")
            .body(Bytes::from_static(b"\0ok"));
        let until = Timestamp::from_millis(0x0102);
        let result = of_response(response.unwrap(), Some(until));
        assert!(!result.is_failed());
        let record = result.into_bytes();
        let (head, rest) = record.split_at(9);
        assert_eq!(head, [0, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(
            rest.escape_ascii().to_string(),
            r"\x00\xc9\x00\x01\x00\x08location\x00\x00\x00\x02/1\x00ok"
        );
        let Some(Stored::Whole(response, told)) = read(record) else { panic!("it is whole") };
        assert_eq!(told, Some(until));
        assert_eq!(
            (response.status().as_u16(), response.headers()["location"].as_bytes()),
            (201, &b"/1"[..])
        );
        assert_eq!(response.body(), &b"\0ok"[..]);
        assert_eq!(not_kept(http::StatusCode::OK)[..], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xc8, 0, 0]);
    }

    #[test]
    fn what_somebody_vouches_for_has_no_credentials_either() {
        let response = Response::builder()
            .header("set-cookie", "a=1")
            .header("connection", "x-hop")
            .header("x-hop", "1");
        let response = response.header("etag", "\"1\"").body(Bytes::new());
        let record = of_response(response.unwrap(), None).into_bytes();
        let Some(Stored::Whole(response, _)) = read(record) else { panic!("it is whole") };
        assert_eq!(
            response.headers().keys().map(http::HeaderName::as_str).collect::<Vec<_>>(),
            ["etag"]
        );
    }

    #[test]
    fn what_is_cut_off_or_foreign_is_not_read() {
        let response =
            Response::builder().header("etag", "\"1\"").header("etag", "\"2\"").body(Bytes::new());
        let record = of_response(response.unwrap(), None).into_bytes();
        assert!(matches!(read(record.clone()), Some(Stored::Whole(_, None))));
        for length in 0..record.len() {
            assert!(read(record.slice(..length)).is_none(), "{length} bytes of it");
        }
        assert!(read(Bytes::from_static(b"\"json\"")).is_none());
        // The largest count of headers, and more than a map can have.
        let count = [&record[..11], &u16::MAX.to_be_bytes()].concat();
        assert!(read(count.clone().into()).is_none());
        let names =
            (0..u16::MAX).flat_map(|number| format!("\0\u{4}{number:04x}\0\0\0\0").into_bytes());
        assert!(read(count.into_iter().chain(names).collect()).is_none());
        assert!(read([&not_kept(http::StatusCode::OK)[..], b"x"].concat().into()).is_none());
    }

    /// Written by a release that stored more headers.
    #[test]
    fn a_record_that_leaves_no_room_for_the_marker_is_no_replay() {
        let count = |count: u16| {
            let head = [&[super::WHOLE][..], &[0; 8], &200_u16.to_be_bytes(), &count.to_be_bytes()]
                .concat();
            let names =
                (0..count).flat_map(|number| format!("\0\u{4}{number:04x}\0\0\0\0").into_bytes());
            let Some(Stored::Whole(response, _)) = read(head.into_iter().chain(names).collect())
            else {
                return None;
            };
            Markers::new(HeaderNames::new(), false).replay(response, Timestamp::from_millis(1))
        };
        assert!(count(super::MOST_HEADERS).is_some());
        assert!(count(24_576).is_none());
    }
}
