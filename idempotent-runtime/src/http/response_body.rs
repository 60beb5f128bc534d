//! The body of a response as the client receives it.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use pin_project_lite::pin_project;

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

/// A body that is streamed to the client while it is recorded.
#[derive(Debug)]
struct Live<B> {
    passage: Arc<Passage<B>>,
    /// The handler's body, after the point up to which it is recorded.
    rest: Option<Pin<Box<B>>>,
    is_over: bool,
}

/// The channel from the handler's task to the client.
#[derive(Debug)]
struct Passage<B>(Mutex<Passed<B>>);

#[derive(Debug)]
struct Passed<B> {
    /// Data that the client has not taken yet, in one buffer. A slow client therefore holds at most
    /// as much as is recorded, and no piece keeps the buffer alive in which it was received.
    data: Vec<u8>,
    /// The end that follows `data`, once the task has no more.
    next: Option<Next<B>>,
    /// The waker of the client that waits for more.
    client: Option<Waker>,
    /// True once the client has disconnected and takes nothing more. The record is not affected.
    is_left: bool,
}

#[derive(Debug)]
enum Next<B> {
    /// The task reads no further: the rest comes from the handler's body itself, after this frame
    /// of it.
    Rest(Option<Frame<Bytes>>, Pin<Box<B>>),
    Failed(BoxError),
    /// The body is complete.
    End,
}

enum Taken<B> {
    Data(Bytes),
    Next(Next<B>),
}

impl<B> Passage<B> {
    fn new() -> Self {
        Self(Mutex::new(Passed { data: Vec::new(), next: None, client: None, is_left: false }))
    }

    fn passed(&self) -> MutexGuard<'_, Passed<B>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies a change and wakes the client, unless it has disconnected. The waker is called after
    /// the lock is released: it may poll the body at once, which takes the lock.
    fn change(&self, change: impl FnOnce(&mut Passed<B>)) {
        let mut passed = self.passed();
        if passed.is_left {
            return;
        }
        change(&mut passed);
        let client = passed.client.take();
        drop(passed);
        if let Some(client) = client {
            client.wake();
        }
    }

    fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Taken<B>> {
        let mut passed = self.passed();
        if !passed.data.is_empty() {
            return Poll::Ready(Taken::Data(std::mem::take(&mut passed.data).into()));
        }
        if let Some(next) = passed.next.take() {
            return Poll::Ready(Taken::Next(next));
        }
        passed.client = Some(cx.waker().clone());
        Poll::Pending
    }

    fn leave(&self) {
        let mut passed = self.passed();
        passed.is_left = true;
        let left = (std::mem::take(&mut passed.data), passed.next.take(), passed.client.take());
        // Drop it after the lock is released: the drop of a handler's body is foreign code.
        // `is_left` was set under the lock, so no later `change` can store anything that would stay
        // here undropped.
        drop(passed);
        drop(left);
    }
}

impl<B> Drop for Live<B> {
    fn drop(&mut self) {
        self.passage.leave();
    }
}

/// The sending end of a streamed body. If it is dropped before it was finished, the body breaks
/// off.
#[derive(Debug)]
pub(super) struct LiveSender<B> {
    passage: Arc<Passage<B>>,
    is_finished: bool,
}

impl<B> LiveSender<B> {
    /// Sends a copy of `data`.
    pub(super) fn send(&self, data: &[u8]) {
        self.passage.change(|passed| passed.data.extend_from_slice(data));
    }

    pub(super) fn hand_over(self, frame: Option<Frame<Bytes>>, body: Pin<Box<B>>) {
        self.finish(Next::Rest(frame, body));
    }

    pub(super) fn fail(self, error: BoxError) {
        self.finish(Next::Failed(error));
    }

    fn finish(mut self, next: Next<B>) {
        self.is_finished = true;
        self.passage.change(|passed| passed.next = Some(next));
    }
}

impl<B> Drop for LiveSender<B> {
    fn drop(&mut self) {
        if !self.is_finished {
            let cut = BoxError::from("the handler ended before its response");
            self.passage.change(|passed| passed.next = Some(Next::Failed(cut)));
        }
    }
}

/// A streamed body whose last part is held back from the client.
#[derive(Debug)]
pub(super) struct HeldEnd<B> {
    sender: LiveSender<B>,
    data: Vec<u8>,
    next: Next<B>,
}

impl<B> HeldEnd<B> {
    pub(super) fn new(sender: LiveSender<B>) -> Self {
        Self { sender, data: Vec::new(), next: Next::End }
    }

    /// Sends a copy of data that does not complete the body.
    pub(super) fn send(&self, data: &[u8]) {
        self.sender.send(data);
    }

    /// Holds back a copy of `data`.
    pub(super) fn hold(&mut self, data: &[u8]) {
        self.data.extend_from_slice(data);
    }

    /// Holds back everything that follows: this frame, and the body that it belongs to.
    pub(super) fn hold_rest(&mut self, frame: Option<Frame<Bytes>>, body: Pin<Box<B>>) {
        self.next = Next::Rest(frame, body);
    }

    /// Sends the held part and ends the body.
    pub(super) fn release(self) {
        self.sender.send(&self.data);
        self.sender.finish(self.next);
    }

    pub(super) fn fail(self, error: BoxError) {
        self.sender.fail(error);
    }
}

/// The held end of a streamed body, until it is known whether every caller gets this response.
///
/// The handler sets it (`keep`). Its task takes it (`close`) once the record was written or lost,
/// even if the request that waits for it is gone. Only then can a client see a complete body, so no
/// client has a complete response while another attempt may still record a different one. The
/// exception is `Unreplayable::Release`, under which a retry runs again by choice.
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

    /// Stores the end: all of the body has been read, or all that is read here.
    pub(super) fn keep(&self, end: HeldEnd<B>) {
        *self.place() = Some(end);
    }

    /// Ends the body, or breaks it off if another attempt has answered the request.
    pub(super) fn close(&self, is_the_answer: bool) {
        let Some(end) = self.place().take() else { return };
        if is_the_answer {
            end.release();
        } else {
            end.fail(superseded());
        }
    }
}

/// The error of a body whose claim has ended: the caller that takes over answers differently (R52).
pub(super) fn superseded() -> BoxError {
    BoxError::from("the claim of the request has ended, and its answer is another one")
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
        let passage = Arc::new(Passage::new());
        let live = Live { passage: passage.clone(), rest: None, is_over: false };
        (LiveSender { passage, is_finished: false }, Self { kind: Kind::Live { live } })
    }
}

/// An empty body, with which a layer in front answers in place of the handler, a timeout for
/// example.
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
        let rest = match &mut self.rest {
            Some(rest) => rest,
            None => match ready!(self.passage.poll_take(cx)) {
                Taken::Data(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Taken::Next(Next::Rest(None, body)) => self.rest.insert(body),
                Taken::Next(Next::Rest(Some(frame), body)) => {
                    self.rest = Some(body);
                    return Poll::Ready(Some(Ok(frame)));
                }
                Taken::Next(Next::Failed(error)) => {
                    self.is_over = true;
                    return Poll::Ready(Some(Err(error)));
                }
                Taken::Next(Next::End) => {
                    self.is_over = true;
                    return Poll::Ready(None);
                }
            },
        };
        rest.as_mut().poll_frame(cx).map_err(Into::into)
    }
}

impl<B> Body for ResponseBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
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
