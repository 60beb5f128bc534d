//! The handler of one request under its claim: runs it, delivers its response and records it.

use std::cmp::Ordering;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{self, AtomicBool};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{Request, Response, StatusCode, Version, request, response};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use tokio::sync::oneshot;
use tower_service::Service;

use super::effects::{blames_the_key, told};
use super::handled::{Handled, end_not_kept};
use super::options::{OnStatus, Options, Unreplayable, is_endless};
use super::problem::{Problem, ProblemKind};
use super::request_body::RequestBody;
use super::response_body::{HeldEnd, OpenEnd, ResponseBody, superseded};
use super::stored::{Draft, result};
use super::{BoxError, headers};
use crate::Context;
use crate::clock::Timestamp;
use crate::edge::{Attempt, End, Turn};

/// A service behind the layer, with the bounds that a task of its own requires.
pub(super) trait Handles<B, R>:
    Service<
        Request<RequestBody<B>>,
        Response = Response<R>,
        Future: Send + 'static,
        Error: Send + 'static,
    > + Send
    + 'static
{
}

impl<S, B, R> Handles<B, R> for S where
    S: Service<
            Request<RequestBody<B>>,
            Response = Response<R>,
            Future: Send + 'static,
            Error: Send + 'static,
        > + Send
        + 'static
{
}

/// A body that the layer reads.
pub(super) trait Readable:
    Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static
{
}

impl<B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static> Readable for B {}

/// The service and its request, until the handler begins.
pub(super) type Unhandled<S, B> = Arc<Mutex<Option<(S, Request<RequestBody<B>>)>>>;

/// Takes the service and its request if the handler has not begun.
pub(super) fn take<S, B>(unhandled: &Unhandled<S, B>) -> Option<(S, Request<RequestBody<B>>)> {
    unhandled.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// The response of the handler, for the request that waits for it.
pub(super) enum Delivery<R> {
    /// Sent once the record agrees with the response.
    Settled(Response<ResponseBody<R>>),
    /// Sent at once, because its body is streamed. The body ends when the record is written.
    Live(Response<ResponseBody<R>>),
}

/// Waits until `service` may be called.
pub(super) async fn ready<S: Handles<B, R>, B, R>(service: &mut S) -> Result<(), S::Error> {
    poll_fn(|task| service.poll_ready(task)).await
}

/// Resolves when the claim of the surrounding call ends. Never resolves without a claim.
async fn claim_over() {
    match Context::try_current() {
        Some(context) => context.lease_ended().await,
        None => std::future::pending().await,
    }
}

pub(super) struct Handler<S, B, R> {
    pub(super) options: Arc<Options>,
    pub(super) request: Arc<request::Parts>,
    pub(super) unhandled: Unhandled<S, B>,
    pub(super) delivery: oneshot::Sender<Delivery<R>>,
    /// The end of a streamed response.
    pub(super) end: OpenEnd<R>,
    /// Set when the handler begins without a claim, for the caller that sees its panic.
    pub(super) is_bypassed: Arc<AtomicBool>,
}

/// The record of a response while its body is read.
struct Recording {
    draft: Draft,
    /// The largest record, in bytes.
    limit: usize,
    /// The length of the body in bytes, if the response declares it.
    declared: Option<u64>,
    ttl: Duration,
    /// The time until which it is kept, if known.
    until: Option<Timestamp>,
    /// The time on the monotonic clock until which more of the body is awaited after its declared
    /// length has been reached.
    last_look: Option<Duration>,
}

/// The time for which a body is still read after its declared length has been reached, to see
/// whether it is longer or breaks off after all. An HTTP server reads no further by then, so
/// nothing that arrives later reaches a client, and a stream that lingers delays no caller.
const LAST_LOOK: Duration = Duration::from_millis(100);

impl Recording {
    /// Records the time until which it is kept.
    fn expires(&mut self, attempt: &Attempt) {
        if let Some(now) = attempt.store_time() {
            self.until = Some(now + self.ttl);
            self.draft.expires(now + self.ttl);
        }
    }

    /// The number of bytes of body that still fit.
    fn room(&self) -> usize {
        self.limit - self.draft.len()
    }

    /// Compares what is recorded with the length that the response declares.
    fn length(&self) -> Option<Ordering> {
        self.declared.map(|declared| (self.draft.size() as u64).cmp(&declared))
    }

    /// Returns true if a client that has what is recorded has the declared length.
    fn is_reached(&self) -> bool {
        self.length() == Some(Ordering::Equal)
    }

    /// Returns true if there is more than the response declares.
    fn is_passed(&self) -> bool {
        self.length() == Some(Ordering::Greater)
    }

    /// Returns true if what is recorded has the declared length, or if none is declared. A shorter
    /// body has broken off, whatever its stream says.
    fn is_whole(&self) -> bool {
        self.length().is_none_or(Ordering::is_eq)
    }
}

/// Reads the next frame of a body. Returns `Some(None)` after the last one, and `None` if no caller
/// waits for it any longer.
///
/// There are two such cases. The claim has ended: without this check a body that never ends would
/// be read forever on behalf of a record that another caller may own by now. Or the body lingers
/// although its declared length has been reached. A frame that is ready wins over both (`biased`),
/// so nothing that was already produced is lost.
async fn next<R: Readable>(
    options: &Options,
    body: &mut Pin<Box<R>>,
    recording: &mut Recording,
) -> Option<Option<Result<Frame<Bytes>, R::Error>>> {
    let clock = &options.clock;
    let has_lingered = async {
        if !recording.is_reached() {
            return std::future::pending().await;
        }
        let now = clock.monotonic();
        let until = *recording.last_look.get_or_insert_with(|| now.saturating_add(LAST_LOOK));
        clock.sleep(until.saturating_sub(now)).await;
    };
    tokio::select! {
        biased;
        frame = body.frame() => Some(frame),
        () = claim_over() => None,
        () = has_lingered => None,
    }
}

impl<S: Handles<B, R>, B, R: Readable> Handler<S, B, R> {
    /// Runs the handler and reads as much of its response as is recorded.
    pub(super) async fn run(self, turn: Turn) -> Handled<S::Error> {
        let Some((mut service, request)) = take(&self.unhandled) else {
            // Unreachable: the engine runs a body once.
            return (Ok(()), End::Unknown);
        };
        // While the request waited for its key it held no slot of the service; it takes one now.
        //
        // Until `begin` returns `Ok`, nothing has happened under the claim. In this time a shutdown
        // takes the claim away, and another caller may run the handler if the lease expires, before
        // the slot is granted or in the same poll: hence the check afterwards. Shutdown and `begin`
        // meet in one atomic step of the lease: either the handler has begun and the shutdown
        // treats its outcome as unknown, or the handler never begins.
        let attempt = turn.attempt();
        let waiting = turn.wait();
        let is_ready = tokio::select! {
            biased;
            () = waiting.claim_ended() => return (Ok(()), End::NotBegun(waiting.leave())),
            is_ready = ready(&mut service) => is_ready,
        };
        if let Err(not_begun) = waiting.begin() {
            return (Ok(()), End::NotBegun(not_begun));
        }
        if let Err(error) = is_ready {
            return (Err(error), End::Released);
        }
        self.is_bypassed.store(!attempt.is_protected(), atomic::Ordering::Release);
        // Set above because `call` may panic: the caller then knows which refusal to send.
        match service.call(request).await {
            Ok(response) => (Ok(()), self.answer(response, &attempt).await),
            // R63: it is unknown how far the handler got.
            Err(error) => (Err(error), End::Unknown),
        }
    }

    async fn answer(self, response: Response<R>, attempt: &Attempt) -> End {
        let blamed = blames_the_key(response.extensions());
        if !attempt.is_protected() {
            let (mut head, body) = self.options.in_form(response).into_parts();
            if blamed.is_some() || !self.options.markers.bypassed(&mut head.headers) {
                let failure = self.options.unprotected_failure().map(ResponseBody::full);
                return self.deliver(failure, End::Released);
            }
            return self.settle(head, body, End::Released);
        }
        let (mut head, body) = response.into_parts();
        if let Some(kind) = blamed {
            let left_nothing = told(&head.extensions) == Some(OnStatus::Release);
            let problem = Problem::of_another_key(kind, left_nothing);
            let problem = self.options.refusal(problem, None);
            let end = if left_nothing { End::Released } else { End::Unknown };
            return self.deliver(problem.map(ResponseBody::full), end);
        }
        // If present, it is a promise about another record: of a layer inside, or of an upstream
        // service.
        head.headers.remove(self.options.markers.names.expires());
        // R64, R65: the extensions take precedence, because a status is often set by something
        // else.
        match told(&head.extensions)
            .unwrap_or_else(|| self.options.on_status(head.status, &self.request))
        {
            OnStatus::Store => {}
            OnStatus::Release => return self.pass_unstored(head, body, End::Released),
            OnStatus::Hold => return self.pass_unstored(head, body, End::Unknown),
        }
        let ttl = self.options.ttl_of(&head);
        let Some(mut recording) = self.recording(&head, ttl) else {
            let end = self.not_kept(&head, ttl);
            return self.settle(head, ResponseBody::untouched(body), end);
        };
        // R18.
        if headers::is_without_body(&head) {
            recording.expires(attempt);
            return self.store(head, recording);
        }
        let hint = body.size_hint();
        // The server in front would derive it from the body.
        recording.declared = recording.declared.or(hint.exact());
        let is_too_large =
            usize::try_from(hint.lower()).map_or(true, |least| least > recording.room());
        if is_too_large || is_endless(&head) {
            let end = self.not_kept(&head, ttl);
            return self.settle(head, ResponseBody::untouched(body), end);
        }
        recording.expires(attempt);
        recording.draft.reserve(usize::try_from(hint.lower()).unwrap_or_default());
        // It describes the handler's framing of the body, not the one that is sent.
        head.headers.remove(TRANSFER_ENCODING);
        // R25: an HTTP/1.0 client takes the end of its connection for the end of a body whose
        // length was not declared. It could not tell a truncated body from a complete one, so such
        // a body is read first.
        if hint.exact().is_some() || self.ends_with_its_connection(&head) {
            self.collect(head, Box::pin(body), recording).await
        } else {
            self.pass_on(head, Box::pin(body), recording).await
        }
    }

    /// Returns `None` if the response has more headers than can be stored, or longer ones.
    fn recording(&self, response: &response::Parts, ttl: Duration) -> Option<Recording> {
        let mut replayed = headers::replayable(&response.headers);
        replayed.retain(|(name, _)| self.options.replays(name));
        let draft = Draft::new(response.status, &replayed)?;
        let limit = self.options.response_limit();
        let declared = headers::declared_length(response);
        (draft.len() <= limit).then_some(Recording {
            draft,
            limit,
            declared,
            ttl,
            until: None,
            last_look: None,
        })
    }

    // R25: the record of a response that cannot be stored.
    fn not_kept(&self, response: &response::Parts, ttl: Duration) -> End {
        match self.options.unreplayable {
            Unreplayable::Mark => end_not_kept(response.status, ttl),
            Unreplayable::Release => End::Released,
        }
    }

    /// Delivers a response that is not a result. A problem among them gets the form of the layer.
    fn pass_unstored(self, head: response::Parts, body: R, end: End) -> End {
        let response = self.options.in_form(Response::from_parts(head, body));
        self.deliver(response, end)
    }

    fn settle(self, head: response::Parts, body: ResponseBody<R>, end: End) -> End {
        self.deliver(Response::from_parts(head, body), end)
    }

    fn deliver(self, response: Response<ResponseBody<R>>, end: End) -> End {
        // R24: a client that has disconnected gets the response when it comes back.
        let _ = self.delivery.send(Delivery::Settled(response));
        end
    }

    /// Reads a body completely before it is delivered: its length is known and fits, or its client
    /// could not tell a part of it from the whole.
    async fn collect(
        self,
        head: response::Parts,
        mut body: Pin<Box<R>>,
        mut recording: Recording,
    ) -> End {
        loop {
            let Some(frame) = next(&self.options, &mut body, &mut recording).await else {
                if recording.is_reached() {
                    break;
                }
                let is_no_answer = self.options.crash.may_be_answered_again();
                if is_no_answer || self.ends_with_its_connection(&head) {
                    return self.break_off(head, recording, superseded());
                }
                return self.hand_over(head, recording, None, body, End::Unknown);
            };
            match frame {
                None if recording.is_whole() => break,
                None => return self.break_off(head, recording, headers::not_whole()),
                Some(Ok(frame)) => match frame.data_ref() {
                    Some(data) if data.len() <= recording.room() => {
                        recording.draft.push(data, recording.limit);
                        if recording.is_passed() {
                            return self.break_off(head, recording, headers::not_whole());
                        }
                    }
                    // Trailers end a body whose length differs from the declared one.
                    None if !recording.is_whole() => {
                        return self.break_off(head, recording, headers::not_whole());
                    }
                    _ => {
                        let end = self.not_kept(&head, recording.ttl);
                        return self.hand_over(head, recording, Some(frame), body, end);
                    }
                },
                Some(Err(error)) => return self.break_off(head, recording, error.into()),
            }
        }
        self.store(head, recording)
    }

    /// Delivers and stores a complete body.
    fn store(self, mut head: response::Parts, recording: Recording) -> End {
        if let Some(until) = recording.until {
            self.options.markers.expiry(&mut head.headers, until);
        }
        if head.status == StatusCode::RESET_CONTENT {
            // It declares the length of a body that is left out.
            head.headers.remove(CONTENT_LENGTH);
        }
        head.headers.remove(TRANSFER_ENCODING);
        let (status, ttl) = (head.status, recording.ttl);
        let (record, body) = recording.draft.finish();
        self.settle(head, ResponseBody::whole(body), result(status, record).with_ttl(ttl).into())
    }

    /// Returns true if the client of this response cannot detect that it breaks off.
    fn ends_with_its_connection(&self, response: &response::Parts) -> bool {
        self.request.version < Version::HTTP_11 && headers::declared_length(response).is_none()
    }

    /// Delivers the available part of a body that is not complete, so that the client sees it break
    /// off.
    fn break_off(self, head: response::Parts, recording: Recording, error: BoxError) -> End {
        if self.ends_with_its_connection(&head) {
            tracing::error!(error, "the body of a response was interrupted");
            let problem = self.options.refusal(Problem::new(ProblemKind::Internal), None);
            return self.deliver(problem.map(ResponseBody::full), End::Unknown);
        }
        let (_, mut read) = recording.draft.finish();
        // With its full declared length it would look complete.
        if let Some(declared) = headers::declared_length(&head) {
            read.truncate(usize::try_from(declared).unwrap_or(usize::MAX).saturating_sub(1));
        }
        let (sender, live) = ResponseBody::live();
        sender.send(&read);
        sender.fail(error);
        self.settle(head, live, End::Unknown)
    }

    /// Delivers what was read, without recording it, and the rest of the body as it arrives.
    fn hand_over(
        self,
        head: response::Parts,
        recording: Recording,
        next: Option<Frame<Bytes>>,
        rest: Pin<Box<R>>,
        end: End,
    ) -> End {
        let (_, read) = recording.draft.finish();
        let (sender, live) = ResponseBody::live();
        sender.send(&read);
        sender.hand_over(next, rest);
        self.settle(head, live, end)
    }

    /// Streams a body whose length is not known. The client gets it as it is produced, except for
    /// the part that would complete it. When the head is sent it is not known whether the response
    /// will be stored, so the head declares no lifetime (R58).
    async fn pass_on(
        self,
        head: response::Parts,
        mut body: Pin<Box<R>>,
        mut recording: Recording,
    ) -> End {
        let (status, ttl) = (head.status, recording.ttl);
        let not_kept = self.not_kept(&head, ttl);
        let (sender, live) = ResponseBody::live();
        let mut end = HeldEnd::new(sender);
        let _ = self.delivery.send(Delivery::Live(Response::from_parts(head, live)));
        loop {
            let Some(frame) = next(&self.options, &mut body, &mut recording).await else {
                if recording.is_reached() {
                    break;
                }
                if self.options.crash.may_be_answered_again() {
                    end.fail(superseded());
                } else {
                    end.hold_rest(None, body);
                    end.release();
                }
                return End::Unknown;
            };
            match frame {
                None if recording.is_whole() => break,
                None => {
                    end.fail(headers::not_whole());
                    return End::Unknown;
                }
                Some(Ok(frame)) => match frame.data_ref() {
                    // Empty frames carry nothing and are dropped: there may be any number of them.
                    Some(data) if data.is_empty() => {}
                    Some(_) if recording.is_reached() => {
                        end.fail(headers::not_whole());
                        return End::Unknown;
                    }
                    Some(data) if data.len() <= recording.room() => {
                        recording.draft.push(data, recording.limit);
                        if recording.is_passed() {
                            end.fail(headers::not_whole());
                            return End::Unknown;
                        }
                        if recording.is_reached() {
                            // By the declared length the client would see the response as complete.
                            end.hold(data);
                        } else {
                            end.send(data);
                        }
                    }
                    // Trailers end a body whose length differs from the declared one.
                    None if !recording.is_whole() => {
                        end.fail(headers::not_whole());
                        return End::Unknown;
                    }
                    _ => {
                        end.hold_rest(Some(frame), body);
                        match not_kept {
                            End::Released => end.release(),
                            // Once the marker is written, no other attempt produces a different
                            // response.
                            _ => self.end.keep(end),
                        }
                        return not_kept;
                    }
                },
                Some(Err(error)) => {
                    end.fail(error.into());
                    return End::Unknown;
                }
            }
        }
        let (record, _) = recording.draft.finish();
        // R25: the client sees the end of its response only after the record is written.
        // `OpenEnd::close` then releases it, or fails it if the record now belongs to another
        // attempt.
        self.end.keep(end);
        result(status, record).with_ttl(ttl).into()
    }
}
