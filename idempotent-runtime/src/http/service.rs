//! The service: finds the key of a request, or passes the request on.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Task, Poll};

use bytes::Bytes;
use http::{Extensions, Request, Response, Version};
use http_body::Body;
use pin_project_lite::pin_project;
use tower_service::Service;

use super::guard::Guard;
use super::handler::{Handles, Readable, ready};
use super::key::IdempotencyKey;
use super::method::{self, Coverage};
use super::options::Options;
use super::problem::{Problem, ProblemKind};
use super::request_body::{RequestBody, Unread};
use super::response_body::ResponseBody;
use super::{BoxError, hook, scope};
use crate::edge;

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
        Untouched { #[pin] future: PassedOn<F>, options: Arc<Options> },
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
            KindProjection::Untouched { future, options } => {
                future.poll(task).map_ok(|response| options.in_form(response))
            }
            KindProjection::Guarded { future } => future.as_mut().poll(task).map_ok(of_this_hop),
            KindProjection::Refused { response } => response
                .take()
                .map_or(Poll::Pending, |response| Poll::Ready(Ok(of_this_hop(response)))),
        }
    }
}

pin_project! {
    /// The future of a service that gets a request as it is. Like the request's extensions, its
    /// [`IdempotencyKey::current`] has the key of a layer in front, and not that of a handler which
    /// sends this request.
    struct PassedOn<F> {
        #[pin]
        future: F,
        key: Option<IdempotencyKey>,
    }
}

impl<F: Future> PassedOn<F> {
    fn new<S, B>(service: &mut S, request: Request<B>) -> Self
    where
        S: Service<Request<B>, Future = F>,
    {
        let key = request.extensions().get().cloned();
        Self { future: IdempotencyKey::scoped(key.as_ref(), || service.call(request)), key }
    }
}

impl<F: Future> Future for PassedOn<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<F::Output> {
        let this = self.project();
        IdempotencyKey::scoped(this.key.as_ref(), || this.future.poll(task))
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
            Plan::PassOn(request) => Kind::Untouched {
                future: PassedOn::new(&mut self.service, request.map(RequestBody::untouched)),
                options: self.options.clone(),
            },
            Plan::Refuse(problem) => {
                // Release the slot that `poll_ready` reserved: no request takes it.
                self.service = self.service.clone();
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
            Some(Ok(None)) => {
                match options.keys.misplaced(request.headers(), is_keyed(request.extensions())) {
                    Some(misplaced) => {
                        Plan::Refuse(Problem::new(ProblemKind::Malformed).because(misplaced.0))
                    }
                    None => Plan::PassOn(request),
                }
            }
            Some(Err(malformed)) => {
                Plan::Refuse(Problem::new(ProblemKind::Malformed).because(malformed.0))
            }
            None => Plan::Refuse(Problem::new(ProblemKind::Internal)),
        }
    }
}

/// Returns true if a layer in front has found the key of this request, and guards it.
fn is_keyed(extensions: &Extensions) -> bool {
    extensions.get::<IdempotencyKey>().is_some()
}

pub(super) fn refusal<R>(options: &Options, problem: Problem) -> Response<ResponseBody<R>> {
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
                Ok(scope) => {
                    let namespace = edge::namespace(&options.engine);
                    IdempotencyKey::new(namespace, options.operation.clone(), key, scope)
                }
                Err(scope::Nobody) => return refuse(ProblemKind::NoPrincipal),
            },
            Some(Err(reason)) => return malformed(reason.0),
            None if self.required => return refuse(ProblemKind::Missing),
            None => {
                let is_keyed = is_keyed(&head.extensions);
                if let Some(misplaced) = options.keys.misplaced(&head.headers, is_keyed) {
                    return malformed(misplaced.0);
                }
                ready(&mut self.service).await?;
                let request = Request::from_parts(head, body);
                let response = PassedOn::new(&mut self.service, request).await?;
                return Ok(options.in_form(response));
            }
        };
        head.extensions.insert(key.clone());
        let guarded = Guard { options, key, head: Arc::new(head), bytes };
        guarded.run(self.service, body).await
    }
}
