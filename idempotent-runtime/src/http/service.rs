//! The service: reads the key, runs the call, then replays or records the response.

use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context as Task, Poll};

use bytes::Bytes;
use http::{Request, Response, Version, request};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::sync::oneshot;
use tower_service::Service;
use tracing::Instrument as _;

use super::effects::blames_the_key;
use super::handled::{Handled, Vouched, is_not_kept};
use super::handler::{Delivery, Handler, Handles, Readable, Unhandled, ready, take};
use super::key::IdempotencyKey;
use super::method::{self, Coverage};
use super::options::{Crash, Options};
use super::problem::{Problem, ProblemKind};
use super::request_body::{RequestBody, Unread};
use super::response_body::{OpenEnd, ResponseBody};
use super::stored::{Stored, not_kept, of_response, read};
use super::{BoxError, hook, scope};
use crate::clock::Timestamp;
use crate::context::Context;
use crate::engine::scope::{Scope, current_engine};
use crate::engine::{Call, Unprotected, run_detached_and, verify_detached_and};
use crate::error::{Error, ErrorKind};
use crate::outcome::{Codec, Outcome as _};
use crate::policy::{ErrorAction, Verdict};

/// A service behind an [`IdempotencyLayer`](super::IdempotencyLayer).
#[derive(Clone)]
pub struct IdempotencyService<S> {
    service: S,
    options: Arc<Options>,
}

impl<S> IdempotencyService<S> {
    pub(super) fn new(service: S, options: Arc<Options>) -> Self {
        Self { service, options }
    }
}

impl<S: fmt::Debug> fmt::Debug for IdempotencyService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyService")
            .field("service", &self.service)
            .field("options", &self.options)
            .finish()
    }
}

pin_project! {
    /// The future of [`IdempotencyService`]. If it is dropped, a handler that has begun still runs
    /// to its end.
    pub struct ResponseFuture<F, R, E> {
        #[pin]
        kind: Kind<F, R, E>,
    }
}

type Guarded<R, E> = Pin<Box<dyn Future<Output = Result<Response<ResponseBody<R>>, E>> + Send>>;

pin_project! {
    #[project = KindProjection]
    enum Kind<F, R, E> {
        Untouched { #[pin] future: F },
        Guarded { future: Guarded<R, E> },
        Refused { response: Option<Response<ResponseBody<R>>> },
    }
}

impl<F, R, E> Future for ResponseFuture<F, R, E>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = Result<Response<ResponseBody<R>>, E>;

    fn poll(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Self::Output> {
        match self.project().kind.project() {
            KindProjection::Untouched { future } => {
                future.poll(task).map_ok(|response| response.map(ResponseBody::untouched))
            }
            KindProjection::Guarded { future } => future.as_mut().poll(task).map_ok(of_this_hop),
            KindProjection::Refused { response } => response
                .take()
                .map_or(Poll::Pending, |response| Poll::Ready(Ok(of_this_hop(response)))),
        }
    }
}

/// Resets the version of `response` to the one of this hop. A gateway may pass on the version of
/// another hop, and a server would frame the response by it: an HTTP/1.0 response ends with its
/// connection, so that a body that breaks off looks complete. The server still adapts the response
/// for HTTP/1.0 clients.
fn of_this_hop<B>(mut response: Response<B>) -> Response<B> {
    *response.version_mut() = Version::HTTP_11;
    response
}

impl<F, R, E> fmt::Debug for ResponseFuture<F, R, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResponseFuture")
    }
}

impl<S, B, R> Service<Request<B>> for IdempotencyService<S>
where
    S: Service<Request<RequestBody<B>>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    type Response = Response<ResponseBody<R>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, R, S::Error>;

    fn poll_ready(&mut self, task: &mut Task<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(task)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let kind = match self.plan(request) {
            Plan::PassOn(request) => {
                Kind::Untouched { future: self.service.call(request.map(RequestBody::untouched)) }
            }
            Plan::Refuse(problem) => {
                Kind::Refused { response: Some(refusal(&self.options, problem)) }
            }
            Plan::Guard { request, key, required } => {
                // Release the slot that `poll_ready` reserved (a permit, for example): it may take
                // long until the handler begins, and it may never begin.
                let service = self.service.clone();
                self.service = service.clone();
                let guarded = Exchange { options: self.options.clone(), service, required };
                Kind::Guarded { future: Box::pin(guarded.answer(request, key)) }
            }
        };
        ResponseFuture { kind }
    }
}

/// The decision that the head of a request allows.
enum Plan<B> {
    PassOn(Request<B>),
    Refuse(Problem),
    /// With its key, or without one if keys are in the body. `required` decides whether the body
    /// must then have one.
    Guard {
        request: Request<B>,
        key: Option<String>,
        required: bool,
    },
}

impl<S> IdempotencyService<S> {
    fn plan<B>(&self, request: Request<B>) -> Plan<B> {
        let options = &self.options;
        // R12: safe methods ignore the key.
        let required = match method::guarded(&request, &options.methods) {
            Coverage::Never => return Plan::PassOn(request),
            Coverage::WithKey => false,
            Coverage::Always => options.required,
        };
        if options.keys.in_body.is_some() {
            return Plan::Guard { request, key: None, required };
        }
        match hook::call("with_key_format", || options.keys.of_headers(request.headers())) {
            Some(Ok(Some(key))) => Plan::Guard { request, key: Some(key), required },
            // R10, R11: a missing key is refused, or passed on unguarded where keys are optional.
            Some(Ok(None)) if required => Plan::Refuse(Problem::new(ProblemKind::Missing)),
            Some(Ok(None)) => Plan::PassOn(request),
            Some(Err(malformed)) => {
                Plan::Refuse(Problem::new(ProblemKind::Malformed).because(malformed.0))
            }
            None => Plan::Refuse(Problem::new(ProblemKind::Internal)),
        }
    }
}

fn refusal<R>(options: &Options, problem: Problem) -> Response<ResponseBody<R>> {
    options.refusal(problem, None).map(ResponseBody::full)
}

/// One request that is to be guarded, and everything needed to answer it.
struct Exchange<S> {
    options: Arc<Options>,
    service: S,
    /// True if the request requires a key.
    required: bool,
}

impl<S> Exchange<S> {
    async fn answer<B: Readable, R: Readable>(
        mut self,
        request: Request<B>,
        key: Option<String>,
    ) -> Result<Response<ResponseBody<R>>, S::Error>
    where
        S: Handles<B, R>,
    {
        let options = self.options.clone();
        let refuse = |kind| Ok(refusal(&options, Problem::new(kind)));
        let (mut head, body) = request.into_parts();
        let Some(scope) = hook::call("Scope::of", || options.scope.of_request(&head)) else {
            return refuse(ProblemKind::Internal);
        };
        // R44: a missing principal is refused before the lookup. A request that may turn out to
        // have no key, because keys are optional and in the body, needs no principal: its body is
        // read first.
        if scope.is_err() && (key.is_some() || self.required) {
            return refuse(ProblemKind::NoPrincipal);
        }
        let (bytes, body) =
            match RequestBody::read(body, &head.headers, options.request_limit).await {
                Ok(read) => read,
                // R26: nothing has been recorded yet.
                Err(Unread::TooLarge) => return refuse(ProblemKind::TooLarge),
                Err(Unread::Broken) => return refuse(ProblemKind::Unreadable),
            };
        let in_body = || {
            let pointer = options.keys.in_body.as_deref()?;
            options.keys.of_body(pointer, &head.headers, &bytes).transpose()
        };
        let malformed =
            |reason| Ok(refusal(&options, Problem::new(ProblemKind::Malformed).because(reason)));
        let Some(key) = hook::call("with_key_format", || key.map(Ok).or_else(in_body)) else {
            return refuse(ProblemKind::Internal);
        };
        let key = match key {
            Some(Ok(key)) => match scope {
                Ok(scope) => IdempotencyKey::new(options.operation.clone(), key, scope),
                Err(scope::Nobody) => return refuse(ProblemKind::NoPrincipal),
            },
            Some(Err(reason)) => return malformed(reason.0),
            None if self.required => return refuse(ProblemKind::Missing),
            // The client believes that it is protected, so passing the request on would mislead it.
            None if head.headers.contains_key(&options.keys.header) => {
                return malformed("it is in the header, and this service takes it from the body");
            }
            None => {
                ready(&mut self.service).await?;
                let response = self.service.call(Request::from_parts(head, body)).await?;
                return Ok(response.map(ResponseBody::untouched));
            }
        };
        head.extensions.insert(key.clone());
        let guarded = Guard { options, key, head: Arc::new(head), bytes };
        guarded.run(self.service, body).await
    }
}

/// One request whose key is known.
struct Guard {
    options: Arc<Options>,
    key: IdempotencyKey,
    head: Arc<request::Parts>,
    bytes: Bytes,
}

impl Guard {
    async fn run<S, B, R>(
        self,
        service: S,
        body: RequestBody<B>,
    ) -> Result<Response<ResponseBody<R>>, S::Error>
    where
        S: Handles<B, R>,
        B: Send + 'static,
        R: Readable,
    {
        let request = Request::from_parts((*self.head).clone(), body);
        let unhandled: Unhandled<S, B> = Arc::new(Mutex::new(Some((service, request))));
        let (delivery, delivered) = oneshot::channel();
        let (options, head) = (self.options.clone(), self.head.clone());
        let is_bypassed = Arc::new(AtomicBool::new(false));
        let handler = Handler {
            options,
            request: head,
            unhandled: unhandled.clone(),
            delivery,
            end: OpenEnd::new(),
            is_bypassed: is_bypassed.clone(),
        };
        let guarded = self.scope().wrap(self.claim(handler));
        match until_answered(guarded, delivered).await {
            Outcome::Live(response) => Ok(response),
            Outcome::Panicked => Ok(self.panicked(is_bypassed.load(Ordering::Acquire))),
            Outcome::Ended(ending, response) => self.conclude(ending, response, &unhandled).await,
        }
    }

    /// Returns the answer to a request whose call has ended. `response` is the handler's own
    /// response if it ran.
    async fn conclude<S, B, R>(
        &self,
        ending: Handled<S::Error>,
        response: Option<Response<ResponseBody<R>>>,
        unhandled: &Unhandled<S, B>,
    ) -> Result<Response<ResponseBody<R>>, S::Error>
    where
        S: Handles<B, R>,
        B: Send + 'static,
        R: Send + 'static,
    {
        Ok(match ending {
            Handled::Answered { .. } => {
                response.unwrap_or_else(|| self.refuse(ProblemKind::Internal))
            }
            Handled::Failed { error, .. } => return Err(error),
            Handled::NotBegun => self.refused(&Error::new(ErrorKind::StoreUnavailable)),
            Handled::Lost(error) => self.refused(&error),
            Handled::Replayed(record) => self.replay(record.body.clone()).await,
            Handled::Vouched(Vouched { record, .. }) => self.replay(record).await,
            Handled::Refused(error) => match (error.kind(), response) {
                // R56: the handler has done its work, so the client gets its response although it
                // was not stored. No lifetime is promised for it.
                (_, Some(mut response)) if is_not_kept(&error, &self.options.crash) => {
                    response.headers_mut().remove(self.options.markers.names.expires());
                    response
                }
                // R60: fail open only if nothing is known about the key. `knows_nothing` excludes
                // two cases: a store that answered, but too late for the lease, may have reported
                // an earlier attempt; and a store that failed while this request waited for another
                // one has already reported that one. Running in either case could repeat an effect
                // that a record exists for.
                (ErrorKind::StoreUnavailable, None)
                    if self.options.fail_open && error.knows_nothing() =>
                {
                    match take(unhandled) {
                        Some((service, request)) => return self.bypass(service, request).await,
                        None => self.refused(&error),
                    }
                }
                _ => self.refused(&error),
            },
        })
    }

    /// Returns the scope that the handler and the functions it calls run in.
    fn scope(&self) -> Scope {
        let scope = Scope::current().with_request(self.key.clone());
        // Functions that name no engine use the layer's, unless the caller has set another one.
        if current_engine().is_err() {
            scope.with_engine(self.options.engine.clone())
        } else {
            scope
        }
    }

    fn call(&self) -> Call {
        let options = &self.options;
        options
            .call(self.key.as_str())
            .in_scope(self.key.tenant())
            .with_fingerprint(options.fingerprint.of(&self.head, &self.bytes))
            .with_former_fingerprints(options.fingerprint.former(&self.head, &self.bytes))
    }

    /// Runs the handler under the claim, in a task of its own (R24). The verification callback runs
    /// there too: it takes time, and a client that disconnects must not cancel it.
    ///
    /// The task also calls `settled`, so the held end of a streamed response is released or failed
    /// even if the caller is gone by then.
    async fn claim<S, B, R>(&self, handler: Handler<S, B, R>) -> Handled<S::Error>
    where
        S: Handles<B, R>,
        B: Send + 'static,
        R: Readable,
    {
        let codec: Codec<Handled<S::Error>> = Handled::codec(ErrorAction::Release);
        let end = handler.end.clone();
        let options = self.options.clone();
        let settled =
            move |handled: &Handled<S::Error>| end.close(handled.is_its_own(&options.crash));
        let body = || handler.run();
        match &self.options.crash {
            Crash::Policy(policy) => {
                run_detached_and(self.call().on_crash(*policy), codec, body, settled).await
            }
            Crash::Verify(question) => {
                let request = Request::from_parts((*self.head).clone(), self.bytes.clone());
                let (question, options) = (question.clone(), self.options.clone());
                let ask = move |asking: Context| async move {
                    let verdict = question(asking.clone(), request).await;
                    Ok(vouch(&options, &asking, verdict))
                };
                verify_detached_and(self.call(), codec, ask, body, settled).await
            }
        }
    }

    async fn replay<R>(&self, record: Bytes) -> Response<ResponseBody<R>> {
        match read(record) {
            Some(Stored::Whole(response, until)) => {
                let expires = match until {
                    Some(until) => until,
                    None => self.expiry().await,
                };
                match self.options.markers.replay(response, expires) {
                    Some(response) => response.map(ResponseBody::whole),
                    None => self.refuse(ProblemKind::Internal),
                }
            }
            Some(Stored::NotKept) => self.refuse(ProblemKind::NotKept),
            None => self.refuse(ProblemKind::Internal),
        }
    }

    /// Returns the expiry of a record whose response does not carry one, for example because an
    /// operator wrote it.
    async fn expiry(&self) -> Timestamp {
        let options = &self.options;
        let record = options
            .engine
            .record(&options.operation, self.key.as_str())
            .in_scope(self.key.tenant());
        let view = record.inspect().await.ok().flatten();
        view.map_or_else(|| options.engine.inner.clock.now(), |view| view.expires)
    }

    fn refuse<R>(&self, kind: ProblemKind) -> Response<ResponseBody<R>> {
        refusal(&self.options, Problem::new(kind))
    }

    fn refused<R>(&self, error: &Error) -> Response<ResponseBody<R>> {
        let problem = Problem::of(error);
        if problem.kind() == ProblemKind::Internal {
            tracing::error!(%error, "a request with an idempotency key could not be answered");
        }
        self.options.refusal(problem, Some(error)).map(ResponseBody::full)
    }

    /// Returns the answer to a request whose handler, or a function before it, panicked (R23).
    fn panicked<R>(&self, is_bypassed: bool) -> Response<ResponseBody<R>> {
        if is_bypassed {
            // There may be an effect, and no record would stop a second one: the marker must.
            self.options.unprotected_failure().map(ResponseBody::full)
        } else {
            self.refuse(ProblemKind::Internal)
        }
    }

    /// Runs the handler without a claim, also in a task of its own.
    async fn bypass<S, B, R>(
        &self,
        mut service: S,
        request: Request<RequestBody<B>>,
    ) -> Result<Response<ResponseBody<R>>, S::Error>
    where
        S: Handles<B, R>,
        B: Send + 'static,
        R: Send + 'static,
    {
        let options = &self.options;
        let Some(unprotected) = Unprotected::enter(&options.engine.inner, &Scope::current()) else {
            return Ok(self.refused(&Error::new(ErrorKind::ShuttingDown)));
        };
        tracing::warn!(operation = %options.operation, "the store does not answer: a request runs unprotected");
        let record = options
            .engine
            .record(&options.operation, self.key.as_str())
            .in_scope(self.key.tenant());
        let key = match record.hash() {
            Ok(key) => key,
            Err(error) => return Ok(self.refused(&error)),
        };
        // The context of a call without a claim. It derives the same keys as a call with one, so
        // that services downstream can still recognise a repetition that this layer does not stop.
        let context = unprotected.context(&options.operation, key);
        // `call` itself may already run service code, so it belongs inside the task too.
        // `unprotected` is dropped with the handler's future: a shutdown waits until then.
        let handler = async move {
            let _until_it_is_over = unprotected;
            ready(&mut service).await?;
            service.call(request).await
        };
        let handler = self.scope().of_body(context).wrap(handler).in_current_span();
        match tokio::spawn(handler).await {
            Ok(response) => {
                let (mut head, body) = response?.into_parts();
                let is_answer = blames_the_key(&head.extensions).is_none();
                if !(is_answer && self.options.markers.bypassed(&mut head.headers)) {
                    return Ok(self.options.unprotected_failure().map(ResponseBody::full));
                }
                Ok(Response::from_parts(head, ResponseBody::untouched(body)))
            }
            Err(_) => Ok(self.panicked(true)),
        }
    }
}

/// Turns the verdict of the verification callback into what the record stores.
fn vouch(
    options: &Options,
    context: &Context,
    verdict: Verdict<Response<Bytes>>,
) -> Verdict<Vouched> {
    let response = match verdict {
        Verdict::Completed(response) if response.status().is_informational() => {
            let status = response.status().as_u16();
            tracing::error!(
                status,
                "the verification of a request returned a status that no final response has"
            );
            return Verdict::Unknown;
        }
        Verdict::Completed(response) => response,
        Verdict::NotExecuted => return Verdict::NotExecuted,
        Verdict::Unknown => return Verdict::Unknown,
    };
    let (head, body) = response.into_parts();
    let ttl = options.ttl_of(&head);
    let until = context.store_time().map(|now| now + ttl);
    let status = head.status;
    let (state, record) = of_response(Response::from_parts(head, body), until);
    let record = if record.len() > options.response_limit() { not_kept(status) } else { record };
    Verdict::Completed(Vouched { state, record, ttl })
}

/// The end of a guarded call, as seen by the request that waits for it.
enum Outcome<R, E> {
    /// The response is streamed, and the call continues on its own.
    Live(Response<ResponseBody<R>>),
    /// The panic hook has already reported it.
    Panicked,
    Ended(Handled<E>, Option<Response<ResponseBody<R>>>),
}

/// Waits for the end of `guarded`, or for a response that is sent before that end.
///
/// A `Live` response is returned at once; a `Settled` one only together with the end, when its
/// record is written. The handler sends from another task, so both futures may be ready in one
/// poll, and the handler may send between the two polls of one iteration. `try_recv` after the end
/// catches that last case: without it the response would be dropped and the client would get a
/// refusal instead.
async fn until_answered<R, E>(
    guarded: impl Future<Output = Handled<E>>,
    mut delivered: oneshot::Receiver<Delivery<R>>,
) -> Outcome<R, E> {
    let mut guarded = pin!(catching_panics(guarded));
    let mut response = None;
    let mut is_delivered = false;
    loop {
        tokio::select! {
            biased;
            delivery = &mut delivered, if !is_delivered => {
                is_delivered = true;
                match delivery {
                    Ok(Delivery::Live(response)) => return Outcome::Live(response),
                    Ok(Delivery::Settled(settled)) => response = Some(settled),
                    // No response will be delivered: the end decides.
                    Err(_) => {}
                }
            }
            ending = &mut guarded => {
                let Some(ending) = ending else { return Outcome::Panicked };
                // Delivered after this iteration polled `delivered`, before it polled `guarded`.
                if let (false, Ok(Delivery::Live(last) | Delivery::Settled(last))) = (is_delivered, delivered.try_recv()) {
                    response = Some(last);
                }
                return Outcome::Ended(ending, response);
            }
        }
    }
}

/// Returns the output of `future`, or `None` if it panics. After a panic it is not polled again.
async fn catching_panics<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|task| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(task))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(output)) => Poll::Ready(Some(output)),
        Err(_) => Poll::Ready(None),
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use http::Response;
    use http_body_util::Full;
    use tokio::sync::oneshot;

    use super::{Delivery, Handled, Outcome, ResponseBody, until_answered};
    use crate::http::handled::Fate;

    type Body = Full<Bytes>;

    #[tokio::test]
    async fn a_response_that_is_delivered_and_settled_at_once_is_not_missed() {
        for live in [true, false] {
            let (delivery, delivered) = oneshot::channel::<Delivery<Body>>();
            let outcome = until_answered(
                async move {
                    let response =
                        Response::new(ResponseBody::whole(Bytes::from_static(b"answer")));
                    let _ = delivery.send(if live {
                        Delivery::Live(response)
                    } else {
                        Delivery::Settled(response)
                    });
                    Handled::<Infallible>::Answered { fate: Fate::Release }
                },
                delivered,
            );
            assert!(matches!(outcome.await, Outcome::Ended(Handled::Answered { .. }, Some(_))));
        }
    }

    #[tokio::test]
    async fn a_panic_ends_the_wait() {
        let (_delivery, delivered) = oneshot::channel::<Delivery<Body>>();
        let panicking = async { panic!("the test asks for it") };
        let outcome: Outcome<Body, Infallible> = until_answered(panicking, delivered).await;
        assert!(matches!(outcome, Outcome::Panicked));
    }
}
