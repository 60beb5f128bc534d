//! The body of a response as the client gets it.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use pin_project_lite::pin_project;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::BoxError;

pin_project! {
    /// The body of a response of the layer: the handler's own, or one from a record.
    #[derive(Debug)]
    pub struct ResponseBody<B> {
        #[pin]
        kind: Kind<B>,
    }
}

pin_project! {
    #[project = KindProjection]
    #[derive(Debug)]
    enum Kind<B> {
        Untouched { #[pin] body: B },
        Whole { #[pin] body: Full<Bytes> },
        Live { live: Live<B> },
    }
}

/// What the handler's task passes on.
#[derive(Debug)]
enum Piece<B> {
    Frame(Frame<Bytes>),
    /// The task reads no further: what is left comes from the handler's body itself.
    Rest(Pin<Box<B>>),
    Failed(BoxError),
}

/// A body that is passed on while it is recorded.
#[derive(Debug)]
struct Live<B> {
    pieces: UnboundedReceiver<Piece<B>>,
    rest: Option<Pin<Box<B>>>,
    is_complete: Arc<AtomicBool>,
    is_over: bool,
}

/// The other end of a body that is passed on. The client sees its end when this is dropped.
#[derive(Debug)]
pub(super) struct LiveSender<B> {
    pieces: UnboundedSender<Piece<B>>,
    is_complete: Arc<AtomicBool>,
}

impl<B> LiveSender<B> {
    // A client that is gone takes nothing any more, which changes nothing for the record.
    pub(super) fn send(&self, frame: Frame<Bytes>) {
        let _ = self.pieces.send(Piece::Frame(frame));
    }

    pub(super) fn send_all(&self, chunks: Vec<Bytes>) {
        for chunk in chunks {
            self.send(Frame::data(chunk));
        }
    }

    pub(super) fn hand_over(&self, body: Pin<Box<B>>) {
        let _ = self.pieces.send(Piece::Rest(body));
    }

    pub(super) fn fail(&self, error: BoxError) {
        let _ = self.pieces.send(Piece::Failed(error));
    }

    /// Nothing is missing: the end of the pieces is the end of the body.
    pub(super) fn complete(&self) {
        self.is_complete.store(true, Ordering::Release);
    }
}

/// A body that is passed on, and what of it the client does not get yet.
#[derive(Debug)]
pub(super) struct HeldEnd<B> {
    sender: LiveSender<B>,
    frames: Vec<Frame<Bytes>>,
    rest: Option<Pin<Box<B>>>,
}

impl<B> HeldEnd<B> {
    pub(super) fn new(sender: LiveSender<B>) -> Self {
        Self { sender, frames: Vec::new(), rest: None }
    }

    /// Sends a frame that ends nothing.
    pub(super) fn send(&self, frame: Frame<Bytes>) {
        self.sender.send(frame);
    }

    pub(super) fn hold(&mut self, frame: Frame<Bytes>) {
        self.frames.push(frame);
    }

    /// All that comes after the frames.
    pub(super) fn hold_rest(&mut self, body: Pin<Box<B>>) {
        self.rest = Some(body);
    }

    /// Sends what is held, and the body ends where it does.
    pub(super) fn release(self) {
        for frame in self.frames {
            self.sender.send(frame);
        }
        match self.rest {
            Some(rest) => self.sender.hand_over(rest),
            None => self.sender.complete(),
        }
    }

    pub(super) fn fail(self, error: BoxError) {
        self.sender.fail(error);
    }
}

/// The end of a body that is passed on, until it is known whether everybody gets this answer.
#[derive(Debug)]
pub(super) struct OpenEnd<B>(Arc<Mutex<Option<HeldEnd<B>>>>);

impl<B> Clone for OpenEnd<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<B> OpenEnd<B> {
    pub(super) fn new() -> Self {
        Self(Arc::default())
    }

    fn place(&self) -> MutexGuard<'_, Option<HeldEnd<B>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of the body is there, or all of it that is read here.
    pub(super) fn keep(&self, end: HeldEnd<B>) {
        *self.place() = Some(end);
    }

    /// Ends the body, or breaks it off: somebody else has given the answer to the request.
    pub(super) fn close(&self, is_the_answer: bool) {
        let Some(end) = self.place().take() else { return };
        if is_the_answer {
            end.release();
        } else {
            end.fail(superseded());
        }
    }
}

/// Why a body breaks off whose claim is over: who takes it over gives another answer.
pub(super) fn superseded() -> BoxError {
    BoxError::from("the claim of the request is over, and its answer is another one")
}

impl<B> ResponseBody<B> {
    pub(super) fn untouched(body: B) -> Self {
        Self { kind: Kind::Untouched { body } }
    }

    pub(super) fn whole(body: Bytes) -> Self {
        Self::full(Full::new(body))
    }

    pub(super) fn full(body: Full<Bytes>) -> Self {
        Self { kind: Kind::Whole { body } }
    }

    pub(super) fn live() -> (LiveSender<B>, Self) {
        let (sender, pieces) = unbounded_channel();
        let is_complete = Arc::new(AtomicBool::new(false));
        let live = Live { pieces, rest: None, is_complete: is_complete.clone(), is_over: false };
        (LiveSender { pieces: sender, is_complete }, Self { kind: Kind::Live { live } })
    }
}

/// Without content: what a layer in front answers with in place of the handler, a time limit for example.
impl<B> Default for ResponseBody<B> {
    fn default() -> Self {
        Self::whole(Bytes::new())
    }
}

impl<B> Live<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        if let Some(rest) = &mut self.rest {
            return rest.as_mut().poll_frame(cx).map_err(Into::into);
        }
        match ready!(self.pieces.poll_recv(cx)) {
            Some(Piece::Frame(frame)) => Poll::Ready(Some(Ok(frame))),
            Some(Piece::Rest(body)) => {
                let rest = self.rest.insert(body);
                rest.as_mut().poll_frame(cx).map_err(Into::into)
            }
            Some(Piece::Failed(error)) => {
                self.is_over = true;
                Poll::Ready(Some(Err(error)))
            }
            None => {
                self.is_over = true;
                let cut = || Err(BoxError::from("the handler ended before its response"));
                Poll::Ready((!self.is_complete.load(Ordering::Acquire)).then(cut))
            }
        }
    }
}

impl<B> Body for ResponseBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.project().kind.project() {
            KindProjection::Untouched { body } => body.poll_frame(cx).map_err(Into::into),
            KindProjection::Whole { body } => body.poll_frame(cx).map_err(|never| match never {}),
            KindProjection::Live { live } => live.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Untouched { body } => body.is_end_stream(),
            Kind::Whole { body } => body.is_end_stream(),
            Kind::Live { live } => live.is_over,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Untouched { body } => body.size_hint(),
            Kind::Whole { body } => body.size_hint(),
            Kind::Live { .. } => SizeHint::default(),
        }
    }
}
