//! The body of a response as the client gets it.

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

/// A body that is passed on while it is recorded.
#[derive(Debug)]
struct Live<B> {
    passage: Arc<Passage<B>>,
    /// The handler's body, from where it is not recorded any more.
    rest: Option<Pin<Box<B>>>,
    is_over: bool,
}

/// What the handler's task passes on.
#[derive(Debug)]
struct Passage<B>(Mutex<Passed<B>>);

#[derive(Debug)]
struct Passed<B> {
    /// What the client has not taken yet. It is one buffer, however many pieces it came in: for a
    /// slow client there is as much of it as is recorded, at most, and no piece holds on to what it
    /// was received in.
    data: Vec<u8>,
    /// What comes after it, once the task has no more.
    next: Option<Next<B>>,
    /// Who waits for more.
    client: Option<Waker>,
    /// The client is gone, and takes nothing any more. That changes nothing for the record.
    is_left: bool,
}

#[derive(Debug)]
enum Next<B> {
    /// The task reads no further: what is left comes from the handler's body itself, after this
    /// frame of it.
    Rest(Option<Frame<Bytes>>, Pin<Box<B>>),
    Failed(BoxError),
    /// Nothing is missing.
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

    /// Makes a change unless the client is gone, and wakes it up.
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
        // A body of the handler may do anything when it is dropped.
        drop(passed);
        drop(left);
    }
}

impl<B> Drop for Live<B> {
    fn drop(&mut self) {
        self.passage.leave();
    }
}

/// The other end of a body that is passed on. Dropped before it is told what comes after the
/// pieces, it breaks the body off.
#[derive(Debug)]
pub(super) struct LiveSender<B> {
    passage: Arc<Passage<B>>,
    is_finished: bool,
}

impl<B> LiveSender<B> {
    /// Sends a copy.
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

/// A body that is passed on, and what of it the client does not get yet.
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

    /// Sends a copy of what ends nothing.
    pub(super) fn send(&self, data: &[u8]) {
        self.sender.send(data);
    }

    /// Holds a copy.
    pub(super) fn hold(&mut self, data: &[u8]) {
        self.data.extend_from_slice(data);
    }

    /// All that comes after that: this frame, and the body that it is of.
    pub(super) fn hold_rest(&mut self, frame: Option<Frame<Bytes>>, body: Pin<Box<B>>) {
        self.next = Next::Rest(frame, body);
    }

    /// Sends what is held, and the body ends where it does.
    pub(super) fn release(self) {
        self.sender.send(&self.data);
        self.sender.finish(self.next);
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
        let passage = Arc::new(Passage::new());
        let live = Live { passage: passage.clone(), rest: None, is_over: false };
        (LiveSender { passage, is_finished: false }, Self { kind: Kind::Live { live } })
    }
}

/// Without content: what a layer in front answers with in place of the handler, a time limit for
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
