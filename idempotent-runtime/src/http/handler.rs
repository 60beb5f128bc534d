//! The handler of one request under its claim: what it answers is delivered and recorded.

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
use super::handled::{Fate, Handled};
use super::options::{OnStatus, Options, Unreplayable, is_endless};
use super::problem::{Problem, ProblemKind};
use super::request_body::RequestBody;
use super::response_body::{HeldEnd, OpenEnd, ResponseBody, superseded};
use super::stored::{Draft, state};
use super::{BoxError, headers};
use crate::clock::Timestamp;
use crate::context::Context;

/// A service behind the layer, as a task of its own needs it.
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

/// A body whose bytes are looked at.
pub(super) trait Readable:
    Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static
{
}

impl<B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static> Readable for B {}

/// The service and its request, until the handler begins.
pub(super) type Unhandled<S, B> = Arc<Mutex<Option<(S, Request<RequestBody<B>>)>>>;

/// Takes what was not handled yet.
pub(super) fn take<S, B>(unhandled: &Unhandled<S, B>) -> Option<(S, Request<RequestBody<B>>)> {
    unhandled.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// The response of the handler, for the one who waits for it.
pub(super) enum Delivery<R> {
    /// Sent when the record is as the response says.
    Settled(Response<ResponseBody<R>>),
    /// Sent at once, for its body comes in pieces. It ends when the record is written.
    Live(Response<ResponseBody<R>>),
}

/// Waits until `service` may be called.
pub(super) async fn ready<S: Handles<B, R>, B, R>(service: &mut S) -> Result<(), S::Error> {
    poll_fn(|task| service.poll_ready(task)).await
}

/// Resolves when the claim of the call around is over, if it has one.
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
    /// Of a response that comes in pieces.
    pub(super) end: OpenEnd<R>,
    /// Set when the handler begins without a claim, for whoever is left with its panic.
    pub(super) is_bypassed: Arc<AtomicBool>,
}

/// What is recorded of a response.
struct Recording {
    draft: Draft,
    /// How many bytes the record may have.
    limit: usize,
    /// How many bytes of body there are, if the response says so.
    declared: Option<u64>,
    ttl: Duration,
    /// Until when it is kept, if that is known.
    until: Option<Timestamp>,
    /// Until when on the monotonic clock its body may have more, since all is there that it says.
    last_look: Option<Duration>,
}

/// How long a body is looked at that has all that its response says: whether it is longer, or
/// breaks off after all. A server of HTTP looks no further then, so nothing that comes later
/// reaches a client, and a stream that lingers keeps nobody waiting.
const LAST_LOOK: Duration = Duration::from_millis(100);

impl Recording {
    /// Notes until when it is kept.
    fn expires(&mut self, context: &Context) {
        if let Some(now) = context.store_time() {
            self.until = Some(now + self.ttl);
            self.draft.expires(now + self.ttl);
        }
    }

    /// How many more bytes of body fit.
    fn room(&self) -> usize {
        self.limit - self.draft.len()
    }

    /// How what is recorded compares to the length that the response says.
    fn length(&self) -> Option<Ordering> {
        self.declared.map(|declared| (self.draft.size() as u64).cmp(&declared))
    }

    /// Whether a client has all that the response says when it has what is recorded.
    fn is_reached(&self) -> bool {
        self.length() == Some(Ordering::Equal)
    }

    /// Whether there is more than the response says.
    fn is_passed(&self) -> bool {
        self.length() == Some(Ordering::Greater)
    }

    /// Whether what is recorded is as long as the response says. A shorter body has broken off,
    /// whatever its stream says.
    fn is_whole(&self) -> bool {
        self.length().is_none_or(Ordering::is_eq)
    }
}

/// The next frame of a body, `None` behind the last one. None at all where nobody waits for it any
/// longer: the claim is over, under which a body that never ends would be read for ever, or the
/// body lingers though all of it is there.
async fn next<R: Readable>(
    options: &Options,
    body: &mut Pin<Box<R>>,
    recording: &mut Recording,
) -> Option<Option<Result<Frame<Bytes>, R::Error>>> {
    let clock = &options.engine.inner.clock;
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
    /// Runs the handler and reads its response as far as it is recorded.
    pub(super) async fn run(self) -> Handled<S::Error> {
        let Some((mut service, request)) = take(&self.unhandled) else {
            // The engine runs a body once.
            return Handled::Answered { fate: Fate::Unknown };
        };
        // It has waited for its key with no place there, and takes one now. Until then nothing has
        // happened: a shutdown takes the claim back, and if it is over before, or with the place,
        // somebody else may run the handler.
        let context = Context::try_current();
        if let Some(context) = &context {
            context.stands_in_line();
        }
        let is_ready = tokio::select! {
            biased;
            () = claim_over() => return Handled::NotBegun,
            is_ready = ready(&mut service) => is_ready,
        };
        if context.is_some_and(|context| !context.begins()) {
            return Handled::NotBegun;
        }
        if let Err(error) = is_ready {
            return Handled::Failed { error, fate: Fate::Release };
        }
        let is_bypassed = Context::try_current().is_none_or(|context| context.attempt() == 0);
        self.is_bypassed.store(is_bypassed, atomic::Ordering::Release);
        match service.call(request).await {
            Ok(response) => self.answer(response).await,
            // Nobody knows how far it got.
            Err(error) => Handled::Failed { error, fate: Fate::Unknown },
        }
    }

    async fn answer<E>(self, response: Response<R>) -> Handled<E> {
        let (mut head, body) = response.into_parts();
        let blames_the_key = blames_the_key(&head.extensions);
        let Some(context) = Context::try_current().filter(|context| context.attempt() > 0) else {
            if blames_the_key || !self.options.markers.bypassed(&mut head.headers) {
                let failure = self.options.unprotected_failure().map(ResponseBody::full);
                return self.deliver(failure, Fate::Release);
            }
            return self.settle(head, ResponseBody::untouched(body), Fate::Release);
        };
        if blames_the_key {
            let problem = self.options.refusal(Problem::new(ProblemKind::Internal), None);
            return self.deliver(problem.map(ResponseBody::full), Fate::Release);
        }
        // A promise about another record, if it is there: of a layer inside, or of a service that
        // was asked.
        head.headers.remove(self.options.markers.names.expires());
        // What the handler says beside its status goes first: a status is often somebody else's.
        match told(&head.extensions)
            .unwrap_or_else(|| self.options.on_status(head.status, &self.request))
        {
            OnStatus::Store => {}
            OnStatus::Release => {
                return self.settle(head, ResponseBody::untouched(body), Fate::Release);
            }
            OnStatus::Hold => {
                return self.settle(head, ResponseBody::untouched(body), Fate::Unknown);
            }
        }
        let ttl = self.options.ttl_of(&head);
        let Some(mut recording) = self.recording(&head, ttl) else {
            let fate = self.not_kept(&head, ttl);
            return self.settle(head, ResponseBody::untouched(body), fate);
        };
        if headers::is_without_body(&head) {
            recording.expires(&context);
            return self.store(head, recording);
        }
        let hint = body.size_hint();
        // The server in front would say so of the body.
        recording.declared = recording.declared.or(hint.exact());
        let is_too_large =
            usize::try_from(hint.lower()).map_or(true, |least| least > recording.room());
        if is_too_large || is_endless(&head) {
            let fate = self.not_kept(&head, ttl);
            return self.settle(head, ResponseBody::untouched(body), fate);
        }
        recording.expires(&context);
        recording.draft.reserve(usize::try_from(hint.lower()).unwrap_or_default());
        // Of the body as the handler framed it, which is not the one that is sent.
        head.headers.remove(TRANSFER_ENCODING);
        // A client of HTTP/1.0 takes the end of its connection for the end of a body whose length
        // it was not told.
        if hint.exact().is_some() || self.ends_with_its_connection(&head) {
            self.collect(head, Box::pin(body), recording).await
        } else {
            self.pass_on(head, Box::pin(body), recording).await
        }
    }

    /// `None`: it has more headers than can be kept, or longer ones.
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

    fn not_kept(&self, response: &response::Parts, ttl: Duration) -> Fate {
        match self.options.unreplayable {
            Unreplayable::Mark => Fate::not_kept(response.status, ttl),
            Unreplayable::Release => Fate::Release,
        }
    }

    fn settle<E>(self, head: response::Parts, body: ResponseBody<R>, fate: Fate) -> Handled<E> {
        self.deliver(Response::from_parts(head, body), fate)
    }

    fn deliver<E>(self, response: Response<ResponseBody<R>>, fate: Fate) -> Handled<E> {
        // A client that is gone gets the answer when it comes back.
        let _ = self.delivery.send(Delivery::Settled(response));
        Handled::Answered { fate }
    }

    /// A body whose length is known and fits, or whose client could not tell a part of it from the
    /// whole.
    async fn collect<E>(
        self,
        head: response::Parts,
        mut body: Pin<Box<R>>,
        mut recording: Recording,
    ) -> Handled<E> {
        loop {
            let Some(frame) = next(&self.options, &mut body, &mut recording).await else {
                if recording.is_reached() {
                    break;
                }
                let is_no_answer = self.options.crash.may_be_answered_again();
                if is_no_answer || self.ends_with_its_connection(&head) {
                    return self.break_off(head, recording, superseded());
                }
                return self.hand_over(head, recording, None, body, Fate::Unknown);
            };
            match frame {
                None if recording.is_whole() => break,
                None => return self.break_off(head, recording, headers::not_whole()),
                Some(Ok(frame)) => match frame.data_ref() {
                    Some(data) if data.len() <= recording.room() => {
                        recording.draft.push(data);
                        if recording.is_passed() {
                            return self.break_off(head, recording, headers::not_whole());
                        }
                    }
                    // What ends here has another length than it says.
                    None if !recording.is_whole() => {
                        return self.break_off(head, recording, headers::not_whole());
                    }
                    _ => {
                        let fate = self.not_kept(&head, recording.ttl);
                        return self.hand_over(head, recording, Some(frame), body, fate);
                    }
                },
                Some(Err(error)) => return self.break_off(head, recording, error.into()),
            }
        }
        self.store(head, recording)
    }

    /// A body that is whole, and is kept.
    fn store<E>(self, mut head: response::Parts, recording: Recording) -> Handled<E> {
        if let Some(until) = recording.until {
            self.options.markers.expiry(&mut head.headers, until);
        }
        if head.status == StatusCode::RESET_CONTENT {
            // It is one of the body that is left out.
            head.headers.remove(CONTENT_LENGTH);
        }
        head.headers.remove(TRANSFER_ENCODING);
        let (state, ttl) = (state(head.status), recording.ttl);
        let (record, body) = recording.draft.finish();
        self.settle(head, ResponseBody::whole(body), Fate::Store { state, record, ttl })
    }

    /// Whether a client of this response cannot see that it breaks off.
    fn ends_with_its_connection(&self, response: &response::Parts) -> bool {
        self.request.version < Version::HTTP_11 && headers::declared_length(response).is_none()
    }

    /// Delivers what there is of a body that is not whole.
    fn break_off<E>(
        self,
        head: response::Parts,
        recording: Recording,
        error: BoxError,
    ) -> Handled<E> {
        if self.ends_with_its_connection(&head) {
            tracing::error!(error, "the body of a response broke off");
            let problem = self.options.refusal(Problem::new(ProblemKind::Internal), None);
            return self.deliver(problem.map(ResponseBody::full), Fate::Unknown);
        }
        let (_, mut read) = recording.draft.finish();
        // All that its length says would be the whole of it.
        if let Some(declared) = headers::declared_length(&head) {
            read.truncate(usize::try_from(declared).unwrap_or(usize::MAX).saturating_sub(1));
        }
        let (sender, live) = ResponseBody::live();
        sender.send(&read);
        sender.fail(error);
        self.settle(head, live, Fate::Unknown)
    }

    /// Delivers what was read and is not recorded, and the rest of the body as it comes.
    fn hand_over<E>(
        self,
        head: response::Parts,
        recording: Recording,
        next: Option<Frame<Bytes>>,
        rest: Pin<Box<R>>,
        fate: Fate,
    ) -> Handled<E> {
        let (_, read) = recording.draft.finish();
        let (sender, live) = ResponseBody::live();
        sender.send(&read);
        sender.hand_over(next, rest);
        self.settle(head, live, fate)
    }

    /// A body whose length is not known: the client gets it as it comes, but for what would make it
    /// whole. Whether it will be kept is not known when its head is sent, which therefore tells no
    /// lifetime.
    async fn pass_on<E>(
        self,
        head: response::Parts,
        mut body: Pin<Box<R>>,
        mut recording: Recording,
    ) -> Handled<E> {
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
                return Handled::Answered { fate: Fate::Unknown };
            };
            match frame {
                None if recording.is_whole() => break,
                None => {
                    end.fail(headers::not_whole());
                    return Handled::Answered { fate: Fate::Unknown };
                }
                Some(Ok(frame)) => match frame.data_ref() {
                    // Says nothing, and is not kept: there may be any number of them.
                    Some(data) if data.is_empty() => {}
                    Some(_) if recording.is_reached() => {
                        end.fail(headers::not_whole());
                        return Handled::Answered { fate: Fate::Unknown };
                    }
                    Some(data) if data.len() <= recording.room() => {
                        recording.draft.push(data);
                        if recording.is_passed() {
                            end.fail(headers::not_whole());
                            return Handled::Answered { fate: Fate::Unknown };
                        }
                        if recording.is_reached() {
                            // A client sees the end of its response by its length.
                            end.hold(data);
                        } else {
                            end.send(data);
                        }
                    }
                    // What ends here has another length than it says.
                    None if !recording.is_whole() => {
                        end.fail(headers::not_whole());
                        return Handled::Answered { fate: Fate::Unknown };
                    }
                    _ => {
                        end.hold_rest(Some(frame), body);
                        match not_kept {
                            Fate::Release => end.release(),
                            // Nobody else has another answer when the marker is written.
                            _ => self.end.keep(end),
                        }
                        return Handled::Answered { fate: not_kept };
                    }
                },
                Some(Err(error)) => {
                    end.fail(error.into());
                    return Handled::Answered { fate: Fate::Unknown };
                }
            }
        }
        let (record, _) = recording.draft.finish();
        // The client sees the end of its response when the record is written.
        self.end.keep(end);
        Handled::Answered { fate: Fate::Store { state: state(status), record, ttl } }
    }
}
