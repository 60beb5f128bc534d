//! The body of a request as the handler receives it.

use std::error::Error;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use pin_project_lite::pin_project;

use super::BoxError;
use super::buffer::append;

pin_project! {
    /// The body of a request behind the layer: untouched without a key, and read into memory with
    /// one.
    #[derive(Debug)]
    pub struct RequestBody<B> {
        #[pin]
        kind: Kind<B>,
    }
}

pin_project! {
    #[project = KindProjection]
    #[derive(Debug)]
    enum Kind<B> {
        Untouched { #[pin] body: B },
        Read { data: Option<Bytes>, trailers: Option<HeaderMap> },
    }
}

/// The room for a body of declared length in bytes before any of it is there.
const BEFORE_THE_FIRST_BYTE: usize = 64 * 1024;

/// The room for it once that is full. A larger body grows by doubling from there.
const AT_ONCE: usize = 2 * 1024 * 1024;

/// The reason why a body could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unread {
    TooLarge,
    Broken,
}

impl Unread {
    /// Classifies an error. A limit in front reports that it was exceeded by an error, and that
    /// error may be wrapped by others: axum wraps each.
    fn because(error: &(dyn Error + 'static)) -> Self {
        let mut causes = std::iter::successors(Some(error), |&error| error.source());
        if causes.any(<dyn Error>::is::<LengthLimitError>) { Self::TooLarge } else { Self::Broken }
    }
}

impl<B> RequestBody<B> {
    pub(super) fn untouched(body: B) -> Self {
        Self { kind: Kind::Untouched { body } }
    }
}

impl<B> RequestBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    /// Reads `body` up to `limit` bytes. `headers` are those of its request.
    pub(super) async fn read(
        body: B,
        headers: &HeaderMap,
        limit: usize,
    ) -> Result<(Bytes, Self), Unread> {
        // A layer in front may have wrapped it in a body that does not know its length.
        let least = body.size_hint().lower().max(declared_length(headers).unwrap_or_default());
        // A body that declares to be too large is not read at all (R26).
        if least > u64::try_from(limit).unwrap_or(u64::MAX) {
            return Err(Unread::TooLarge);
        }
        let mut body = pin!(Limited::new(body, limit));
        let mut trailers = None;
        // Pieces are copied, even small ones: each would otherwise keep the buffer alive in which
        // it was received. The length is only declared: whoever declares one for a body that never
        // comes gets a little room, and no number is too large to ask for.
        let room = |most: usize| usize::try_from(least).unwrap_or(usize::MAX).min(most);
        let mut pieces = Vec::with_capacity(room(BEFORE_THE_FIRST_BYTE));
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Unread::because(&*error))?;
            match frame.into_data() {
                Ok(data) => {
                    let length = pieces.len() + data.len();
                    if length > pieces.capacity() && room(AT_ONCE) > length {
                        pieces.reserve_exact(room(AT_ONCE) - pieces.len());
                    }
                    append(&mut pieces, &data, limit);
                }
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        // An HTTP/2 client can cancel its request in the middle with a code that reports no error,
        // and hyper then ends the body as if it were complete. Running the handler on such a
        // truncated body is excluded in two ways. If the body is shorter than declared, it is
        // broken. If the stream does not know its end, yield once: the server, which does know,
        // drops the request's future as soon as it is polled and returns `Pending`.
        if u64::try_from(pieces.len()).is_ok_and(|size| size < least) {
            return Err(Unread::Broken);
        }
        if !body.is_end_stream() {
            wait_once().await;
        }
        // It is kept for as long as the handler runs, or the request waits for another one.
        pieces.shrink_to_fit();
        let bytes = Bytes::from(pieces);
        let data = Some(bytes.clone()).filter(|bytes| !bytes.is_empty());
        Ok((bytes, Self { kind: Kind::Read { data, trailers } }))
    }
}

/// Returns the length in bytes that the request declares for its body. If it declares a transfer
/// encoding too, that takes precedence (RFC 9112).
fn declared_length(headers: &HeaderMap) -> Option<u64> {
    if headers.contains_key(TRANSFER_ENCODING) {
        return None;
    }
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Yields once, so that the task that polls the request can notice a cancellation.
async fn wait_once() {
    let mut has_waited = false;
    poll_fn(|task| {
        if std::mem::replace(&mut has_waited, true) {
            return Poll::Ready(());
        }
        task.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl<B: Body<Data = Bytes>> Body for RequestBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project().kind.project() {
            KindProjection::Untouched { body } => body.poll_frame(cx),
            KindProjection::Read { data, trailers } => {
                let frame =
                    data.take().map(Frame::data).or_else(|| trailers.take().map(Frame::trailers));
                Poll::Ready(frame.map(Ok))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Untouched { body } => body.is_end_stream(),
            Kind::Read { data, trailers } => data.is_none() && trailers.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Untouched { body } => body.size_hint(),
            Kind::Read { data, .. } => {
                SizeHint::with_exact(data.as_ref().map_or(0, |data| data.len() as u64))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::{Context, Poll};

    use bytes::Bytes;
    use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
    use http_body::{Body, Frame};
    use http_body_util::BodyExt as _;

    use super::{RequestBody, Unread};

    /// A buffer as large as a server's, counted for as long as a piece of it exists.
    struct Received(Vec<u8>, #[expect(dead_code, reason = "it is counted")] Arc<()>);

    impl AsRef<[u8]> for Received {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    /// A body of one byte per buffer, followed by trailers.
    struct Trickle {
        pieces: usize,
        buffers: Arc<()>,
    }

    impl Body for Trickle {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            assert_eq!(Arc::strong_count(&self.buffers), 1, "what was read is held");
            let Some(left) = self.pieces.checked_sub(1) else { return Poll::Ready(None) };
            self.pieces = left;
            if left == 0 {
                return Poll::Ready(Some(Ok(Frame::trailers(HeaderMap::new()))));
            }
            let buffer = Bytes::from_owner(Received(vec![b'x'; 8_192], self.buffers.clone()));
            Poll::Ready(Some(Ok(Frame::data(buffer.slice(..1)))))
        }
    }

    fn trickle(pieces: usize) -> Trickle {
        Trickle { pieces: pieces + 1, buffers: Arc::default() }
    }

    #[tokio::test]
    async fn small_pieces_do_not_hold_the_buffers_that_they_came_in() {
        let headers = HeaderMap::new();
        let Ok((bytes, body)) = RequestBody::read(trickle(1_000), &headers, 1_000).await else {
            panic!("it is within the limit")
        };
        assert_eq!(bytes, "x".repeat(1_000));
        let collected = body.collect().await.unwrap();
        assert!(collected.trailers().is_some());
        assert_eq!(collected.to_bytes(), bytes);
        assert_eq!(
            RequestBody::read(trickle(1_001), &headers, 1_000).await.err(),
            Some(Unread::TooLarge)
        );
    }

    #[tokio::test]
    async fn a_length_that_is_only_declared_takes_no_room() {
        for declared in ["9223372036854775808", "18446744073709551615", "9223372036854775807"] {
            let headers =
                HeaderMap::from_iter([(CONTENT_LENGTH, HeaderValue::from_static(declared))]);
            let read = RequestBody::read(trickle(10), &headers, usize::MAX).await;
            assert_eq!(read.err(), Some(Unread::Broken), "{declared}");
        }
    }

    /// The body itself does not know its length.
    #[tokio::test]
    async fn a_body_is_as_long_as_its_request_says() {
        let read = async |headers: &[(HeaderName, &'static str)]| {
            let headers = headers
                .iter()
                .map(|(name, value)| (name.clone(), HeaderValue::from_static(value)))
                .collect();
            RequestBody::read(trickle(10), &headers, 100).await.map(|(bytes, _)| bytes.len())
        };
        assert_eq!(read(&[(CONTENT_LENGTH, "10")]).await, Ok(10));
        assert_eq!(read(&[(CONTENT_LENGTH, "11")]).await, Err(Unread::Broken));
        assert_eq!(read(&[(CONTENT_LENGTH, "101")]).await, Err(Unread::TooLarge));
        // A layer in front that made it longer has not truncated it.
        assert_eq!(read(&[(CONTENT_LENGTH, "9")]).await, Ok(10));
        assert_eq!(read(&[(CONTENT_LENGTH, "11"), (TRANSFER_ENCODING, "chunked")]).await, Ok(10));
    }
}
