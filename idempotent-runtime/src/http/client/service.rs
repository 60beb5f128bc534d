//! The service: assigns a key to a request and sends it until its response settles it.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Task, Poll};
use std::time::{Duration, SystemTime};

use http::{HeaderValue, Request, Response, response};
use pin_project_lite::pin_project;
use tower_service::Service;

use super::answer::{Repetition, repetition, retry_after};
use super::error::{ClientError, Sent};
use super::key::Chosen;
use super::layer::Options;
use super::pauses::anything_up_to;
use super::transport::{AnyError, BodyCopy, ClonedBody, PassingError};
use crate::error::Error;
use crate::http::hook;

/// A client behind a [`ClientLayer`](super::ClientLayer).
#[derive(Clone)]
pub struct ClientService<S, C = ClonedBody, P = AnyError> {
    service: S,
    options: Arc<Options>,
    copy: C,
    passing: P,
}

impl<S, C, P> ClientService<S, C, P> {
    pub(super) fn new(service: S, options: Arc<Options>, copy: C, passing: P) -> Self {
        Self { service, options, copy, passing }
    }
}

impl<S: fmt::Debug, C, P> fmt::Debug for ClientService<S, C, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientService")
            .field("service", &self.service)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

pin_project! {
    /// The future of [`ClientService`]. If it is dropped, no further attempt is sent; the outcome
    /// of the last one is not known.
    pub struct ClientFuture<F, R, E> {
        #[pin]
        kind: Kind<F, R, E>,
    }
}

type Sending<R, E> = Pin<Box<dyn Future<Output = Result<Response<R>, ClientError<E>>> + Send>>;

pin_project! {
    #[project = KindProjection]
    enum Kind<F, R, E> {
        Untouched { #[pin] future: F },
        Sending { future: Sending<R, E> },
        NotSent { error: Option<Error> },
    }
}

impl<F, R, E> Future for ClientFuture<F, R, E>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = Result<Response<R>, ClientError<E>>;

    fn poll(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<Self::Output> {
        match self.project().kind.project() {
            KindProjection::Untouched { future } => {
                future.poll(task).map_err(|error| ClientError::Failed { error, sent: None })
            }
            KindProjection::Sending { future } => future.as_mut().poll(task),
            KindProjection::NotSent { error } => error
                .take()
                .map_or(Poll::Pending, |error| Poll::Ready(Err(ClientError::NotSent(error)))),
        }
    }
}

impl<F, R, E> fmt::Debug for ClientFuture<F, R, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientFuture")
    }
}

impl<S, B, R, C, P> Service<Request<B>> for ClientService<S, C, P>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Send + 'static,
    R: Send + 'static,
    C: BodyCopy<B> + Clone + Send + 'static,
    P: PassingError<S::Error> + Clone + Send + 'static,
{
    type Response = Response<R>;
    type Error = ClientError<S::Error>;
    type Future = ClientFuture<S::Future, R, S::Error>;

    fn poll_ready(&mut self, task: &mut Task<'_>) -> Poll<Result<(), Self::Error>> {
        self.service.poll_ready(task).map_err(|error| ClientError::Failed { error, sent: None })
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (mut head, body) = request.into_parts();
        let key = self.options.key_of(&head).and_then(|key| match key {
            Some(key) => self.options.give(&mut head.headers, key).map(Some),
            None => Ok(None),
        });
        let kind = match key {
            Ok(None) => {
                Kind::Untouched { future: self.service.call(Request::from_parts(head, body)) }
            }
            Ok(Some(key)) => {
                let next = self.clone();
                // Call the service that is ready, and leave the clone.
                let Self { service, options, copy, passing } = std::mem::replace(self, next);
                let delivery = Delivery {
                    service,
                    options,
                    copy,
                    passing,
                    header: key.header.clone(),
                    attempts: 0,
                };
                Kind::Sending {
                    future: Box::pin(delivery.run(Request::from_parts(head, body), key)),
                }
            }
            Err(error) => {
                // Release the slot that `poll_ready` reserved: no request takes it.
                self.service = self.service.clone();
                Kind::NotSent { error: Some(error) }
            }
        };
        ClientFuture { kind }
    }
}

/// One request with a key, and everything needed to get it answered.
struct Delivery<S, C, P> {
    service: S,
    options: Arc<Options>,
    copy: C,
    passing: P,
    header: HeaderValue,
    /// The number of attempts that have begun.
    attempts: u32,
}

/// The end of an attempt.
enum Ended<R, E> {
    Answered(response::Parts, R),
    Failed(E),
    /// The client accepts no further request.
    Closed(E),
    TimedOut,
}

impl<S, C, P> Delivery<S, C, P> {
    async fn run<B, R>(
        mut self,
        request: Request<B>,
        key: Chosen,
    ) -> Result<Response<R>, ClientError<S::Error>>
    where
        S: Service<Request<B>, Response = Response<R>>,
        C: BodyCopy<B>,
        P: PassingError<S::Error>,
    {
        let deadline = self.options.clock.sleep(self.options.deadline);
        let ended = tokio::select! {
            // A response that is available wins over the deadline, however late this was polled.
            biased;
            ended = self.attempts(request) => ended,
            () = deadline => Ended::TimedOut,
        };
        let sent = Sent { header: self.header.clone(), attempts: self.attempts };
        match ended {
            Ended::Answered(mut head, body) => {
                // Only a final response keeps the place. In every other case its drop frees it, and
                // the next request to this address counts as the same one again.
                if let Some(place) = key.place.filter(|_| !self.can_change(&head)) {
                    place.answered();
                }
                head.extensions.insert(sent);
                Ok(Response::from_parts(head, body))
            }
            Ended::Failed(error) | Ended::Closed(error) => {
                Err(ClientError::Failed { error, sent: Some(sent) })
            }
            Ended::TimedOut => Err(ClientError::TimedOut { sent }),
        }
    }

    /// Sends the request until it is settled, or until a further attempt would be too late.
    async fn attempts<B, R>(&mut self, request: Request<B>) -> Ended<R, S::Error>
    where
        S: Service<Request<B>, Response = Response<R>>,
        C: BodyCopy<B>,
        P: PassingError<S::Error>,
    {
        let clock = self.options.clock.clone();
        let end = clock.monotonic().saturating_add(self.options.deadline);
        let mut bounds = self.options.backoff.bounds();
        let (head, mut body) = request.into_parts();
        loop {
            let is_last = self.attempts.saturating_add(1) >= self.options.max_attempts;
            let copy = if is_last {
                None
            } else {
                hook::call("with_body_copy", || self.copy.copy(&body)).flatten()
            };
            let ended = self.attempt(Request::from_parts(head.clone(), body)).await;
            let (Some(least), Some(copy)) = (self.least_pause(&ended), copy) else { return ended };
            let bound = bounds.next().unwrap_or_default();
            let pause = anything_up_to(bound, &*self.options.randomness).max(least);
            if end.saturating_sub(clock.monotonic()) <= pause {
                return ended;
            }
            // Drop the response before the pause: other requests can use its connection.
            drop(ended);
            tracing::debug!(
                attempts = self.attempts,
                ?pause,
                "a request is sent again with its idempotency key"
            );
            clock.sleep(pause).await;
            if clock.monotonic() >= end {
                return Ended::TimedOut;
            }
            body = copy;
        }
    }

    async fn attempt<B, R>(&mut self, request: Request<B>) -> Ended<R, S::Error>
    where
        S: Service<Request<B>, Response = Response<R>>,
    {
        let timeout = self.options.attempt_timeout.map(|timeout| self.options.clock.sleep(timeout));
        let timeout = async {
            match timeout {
                Some(timeout) => timeout.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            ended = self.send(request) => ended,
            () = timeout => Ended::TimedOut,
        }
    }

    async fn send<B, R>(&mut self, request: Request<B>) -> Ended<R, S::Error>
    where
        S: Service<Request<B>, Response = Response<R>>,
    {
        // Before the first attempt the caller has polled it.
        if self.attempts > 0
            && let Err(error) = poll_fn(|task| self.service.poll_ready(task)).await
        {
            return Ended::Closed(error);
        }
        self.attempts = self.attempts.saturating_add(1);
        match self.service.call(request).await {
            Ok(response) => {
                let (head, body) = response.into_parts();
                Ended::Answered(head, body)
            }
            Err(error) => Ended::Failed(error),
        }
    }

    /// Returns the shortest pause before the next attempt, or `None` if the request is settled.
    fn least_pause<R, E>(&self, ended: &Ended<R, E>) -> Option<Duration>
    where
        P: PassingError<E>,
    {
        match ended {
            Ended::Answered(head, _) if self.can_change(head) => {
                let now = SystemTime::from(self.options.clock.now());
                // R69: the pause is at least `Retry-After`, or only the backoff without one.
                Some(retry_after(head, now).unwrap_or_default())
            }
            Ended::Failed(error)
                if hook::call("with_errors", || self.passing.can_pass(error)) == Some(true) =>
            {
                Some(Duration::ZERO)
            }
            Ended::TimedOut => Some(Duration::ZERO),
            Ended::Answered(..) | Ended::Failed(_) | Ended::Closed(_) => None,
        }
    }

    fn can_change(&self, answer: &response::Parts) -> bool {
        match repetition(answer, &self.options.names) {
            Repetition::Ruled(can_change) => can_change,
            // The user's function may add statuses, but cannot override what the service says.
            Repetition::ByStatus(true) => true,
            Repetition::ByStatus(false) => {
                let retried = self.options.retried.as_ref();
                retried.is_some_and(|retried| {
                    hook::call("with_retried_answers", || retried(answer)) == Some(true)
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Ready, ready};
    use std::task::{Context, Poll};

    use http::{Request, Response};
    use tower_layer::Layer as _;
    use tower_service::Service;

    use super::super::{ClientError, ClientLayer, Sent};

    /// A client that accepts one request, which fails.
    #[derive(Clone, Default)]
    struct Closing {
        requests: u32,
    }

    impl Service<Request<()>> for Closing {
        type Response = Response<()>;
        type Error = &'static str;
        type Future = Ready<Result<Response<()>, &'static str>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
            Poll::Ready(if self.requests == 0 { Ok(()) } else { Err("closed") })
        }

        fn call(&mut self, _: Request<()>) -> Self::Future {
            self.requests += 1;
            ready(Err("broken"))
        }
    }

    #[tokio::test]
    async fn a_client_that_takes_no_further_request_gets_none() {
        let mut client = ClientLayer::new().layer(Closing::default());
        let error = client.call(Request::post("/").body(()).unwrap()).await.unwrap_err();
        assert!(matches!(error, ClientError::Failed { error: "closed", .. }), "{error}");
        assert_eq!(error.sent().map(Sent::attempts), Some(1));
    }
}
